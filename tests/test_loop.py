"""The loop: what it asks, when it stops, which mask it returns."""

from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from segagent_rt.annotators.scripted import ScriptedAnnotator
from segagent_rt.errors import Interrupted
from segagent_rt.loop import annotate, walk
from segagent_rt.rules import Rules
from segagent_rt.segmenters.disc import DiscSegmenter
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Malformed, Request, Turn

IMAGE = np.zeros((60, 80, 3), np.uint8)
CLICKS = [Click(20 + 5 * n, 30, positive=True) for n in range(10)]


def run(script, rules=None, prior=None, segmenter=None):
    segmenter = segmenter or DiscSegmenter()
    embedding = Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = script.look(IMAGE)
    found = annotate("it", view, segmenter, embedding, rules=rules, prior=prior)
    return found, view


def test_budget_is_kept_and_the_last_mask_is_rated_too():
    found, view = run(ScriptedAnnotator(CLICKS), Rules(max_clicks=3))
    assert found.stop == "budget"
    assert len(found.clicks) == 3
    assert len(found.steps) == 4, "three clicks and one rating"
    assert len(view.seen) == 4


def test_the_last_mask_may_be_left_unrated_as_in_segagents_evaluation():
    rules = Rules(max_clicks=3, rates_last=False)
    found, view = run(ScriptedAnnotator(CLICKS, [0.0, 0.3, 0.8]), rules)
    assert (found.stop, len(found.clicks), len(view.seen)) == ("budget", 3, 3)
    assert [rating for _, rating in found.candidates] == [0.3, 0.8, None]
    assert found.best == 1, "a mask that nobody rated does not win over one that was"


def test_first_turn_is_shown_no_mask_and_later_turns_the_mask_so_far():
    found, view = run(ScriptedAnnotator(CLICKS), Rules(max_clicks=2))
    assert view.seen[0].prediction is None
    assert view.seen[1].prediction is found.steps[0].prediction
    assert view.seen[2].prediction is found.steps[1].prediction


def test_a_turn_rates_the_mask_before_its_click_not_the_one_after():
    """The off-by-one of SegAgent's best-step rule: reply i rates the result of click i - 1."""
    found, _ = run(ScriptedAnnotator(CLICKS, [0.0, 0.3, 0.8, 0.5]), Rules(max_clicks=3))
    assert [rating for _, rating in found.candidates] == [0.3, 0.8, 0.5]
    assert found.best == 1
    assert found.prediction is found.steps[1].prediction
    assert found.predicted_iou == 0.8


def test_equal_ratings_return_the_earlier_mask():
    found, _ = run(ScriptedAnnotator(CLICKS, [0.0, 0.6, 0.6]), Rules(max_clicks=2))
    assert found.best == 0


def test_an_accepted_mask_ends_the_walk_without_the_proposed_click():
    found, _ = run(ScriptedAnnotator(CLICKS, [0.0, 0.95]), Rules(accept=0.9))
    assert found.stop == "accepted"
    assert len(found.clicks) == 1


class Asked:
    """A view that notes what it is asked, and takes a second for anything."""

    def __init__(self, script):
        self.inner, self.asked = script.look(IMAGE), []

    def propose(self, requests, **how):
        self.asked.append("propose")
        ((turn,),) = self.inner.propose(requests, **how)
        return [[replace(turn, seconds={"language": 1.0})]]

    def rate(self, requests):
        self.asked.append("rate")
        (turn,) = self.inner.rate(requests)
        return [replace(turn, seconds={"vision": 1.0, "language": 1.0})]


def asked(ratings, rules):
    segmenter, embedding = DiscSegmenter(), Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = Asked(ScriptedAnnotator(CLICKS, ratings))
    return annotate("it", view, segmenter, embedding, rules=rules), view.asked


def test_for_an_accepted_mask_no_click_is_asked():
    found, calls = asked([0.0, 0.6, 0.95], Rules(accept=0.9))
    assert calls == ["propose", "rate", "propose", "rate"]
    assert found.clicks == tuple(CLICKS[:2])
    seconds = [dict(step.turn.seconds) for step in found.steps]
    assert seconds[1] == {"vision": 1.0, "language": 2.0}, "of the rating and of the click"
    assert seconds[2] == {"vision": 1.0, "language": 1.0}


def test_where_nothing_is_accepted_click_and_rating_are_asked_at_once():
    _, calls = asked([0.0, 0.6, 0.95], Rules(2, accept=None))
    assert calls == ["propose", "propose", "rate"]


def test_the_rating_of_an_empty_start_accepts_nothing():
    found, _ = run(ScriptedAnnotator(CLICKS[:1], [1.0, 0.2]), Rules(accept=0.9))
    assert len(found.clicks) == 1


def test_a_prior_is_shown_rated_and_may_be_returned():
    prior = GivenMask(np.ones((60, 80), np.bool_))
    found, view = run(ScriptedAnnotator(CLICKS, [0.8, 0.4]), Rules(max_clicks=1), prior)
    assert view.seen[0].prediction is prior
    assert found.candidates[0] == (prior, 0.8)
    assert found.prediction is prior


def test_patience_ends_a_walk_that_gets_no_better():
    script = ScriptedAnnotator(CLICKS, [0.0, 0.5, 0.4, 0.3, 0.2])
    found, _ = run(script, Rules(accept=None, patience=2))
    assert found.stop == "no gain"
    assert len(found.clicks) == 3
    assert found.best == 0


def test_a_mask_that_no_longer_changes_ends_the_walk():
    same = [Click(20, 30, positive=True)] * 5
    found, view = run(ScriptedAnnotator(same, [0.0, 0.4]))
    assert found.stop == "unchanged"
    assert len(found.clicks) == 2
    assert len(view.seen) == 2, "the annotator is not asked again"
    assert [rating for _, rating in found.candidates] == [0.4, 0.4]


def test_a_walk_that_does_not_settle_uses_its_budget_up():
    same = [Click(20, 30, positive=True)] * 5
    found, _ = run(ScriptedAnnotator(same, [0.0, 0.4, 0.4, 0.4]), Rules(3, settles=False))
    assert found.stop == "budget"
    assert len(found.clicks) == 3


class Torn:
    """Greedily clicks to the left, where nothing is; drawn, now and then to the right."""

    def __init__(self, script, draws):
        self.inner, self.draws, self.drawn = script.look(IMAGE), draws, 0

    def propose(self, requests, *, samples=1, temperature=0.0, rng=None):
        if not temperature:
            return self.inner.propose(requests)
        assert [request.prediction for request in requests] == [None]
        self.drawn += 1
        return [[Turn("drawn", click, 0.5) for click in self.draws[:samples]]]

    def rate(self, requests):
        return self.inner.rate(requests)


LEFT, RIGHT = Click(10, 30, positive=True), Click(60, 30, positive=True)
FIRST_AND_MORE = [LEFT, *CLICKS[1:]]


def torn(draws, ratings, rules=None, prior=None):
    segmenter, embedding = DiscSegmenter(), Future()
    embedding.set_result(segmenter.encode(IMAGE))
    view = Torn(ScriptedAnnotator(FIRST_AND_MORE, ratings), draws)
    return annotate("it", view, segmenter, embedding, rules=rules, prior=prior), view


def test_a_doubted_first_mask_is_put_away_for_a_click_outside_it():
    found, _ = torn([LEFT, RIGHT], [0.0, 0.2, 0.95])
    assert found.clicks == (LEFT, RIGHT)
    assert [step.anew for step in found.steps] == [False, True, False]
    assert [rating for _, rating in found.candidates] == [0.2, 0.95]
    mask = found.prediction.mask()
    assert mask[30, 60]
    assert not mask[30, 10], "made of the second click alone"


def test_the_click_after_a_new_beginning_adds_to_it_alone():
    found, _ = torn([RIGHT], [0.0, 0.2, 0.7, 0.95])
    last = found.steps[-1].prediction.mask()
    assert last[30, 60]
    assert not last[30, 10]
    assert last[FIRST_AND_MORE[2].y, FIRST_AND_MORE[2].x]


def test_first_clicks_are_tried_until_one_is_not_doubted_or_none_is_drawn():
    others = [LEFT, RIGHT, Click(35, 8, positive=True), Click(35, 52, positive=False)]
    found, view = torn(others, [0.0, 0.2, 0.3, 0.1], Rules(max_clicks=5))
    assert found.clicks[:3] == (LEFT, RIGHT, others[2])
    assert [step.anew for step in found.steps] == [False, True, True, False, False, False]
    assert view.drawn == 3, "the last time in vain: what is left is negative, or was tried"
    assert found.clicks[3] == FIRST_AND_MORE[3], "so the walk goes on as it would have"
    assert found.stop == "budget"


def test_the_best_rated_mask_is_returned_also_if_it_was_put_away():
    found, _ = torn([RIGHT], [0.0, 0.4, 0.3], Rules(max_clicks=2))
    assert found.best == 0
    assert found.prediction.mask()[30, 10]


def test_nothing_is_put_away_without_doubt_without_a_rating_or_with_a_prior():
    for ratings, rules, prior in (
        ([0.0, 0.5], Rules(3), None),
        ([0.0, 0.1], Rules(3, doubt=None), None),
        ([None, None, None, None], Rules(3), None),
        ([0.1, 0.1, 0.1], Rules(3), GivenMask(np.zeros((60, 80), np.bool_))),
    ):
        found, view = torn([RIGHT], ratings, rules, prior)
        assert not any(step.anew for step in found.steps)
        assert view.drawn == 0


def test_a_malformed_reply_ends_the_walk_and_keeps_the_mask():
    class Mumbling(ScriptedAnnotator):
        def look(self, image):
            view = super().look(image)
            good = view.propose

            def propose(requests, **options):
                turns = good(requests, **options)
                if len(view.seen) == 2:
                    return [[Turn("mumble", Malformed("no point in the reply"))]]
                return turns

            view_type = type("View", (), {"propose": staticmethod(propose), "rate": view.rate})
            return view_type()

    found, _ = run(Mumbling(CLICKS))
    assert found.stop == "malformed"
    assert len(found.clicks) == 1
    assert found.prediction is not None


def test_an_annotator_that_finishes_at_once_leaves_no_mask():
    found, _ = run(ScriptedAnnotator([]))
    assert found.stop == "finished"
    assert found.prediction is None
    assert found.best is None


def test_a_call_that_is_interrupted_returns_the_best_mask_so_far():
    class Slow(DiscSegmenter):
        def decode(self, embedding, clicks, **rest):
            if len(clicks) == 2:
                raise Interrupted("the deadline has passed")
            return super().decode(embedding, clicks, **rest)

    found, _ = run(ScriptedAnnotator(CLICKS, [0.0, 0.7]), segmenter=Slow())
    assert found.stop == "deadline"
    assert found.prediction is found.steps[0].prediction
    assert found.predicted_iou == 0.7


def test_a_deadline_before_the_embedding_is_ready_says_so():
    view = ScriptedAnnotator(CLICKS).look(IMAGE)
    found = annotate("it", view, DiscSegmenter(), Future(), rules=Rules(deadline=0.02))
    assert found.stop == "deadline"
    assert found.prediction is None


def test_all_clicks_and_the_last_mask_reach_the_segmenter():
    calls = []

    class Recording(DiscSegmenter):
        def decode(self, embedding, clicks, *, prior=None, box=None):
            calls.append((list(clicks), prior))
            return super().decode(embedding, clicks, prior=prior, box=box)

    found, _ = run(ScriptedAnnotator(CLICKS), Rules(max_clicks=2), segmenter=Recording())
    assert calls == [(CLICKS[:1], None), (CLICKS[:2], found.steps[0].prediction)]


def test_nothing_happens_before_the_first_step_is_asked_for():
    view = ScriptedAnnotator(CLICKS).look(IMAGE)
    walk("it", view, DiscSegmenter(), Future())
    assert view.seen == []


def test_requests_carry_the_expression():
    _, view = run(ScriptedAnnotator(CLICKS[:1]))
    assert all(isinstance(request, Request) and request.expression == "it" for request in view.seen)
