"""Our trajectories and another runtime's, in turn on the same scenes: ratios and parity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.bench.figures import AccuracyFigures, ComparedFigures, ComparisonResult
from segagent_rt.bench.loop_runs import (
    BenchQuery,
    LoopRun,
    figures,
    final_mask,
    query_of,
    timed_run,
)
from segagent_rt.bench.parity import ParityGate, ParityState, parity_figures, replay
from segagent_rt.bench.profiling import GraphProfiler, count_by_graph
from segagent_rt.bench.progress import Progress, run_progress
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Runtime
from segagent_rt.scenes import Scene
from segagent_rt.types import ProgressReporter, Request, RgbImage, Trajectory

DECODER = "mllm decoder"


class ReferenceRunner(Protocol):
    """Another way to do the same trajectory with the same weights."""

    def describe(self) -> dict[str, Any]:
        """What it is: libraries, precision, threads; plain data."""

    def annotate(self, image: RgbImage, expression: str, clicks: int) -> Trajectory:
        """Make so many clicks; fewer only if a reply holds none."""


@dataclass(frozen=True, slots=True)
class SceneComparison:
    """One scene: the other's trajectory, ours with as many clicks, and ours with stop rules."""

    scene: Scene
    theirs: LoopRun
    same: LoopRun
    stop: LoopRun


@dataclass(frozen=True, slots=True)
class ReplyChecks:
    """Our replies on the states of our trajectories, against one-token masked greedy decoding."""

    equal: list[bool]
    calls: list[int]
    """Decoder calls after the one that reads the prompt."""
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Who runs, on what."""

    runtime: Runtime
    meter: GraphProfiler
    contender: ReferenceRunner
    scenario: Scenario

    def run(
        self, report_progress: ProgressReporter, gate: ParityGate | None = None
    ) -> ComparisonResult:
        """Compare. Ratios are None where the gate is not passed."""
        laps, progress = [], run_progress(report_progress, self.scenario)
        for number, scene in enumerate(self.scenario.draw()):
            laps.append(self._lap(scene, number))
            progress.step()
        laps = laps[self.scenario.warm_up :]
        gate = gate or ParityGate()
        states, replies = list[ParityState](), ReplyChecks([], [], [])
        progress = Progress(report_progress, f"{self.scenario.name}, comparing", len(laps))
        for lap in laps:
            states += replay(self.runtime.open(lap.scene.image), lap.theirs.found, gate)
            self._check_replies(lap, replies)
            progress.step()
        return ComparisonResult(
            scenario=self.scenario.name,
            clicks=self.scenario.clicks,
            reference=self.contender.describe() | self._their_replies(laps),
            compared=compare_runs(laps, parity_figures(states, gate), gate),
            decoder_calls_after_prefill=_mean(replies.calls),
            most_decoder_calls_after_prefill=max(replies.calls, default=0),
            tokens_per_reply=_mean(replies.tokens),
            token_equality=_mean(replies.equal),
            stages={
                "ours": figures([lap.same for lap in laps]),
                "ours_with_stop": figures([lap.stop for lap in laps]),
                "reference": figures([lap.theirs for lap in laps]),
            },
        )

    def _lap(self, scene: Scene, number: int) -> SceneComparison:
        """The three trajectories, beginning with another one each time."""
        asked, rules = query_of(scene), self.scenario.rules
        fixed = StoppingRules.fixed(self.scenario.clicks, rate_last_mask=False)
        works = [
            lambda: self._theirs(scene, asked),
            lambda: timed_run(self.runtime.open(scene.image), self.meter, fixed, asked),
            lambda: timed_run(self.runtime.open(scene.image), self.meter, rules, asked),
        ]
        done: dict[int, LoopRun] = {}
        for turn in range(len(works)):
            at = (number + turn) % len(works)
            done[at] = works[at]()
        return SceneComparison(scene, *(done[at] for at in range(len(works))))

    def _theirs(self, scene: Scene, asked: BenchQuery) -> LoopRun:
        start = time.perf_counter()
        found = self.contender.annotate(scene.image, asked.expression, self.scenario.clicks)
        mask = final_mask(found, asked.target)
        seconds = time.perf_counter() - start
        return LoopRun(found, seconds, iou(mask, asked.target), {}, {}, 0.0)

    def _check_replies(self, lap: SceneComparison, replies: ReplyChecks) -> None:
        """Decode every reply of our trajectory again, with and without jump-forward."""
        annotator = self.runtime.annotator
        if not isinstance(annotator, MllmAnnotator) or annotator.settings.decoding == "free":
            return
        fast = annotator.look(lap.scene.image)
        slow = replace(annotator, decoder_class=StepwiseDecoder).look(lap.scene.image)
        shown = None
        for step in lap.same.found.steps:
            if step.click is None:
                break
            request = [Request(shown, lap.same.found.expression)]
            self.meter.take()
            reply = fast.propose(request)[0][0].reply
            replies.calls.append(count_by_graph(self.meter.take()).get(DECODER, 1) - 1)
            replies.equal.append(slow.propose(request)[0][0].reply == reply)
            replies.tokens.append(len(annotator.encode(reply)))
            shown = step.prediction

    def _their_replies(self, laps: Sequence[SceneComparison]) -> dict[str, float | None]:
        annotator = self.runtime.annotator
        if not isinstance(annotator, MllmAnnotator):
            return {}
        steps = [step for lap in laps for step in lap.theirs.found.steps]
        said = [step.turn.reply for step in steps if step.turn is not None]
        return {"tokens_per_reply": _mean([len(annotator.encode(reply)) for reply in said])}


def compare_runs(
    laps: Sequence[SceneComparison], parity: dict[str, Any], gate: ParityGate
) -> ComparedFigures:
    """Ratios where they may be told, and what they rest on."""
    theirs, same, stop = (
        [getattr(lap, name) for lap in laps] for name in ("theirs", "same", "stop")
    )
    accuracy = {
        "ours": _accuracy(stop),
        "ours_same_clicks": _accuracy(same),
        "reference": _accuracy(theirs),
    }
    least = accuracy["reference"].miou - gate.accuracy
    passed = bool(parity["passed"])
    ratios = {
        name: ratio_percentiles([w.seconds for w in theirs], [w.seconds for w in ours])
        if passed and accuracy[key].miou >= least
        else None
        for name, key, ours in (
            ("same_clicks", "ours_same_clicks", same),
            ("with_stop", "ours", stop),
        )
    }
    return ComparedFigures(
        parity=passed,
        parity_figures=parity,
        ratios=ratios,
        accuracy=accuracy,
        seconds={
            "ours": percentiles([w.seconds for w in same], scale=1),
            "ours_with_stop": percentiles([w.seconds for w in stop], scale=1),
            "reference": percentiles([w.seconds for w in theirs], scale=1),
        },
    )


def _accuracy(runs: Sequence[LoopRun]) -> AccuracyFigures:
    return AccuracyFigures(
        miou=round(float(np.mean([run.iou for run in runs])), 4),
        clicks_mean=round(float(np.mean([run.clicks for run in runs])), 3),
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
