"""Figures by hand: two trajectories of which every IoU is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.data.predictions import RecordedStep, Recording
from segagent_rt.data.record import RunLengths
from segagent_rt.eval.figures import EarlyFigures, OneShotFigures
from segagent_rt.eval.scores import MaskChoice, figures, measure, overlaps
from segagent_rt.types import Box, Click


def row(count, of=10):
    """A mask of the first pixels of one row."""
    return RunLengths.of((np.arange(of) < count)[None])


def walk(target, masks, ratings, box=None):
    steps = tuple(
        RecordedStep(Click(0, 0, True), box, None if n is None else row(n), "r", rating)
        for n, rating in zip(masks, ratings, strict=True)
    )
    return Recording("images/a.jpg", "it", row(target), steps, stop="budget")


GOOD = walk(10, [5, 9, 8], [0.4, 0.7, 0.9], Box(0, 0, 5, 1))  # IoU 0.5 0.9 0.8
SHORT = walk(4, [2], [0.5])  # IoU 0.5


@pytest.fixture
def measured():
    return [measure(GOOD), measure(SHORT)]


def test_ious_of_the_chosen_masks(measured):
    found = figures(measured, MaskChoice("full"), 3)
    assert (found.ciou, found.giou) == (pytest.approx(10 / 14, abs=1e-6), 0.65)
    last = figures(measured, MaskChoice("last"), 3)
    assert last.giou == 0.65
    assert figures(measured, MaskChoice("full", 1), 3).giou == 0.7


def test_one_shot_every_click_and_the_best_there_was(measured):
    found = figures(measured, MaskChoice("full"), 3)
    assert found.one_shot == OneShotFigures(0.5, 0.5, boxes=1)
    assert [each.giou for each in found.by_click] == [0.5, 0.7, 0.65]
    assert found.truth_best.giou == 0.7


def test_clicks_needed_and_used(measured):
    found = figures(measured, MaskChoice("full"), 3)
    assert found.noc == {"80": 2.5, "85": 2.5, "90": 2.5}
    assert found.clicks_mean == 2.0
    assert found.stops == {"budget": 2}


def test_the_error_of_ratings_is_in_points(measured):
    found = figures(measured, MaskChoice("full"), 3)
    assert found.predicted_iou_mae == pytest.approx((10 + 20 + 10 + 0) / 4)


def test_what_accepting_early_would_have_returned():
    found = figures([measure(walk(10, [9, 8, 10], [0.95, 0.5, 0.9]))], MaskChoice("last"), 3)
    assert found.early == EarlyFigures(0.9, 0.9, accept=0.9, clicks_mean=1.0)
    assert found.giou == 1.0


def test_an_empty_walk_is_an_empty_mask_except_under_segagents_rule():
    nothing = [measure(walk(10, [], [])), measure(GOOD)]
    full, ref = figures(nothing, MaskChoice("full"), 3), figures(nothing, MaskChoice("ref"), 3)
    assert (full.giou, full.left_out) == (0.4, 0)
    assert ref.left_out == 1
    assert len(overlaps(nothing, MaskChoice("full"))) == 2
    assert len(overlaps(nothing, MaskChoice("ref"))) == 1


def test_what_refining_gained_and_lost():
    def refined(masks):
        clicked = walk(10, masks, [None] * len(masks))
        first = replace(clicked.steps[0], click=None)
        return measure(replace(clicked, steps=(first, *clicked.steps[1:])))

    found = figures([refined([6, 9, 8]), refined([6, 5]), refined([6])], MaskChoice("last"), 2)
    assert found.refined.start.giou == 0.6
    assert found.refined.gain == pytest.approx((0.2 - 0.1 + 0) / 3, abs=1e-6)
    assert found.refined.worse == pytest.approx(1 / 3, abs=1e-6)
    assert found.clicks_mean == 1.0
    assert found.one_shot.giou == pytest.approx((0.9 + 0.5 + 0.6) / 3, abs=1e-6)
    assert found.by_click[1].giou == pytest.approx((0.8 + 0.5 + 0.6) / 3, abs=1e-6)
    assert figures([measure(GOOD)], MaskChoice(), 3).refined is None


def test_a_step_without_a_mask_made_nothing():
    assert measure(walk(4, [None, 2], [None, None])).ious == [0.0, 0.5]


def test_nothing_wanted_and_nothing_found_agree():
    assert measure(walk(0, [0], [None])).ious == [1.0]
