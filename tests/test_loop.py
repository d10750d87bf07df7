"""The loop: what it asks, when it stops, which mask it returns."""

from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from segagent_rt.errors import Interrupted
from segagent_rt.loop import StoppingRules, UnratedLimits, annotate, iter_steps
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.testing import DiscSegmenter, ScriptedAnnotator
from segagent_rt.types import (
    GREEDY,
    Box,
    Click,
    Malformed,
)

IMAGE = np.zeros((60, 80, 3), np.uint8)
CLICKS = [Click(20 + 5 * n, 30, positive=True) for n in range(10)]
NEVER_ACCEPTS = StoppingRules(accept_above=None, retry_below=None)


def run(script, rules=None, prior=None, segmenter=None):
    segmenter = segmenter or DiscSegmenter()
    embedding = Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = script.look(IMAGE)
    found = annotate("it", view, segmenter, embedding, rules=rules, prior=prior)
    return found, view


def ratings(found):
    return [step.rating for step in found.masks]


def test_the_budget_is_kept_and_the_last_mask_is_rated_too():
    found, view = run(ScriptedAnnotator(CLICKS, [0.5] * 3), StoppingRules(max_clicks=3))
    assert found.stop == "budget"
    assert len(found.clicks) == len(found.steps) == 3
    assert len(view.seen) == 4, "no mask, and three masks"


def test_the_last_mask_may_be_left_unrated_as_in_segagents_evaluation():
    rules = StoppingRules(max_clicks=3, retry_below=None, rate_last_mask=False)
    found, view = run(ScriptedAnnotator(CLICKS, [0.3, 0.8]), rules)
    assert (found.stop, len(found.clicks), len(view.seen)) == ("budget", 3, 3)
    assert ratings(found) == [0.3, 0.8, None]
    assert found.best is found.steps[1], "an unrated mask does not win over a rated one"


def test_the_first_look_is_at_no_mask_and_later_ones_at_the_mask_so_far():
    found, view = run(ScriptedAnnotator(CLICKS), NEVER_ACCEPTS)
    assert view.seen[0].prediction is None
    assert [request.prediction for request in view.seen[1:]] == [
        step.prediction for step in found.steps
    ]


def test_a_step_owns_the_rating_of_its_mask():
    """The rating of step i is of the mask that click i made, and the best of them is returned."""
    rules = replace(NEVER_ACCEPTS, max_clicks=3)
    found, _ = run(ScriptedAnnotator(CLICKS, [0.3, 0.8, 0.5]), rules)
    assert ratings(found) == [0.3, 0.8, 0.5]
    assert [step.rating_reply for step in found.steps] == ["rating 1", "rating 2", "rating 3"]
    assert found.best is found.steps[1]
    assert found.prediction is found.steps[1].prediction
    assert found.rating == 0.8


def test_equal_ratings_return_the_earlier_mask():
    found, _ = run(ScriptedAnnotator(CLICKS, [0.6, 0.6]), StoppingRules(max_clicks=2))
    assert found.best is found.steps[0]


def test_the_first_mask_is_kept_as_the_one_shot_result():
    found, _ = run(ScriptedAnnotator(CLICKS, [0.6, 0.95]))
    assert found.one_shot is found.steps[0]
    assert found.best is found.steps[1]


def test_an_accepted_mask_ends_the_loop_and_no_click_is_proposed_for_it():
    found, view = run(ScriptedAnnotator(CLICKS, [0.6, 0.95]), StoppingRules(accept_above=0.9))
    assert found.stop == "accepted"
    assert found.clicks == tuple(CLICKS[:2])
    assert view.calls == ["propose", "rate", "propose", "rate"]


class Timed:
    """A view for which every stage of every call takes a second."""

    def __init__(self, view):
        self.view = view

    def propose(self, requests, sampling=GREEDY):
        ((turn,),) = self.view.propose(requests, sampling)
        return [[replace(turn, seconds={"language": 1.0})]]

    def rate(self, requests):
        (rating,) = self.view.rate(requests)
        return [replace(rating, seconds={"vision": 1.0, "language": 1.0})]


def test_a_step_has_the_time_of_its_proposal_and_of_its_rating():
    segmenter, embedding = DiscSegmenter(), Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = Timed(ScriptedAnnotator(CLICKS, [0.6, 0.95]).look(IMAGE))
    first, _ = annotate("it", view, segmenter, embedding).steps
    assert first.seconds["vision"] == 1.0
    assert first.seconds["language"] == 2.0
    assert set(first.seconds) == {"annotate", "segment", "vision", "language"}


def test_a_given_mask_is_a_step_of_its_own_and_may_be_returned():
    prior = GivenMask(np.ones((60, 80), np.bool_))
    found, view = run(ScriptedAnnotator(CLICKS, [0.8, 0.4]), StoppingRules(max_clicks=1), prior)
    assert view.seen[0].prediction is prior
    assert (found.steps[0].given, found.steps[0].rating) == (True, 0.8)
    assert found.prediction is prior
    assert found.one_shot is found.steps[1], "the first mask that was segmented"


def test_a_given_mask_that_is_good_enough_is_not_clicked():
    prior = GivenMask(np.ones((60, 80), np.bool_))
    found, view = run(ScriptedAnnotator(CLICKS, [0.95]), prior=prior)
    assert (found.stop, found.clicks, view.calls) == ("accepted", (), ["rate"])
    assert found.one_shot is None


def test_patience_ends_a_loop_that_gets_no_better():
    script = ScriptedAnnotator(CLICKS, [0.5, 0.4, 0.3, 0.2])
    found, view = run(script, StoppingRules(accept_above=None, patience=2))
    assert found.stop == "no gain"
    assert len(found.clicks) == 3
    assert found.best is found.steps[0]
    assert view.calls[-1] == "rate", "no further click is proposed"


def test_a_mask_that_no_longer_changes_ends_the_loop_and_keeps_its_rating():
    same = [Click(20, 30, positive=True)] * 5
    found, view = run(ScriptedAnnotator(same, [0.6]))
    assert found.stop == "unchanged"
    assert len(found.clicks) == 2
    assert len(view.seen) == 2, "it is not looked at again"
    assert ratings(found) == [0.6, 0.6]


def test_a_loop_that_ignores_unchanged_masks_uses_its_budget_up():
    same = [Click(20, 30, positive=True)] * 5
    rules = StoppingRules(3, stop_if_unchanged=False)
    found, _ = run(ScriptedAnnotator(same, [0.6, 0.6, 0.6]), rules)
    assert found.stop == "budget"
    assert len(found.clicks) == 3


LEFT, RIGHT = Click(10, 30, positive=True), Click(60, 30, positive=True)
FIRST_AND_MORE = [LEFT, *CLICKS[1:]]


def retried(samples, ratings, rules=None, prior=None):
    return run(ScriptedAnnotator(FIRST_AND_MORE, ratings, samples), rules, prior)


def test_a_first_mask_rated_low_is_discarded_for_a_click_outside_it():
    found, view = retried([LEFT, RIGHT], [0.2, 0.95])
    assert found.clicks == (LEFT, RIGHT)
    assert [step.restarted for step in found.steps] == [False, True]
    assert ratings(found) == [0.2, 0.95]
    assert view.calls == ["propose", "rate", "sample", "rate"]
    mask = found.prediction.mask()
    assert mask[30, 60]
    assert not mask[30, 10], "made of the second click alone"


def test_the_click_after_a_restart_adds_to_it_alone():
    found, _ = retried([RIGHT], [0.2, 0.7, 0.95])
    last, third = found.steps[-1].prediction.mask(), FIRST_AND_MORE[1]
    assert last[30, 60]
    assert not last[30, 10]
    assert last[third.y, third.x]


def test_first_clicks_are_tried_until_one_is_rated_well_or_no_sample_is_left():
    others = [LEFT, RIGHT, Click(35, 8, positive=True), Click(35, 52, positive=False)]
    found, view = retried(others, [0.2, 0.3, 0.1], StoppingRules(max_clicks=5))
    assert found.clicks[:3] == (LEFT, RIGHT, others[2])
    assert [step.restarted for step in found.steps] == [False, True, True, False, False]
    assert view.calls.count("sample") == 3, "the last time all are negative or inside a mask"
    assert found.clicks[3] == FIRST_AND_MORE[1], "so the loop goes on as it would have"
    assert found.stop == "budget"


def test_the_best_rated_mask_is_returned_even_if_it_was_discarded():
    found, _ = retried([RIGHT], [0.4, 0.3], StoppingRules(max_clicks=2))
    assert found.best is found.steps[0]
    assert found.prediction.mask()[30, 10]


def test_an_answer_without_a_click_does_not_keep_a_bad_first_mask():
    """The retry comes before the next proposal about the mask that it discards."""
    found, view = run(ScriptedAnnotator([LEFT], [0.2, 0.95], [RIGHT]))
    assert found.clicks == (LEFT, RIGHT)
    assert view.calls == ["propose", "rate", "sample", "rate"]


@pytest.mark.parametrize(
    ("ratings", "rules", "prior"),
    [
        ([0.5], StoppingRules(3), None),
        ([0.1], StoppingRules(3, retry_below=None), None),
        ([None] * 3, StoppingRules(3), None),
        ([0.1] * 4, StoppingRules(3), GivenMask(np.zeros((60, 80), np.bool_))),
    ],
    ids=["rated well", "switched off", "unrated", "with a given mask"],
)
def test_nothing_is_discarded(ratings, rules, prior):
    found, view = retried([RIGHT], ratings, rules, prior)
    assert not any(step.restarted for step in found.steps)
    assert "sample" not in view.calls


BOX = Box(10, 10, 29, 39)


def test_a_first_look_by_box_is_segmented_and_is_the_result_if_nobody_rates_it():
    found, view = run(ScriptedAnnotator([BOX, *CLICKS], [None]))
    (step,) = found.steps
    assert (found.stop, step.click, step.box) == ("one-shot", None, BOX)
    assert found.one_shot is found.best is step
    assert not step.given
    assert step.prediction.mask().sum() == 20 * 30
    assert view.calls == ["propose", "rate"]


def test_a_box_that_is_rated_low_is_corrected_by_clicks_and_stays_a_prompt():
    boxes = []

    class Recording(DiscSegmenter):
        def decode(self, embedding, clicks, *, prior=None, box=None):
            boxes.append((len(clicks), box))
            return super().decode(embedding, clicks, prior=prior, box=box)

    script = ScriptedAnnotator([BOX, RIGHT], [0.3, 0.95])
    found, view = run(script, segmenter=Recording())
    assert found.stop == "accepted"
    assert found.clicks == (RIGHT,)
    assert boxes == [(0, BOX), (1, BOX)]
    assert found.prediction.mask()[30, 60]
    assert found.prediction.mask()[20, 20]
    assert "sample" not in view.calls, "only a bad first click is tried again"


def test_an_unrated_box_is_corrected_by_clicks_where_that_was_measured_to_help():
    rules = StoppingRules(2, stop_after_box=False)
    found, _ = run(ScriptedAnnotator([BOX, *CLICKS], [None] * 3), rules)
    assert found.stop == "budget"
    assert len(found.clicks) == 2
    assert found.best is found.steps[-1], "the last mask if none is rated"


def test_a_model_that_answers_with_boxes_alone_comes_to_an_end():
    boxes = [Box(at, at, at + 20, at + 20) for at in range(0, 20, 2)]
    rules = StoppingRules(3, stop_if_unchanged=False, stop_after_box=False)
    found, _ = run(ScriptedAnnotator(boxes, [None] * 10), rules)
    assert found.stop == "budget"
    assert len(found.steps) == 4, "the first look, and three boxes in the place of clicks"


def test_a_malformed_reply_ends_the_loop_and_keeps_the_mask():
    mumble = Malformed("no point in the reply")
    found, _ = run(ScriptedAnnotator([CLICKS[0], mumble], [0.6]))
    assert found.stop == "malformed"
    assert len(found.clicks) == 1
    assert found.prediction is not None
    assert found.steps[-1].turn.action == mumble


def test_an_annotator_that_finishes_at_once_leaves_no_mask():
    found, _ = run(ScriptedAnnotator([]))
    assert found.stop == "finished"
    assert found.prediction is None
    assert found.best is None
    assert found.one_shot is None


def test_a_call_that_is_interrupted_returns_the_best_mask_so_far():
    class Slow(DiscSegmenter):
        def decode(self, embedding, clicks, **rest):
            if len(clicks) == 2:
                raise Interrupted("the deadline has passed")
            return super().decode(embedding, clicks, **rest)

    found, _ = run(ScriptedAnnotator(CLICKS, [0.7]), segmenter=Slow())
    assert found.stop == "deadline"
    assert found.clicks == (CLICKS[0],), "the click without a mask is dropped"
    assert found.prediction is found.steps[0].prediction
    assert found.rating == 0.7


def test_a_mask_whose_rating_is_interrupted_is_kept():
    class Hasty:
        def __init__(self, view):
            self.propose = view.propose

        def rate(self, requests):
            raise Interrupted("the deadline has passed")

    segmenter, embedding = DiscSegmenter(), Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = Hasty(ScriptedAnnotator(CLICKS).look(IMAGE))
    found = annotate("it", view, segmenter, embedding)
    assert (found.stop, found.clicks, found.rating) == ("deadline", (CLICKS[0],), None)
    assert found.prediction is not None


def test_a_deadline_before_the_embedding_is_ready_says_so():
    view, rules = ScriptedAnnotator(CLICKS).look(IMAGE), StoppingRules(deadline=0.02)
    found = annotate("it", view, DiscSegmenter(), Future(), rules=rules)
    assert found.stop == "deadline"
    assert found.prediction is None


def test_all_clicks_and_the_last_mask_reach_the_segmenter():
    calls = []

    class Recording(DiscSegmenter):
        def decode(self, embedding, clicks, *, prior=None, box=None):
            calls.append((list(clicks), prior))
            return super().decode(embedding, clicks, prior=prior, box=box)

    rules = replace(NEVER_ACCEPTS, max_clicks=2)
    found, _ = run(ScriptedAnnotator(CLICKS), rules, segmenter=Recording())
    assert calls == [(CLICKS[:1], None), (CLICKS[:2], found.steps[0].prediction)]


def test_nothing_happens_before_the_first_step_is_asked_for():
    view = ScriptedAnnotator(CLICKS).look(IMAGE)
    iter_steps("it", view, DiscSegmenter(), Future())
    assert view.seen == []


def test_requests_carry_the_expression():
    _, view = run(ScriptedAnnotator(CLICKS[:1]))
    assert {request.expression for request in view.seen} == {"it"}


LIMITS = UnratedLimits(stability=0.9, confidence=0.6, later_stability=0.8)
UNRATED = StoppingRules(accept_unrated=LIMITS)


def test_a_certain_click_with_a_stable_mask_is_accepted_after_one_look():
    script = ScriptedAnnotator(CLICKS, [0.95], confidence=0.6)
    found, view = run(script, UNRATED, segmenter=DiscSegmenter(stability=0.9))
    assert (found.stop, view.calls) == ("accepted unrated", ["propose"])
    assert found.best is found.steps[0]
    assert found.rating is None


@pytest.mark.parametrize(
    ("confidence", "stability"), [(0.59, 0.9), (0.6, 0.89), (None, 0.9), (0.6, None)]
)
def test_an_uncertain_click_or_an_unstable_mask_is_rated(confidence, stability):
    script = ScriptedAnnotator(CLICKS, [0.95], confidence=confidence)
    found, view = run(script, UNRATED, segmenter=DiscSegmenter(stability=stability))
    assert (found.stop, view.calls) == ("accepted", ["propose", "rate"])


@pytest.mark.parametrize("rules", [StoppingRules(), StoppingRules(accept_unrated=False)])
def test_without_limits_every_mask_is_rated(rules):
    script = ScriptedAnnotator(CLICKS, [0.95], confidence=1.0)
    _, view = run(script, rules, segmenter=DiscSegmenter(stability=1.0))
    assert view.calls == ["propose", "rate"]


def test_a_correction_of_a_mask_that_was_rated_well_needs_no_rating():
    """It is returned, although only the mask before it is rated."""
    script = ScriptedAnnotator(CLICKS, [0.6], confidence=0.0)
    found, view = run(script, UNRATED, segmenter=DiscSegmenter(stability=0.8))
    assert (found.stop, view.calls) == ("accepted unrated", ["propose", "rate", "propose"])
    assert ratings(found) == [0.6, None]
    assert found.best is found.steps[1]


def test_a_correction_of_a_mask_that_was_rated_low_is_rated():
    rules = replace(UNRATED, retry_below=None, max_clicks=2)
    script = ScriptedAnnotator(CLICKS, [0.49, 0.5], confidence=0.0)
    found, _ = run(script, rules, segmenter=DiscSegmenter(stability=1.0))
    assert ratings(found) == [0.49, 0.5]


def test_another_first_click_is_rated_even_if_its_mask_is_stable():
    samples = [Click(60, 30, positive=True)]
    script = ScriptedAnnotator(CLICKS, [0.2, 0.95], samples, confidence=0.0)
    found, _ = run(script, UNRATED, segmenter=DiscSegmenter(stability=1.0))
    assert [step.restarted for step in found.steps] == [False, True]
    assert (found.stop, ratings(found)) == ("accepted", [0.2, 0.95])


def test_a_given_mask_is_always_rated():
    prior = GivenMask(np.ones((60, 80), np.bool_), stability=1.0)
    _, view = run(ScriptedAnnotator(CLICKS, [0.95], confidence=1.0), UNRATED, prior)
    assert view.calls == ["rate"]
