"""How the cost of a trajectory grows with image, clicks, expressions and threads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

from segagent_rt.bench.figures import GrowthFigures, Percentiles
from segagent_rt.bench.loop_runs import final_mask, query_of
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.stats import percentiles
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import Runtime
from segagent_rt.scenes import Scene
from segagent_rt.types import ProgressReporter

SIDES = (512, 1024, 2048, 3464)
"""Images of 0.26 to 12 megapixels."""
CLICKS = (1, 2, 3, 5, 7, 9, 11)
EXPRESSIONS = (1, 2, 4, 16, 64)
USUAL_CLICKS = 3
"""Where clicks are not what grows."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trajectory whose cost is asked for."""

    runtime: Runtime
    side: int
    clicks: int = USUAL_CLICKS
    expressions: int = 1

    def seconds(self, scene: Scene) -> float:
        """From an image in memory to the masks of all expressions, on one canvas."""
        asked = [query_of(scene, number) for number in range(self.expressions)]
        rules = StoppingRules.fixed(self.clicks)
        start = time.perf_counter()
        canvas = self.runtime.open(scene.image)
        for each in asked:
            final_mask(canvas.annotate(each.expression, rules=rules), each.target)
        return time.perf_counter() - start


def grow(runtime: Runtime, scenario: Scenario, report_progress: ProgressReporter) -> GrowthFigures:
    """Measure times over each of four sizes, all else as usual."""
    usual = Point(runtime, scenario.side)
    asked = replace(usual, clicks=1)
    growing = {
        "megapixels": {f"{n * n / 1e6:.3g}": replace(usual, side=n) for n in SIDES},
        "clicks": {str(n): replace(usual, clicks=n) for n in CLICKS},
        "expressions": {str(n): replace(asked, expressions=n) for n in EXPRESSIONS},
    }
    curves = {
        name: _curve(name, points, scenario, report_progress) for name, points in growing.items()
    }
    steepest = {name: _steepest(curve) for name, curve in curves.items()}
    with ExitStack() as stack:
        others = {
            str(count): replace(usual, runtime=stack.enter_context(_with_threads(runtime, count)))
            for count in range(1, _cores(runtime) + 1)
        }
        threads = _curve("threads", others, scenario, report_progress)
    return GrowthFigures(curves | {"threads": threads}, steepest)


def _curve(
    name: str, points: Mapping[str, Point], scenario: Scenario, report_progress: ProgressReporter
) -> dict[str, Percentiles]:
    """All points in turn for one scene, then for the next: a machine that slows down slows all."""
    drawn = [replace(scenario, side=p.side).draw(p.expressions) for p in points.values()]
    times = [
        [point.seconds(scene) for point, scene in zip(points.values(), scenes, strict=True)]
        for scenes in zip(*drawn, strict=True)
    ][scenario.warm_up :]
    report_progress(f"{scenario.name}: {name}")
    return {
        key: percentiles(list(row))
        for key, row in zip(points, zip(*times, strict=True), strict=True)
    }


def _with_threads(runtime: Runtime, count: int) -> Runtime:
    return Runtime(runtime.bundle, replace(runtime.where, threads=count))


def _cores(runtime: Runtime) -> int:
    from segagent_rt.backends.cores import usable_cores

    return runtime.where.threads or usable_cores()


def _steepest(curve: Mapping[str, Percentiles]) -> float:
    points = [(float(size), times.p50) for size, times in curve.items()]
    return round(max((t2 / t1) / (x2 / x1) for (x1, t1), (x2, t2) in pairwise(points)), 3)
