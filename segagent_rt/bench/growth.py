"""How the cost of a walk grows with the image, the clicks, the expressions and the threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.spread import spread
from segagent_rt.bench.walks import final_mask, question
from segagent_rt.loop import Rules
from segagent_rt.runtime import Runtime
from segagent_rt.scenes import Scene

Tell = Callable[[str], None]

SIDES = (512, 1024, 2048, 3464)
"""Images of 0.26 to 12 megapixels."""
CLICKS = (1, 2, 3, 5, 7, 9, 11)
EXPRESSIONS = (1, 2, 4, 16, 64)
USUAL_CLICKS = 3
"""Where clicks are not what grows."""


def grow(runtime: Runtime, scenario: Scenario, tell: Tell) -> dict[str, Any]:
    """Milliseconds over each of four figures, all else as usual; `steepest` is the most that time
    grew faster than the figure between two neighbours (above 1: superlinear)."""

    def timed(name: str, used: Runtime, *, side: int, clicks: int, expressions: int) -> Any:
        wanted = replace(scenario, side=side)
        times = [_seconds(used, s, clicks, expressions) for s in wanted.draw(expressions)]
        tell(f"{scenario.name}: {name}")
        return spread(times[scenario.warm_up :])

    usual: dict[str, int] = {"side": scenario.side, "clicks": USUAL_CLICKS, "expressions": 1}
    megapixels = {
        f"{side * side / 1e6:.3g}": timed("megapixels", runtime, **usual | {"side": side})
        for side in SIDES
    }
    clicks = {str(n): timed("clicks", runtime, **usual | {"clicks": n}) for n in CLICKS}
    expressions = {
        str(n): timed("expressions", runtime, **usual | {"expressions": n, "clicks": 1})
        for n in EXPRESSIONS
    }
    threads = {}
    for count in range(1, _cores(runtime) + 1):
        with Runtime(runtime.bundle, replace(runtime.where, threads=count)) as other:
            threads[str(count)] = timed("threads", other, **usual)
    curves = {"megapixels": megapixels, "clicks": clicks, "expressions": expressions}
    steepest = {name: _steepest(curve) for name, curve in curves.items()}
    return {"growth": curves | {"threads": threads}, "steepest": steepest}


def _seconds(runtime: Runtime, scene: Scene, clicks: int, expressions: int) -> float:
    """From an image in memory to the masks of all expressions, on one canvas."""
    asked = [question(scene, number) for number in range(expressions)]
    rules = Rules(clicks, accept=None, settles=False)
    start = time.perf_counter()
    canvas = runtime.open(scene.image)
    for each in asked:
        final_mask(canvas.annotate(each.expression, rules=rules), each.target)
    return time.perf_counter() - start


def _cores(runtime: Runtime) -> int:
    from segagent_rt.backends.onnxruntime import usable_cores

    return runtime.where.threads or usable_cores()


def _steepest(curve: Mapping[str, Mapping[str, Any]]) -> float:
    points = [(float(figure), float(times["p50"])) for figure, times in curve.items()]
    return round(max((t2 / t1) / (x2 / x1) for (x1, t1), (x2, t2) in pairwise(points)), 3)
