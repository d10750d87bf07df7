"""`segagent-rt eval DATA`: every format, the files it leaves, broken runs, missing pictures."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.data.record import expression_queries
from segagent_rt.data.sources import Places, open_data
from segagent_rt.image import rle_to_mask
from segagent_rt.scenes import make_scene
from tests.data.datasets import EVERY, coco, segagent, segagent_document

pytestmark = pytest.mark.usefixtures("kept_open")

ORACLE = ("--annotator", "oracle", "--max-clicks", 3, "--threads", 1)


def figures(done):
    assert done.code == 0, done.err
    return json.loads(done.out)["results"]


@pytest.mark.parametrize("name", EVERY)
def test_every_format_is_evaluated(terminal, tmp_path, name):
    write, objects = EVERY[name]
    data = write(tmp_path)
    done = terminal("eval", data, "--root", tmp_path, *ORACLE, "-o", tmp_path / "out", "--json")
    (found,) = figures(done)
    assert found["samples"] == sum(len(drawn.expressions) for drawn in objects)
    assert found["missing"] == []
    assert {"ciou", "giou", "one_shot", "by_click", "noc", "clicks_mean", "milliseconds"} <= set(
        found
    )
    assert f"{found['samples']} of {found['samples']}, 0 s left" in done.err


def test_several_at_once_by_split(terminal, tmp_path):
    write, _ = EVERY["split"]
    write(tmp_path)
    (tmp_path / "refcoco_testA.json").write_text((tmp_path / "refcoco_val.json").read_text())
    places = ("--root", tmp_path, "-o", tmp_path / "out", "--json")
    done = terminal("eval", "refcoco", "--split", "val", "--split", "testA", *ORACLE, *places)
    assert [each["data"] for each in figures(done)] == ["refcoco_val", "refcoco_testA"]


def test_the_shipped_mllm_answers_and_its_walks_are_kept(terminal, tmp_path):
    done = terminal(
        "eval", segagent(tmp_path), "-o", tmp_path, "--max-clicks", 2, "--visualize", "--json"
    )
    (found,) = figures(done)
    written = json.loads((tmp_path / "objects.predictions.json").read_text())
    assert [record["caption"] for record in written] == [
        ["the red circle"], ["the largest circle"], ["the blue ring"], ["the big square"],
    ]  # fmt: skip
    assert all("Current IOU" in step["outputs"] for r in written for step in r["pred_list"])
    assert len(list((tmp_path / "objects.pictures").iterdir())) == 4
    assert found["bundle"]
    assert (tmp_path / "objects.json").read_text() == json.dumps(segagent_document()), "data stays"


def test_a_picture_that_was_damaged_since_is_not_drawn_and_named(terminal, tmp_path):
    how = ("eval", segagent(tmp_path), "-o", tmp_path, "--max-clicks", 1, "--json")
    assert terminal(*how).code == 0
    (tmp_path / "meadow.jpg").write_bytes(b"no picture")
    done = terminal(*how, "--visualize")
    assert done.code == 4
    assert "3 pictures could not be drawn" in done.err
    (found,) = json.loads(done.out)["results"]
    assert len(found["not_drawn"]) == 3
    assert [path.name for path in (tmp_path / "objects.pictures").iterdir()] == ["00004.png"]


def test_several_candidates_are_tried_and_it_is_said(terminal, tmp_path):
    how = ("--candidates", 2, "--temperature", 0.5, "--max-clicks", 1, "--limit", 2)
    (found,) = figures(terminal("eval", segagent(tmp_path), *how, "-o", tmp_path / "out", "--json"))
    assert (found["candidates"], found["temperature"], found["samples"]) == (2, 0.5, 2)
    done = terminal("eval", tmp_path / "objects.json", "--max-clicks", 1, "-o", tmp_path / "out")
    assert "its `candidates` is 2, not 1" in done.err


@pytest.mark.thorough
def test_patience_ends_walks_early_and_it_is_said(terminal, tmp_path):
    out, longer = (("-o", tmp_path / name, "--json") for name in ("out", "long"))
    (long,) = figures(terminal("eval", segagent(tmp_path), *longer))
    (found,) = figures(terminal("eval", segagent(tmp_path), "--patience", 1, *out))
    assert found["patience"] == 1
    assert "patience" not in long
    assert found["stops"].get("no gain", 0) > 0
    assert found["clicks_mean"] < long["clicks_mean"]


def test_walks_from_degraded_masks_say_what_refining_gains(terminal, tmp_path):
    how = (*ORACLE, "--start", "degraded", "--select", "last", "-o", tmp_path / "out", "--json")
    (found,) = figures(terminal("eval", segagent(tmp_path), *how))
    assert 0.5 <= found["refined"]["start"]["giou"] <= 0.7
    again = terminal("eval", tmp_path / "out" / "objects.predictions.json", *how[-5:-3], *how[-3:])
    assert figures(again)[0]["refined"] == found["refined"], "the start is in the predictions file"
    gain = found["giou"] - found["refined"]["start"]["giou"]
    assert found["refined"]["gain"] == pytest.approx(gain, abs=2e-6)


def test_figures_follow_from_the_predictions_file_alone(terminal, tmp_path):
    """cIoU and gIoU as documented, computed here from the JSON by nobody's code but numpy's."""
    done = terminal(
        "eval", segagent(tmp_path), *ORACLE, "--select", "last", "-o", tmp_path, "--json"
    )
    (found,) = figures(done)
    both, either = [], []
    for record in json.loads((tmp_path / "objects.predictions.json").read_text()):
        mask, target = (
            rle_to_mask(rle) for rle in (record["pred_list"][-1]["mask"], record["gt_mask"])
        )
        both.append(np.sum(mask & target))
        either.append(np.sum(mask | target))
    assert found["ciou"] == pytest.approx(np.sum(both) / np.sum(either), abs=1e-6)
    assert found["giou"] == pytest.approx(np.mean(np.divide(both, either)), abs=1e-6)
    with (tmp_path / "objects.last_clicknew2None.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["mask_idx"] != "-1"]
    assert [float(r["iou"]) for r in rows] == pytest.approx(np.divide(both, either), abs=1e-6)


def test_a_predictions_file_is_scored_again_without_a_model(terminal, tmp_path, monkeypatch):
    from segagent_rt.runtime import Runtime

    (first,) = figures(terminal("eval", segagent(tmp_path), *ORACLE, "-o", tmp_path, "--json"))
    monkeypatch.setattr(Runtime, "segmenter", property(lambda self: 1 / 0))
    path = tmp_path / "objects.predictions.json"
    (again,) = figures(terminal("eval", path, "-o", tmp_path / "again", "--json"))
    for key in ("ciou", "giou", "one_shot", "noc", "by_click", "clicks_mean", "stops"):
        assert again[key] == first[key]
    (other,) = figures(terminal("eval", path, "--click-id", 0, "-o", tmp_path / "again", "--json"))
    assert other["giou"] == first["one_shot"]["giou"]


def test_segagents_own_file_gives_segagents_own_figures(terminal, tmp_path, shared):
    path = shared / "segagent" / "eval" / "predictions.json"
    (found,) = figures(terminal("eval", path, "--select", "ref", "-o", tmp_path, "--json"))
    expected = json.loads((path.parent / "expected.json").read_text())["runs"]
    wanted = expected["predictions click_id=None"]
    assert found["ciou"] == pytest.approx(wanted["class_iou"], abs=1e-5)
    assert found["giou"] == pytest.approx(wanted["global_iou"], abs=1e-5)
    table = "predictions_clicknew2None.csv"
    assert (tmp_path / table).read_bytes() == (path.parent / table).read_bytes()


def test_missing_pictures_are_counted_and_named_and_the_others_done(terminal, tmp_path):
    data = Path(segagent(tmp_path))
    (tmp_path / "meadow.jpg").unlink()
    done = terminal("eval", data, *ORACLE, "-o", tmp_path / "out")
    assert done.code == 4
    assert f"1 pictures are not there ({tmp_path / 'meadow.jpg'})" in done.err
    written = json.loads((tmp_path / "out" / "objects.figures.json").read_text())
    assert (written["samples"], written["missing"]) == (1, [str(tmp_path / "meadow.jpg")])
    assert terminal("eval", data, *ORACLE, "-o", tmp_path / "none", "--limit", 3).code == 1
    segagent(tmp_path)
    assert terminal("eval", data, *ORACLE, "-o", tmp_path / "out").code == 0, "and can be added"
    assert json.loads((tmp_path / "out" / "objects.figures.json").read_text())["samples"] == 4


def test_no_picture_at_all(terminal, tmp_path):
    data = segagent(tmp_path)
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    done = terminal("eval", data, *ORACLE, "-o", tmp_path / "out")
    assert done.code == 1
    assert "2 pictures are not there" in done.err
    assert "--images" in done.err


def test_a_question_that_cannot_be_put_is_named_and_the_others_done(terminal, tmp_path):
    document = segagent_document()
    document["data"][1]["gt_ann"]["caption"] = ["the zebra"]
    document["data"][2].update(height=33)
    document["data"][2]["gt_ann"]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    data = Path(segagent(tmp_path))
    data.write_text(json.dumps(document))
    done = terminal("eval", data, "--max-clicks", 1, "-o", tmp_path / "out")
    assert done.code == 4
    assert "2 questions could not be put" in done.err
    assert "record 2" in done.err
    assert "`zebra`" in done.err
    assert "32 x 48 pixels high and wide, its mask 33 x 48" in done.err
    assert json.loads((tmp_path / "out" / "objects.figures.json").read_text())["samples"] == 2


def test_a_second_run_repeats_nothing(terminal, tmp_path, monkeypatch):
    from segagent_rt.eval.loop_runs import EvalRunner

    data = segagent(tmp_path)
    command = ("eval", data, *ORACLE, "-o", tmp_path / "out", "--json")
    (first,) = figures(terminal(*command))
    with monkeypatch.context() as patch:
        patch.setattr(EvalRunner, "run_loop", lambda *_: 1 / 0)
        (again,) = figures(terminal(*command))
    assert again == first


def test_another_run_in_the_same_folder_is_refused(terminal, tmp_path):
    data = segagent(tmp_path)
    terminal("eval", data, *ORACLE, "-o", tmp_path / "out")
    before = (tmp_path / "out" / "objects.predictions.json").read_bytes()
    other = ("eval", data, "--annotator", "oracle", "--max-clicks", 1, "-o", tmp_path / "out")
    done = terminal(*other)
    assert done.code == 1
    assert "its `max_clicks` is 3, not 1" in done.err
    assert (tmp_path / "out" / "objects.predictions.json").read_bytes() == before
    assert terminal(*other, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2", "is not JSON"),
        ('{"data": [{}]}', "no known format"),
        ('[{"pred_list": 5}]', "`height` is missing"),
        ('{"data": [{"gt_ann": 1}]}', "record 1"),
    ],
)
def test_bad_files_are_refused_before_any_walk(terminal, tmp_path, content, sentence):
    (tmp_path / "bad.json").write_text(content)
    good = coco(tmp_path)
    done = terminal("eval", good, tmp_path / "bad.json", *ORACLE, "-o", tmp_path / "out")
    assert done.code == 1
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_split_of_a_file_is_a_usage_error(terminal, tmp_path):
    done = terminal("eval", segagent(tmp_path), "--split", "val", "-o", tmp_path / "out")
    assert done.code == 2
    assert "--split goes with refcoco" in done.err


@pytest.mark.parametrize(
    "wrong", [("--select", "best"), ("--annotator", "me"), ("--candidates", 0), ("--limit", 0)]
)
def test_wrong_options_are_usage_errors(terminal, tmp_path, wrong):
    done = terminal("eval", segagent(tmp_path), *wrong, "-o", tmp_path / "out")
    assert done.code == 2
    assert not (tmp_path / "out").exists()


def test_scenes_can_be_written_as_a_data_set(terminal, tmp_path):
    how = ("--expressions", 4, "-o", tmp_path / "scenes")
    made = terminal("scene", "--seed", 3, "--count", 2, "--side", 96, *how)
    path = Path(made.out.strip())
    assert path == tmp_path / "scenes" / "scenes.json"
    said = [expression.text for n in (3, 4) for expression in make_scene(n, 96).expressions]
    (found,) = open_data(str(path), Places())
    asked = list(expression_queries(found.samples))
    assert sorted(question.expression for question in asked) == sorted(said)
    first = make_scene(3, 96)
    assert np.array_equal(found.samples[0].mask.mask(), first.mask(first.expressions[0].target))
    done = terminal("eval", path, *ORACLE, "--limit", 2, "-o", tmp_path / "out", "--json")
    assert figures(done)[0]["samples"] == 2


def test_results_of_one_name_are_refused(terminal, tmp_path):
    trouble = ('[{"pred_list": [], "height": 1, "width": 1, "caption": "it", "img_path": "a.jpg",'
               ' "gt_mask": {"size": [1, 1], "counts": [1]}}]')  # fmt: skip
    for name in ("a/p.json", "b/p.predictions.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(trouble)
    files = (tmp_path / "a" / "p.json", tmp_path / "b" / "p.predictions.json")
    done = terminal("eval", *files, "-o", tmp_path / "out")
    assert done.code == 1
    assert "two data sets are called p" in done.err
    assert not (tmp_path / "out").exists()
    assert terminal("eval", files[0], "-o", tmp_path / "out").code == 0


def test_scenes_stay_the_default(terminal):
    done = terminal("eval", "--scenes", 1, "--json")
    assert "first_click_hit" in json.loads(done.out)


@pytest.mark.chaos
@pytest.mark.slow
def test_kill_nine_at_random_points_then_the_same_files(tmp_path):
    """Twenty kills; the files of the run that was resumed equal those of one never broken."""
    data = many(tmp_path / "data", 24)
    command = [sys.executable, "-m", "segagent_rt", "eval", data, "--annotator", "oracle"]
    command += ["--max-clicks", "2", "--threads", "1", "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    journal = tmp_path / "broken" / "many.journal.jsonl"
    dice, kills = random.Random(0), 0
    size = (tmp_path / "whole" / "many.journal.jsonl").stat().st_size
    for _ in range(20):
        grow = dice.randrange(size // 20)
        kills += killed([*command, str(tmp_path / "broken")], journal.parent, grow)
    done = subprocess.run([*command, str(tmp_path / "broken")], check=True, capture_output=True)
    assert b"24 of 24" not in done.stderr, "it went on, it did not begin again"
    assert kills >= 10
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:]]
    assert keys == [f"{n}.0" for n in range(24)]
    for path in sorted((tmp_path / "whole").glob("many*")):
        if path.name not in ("many.journal.jsonl", "many.timings.json"):
            assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes(), path.name


def many(folder: Path, count: int) -> str:
    """So many samples of one picture."""
    segagent(folder)
    record = segagent_document()["data"][0]
    record["gt_ann"]["caption"] = "the circle"
    data = [
        {**record, "gt_ann": {**record["gt_ann"], "object_id": number}} for number in range(count)
    ]
    (folder / "many.json").write_text(json.dumps({"data": data}))
    return str(folder / "many.json")


def killed(command: list[str], folder: Path, grow: int) -> bool:
    """Run until the journals have grown by so many bytes, then kill -9; whether it still ran."""
    start = written(folder)
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while running.poll() is None:
        if written(folder) > start + grow:
            os.kill(running.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    return running.wait() == -signal.SIGKILL


def written(folder: Path) -> int:
    return sum(journal.stat().st_size for journal in folder.glob("*.jsonl"))
