"""A StaR+ round: good clicks are kept, bad ones replaced, what follows a bad one is walked too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segagent_rt.annotators.oracle import OracleAnnotator, next_click
from segagent_rt.data.demonstrate import EncodedImage, Limits, demonstrate, same_masks
from segagent_rt.data.record import RunLengths, Sample
from segagent_rt.data.sources import Places, open_trajectories
from segagent_rt.data.star import corrected
from segagent_rt.data.trajectories import Start
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.testing import DiscEmbedding, DiscSegmenter, ScriptedAnnotator
from segagent_rt.types import Click
from tests.cli.terminal import Terminal
from tests.data.datasets import DRAWN, segagent

TARGET = DRAWN[1].mask
SIZE = TARGET.shape
SAMPLE = Sample(0, "meadow.jpg", Path("meadow.jpg"), RunLengths.of(TARGET), ("it",), "")
NOTHING = Start("empty", RunLengths.empty(SIZE))
BENCH = EncodedImage(DiscSegmenter(4), DiscEmbedding(SIZE))
RIGHT = [made.click for made in demonstrate(TARGET, NOTHING, BENCH, Limits(most=4))]
WRONG = [Click(4, 4, True), Click(4, 30, True), Click(15, 35, True)]
"""Far from the target."""


def walk(annotator, limits=None):
    view = annotator.look(np.zeros((*SIZE, 3), np.uint8))
    return list(corrected(SAMPLE, view, BENCH, limits or Limits(most=7)))


def check_whole(found):
    """No trajectory falls, all say their IoUs truly, and can be replayed."""
    for each in found:
        shown = each.demonstration
        values = [shown.start.iou, *(made.iou for made in shown.clicks)]
        assert values == sorted(values)
        assert values[1:] == [iou(made.mask.mask(), TARGET) for made in shown.clicks]
        assert same_masks(shown, BENCH) == len(shown.clicks) > 0


def test_a_model_that_clicks_as_the_annotator_does_is_left_alone():
    limits = Limits(most=7, good=0.9)
    (found,) = walk(OracleAnnotator(TARGET), limits)
    assert found.demonstration.clicks == tuple(demonstrate(TARGET, NOTHING, BENCH, limits))
    assert not found.replaced
    check_whole([found])


def test_every_click_of_a_model_that_clicks_wrong_is_replaced():
    """A planted fault. The masks are those that its own clicks made, the clicks are not."""
    found = walk(ScriptedAnnotator(WRONG), Limits(most=3))
    assert [each.replaced for each in found] == [True] * 3
    assert [each.demonstration.start.kind for each in found] == ["empty", "walk", "walk"]
    for each, at in zip(found, range(3), strict=True):
        (made,) = each.demonstration.clicks
        shown = each.demonstration.start.mask.mask()
        assert made.click == next_click(TARGET, shown)
        assert made.click not in WRONG
        assert all(shown[click.y, click.x] for click in WRONG[:at]), "what its clicks made"
    check_whole(found)


def test_good_clicks_before_and_after_a_bad_one_are_kept():
    found = walk(ScriptedAnnotator([RIGHT[0], WRONG[0], RIGHT[1], RIGHT[2]]), Limits(most=4))
    first, second = (each.demonstration for each in found)
    assert [made.click for made in first.clicks] == [RIGHT[0], RIGHT[1]], "the annotator's second"
    assert [made.click for made in second.clicks] == RIGHT[1:3]
    assert [each.replaced for each in found] == [True, False]
    assert second.start.iou < first.clicks[0].iou
    check_whole(found)


def test_a_reply_without_a_click_is_replaced_and_ends_it():
    (found,) = walk(ScriptedAnnotator(RIGHT[:1]))
    assert [made.click for made in found.demonstration.clicks] == RIGHT[:2]
    assert found.replaced


def test_a_click_that_changes_nothing_is_replaced_and_ends_it():
    """The model has no memory: it would say the same again."""
    (found,) = walk(ScriptedAnnotator([RIGHT[0]] * 9))
    assert [made.click for made in found.demonstration.clicks] == RIGHT[:2]


def test_a_good_mask_ends_it():
    assert len(walk(OracleAnnotator(TARGET), Limits(good=0.1))[0].demonstration.clicks) == 1


class Forgetful(DiscSegmenter):
    """Loses everything with the second click."""

    def decode(self, embedding, clicks, *, prior=None, box=None):
        if len(clicks) == 2:
            return GivenMask(np.zeros(embedding.size, np.bool_))
        return super().decode(embedding, clicks, prior=prior, box=box)


def test_where_the_annotator_loses_too_nothing_is_taught():
    view = ScriptedAnnotator(RIGHT).look(np.zeros((*SIZE, 3), np.uint8))
    bench = EncodedImage(Forgetful(4), DiscEmbedding(SIZE))
    (found,) = corrected(SAMPLE, view, bench, Limits(most=2))
    assert [made.click for made in found.demonstration.clicks] == RIGHT[:1]
    assert not found.replaced


@pytest.fixture
def terminal(monkeypatch, capsys):
    return Terminal(monkeypatch, capsys)


def round_of(terminal, folder, *more):
    how = ("--star", 2, "--max-clicks", 3, "--threads", 1, "-o", folder / "out", *more)
    return terminal("trajectories", segagent(folder), *how)


def test_the_file_holds_the_annotators_trajectories_and_the_corrected_walks(terminal, tmp_path):
    done = round_of(terminal, tmp_path, "--json")
    assert done.code == 0, done.err
    first, both = json.loads(done.out)
    assert both["path"].endswith("objects.star.trajectories.json")
    before, after = (json.loads(Path(made["path"]).read_text()) for made in (first, both))
    assert after["data"][: len(before["data"])] == before["data"]
    walked = after["data"][len(before["data"]) :]
    assert [record["gt_ann"]["caption"] for record in walked if "start" not in record] == [
        ["the red circle"], ["the largest circle"], ["the blue ring"], ["the big square"],
    ]  # fmt: skip
    assert after["info"]["args"] | {"star": None} == before["info"]["args"] | {"star": None}
    assert after["info"]["args"]["star"]["n_clicks"] == 2
    found = open_trajectories(both["path"], Places(images=tmp_path))
    assert (both["trajectories"], both["clicks"]) == (
        len(found), sum(len(each.clicks) for each in found),
    )  # fmt: skip
    images = ("--images", tmp_path)
    assert terminal("trajectories", both["path"], "--check", *images).code == 0
    out = ("--to", "llama-factory", "-o", tmp_path / "taught")
    assert terminal("convert", both["path"], *out, *images).code == 0


def test_a_round_that_is_done_is_not_done_again(terminal, tmp_path, monkeypatch):
    first = round_of(terminal, tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    monkeypatch.setattr(Canvas, "view", property(lambda self: 1 / 0))
    assert round_of(terminal, tmp_path).out == first.out
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")} == files


def test_words_that_the_model_does_not_know_are_named_and_the_others_walked(terminal, tmp_path):
    document = json.loads(Path(segagent(tmp_path)).read_text())
    document["data"][1]["gt_ann"]["caption"] = ["the zebra"]
    (tmp_path / "objects.json").write_text(json.dumps(document))
    how = ("--star", 1, "--max-clicks", 1, "--threads", 1, "-o", tmp_path / "out")
    done = terminal("trajectories", tmp_path / "objects.json", *how)
    assert done.code == 4
    assert "record 2: the shipped model does not know `zebra`" in done.err
    found = open_trajectories(
        str(tmp_path / "out" / "objects.star.trajectories.json"), Places(images=tmp_path)
    )
    assert len(found) > 3
