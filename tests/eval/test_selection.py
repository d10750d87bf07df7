"""Which mask of a trajectory counts: SegAgent's rule, our own, the last, a click by its number."""

from __future__ import annotations

import pytest

from segagent_rt.data.predictions import RecordedStep, Recording
from segagent_rt.data.record import RunLengths
from segagent_rt.eval.selection import best_rated, reference_best, select, shortened
from segagent_rt.types import Click

EMPTY = RunLengths.empty((4, 4))
OK = "<ref>it</ref> Current IOU: {}  Positive point: (1, 2)"


def recording(ratings, replies=None):
    replies = replies or [OK.format(0)] * len(ratings)
    steps = tuple(
        RecordedStep(Click(1, 1, True), None, EMPTY, reply, rating)
        for reply, rating in zip(replies, ratings, strict=True)
    )
    return Recording("a.jpg", "it", EMPTY, steps)


@pytest.mark.parametrize(
    ("replies", "index"),
    [
        ([OK.format(n) for n in (0, 50, 80, 60)], 1),  # reply 2 rates mask 1
        ([OK.format(n) for n in (0, 50, 80, 90)], 2),
        ([OK.format(n) for n in (90, 50, 80)], 0),  # nothing stands before the first mask
        ([OK.format(n) for n in (0, 70, 70)], 0),  # of equals the earliest
        (["Current IOU: 5, Positive point: (1, 2)", "Current IOU: 7, Negative point: (1, 2)"], 0),
        ([None, OK.format(9), OK.format(12)], 1),  # a box, nobody asked
        ([OK.format(0), OK.format(50), "mumble", OK.format(90)], 0),  # one bad reply spoils all
        ([" Positive point: (1, 2)"] * 3, 0),
        ([OK.format(3)], 0),
    ],
)
def test_the_rule_of_segagents_own_evaluation(replies, index):
    assert reference_best(replies) == index
    ratings = [None] * len(replies)
    assert select(recording(ratings, replies), "ref") == index


def test_our_rule_rates_the_last_mask_too_and_bears_unrated_ones():
    assert select(recording([0.3, 0.5, 0.9]), "full") == 2
    assert select(recording([0.3, None, 0.2]), "full") == 0
    assert select(recording([0.5, 0.5]), "full") == 0, "of equals the earlier"
    assert select(recording([None, None]), "full") == 1, "unrated: the last"
    assert best_rated([0.0, 0.0]) == 0


def test_the_last_and_a_click_by_its_number():
    walk = recording([0.9, 0.1, 0.2])
    assert select(walk, "last") == 2
    assert select(walk, "full", 1) == 1
    assert select(walk, "full", 6) == 2, "a walk that ended before keeps its last mask"
    for rule in ("full", "ref", "last"):
        assert select(recording([]), rule) is None


def test_a_walk_is_shortened_to_its_first_accepted_mask():
    walk = recording([0.3, None, 0.9, 0.95])
    assert len(shortened(walk.steps, 0.9)) == 3
    assert len(shortened(walk.steps, 0.96)) == 4
