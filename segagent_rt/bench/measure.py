"""Run scenarios and collect what they took, stage by stage, with the accuracy of the same walks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segagent_rt.bench.energy import EnergyMeter, find_meter
from segagent_rt.bench.meter import GraphMeter
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.spread import spread
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.scenes import Scene
from segagent_rt.types import Mask, Trajectory

Tell = Callable[[str], None]


@dataclass(slots=True)
class Record:
    """What was seen of one walk."""

    seconds: float
    stages: dict[str, float]
    graph_seconds: dict[str, float]
    calls: dict[str, int]
    clicks: int
    iou: float
    stop: str


@dataclass(slots=True)
class Records:
    """All walks of a scenario."""

    walks: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.walks.append(record)

    def figures(self) -> dict[str, Any]:
        """Spreads of the whole and of every stage, mean clicks and calls, accuracy."""
        names = sorted({name for walk in self.walks for name in walk.stages})
        roles = sorted({name for walk in self.walks for name in walk.graph_seconds})
        clicks = sum(walk.clicks for walk in self.walks)
        return {
            "total": spread([walk.seconds for walk in self.walks]),
            "per_click": spread([w.seconds / max(w.clicks, 1) for w in self.walks]),
            "stages": {n: spread([w.stages.get(n, 0.0) for w in self.walks]) for n in names},
            "graphs": {n: spread([w.graph_seconds.get(n, 0.0) for w in self.walks]) for n in roles},
            "calls_per_click": {
                n: round(sum(w.calls.get(n, 0) for w in self.walks) / max(clicks, 1), 3)
                for n in roles
            },
            "glue_share": round(float(np.median([_glue(w) for w in self.walks])), 4),
            "clicks_mean": round(clicks / len(self.walks), 3),
            "miou": round(float(np.mean([walk.iou for walk in self.walks])), 4),
        }


def _glue(walk: Record) -> float:
    """Share of a walk that is not inside a graph. Encoding runs beside it and is not counted."""
    inside = sum(s for role, s in walk.graph_seconds.items() if role != "segmenter.encoder")
    return max(0.0, 1 - inside / walk.seconds)


def run_scenario(
    runtime: Runtime, meter: GraphMeter, scenario: Scenario, tell: Tell
) -> dict[str, Any]:
    """Run one scenario; figures in milliseconds unless they say otherwise."""
    work = {
        "one": _one, "sequence": _sequence, "many": _many, "deadline": _deadline,
    }[scenario.kind]  # fmt: skip
    with EnergyMeter(find_meter()) as energy:
        figures = work(runtime, meter, scenario, tell)
    figures["joules"] = None if energy.joules is None else round(energy.joules, 2)
    return {"kind": scenario.kind, "scenes": scenario.scenes, "seed": scenario.seed, **figures}


def timed_walk(
    canvas: Canvas, meter: GraphMeter, scenario: Scenario, expression: str, target: Mask
) -> Record:
    """Annotate with everything measured; the mask is drawn at full size inside the time."""
    meter.take()
    start = time.perf_counter()
    found = canvas.annotate(expression, rules=scenario.rules)
    mask = _mask(found, target)
    seconds = time.perf_counter() - start
    graph_seconds, calls = meter.take()
    return Record(
        seconds, _stages(found), graph_seconds, calls, len(found.clicks), iou(mask, target),
        str(found.stop),
    )  # fmt: skip


def _mask(found: Trajectory, target: Mask) -> Mask:
    return np.zeros_like(target) if found.prediction is None else found.prediction.mask()


def _stages(found: Trajectory) -> dict[str, float]:
    stages: dict[str, float] = {}
    for step in found.steps:
        for name, seconds in {**step.turn.seconds, **step.seconds}.items():
            stages[name] = stages.get(name, 0.0) + seconds
    return stages


def _question(scene: Scene, number: int = 0) -> tuple[str, Mask]:
    expression = scene.expressions[number % len(scene.expressions)]
    return expression.text, scene.mask(expression.target)


def _one(runtime: Runtime, meter: GraphMeter, scenario: Scenario, tell: Tell) -> dict[str, Any]:
    cold, first, steady = None, None, Records()
    for number, scene in enumerate(scenario.draw()):
        record = timed_walk(runtime.open(scene.image), meter, scenario, *_question(scene))
        if number == 0:
            cold = record.seconds
        elif number == 1:
            first = record.seconds
        if number >= scenario.warm_up:
            steady.add(record)
        tell(f"{scenario.name}: {number + 1}")
    extra = {"cold": _ms(cold), "first": _ms(first)}
    return steady.figures() | extra


def _sequence(
    runtime: Runtime, meter: GraphMeter, scenario: Scenario, tell: Tell
) -> dict[str, Any]:
    """Frames come one after the other; the graphs and their buffers stay."""
    figures = _one(runtime, meter, scenario, tell)
    figures["frames_per_second"] = round(1000 / figures["total"]["p50"], 2)
    return figures


def _many(runtime: Runtime, meter: GraphMeter, scenario: Scenario, tell: Tell) -> dict[str, Any]:
    """N expressions on one canvas, and the same on a fresh canvas each, in turn."""
    out = {}
    for count in scenario.expressions:
        shared, fresh = list[float](), list[float]()
        for number, scene in enumerate(scenario.draw(max(scenario.expressions))):
            questions = [_question(scene, n) for n in range(count)]
            canvas = runtime.open(scene.image)
            times = (
                _timed([canvas] * count, questions, scenario),
                _timed((runtime.open(scene.image) for _ in questions), questions, scenario),
            )
            if number >= scenario.warm_up:
                shared.append(times[0])
                fresh.append(times[1])
            tell(f"{scenario.name} {count}: {number + 1}")
        out[str(count)] = {
            "shared": spread(shared),
            "fresh": spread(fresh),
            "masks_per_second": round(count / float(np.median(shared)), 2),
            "gain": round(float(np.median(np.array(fresh) / np.array(shared))), 3),
        }
    return {"expressions": out}


def _deadline(
    runtime: Runtime, meter: GraphMeter, scenario: Scenario, tell: Tell
) -> dict[str, Any]:
    """The loop without an end to it, then ended at shares of its median time."""
    scenes = list(scenario.draw())
    whole = Records()
    for number, scene in enumerate(scenes):
        record = timed_walk(runtime.open(scene.image), meter, scenario, *_question(scene))
        if number >= scenario.warm_up:
            whole.add(record)
    usual = float(np.median([walk.seconds for walk in whole.walks]))
    shares = {}
    for share in scenario.shares:
        limit = share * usual
        late = [_until(runtime, scenario, limit, scene) for scene in scenes[scenario.warm_up :]]
        shares[str(share)] = _deadline_figures(limit, late)
        tell(f"{scenario.name} {share:.0%}")
    return {"whole": whole.figures(), "shares": shares}


def _until(
    runtime: Runtime, scenario: Scenario, limit: float, scene: Scene
) -> tuple[float, float, bool]:
    """Seconds taken, IoU of the result, and whether there was one."""
    text, target = _question(scene)
    rules = replace(scenario.rules, deadline=limit)
    start = time.perf_counter()
    found = runtime.open(scene.image).annotate(text, rules=rules)
    seconds = time.perf_counter() - start
    return seconds, iou(_mask(found, target), target), found.prediction is not None


def _deadline_figures(limit: float, taken: Sequence[tuple[float, float, bool]]) -> dict[str, Any]:
    tolerance = max(0.010, 0.05 * limit)
    over = [seconds - limit for seconds, _, _ in taken]
    return {
        "deadline": _ms(limit),
        "in_time": round(float(np.mean([late <= tolerance for late in over])), 4),
        "late": spread([max(late, 0.0) for late in over]),
        "with_mask": round(float(np.mean([has for _, _, has in taken])), 4),
        "miou": round(float(np.mean([value for _, value, _ in taken])), 4),
    }


def _timed(
    canvases: Iterable[Canvas], questions: Sequence[tuple[str, Mask]], scenario: Scenario
) -> float:
    """Seconds to answer every question on its canvas, masks at full size included."""
    start = time.perf_counter()
    for canvas, (text, target) in zip(canvases, questions, strict=True):
        _mask(canvas.annotate(text, rules=scenario.rules), target)
    return time.perf_counter() - start


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
