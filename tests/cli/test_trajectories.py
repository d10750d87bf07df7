"""`segagent-rt trajectories`: made, continued, checked."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from segagent_rt.data.sources import Places, open_data, open_trajectories
from tests.cli.test_eval_data import killed, many, written
from tests.data.datasets import EVERY, segagent

pytestmark = pytest.mark.usefixtures("kept_open")

QUICK = ("--max-clicks", 3, "--threads", 1)


@pytest.mark.parametrize("name", ["segagent", "coco", "dis"])
def test_made_from_a_format_read_back_and_replayed(terminal, tmp_path, name):
    write, objects = EVERY[name]
    data = write(tmp_path)
    done = terminal("trajectories", data, *QUICK, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    (made,) = json.loads(done.out)
    assert made["trajectories"] == len(objects)
    (source,) = open_data(data, Places())
    folder = Path(data) if Path(data).is_dir() else tmp_path
    found = open_trajectories(made["path"], Places(images=folder))
    assert sum(len(each.clicks) for each in found) == made["clicks"]
    assert [each.sample.mask for each in found] == [sample.mask for sample in source.samples]
    checked = terminal("trajectories", made["path"], "--check", "--images", folder, "--json")
    assert checked.code == 0, checked.err
    counts = json.loads(checked.out)
    assert counts["same_trajectories"] == counts["trajectories"] == len(objects)
    assert counts["same_masks"] == counts["masks"] == made["clicks"]


def test_every_start_makes_one_more(terminal, tmp_path):
    starts = ("--start", "empty", "--start", "box", "--start", "random", "--start", "grid")
    how = (*starts, "--after-loss", "discard", "--least-gain", 0.01, *QUICK, "-o", tmp_path / "out")
    assert terminal("trajectories", segagent(tmp_path), *how).code == 0
    path = tmp_path / "out" / "objects.trajectories.json"
    found = open_trajectories(str(path), Places(images=tmp_path))
    assert [each.start.kind for each in found] == ["empty", "box", "random", "grid"] * 3
    told = json.loads(path.read_text())["info"]["args"]
    assert (told["n_clicks"], told["after_loss"], told["least_gain"]) == (3, "discard", 0.01)
    assert terminal("trajectories", path, "--check", "--images", tmp_path).code == 0
    (again,) = open_data(str(path), Places(images=tmp_path))
    (source,) = open_data(segagent(tmp_path), Places())
    assert [(s.id, s.expressions, s.mask) for s in again.samples] == [
        (s.id, s.expressions, s.mask) for s in source.samples
    ], "as a data set, every object once"


def test_a_bad_picture_does_not_end_a_replay(terminal, tmp_path):
    terminal("trajectories", segagent(tmp_path), *QUICK, "-o", tmp_path)
    path = tmp_path / "objects.trajectories.json"
    (tmp_path / "meadow.jpg").write_bytes(b"no picture")
    done = terminal("trajectories", path, "--check", "--json")
    assert done.code == 4
    assert "2 trajectories were not replayed" in done.err
    found = json.loads(done.out)
    assert found["trajectories"] == found["same_trajectories"] == 1
    assert len(found["problems"]) == 2
    (tmp_path / "harbour.jpg").unlink()
    done = terminal("trajectories", path, "--check")
    assert done.code == 1
    assert "no trajectory can be replayed" in done.err


def test_masks_that_do_not_replay_fail_the_gate(terminal, tmp_path):
    """A planted fault: one pixel of one mask."""
    terminal("trajectories", segagent(tmp_path), *QUICK, "-o", tmp_path)
    path = tmp_path / "objects.trajectories.json"
    document = json.loads(path.read_text())
    made = next(record for record in document["data"] if record["clicks_list"])
    made["clicks_list"][0]["mask"] = made["gt_ann"]["segmentation"]
    path.write_text(json.dumps(document))
    done = terminal("trajectories", path, "--check")
    assert done.code == 3
    assert "replay to the same masks" in done.err


def test_missing_pictures_are_named_and_the_others_done(terminal, tmp_path):
    data = segagent(tmp_path)
    (tmp_path / "harbour.jpg").unlink()
    done = terminal("trajectories", data, *QUICK, "-o", tmp_path / "out")
    assert done.code == 4
    assert "record 3: there is no image" in done.err
    assert "1 object without a trajectory" in done.err
    assert "2 trajectories" in done.out


def test_what_is_no_file_of_trajectories_cannot_be_checked(terminal, tmp_path):
    done = terminal("trajectories", segagent(tmp_path), "--check")
    assert done.code == 1
    assert "holds no trajectories" in done.err


@pytest.mark.parametrize("wrong", [("--start", "middle"), ("--after-loss", "cry")])
def test_unknown_words_are_usage_errors(terminal, tmp_path, wrong):
    done = terminal("trajectories", segagent(tmp_path), *wrong)
    assert done.code == 2
    assert wrong[1] in done.err


def test_another_run_is_refused(terminal, tmp_path):
    data = segagent(tmp_path)
    terminal("trajectories", data, *QUICK, "-o", tmp_path / "out")
    done = terminal("trajectories", data, "--max-clicks", 4, "-o", tmp_path / "out")
    assert done.code == 1
    assert "its `n_clicks` is 3, not 4" in done.err


@pytest.mark.chaos
@pytest.mark.slow
def test_kill_nine_at_random_points_then_the_same_files(tmp_path):
    """Twenty kills, in the annotator's trajectories and in the StaR+ round."""
    data = many(tmp_path / "data", 24)
    command = [sys.executable, "-m", "segagent_rt", "trajectories", data, "--threads", "1"]
    command += ["--max-clicks", "2", "--start", "random", "--star", "1", "-o"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    dice, kills = random.Random(0), 0
    for _ in range(20):
        kills += killed([*command, str(broken)], broken, dice.randrange(written(whole) // 20))
    subprocess.run([*command, str(broken)], check=True, capture_output=True)
    assert kills >= 10
    for name, suffix in (("many", "random"), ("many.star", "0")):
        journal = broken / f"{name}.trajectories.journal.jsonl"
        keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:]]
        assert keys == [f"{n}.{suffix}" for n in range(24)], "nothing lost, nothing twice"
        made = f"{name}.trajectories.json"
        assert (broken / made).read_bytes() == (whole / made).read_bytes()
