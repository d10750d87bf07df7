"""What each lever brings: walks with all of them, and with one of them let go, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any

from segagent_rt import loop
from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.bench.one_by_one import OneByOne
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.spread import ratio_spread, spread
from segagent_rt.bench.walks import Question, final_mask, question
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import Runtime
from segagent_rt.types import RgbImage, Trajectory

ALL = "all"


@dataclass(frozen=True, slots=True)
class Levers:
    """What makes a walk cheap, each with its switch.

    Attributes:
        jump_forward: tokens that the grammar forces ride along in the next decoder call.
        overlap: the segmenter encodes while the MLLM looks for the first time, if there are cores
            for both.
        masks_on_demand: only the mask that is returned is drawn at full size.
        kept_canvas: the picture as it is without a mask is read once for all expressions.
        stop_rules: the rules of the scenario end the walk, not the budget alone.
    """

    jump_forward: bool = True
    overlap: bool = True
    masks_on_demand: bool = True
    kept_canvas: bool = True
    stop_rules: bool = True


def compare_levers(
    runtime: Runtime, scenario: Scenario, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds with all levers, and for each how many times as long it takes without.

    A walk is timed behind another one on the same canvas, as for the second of two expressions.
    """
    settings = {ALL: Levers()}
    settings |= {f.name: replace(Levers(), **{f.name: False}) for f in fields(Levers)}
    taken: dict[str, list[float]] = {name: [] for name in settings}
    for number, scene in enumerate(scenario.draw()):
        names = list(settings)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            walk = _Walk(runtime, scenario, settings[name])
            seconds = walk.timed(scene.image, question(scene), question(scene, 1))
            if number >= scenario.warm_up:
                taken[name].append(seconds)
        tell(f"{scenario.name}: {number + 1}")
    without = {n: ratio_spread(s, taken[ALL]) for n, s in taken.items() if n != ALL}
    return {"total": spread(taken[ALL]), "times_as_long_without": without}


@dataclass(frozen=True, slots=True)
class _Walk:
    runtime: Runtime
    scenario: Scenario
    levers: Levers

    def timed(self, image: RgbImage, before: Question, asked: Question) -> float:
        """Seconds for the second question, and for encoding, which it does not share here."""
        view = self._annotator().look(image)
        if self.levers.kept_canvas:
            self._ask(view, image, before)
        start = time.perf_counter()
        self._ask(view, image, asked)
        return time.perf_counter() - start

    def _annotator(self) -> Any:
        annotator = self.runtime.annotator
        if self.levers.jump_forward or not isinstance(annotator, MllmAnnotator):
            return annotator
        return replace(annotator, writing=OneByOne)

    def _ask(self, view: Any, image: RgbImage, asked: Question) -> None:
        embedding: Future[Any] = self.runtime.open(image).embedding
        if not self.levers.overlap:
            embedding.result()
        rules = self.scenario.rules
        if not self.levers.stop_rules:
            rules = StoppingRules.fixed(rules.max_clicks)
        steps = []
        segmenter = self.runtime.segmenter
        for step in loop.iter_steps(asked.expression, view, segmenter, embedding, rules=rules):
            if step.prediction is not None and not self.levers.masks_on_demand:
                step.prediction.mask()
            steps.append(step)
        final_mask(Trajectory(asked.expression, tuple(steps)), asked.target)
