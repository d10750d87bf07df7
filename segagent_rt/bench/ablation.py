"""What each optimisation brings: loops with all of them, and with one switched off, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any

from segagent_rt import loop
from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.bench.figures import AblationFigures
from segagent_rt.bench.loop_runs import BenchQuery, final_mask, query_of
from segagent_rt.bench.progress import run_progress
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import Runtime
from segagent_rt.types import RgbImage, Trajectory

ALL = "all"


@dataclass(frozen=True, slots=True)
class Optimisations:
    """What makes a trajectory cheap, each with its switch.

    Attributes:
        jump_forward: tokens that the grammar forces ride along in the next decoder call.
        overlap: the segmenter encodes while the MLLM looks for the first time, if there are cores
            for both.
        masks_on_demand: only the mask that is returned is drawn at full size.
        kept_canvas: the picture as it is without a mask is read once for all expressions.
        stop_rules: the rules of the scenario end the trajectory, not the budget alone.
    """

    jump_forward: bool = True
    overlap: bool = True
    masks_on_demand: bool = True
    kept_canvas: bool = True
    stop_rules: bool = True


def run_ablation(
    runtime: Runtime, scenario: Scenario, report_progress: Callable[[str], None]
) -> AblationFigures:
    """Seconds with all optimisations, and for each how many times as long the loop takes without.

    A trajectory is timed after another one on the same canvas, as a second expression is.
    """
    settings = {ALL: Optimisations()}
    settings |= {f.name: replace(Optimisations(), **{f.name: False}) for f in fields(Optimisations)}
    taken: dict[str, list[float]] = {name: [] for name in settings}
    progress = run_progress(report_progress, scenario)
    for number, scene in enumerate(scenario.draw()):
        names = list(settings)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            run = _TimedLoop(runtime, scenario, settings[name])
            seconds = run.timed(scene.image, query_of(scene), query_of(scene, 1))
            if number >= scenario.warm_up:
                taken[name].append(seconds)
        progress.step()
    without = {n: ratio_percentiles(s, taken[ALL]) for n, s in taken.items() if n != ALL}
    return AblationFigures(percentiles(taken[ALL]), without)


@dataclass(frozen=True, slots=True)
class _TimedLoop:
    runtime: Runtime
    scenario: Scenario
    optimisations: Optimisations

    def timed(self, image: RgbImage, before: BenchQuery, asked: BenchQuery) -> float:
        """Seconds for the second question, and for encoding, which it does not share here."""
        view = self._annotator().look(image)
        if self.optimisations.kept_canvas:
            self._ask(view, image, before)
        start = time.perf_counter()
        self._ask(view, image, asked)
        return time.perf_counter() - start

    def _annotator(self) -> Any:
        annotator = self.runtime.annotator
        if self.optimisations.jump_forward or not isinstance(annotator, MllmAnnotator):
            return annotator
        return replace(annotator, decoder_class=StepwiseDecoder)

    def _ask(self, view: Any, image: RgbImage, asked: BenchQuery) -> None:
        embedding: Future[Any] = self.runtime.open(image).embedding
        if not self.optimisations.overlap:
            embedding.result()
        rules = self.scenario.rules
        if not self.optimisations.stop_rules:
            rules = StoppingRules.fixed(rules.max_clicks)
        steps = []
        segmenter = self.runtime.segmenter
        for step in loop.iter_steps(asked.expression, view, segmenter, embedding, rules=rules):
            if step.prediction is not None and not self.optimisations.masks_on_demand:
                step.prediction.mask()
            steps.append(step)
        final_mask(Trajectory(asked.expression, tuple(steps)), asked.target)
