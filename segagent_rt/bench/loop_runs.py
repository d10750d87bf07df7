"""One trajectory, measured; and what many of them come to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segagent_rt.bench.figures import LoopFigures, Percentiles
from segagent_rt.bench.profiling import (
    GraphProfiler,
    count_by_graph,
    covered_seconds,
    seconds_by_graph,
)
from segagent_rt.bench.stats import percentiles
from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas
from segagent_rt.scenes import Scene
from segagent_rt.types import Mask, Step, Trajectory


@dataclass(frozen=True, slots=True)
class BenchQuery:
    """What is asked of an image, and the mask that answers it, bool [H, W]."""

    expression: str
    target: Mask


@dataclass(frozen=True, slots=True)
class LoopRun:
    """What was seen of one trajectory: its seconds, IoU, and seconds and calls of every graph.

    `covered` are the seconds in which at least one graph ran.
    """

    found: Trajectory
    seconds: float
    iou: float
    graphs: dict[str, float]
    calls: dict[str, int]
    covered: float

    @property
    def clicks(self) -> int:
        return len(self.found.clicks)


def query_of(scene: Scene, number: int = 0) -> BenchQuery:
    """One of the scene's expressions; numbers beyond the last start again."""
    said = scene.expressions[number % len(scene.expressions)]
    return BenchQuery(said.text, scene.mask(said.target))


def timed_run(
    canvas: Canvas, meter: GraphProfiler, rules: StoppingRules, asked: BenchQuery
) -> LoopRun:
    """Annotate with everything measured; the mask is drawn at full size inside the time."""
    meter.take()
    start = time.perf_counter()
    found = canvas.annotate(asked.expression, rules=rules)
    mask = final_mask(found, asked.target)
    seconds = time.perf_counter() - start
    calls = meter.take()
    return LoopRun(
        found, seconds, iou(mask, asked.target), seconds_by_graph(calls), count_by_graph(calls),
        covered_seconds(calls),
    )  # fmt: skip


def final_mask(found: Trajectory, like: Mask) -> Mask:
    """The mask that is returned; an empty one if there is none."""
    return np.zeros_like(like) if found.prediction is None else found.prediction.mask()


def figures(runs: Sequence[LoopRun]) -> LoopFigures:
    """What runs come to."""
    stages = [_stages(run.found.steps) for run in runs]
    graphs = _names([run.graphs for run in runs])
    clicks = sum(run.clicks for run in runs)
    return LoopFigures(
        total=percentiles([run.seconds for run in runs]),
        per_click=percentiles([run.seconds / max(run.clicks, 1) for run in runs]),
        by_click=_by_click(runs),
        stages={n: percentiles([s.get(n, 0.0) for s in stages]) for n in _names(stages)},
        graphs={n: percentiles([run.graphs.get(n, 0.0) for run in runs]) for n in graphs},
        calls_per_click={
            n: round(sum(run.calls.get(n, 0) for run in runs) / max(clicks, 1), 3) for n in graphs
        },
        per_call={n: _per_call(runs, n) for n in graphs},
        glue_share=_glue_share(runs) if graphs else None,
        clicks_mean=round(clicks / len(runs), 3),
        stops=_counts([str(run.found.stop) for run in runs]),
        miou=round(float(np.mean([run.iou for run in runs])), 4),
    )


def _per_call(runs: Sequence[LoopRun], graph: str) -> float:
    """Mean milliseconds of a call of a graph."""
    seconds = sum(run.graphs.get(graph, 0.0) for run in runs)
    return round(1000 * seconds / sum(run.calls.get(graph, 0) for run in runs), 4)


def _glue_share(runs: Sequence[LoopRun]) -> float:
    """Median share of a trajectory in which no graph runs."""
    return round(float(np.median([1 - run.covered / run.seconds for run in runs])), 4)


def _by_click(runs: Sequence[LoopRun]) -> dict[str, Percentiles]:
    """Whole steps (propose, segment, rate) by the number of their click, from 1."""
    times: dict[str, list[float]] = {}
    for run in runs:
        for number, step in enumerate(run.found.steps, 1):
            if step.click is not None:
                spent = step.seconds.get("annotate", 0.0) + step.seconds.get("segment", 0.0)
                times.setdefault(str(number), []).append(spent)
    return {number: percentiles(values) for number, values in times.items()}


def _stages(steps: Sequence[Step]) -> dict[str, float]:
    stages: dict[str, float] = {}
    for step in steps:
        for name, seconds in step.seconds.items():
            stages[name] = stages.get(name, 0.0) + seconds
    return stages


def _names(of: Sequence[dict[str, float]]) -> list[str]:
    return sorted({name for each in of for name in each})


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
