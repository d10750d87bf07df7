"""Videos: frames one at a time, masks carried over, the annotator asked on every Nth frame."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest

from segagent_rt import runtime as runtimes
from segagent_rt.draw import png
from segagent_rt.errors import ImageUnreadable, SegagentWarning
from segagent_rt.types import Click, ObjectPrompt
from segagent_rt.video import Video, inner_click, track
from tests import squares
from tests.cli.terminal import Terminal

FRAMES = [squares.square(4 + 2 * number, 10 + number) for number in range(20)]
PROMPTS = [ObjectPrompt("the square")]


@pytest.fixture
def terminal(monkeypatch, capsys):
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video file of the 20 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for frame in FRAMES:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of the 20 frames."""
    for number, frame in enumerate(FRAMES):
        (tmp_path / f"{number:05d}.png").write_bytes(png(frame))
    return tmp_path


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_frames_are_decoded_one_at_a_time_in_rgb(clip, folder):
    from_file = [read() for read in Video(clip).frames()]
    from_folder = [read() for read in Video(folder).frames()]
    assert (Video(clip).count, len(from_file), len(from_folder)) == (20, 20, 20)
    for frame, first, second in zip(FRAMES, from_file, from_folder, strict=True):
        assert np.abs(first.astype(int) - frame).mean() < 6, "lossy, but no other colours"
        assert np.array_equal(second, frame)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", "is not a video that can be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video that can be read"),
        (b"", "is not a video that can be read"),
        (b"\0\0\0\x18ftypisom" + bytes(200), "cannot be decoded"),
    ],
)
def test_what_is_no_video_is_one_sentence(tmp_path, content, said):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(ImageUnreadable, match=said):
        list(Video(tmp_path / "v.mp4").frames())


def test_a_video_that_was_cut_off_says_so(clip, tmp_path):
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.warns(SegagentWarning, match=r"ends after \d+ of 20 frames"):
        frames = list(Video(cut).frames())
    assert 0 < len(frames) < 20


def test_large_frames_are_refused(clip):
    with pytest.raises(ImageUnreadable, match="megapixels"):
        list(Video(clip, max_megapixels=0.001).frames())


def test_the_annotator_is_asked_on_every_nth_frame_only(folder):
    runtime = squares.square_runtime()
    found = [results[0] for results in track(runtime, Video(folder), PROMPTS, look_every=5)]
    for frame, result in zip(FRAMES, found, strict=True):
        assert np.array_equal(result.mask, squares.bright(frame))
    stops = [result.trajectory.stop for result in found]
    assert [stop == "tracked" for stop in stops] == [number % 5 != 0 for number in range(20)]
    asked = runtime.annotator.asked
    assert asked == ["propose", "rate", "rate", "rate", "rate"], "a good mask is only rated"
    cold = squares.square_runtime()
    list(track(cold, Video(folder), PROMPTS, look_every=1))
    assert len(cold.annotator.asked) == 21


def test_a_frame_starts_from_the_mask_before(folder):
    runtime = squares.square_runtime()
    list(track(runtime, Video(folder), PROMPTS, look_every=20))
    for number, (clicks, prior, box) in enumerate(runtime.segmenter.decoded):
        if number:
            before = squares.bright(FRAMES[number - 1])
            assert np.array_equal(prior.mask(), before)
            assert all(before[click.y, click.x] for click in clicks)
            assert box is None


def test_without_ratings_a_look_begins_anew(folder):
    runtime = squares.square_runtime(rates=False)
    list(track(runtime, Video(folder), PROMPTS, look_every=10))
    assert runtime.annotator.asked.count("propose") >= 2


def test_clicks_are_about_the_first_frame(folder):
    runtime = squares.square_runtime()
    by_hand = [ObjectPrompt(clicks=(Click(6, 12, True),))]
    found = [results[0] for results in track(runtime, Video(folder), by_hand, look_every=2)]
    assert all(
        np.array_equal(r.mask, squares.bright(f)) for r, f in zip(found, FRAMES, strict=True)
    )
    assert runtime.annotator.asked == []


def test_an_object_that_left_is_looked_for_at_the_next_look(tmp_path):
    frames = [FRAMES[0], np.zeros_like(FRAMES[0]), FRAMES[2], FRAMES[3], FRAMES[4]]
    for number, frame in enumerate(frames):
        (tmp_path / f"{number}.png").write_bytes(png(frame))
    runtime = squares.square_runtime()
    found = [results[0] for results in track(runtime, Video(tmp_path), PROMPTS, look_every=4)]
    covered = [result.mask is not None and bool(result.mask.any()) for result in found]
    assert covered == [True, False, False, False, True]


def test_the_inner_click_is_farthest_from_the_edge():
    mask = np.zeros((20, 30), bool)
    mask[0:9, 0:9] = True
    mask[3, 9:30] = True
    assert inner_click(mask) == Click(4, 4, True)


def content(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and "journal" not in path.name
    }


def test_the_command_writes_each_frame_and_goes_on_where_it_was(
    terminal, clip, tmp_path, monkeypatch
):
    made = squares.square_runtime()
    monkeypatch.setattr(runtimes, "load", lambda *arguments, **options: made)
    command = ("run", "--video", clip, "the square", "--look-every", 6)
    done = terminal(*command, "-o", tmp_path / "whole", "--save", "mask,coco")
    assert done.code == 0, done.err
    lines = (tmp_path / "whole" / "segagent-run.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["frame"] for row in rows] == list(range(20))
    assert rows[7]["results"][0]["mask"] == "clip.000007.segagent.mask.png"
    coco = json.loads((tmp_path / "whole" / "segagent-run.coco.json").read_text())
    assert coco["images"][7]["file_name"] == "clip.avi/000007"
    assert len(coco["annotations"]) == 20
    with squares.stopped_after(15):
        stopped = terminal(*command, "-o", tmp_path / "out", "--save", "mask,coco")
    assert stopped.code == 130
    before = len(made.segmenter.decoded)
    again = terminal(*command, "-o", tmp_path / "out", "--save", "mask,coco")
    assert again.code == 0, again.err
    assert 0 < len(made.segmenter.decoded) - before < 20
    assert again.out == done.out.replace(str(tmp_path / "whole"), str(tmp_path / "out"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
