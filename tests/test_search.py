"""The search: what it asks, which candidate it takes, what it costs.

With one candidate it is the loop.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import pytest

from segagent_rt.annotators.oracle import OracleAnnotator
from segagent_rt.errors import Interrupted
from segagent_rt.loop import StoppingRules, iter_steps
from segagent_rt.metrics import iou
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.search import SearchConfig, search_steps
from segagent_rt.testing import DiscSegmenter, ScriptedAnnotator
from segagent_rt.timing import current_deadline
from segagent_rt.types import (
    GREEDY,
    Click,
    Malformed,
    Rating,
    Request,
    Sampling,
    Trajectory,
    Turn,
)

IMAGE = np.zeros((60, 80, 3), np.uint8)
ROWS, COLUMNS = np.ogrid[:60, :80]
TARGET = np.asarray((ROWS - 30) ** 2 + (COLUMNS - 40) ** 2 <= 20**2)
FOREVER = StoppingRules(max_clicks=7, accept_above=None)


@dataclass
class Guessing:
    """Rates by the truth; greedily clicks the first missing pixel, else anywhere in the box."""

    asked: list[tuple[int, float]] = field(default_factory=list)
    looked: set[int] = field(default_factory=set)
    kept: list[object] = field(default_factory=list)

    def propose(self, requests, sampling=GREEDY):
        self.asked.append((len(requests) * sampling.count, sampling.temperature))
        return [
            [self._turn(r, sampling.temperature, sampling.rng) for _ in range(sampling.count)]
            for r in requests
        ]

    def rate(self, requests):
        self.asked.append((len(requests), 0.0))
        return [Rating(self._turn(r, 0.0, None).rating) for r in requests]

    def _turn(self, request, temperature, rng):
        self.kept.append(request.prediction)  # so that no other gets its address
        self.looked.add(id(request.prediction))
        mask = np.zeros_like(TARGET) if request.prediction is None else request.prediction.mask()
        missing = np.argwhere(TARGET & ~mask)
        if temperature == 0.0:
            row, column = missing[0]
        else:
            row, column = rng.integers((10, 20), (51, 61))
        return Turn("", Click(int(column), int(row), positive=True), iou(mask, TARGET))


def found(view, config, segmenter=None):
    segmenter = segmenter or DiscSegmenter(radius=9)
    embedding = Future()
    embedding.set_result(segmenter.encode(IMAGE))
    return Trajectory("it", tuple(search_steps("it", view, segmenter, embedding, config=config)))


@pytest.mark.parametrize("candidates", [1, 2, 3, 5])
def test_the_cost_is_one_look_and_one_for_each_candidate(candidates):
    view = Guessing()
    trajectory = found(view, SearchConfig(FOREVER, candidates))
    assert len(trajectory.clicks) == 7
    assert len(view.looked) == 1 + 7 * candidates


def test_more_candidates_find_better_masks_and_each_step_takes_the_best():
    results = [found(Guessing(), SearchConfig(FOREVER, k)).rating for k in (1, 3, 8)]
    assert results[0] < results[1] < results[2]
    rated = [step.rating for step in found(Guessing(), SearchConfig(FOREVER, 8)).masks]
    assert rated == sorted(rated), "ratings are true here, and eight guesses never all fail"


def test_ratings_belong_to_the_masks_of_the_candidates_taken():
    trajectory = found(Guessing(), SearchConfig(FOREVER, 3))
    for step in trajectory.masks:
        assert iou(step.prediction.mask(), TARGET) == step.rating
    assert trajectory.stop == "budget"


def test_the_same_seed_finds_the_same():
    first, again = (found(Guessing(), SearchConfig(FOREVER, 3, seed=4)).clicks for _ in range(2))
    assert first == again
    assert found(Guessing(), SearchConfig(FOREVER, 3, seed=5)).clicks != first


def test_only_the_first_candidate_is_greedy_and_the_temperature_is_as_stated():
    view = Guessing()
    found(view, SearchConfig(StoppingRules(1, accept_above=None), 3, temperature=0.7))
    assert view.asked[:2] == [(1, 0.0), (2, 0.7)]


def test_the_loops_rules_end_a_search_too():
    accepted = found(Guessing(), SearchConfig(StoppingRules(7, accept_above=0.3), 5))
    assert accepted.stop == "accepted"
    assert len(accepted.clicks) < 7
    assert found(ScriptedAnnotator([]).look(IMAGE), SearchConfig(FOREVER)).stop == "finished"


def test_drawn_replies_without_a_click_are_no_candidates():
    class Mumbling(Guessing):
        def _turn(self, request, temperature, rng):
            turn = super()._turn(request, 0.0, rng)
            return Turn("?", Malformed("?")) if temperature else turn

    view = Mumbling()
    trajectory = found(view, SearchConfig(StoppingRules(2, accept_above=None), 3))
    assert len(trajectory.clicks) == 2
    assert len(view.looked) == 1 + 2


def test_a_search_that_can_change_nothing_ends():
    same = [Click(20, 30, positive=True)] * 50
    trajectory = found(ScriptedAnnotator(same).look(IMAGE), SearchConfig(FOREVER))
    assert trajectory.stop == "unchanged"
    assert len(trajectory.clicks) == 2


def test_a_deadline_returns_the_best_mask_so_far():
    class Slow(DiscSegmenter):
        def decode(self, embedding, clicks, **rest):
            if len(clicks) == 2:
                raise Interrupted("the deadline has passed")
            return super().decode(embedding, clicks, **rest)

    trajectory = found(Guessing(), SearchConfig(FOREVER), Slow())
    assert trajectory.stop == "deadline"
    assert len(trajectory.clicks) == 1
    assert trajectory.prediction is not None


def test_between_the_steps_no_deadline_is_running():
    """Whoever takes the steps one by one is not stopped by the search's own deadline."""
    segmenter, embedding = DiscSegmenter(radius=9), Future()
    embedding.set_result(segmenter.encode(IMAGE))
    config = SearchConfig(StoppingRules(3, accept_above=None, deadline=60))
    for _ in search_steps("it", Guessing(), segmenter, embedding, config=config):
        assert current_deadline() is None


def test_a_deadline_before_the_first_rating_returns_the_mask_there_is():
    class Mute(Guessing):
        def rate(self, requests):
            raise Interrupted("the deadline has passed")

    trajectory = found(Mute(), SearchConfig(FOREVER))
    assert trajectory.stop == "deadline"
    assert trajectory.prediction is not None
    assert trajectory.rating is None


def test_with_one_candidate_it_is_the_loop():
    for script in (
        ScriptedAnnotator([Click(5 * n, 30, positive=True) for n in range(9)], [0.2, 0.8, 0.95]),
        ScriptedAnnotator([Click(20, 30, positive=True)] * 5, [0.4]),
        OracleAnnotator(TARGET),
    ):
        for rules in (StoppingRules(), StoppingRules(2), FOREVER):
            segmenter, embedding = DiscSegmenter(), Future()
            embedding.set_result(segmenter.encode(IMAGE))
            walked = list(iter_steps("it", script.look(IMAGE), segmenter, embedding, rules=rules))
            config = SearchConfig(rules, candidates=1)
            searched = list(
                search_steps("it", script.look(IMAGE), segmenter, embedding, config=config)
            )
            assert [(s.turn, s.click, s.rating, s.stop) for s in searched] == [
                (s.turn, s.click, s.rating, s.stop) for s in walked
            ]


@pytest.fixture(scope="module")
def runtime():
    with load(threads=1) as opened:
        yield opened


def test_on_the_shipped_models_more_about_one_of_several_masks_costs_no_second_look(
    runtime, monkeypatch
):
    """The vision encoder sees each mask once; samples about the winner use its cache, and a greedy
    reply is the same as from a view that has seen nothing else."""
    scene = make_scene(3, 128)
    text, canvas = scene.expressions[0].text, runtime.open(scene.image)
    masks = [canvas.segment([Click(x, 60, positive=True)]) for x in (30, 60, 90)]
    embed, looks = type(runtime.annotator.vision_encoder).embed, []
    monkeypatch.setattr(
        type(runtime.annotator.vision_encoder),
        "embed",
        lambda encoder, picture: looks.append(1) or embed(encoder, picture),
    )
    turns = canvas.view.propose([Request(mask, text) for mask in masks])
    assert len(looks) == 3
    rng = np.random.default_rng(0)
    canvas.view.propose([Request(masks[1], text)], Sampling(4, 1.0, rng))
    again = canvas.view.propose([Request(masks[1], text)])
    assert len(looks) == 3
    fresh = runtime.open(scene.image).view.propose([Request(masks[1], text)])
    assert again[0][0].reply == turns[1][0].reply == fresh[0][0].reply


def test_a_detour_to_the_clean_image_costs_no_second_look_at_a_rated_mask(runtime, monkeypatch):
    """A retry of the first click samples about the clean image, and may find none."""
    scene = make_scene(3, 128)
    text, canvas = scene.expressions[0].text, runtime.open(scene.image)
    mask = canvas.segment([Click(60, 60, positive=True)])
    canvas.view.propose([Request(None, text)])
    (rated,) = canvas.view.rate([Request(mask, text)])
    embed, looks = type(runtime.annotator.vision_encoder).embed, []
    monkeypatch.setattr(
        type(runtime.annotator.vision_encoder),
        "embed",
        lambda encoder, picture: looks.append(1) or embed(encoder, picture),
    )
    rng = np.random.default_rng(0)
    canvas.view.propose([Request(None, text)], Sampling(4, 1.0, rng))
    ((turn,),) = canvas.view.propose([Request(mask, text)])
    assert looks == []
    assert turn.rating == rated.value


def test_on_the_shipped_models_one_candidate_is_the_loop(runtime):
    scene = make_scene(4, 128)
    text, rules = scene.expressions[0].text, StoppingRules(3, accept_above=None)
    walked = list(runtime.open(scene.image).iter_steps(text, rules=rules))
    searched = list(
        runtime.open(scene.image).search_steps(text, config=SearchConfig(rules, candidates=1))
    )
    assert [(s.turn.reply, s.rating, s.click) for s in searched] == [
        (s.turn.reply, s.rating, s.click) for s in walked
    ]


def test_on_the_shipped_models_a_search_reads_one_prompt_for_each_mask(runtime, monkeypatch):
    """1 + steps * candidates images are looked at, and each is read into the cache once."""
    looks, reads = [], []
    embed, forward = (
        type(runtime.annotator.vision_encoder).embed,
        type(runtime.annotator.model).forward,
    )
    monkeypatch.setattr(
        type(runtime.annotator.vision_encoder),
        "embed",
        lambda encoder, picture: looks.append(1) or embed(encoder, picture),
    )
    monkeypatch.setattr(
        type(runtime.annotator.model),
        "forward",
        lambda model, *given: reads.append(given[1].shape[1]) or forward(model, *given),
    )
    scene = make_scene(4, 128)
    config = SearchConfig(StoppingRules(2, accept_above=None), candidates=3)
    steps = list(runtime.open(scene.image).search_steps(scene.expressions[0].text, config=config))
    assert sum(step.click is not None for step in steps) == 2
    assert len(looks) <= 1 + 2 * 3, "fewer if two clicks are the same"
    assert len([count for count in reads if count >= 64]) == len(looks)
