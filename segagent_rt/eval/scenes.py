"""Evaluation on synthetic scenes: where the first click lands, what the loop adds, what it knows.

The loop runs once over every scene, to the end of the budget, without the rule that accepts a good
mask. As the annotator has no memory, the trajectory under the default rules is a beginning of that
one, and its result is read off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from segagent_rt.annotators.oracle import next_click
from segagent_rt.choices import Ablation
from segagent_rt.eval.figures import RandomMaskFigures, SceneFigures, SceneSuiteResult
from segagent_rt.eval.statistics import spearman
from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.scenes import GENERATOR, Scene, make_scene
from segagent_rt.scenes.expressions import KINDS
from segagent_rt.scenes.reading import meanings
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.scene import visible_objects
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Mask, Request, Step, Trajectory

OnScene: TypeAlias = Callable[[Scene, Trajectory], None]
"""Is called with a scene and the trajectory for its first expression."""

TOUCHED = 0.05
"""A first click missed if the mask it made overlaps the target by less than this IoU."""


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What was measured on one scene. IoUs are against the target, in order of clicks."""

    kind: str
    hit: bool
    read: float
    """Chance that a reader who goes by rules alone clicks the target; one that the words tell
    nothing picks any object."""
    ious: list[float]
    ratings: list[float | None]
    returned: float
    clicks: int
    looks: int
    oracle: list[float]
    corrected: float
    """Of the first click's mask, after all other clicks of the budget were the oracle's."""
    leak_negative: bool | None
    leak_hit: bool | None
    rated: list[tuple[float, float]] = field(default_factory=list)
    """(true IoU, predicted IoU) of masks made by random clicks."""


@dataclass(frozen=True, slots=True)
class SceneSuite:
    """Which scenes, and what is done to their expressions."""

    scenes: int
    seed: int
    side: int = 512
    ablate: Ablation = "none"


def evaluate_scenes(
    runtime: Runtime,
    suite: SceneSuite,
    rules: StoppingRules,
    report_progress: Callable[[int], None],
    on_scene: OnScene | None = None,
) -> SceneSuiteResult:
    """Run the suite.

    Args:
        runtime: what is evaluated.
        suite: which scenes.
        rules: when the loop stops.
        report_progress: called with the number of scenes done.
        on_scene: called with each scene and its trajectory under the rules.
    """
    start = time.perf_counter()
    results, rules = [], runtime.completed_rules(rules)
    for done, (scene, expression) in enumerate(questions(suite), 1):
        results.append(_one(runtime, scene, expression, rules, on_scene))
        report_progress(done)
    return SceneSuiteResult(
        figures=summarise(results, rules.max_clicks),
        scenes=suite.scenes,
        seed=suite.seed,
        ablate=suite.ablate,
        generator=GENERATOR,
        bundle={"name": runtime.bundle.index.name, "digest": runtime.bundle.digest},
        rules={
            "max_clicks": rules.max_clicks,
            "accept": rules.accept_above,
            "accept_unrated": asdict(limits) if (limits := rules.accept_unrated) else None,
        },
        seconds=round(time.perf_counter() - start, 2),
    )


def questions(suite: SceneSuite) -> Iterator[tuple[Scene, str]]:
    """Every scene with what is asked about it."""
    for number in range(suite.scenes):
        scene = make_scene(suite.seed + number, suite.side)
        text = scene.expressions[0].text
        if suite.ablate == "remove":
            text = "the object"
        elif suite.ablate == "shuffle":
            other = suite.seed + (number + 1) % suite.scenes
            text = make_scene(other, suite.side).expressions[0].text
        yield scene, text


def _one(
    runtime: Runtime, scene: Scene, expression: str, rules: StoppingRules, on_scene: OnScene | None
) -> SceneResult:
    meant = scene.expressions[0]
    target = scene.mask(meant.target)
    canvas = runtime.open(scene.image)
    forced = canvas.annotate(expression, rules=without_accepting(rules))
    masks = [step.prediction.mask() for step in forced.masks if step.prediction is not None]
    usual = shorten(forced, rules)
    if on_scene is not None:
        on_scene(scene, usual)
    returned = usual.prediction.mask() if usual.prediction else np.zeros_like(target)
    leak_negative, leak_hit = _leak(canvas, scene, expression)
    first = forced.clicks[0] if forced.clicks else None
    oracle = _Oracle(canvas, target, rules.max_clicks)
    return SceneResult(
        kind=meant.kind,
        hit=first is not None and bool(target[first.y, first.x]),
        read=_read(scene, expression),
        ious=[iou(mask, target) for mask in masks],
        ratings=[step.rating for step in forced.masks],
        returned=iou(returned, target),
        clicks=len(usual.clicks),
        looks=looks_of(usual),
        oracle=oracle.ious(),
        corrected=oracle.ious(forced.steps[0])[-1],
        leak_negative=leak_negative,
        leak_hit=leak_hit,
        rated=list(_rated(canvas, scene, expression)),
    )


def _read(scene: Scene, expression: str) -> float:
    seen = visible_objects(list(scene.objects), scene.labels)
    meant = meanings(expression, scene.objects) or {i for i, there in enumerate(seen) if there}
    return (scene.expressions[0].target in meant) / len(meant)


def shorten(forced: Trajectory, rules: StoppingRules) -> Trajectory:
    """The trajectory that stricter rules would have made: it ends at the first step that they stop
    at."""
    for count, step in enumerate(forced.masks, 1):
        before = forced.steps[: count - 1]
        if step.stop != "unchanged" and rules.accepts_unrated(step, before):
            last = replace(step, rating=None, rating_reply=None, stop="accepted unrated")
            return Trajectory(forced.expression, (*before, last))
        stop = rules.stop_rated(forced.steps[:count])
        if stop is not None:
            return Trajectory(forced.expression, (*before, replace(step, stop=stop)))
    return forced


def without_accepting(rules: StoppingRules) -> StoppingRules:
    """The rules with which a trajectory is forced to the end of its budget."""
    return replace(rules, accept_above=None, accept_unrated=False)


def looks_of(found: Trajectory) -> int:
    """How many pictures the MLLM was shown: one without a mask, and one with each rated mask."""
    return 1 + sum(bool(step.rating_reply) for step in found.masks)


@dataclass(frozen=True, slots=True)
class _Oracle:
    """The simulated annotator, with a budget of clicks."""

    canvas: Canvas
    target: Mask
    budget: int

    def ious(self, first: Step | None = None) -> list[float]:
        """IoU after each click, the first of them as in a step or its own; a mask that is right
        stays."""
        made = [] if first is None or first.click is None else [first.click]
        prediction = None if first is None else first.prediction
        ious = [] if prediction is None else [iou(prediction.mask(), self.target)]
        embedding, segmenter = self.canvas.embedding.result(), self.canvas.runtime.segmenter
        while len(ious) < self.budget:
            mask = np.zeros_like(self.target) if prediction is None else prediction.mask()
            click = next_click(self.target, mask)
            if click is not None:
                made.append(click)
                prediction = segmenter.decode(embedding, made, prior=prediction)
                mask = prediction.mask()
            ious.append(iou(mask, self.target))
        return ious


def _leak(canvas: Canvas, scene: Scene, expression: str) -> tuple[bool | None, bool | None]:
    """The first action on a mask that covers the target and its nearest neighbour."""
    target = scene.expressions[0].target
    here = scene.objects[target]
    seen = visible_objects(list(scene.objects), scene.labels)
    others = [
        ((o.x - here.x) ** 2 + (o.y - here.y) ** 2, i)
        for i, o in enumerate(scene.objects)
        if i != target and seen[i]
    ]
    if not others:
        return None, None
    wrong = scene.mask(min(others)[1])
    start = GivenMask(scene.mask(target) | wrong)
    action = canvas.view.propose([Request(start, expression)])[0][0].action
    if not isinstance(action, Click) or action.positive:
        return False, False
    return True, bool(wrong[action.y, action.x])


def _rated(canvas: Canvas, scene: Scene, expression: str) -> Iterator[tuple[float, float]]:
    """True and predicted IoU of masks made by random clicks in the target's box.

    As in SegAgent's annotation filtering (supplement, table 3).
    """
    target = scene.mask(scene.expressions[0].target)
    rows, columns = np.nonzero(target)
    rng = DeterministicRng("random-clicks", scene.seed)
    for count in (1, 2):
        clicks = [
            Click(
                rng.integer(int(columns.min()), int(columns.max()) + 1),
                rng.integer(int(rows.min()), int(rows.max()) + 1),
                positive=True,
            )
            for _ in range(count)
        ]
        prediction = canvas.segment(clicks)
        rating = canvas.view.rate([Request(prediction, expression)])[0].value
        if rating is not None:
            yield iou(prediction.mask(), target), rating


def summarise(results: Sequence[SceneResult], clicks: int) -> SceneFigures:
    """The figures of a suite with a budget of clicks."""
    missed = [r for r in results if r.ious and r.ious[0] < TOUCHED]
    pairs = [
        (true, rating)
        for r in results
        for true, rating in zip(r.ious, r.ratings, strict=True)
        if rating is not None
    ]
    rated = [pair for r in results for pair in r.rated]
    leaks = [r for r in results if r.leak_negative is not None]
    correlation = spearman(*zip(*rated, strict=True)) if len(rated) > 2 else None
    return SceneFigures(
        first_click_hit=_mean(r.hit for r in results),
        hit_by_rules=_mean(r.read for r in results),
        first_click_hit_by_type={
            kind: _mean(r.hit for r in results if r.kind == kind) for kind in KINDS
        },
        miou=_mean(r.returned for r in results),
        one_shot_miou=_mean(_at(r.ious, 0) for r in results),
        miou_by_turn=tuple(_mean(_at(r.ious, turn) for r in results) for turn in range(clicks)),
        oracle_miou_by_click=tuple(_mean(r.oracle[n] for r in results) for n in range(clicks)),
        gain=_mean(r.returned - _at(r.ious, 0) for r in results),
        oracle_gain=_mean(r.corrected - _at(r.ious, 0) for r in results),
        recovery=_mean(r.returned - r.ious[0] for r in missed),
        missed_first_clicks=len(missed),
        returned_worse=_mean(r.returned < _at(r.ious, 0) - 0.05 for r in results),
        clicks_mean=_mean(r.clicks for r in results),
        looks_mean=_mean(r.looks for r in results),
        negative_start_negative=_mean(bool(r.leak_negative) for r in leaks),
        negative_start_hit=_mean(bool(r.leak_hit) for r in leaks),
        predicted_iou_mae=_mean(100 * abs(true - rating) for true, rating in pairs),
        random_masks=RandomMaskFigures(
            mae=_mean(100 * abs(true - rating) for true, rating in rated),
            spearman=_rounded(correlation),
            count=len(rated),
        ),
    )


def _at(values: Sequence[float], turn: int) -> float:
    """The value after a turn; a trajectory that ended keeps its last mask."""
    return values[min(turn, len(values) - 1)] if values else 0.0


def _mean(values: Any) -> float | None:
    collected = [float(value) for value in values]
    return _rounded(float(np.mean(collected))) if collected else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
