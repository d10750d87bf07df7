"""Run scenarios: what they took, stage by stage, with the accuracy of the same trajectories."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.bench.ablation import run_ablation
from segagent_rt.bench.energy import EnergyMeter, find_meter
from segagent_rt.bench.figures import (
    AblationFigures,
    DeadlineFigures,
    DeadlineShare,
    EnduranceFigures,
    GrowthFigures,
    KindFigures,
    ManyFigures,
    OneFigures,
    ScenarioResult,
    SequenceFigures,
    SharedCanvasFigures,
)
from segagent_rt.bench.growth import grow
from segagent_rt.bench.loop_runs import (
    BenchQuery,
    LoopRun,
    figures,
    final_mask,
    query_of,
    timed_run,
)
from segagent_rt.bench.machine import resident_bytes
from segagent_rt.bench.profiling import GraphProfiler
from segagent_rt.bench.progress import Progress, run_progress
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bench.stats import percentiles
from segagent_rt.io import attributes
from segagent_rt.metrics import iou
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.scenes import Scene
from segagent_rt.types import ProgressReporter

SETTLED = 50
"""Images after which a process should need no more memory."""
DIFFERENT = 64
"""Scenes that an endurance run takes in turn."""


OnRun: TypeAlias = Callable[[Scene, LoopRun], None]
"""Is called with a scene and its timed run."""


def run_scenario(
    runtime: Runtime,
    meter: GraphProfiler,
    scenario: Scenario,
    report_progress: ProgressReporter,
    on_run: OnRun | None = None,
) -> ScenarioResult:
    """Run one scenario.

    Args:
        runtime: what is measured.
        meter: wraps its sessions.
        scenario: what to do.
        report_progress: called with what is done.
        on_run: called between two runs of the kinds `one` and `sequence`, without the warm-up.
    """
    work: dict[str, Callable[..., KindFigures]] = {
        "one": partial(_one, on_run=on_run), "sequence": partial(_sequence, on_run=on_run),
        "many": _many, "deadline": _deadline, "endurance": _endurance, "ablation": _ablation,
        "growth": _growth,
    }  # fmt: skip
    with EnergyMeter(find_meter()) as energy:
        found = work[scenario.kind](runtime, meter, scenario, report_progress)
    joules = None if energy.joules is None else round(energy.joules, 2)
    return ScenarioResult(scenario.kind, scenario.scenes, scenario.seed, joules, found)


def _one(
    runtime: Runtime,
    meter: GraphProfiler,
    scenario: Scenario,
    report_progress: ProgressReporter,
    on_run: OnRun | None,
) -> OneFigures:
    runs, progress = list[LoopRun](), run_progress(report_progress, scenario)
    for scene in scenario.draw():
        canvas = runtime.open(scene.image)
        runs.append(timed_run(canvas, meter, scenario.rules, query_of(scene)))
        if on_run is not None and len(runs) > scenario.warm_up:
            on_run(scene, runs[-1])
        progress.step()
    measured = figures(runs[scenario.warm_up :])
    return OneFigures(**attributes(measured), first=_ms(runs[0].seconds))


def _sequence(
    runtime: Runtime,
    meter: GraphProfiler,
    scenario: Scenario,
    report_progress: ProgressReporter,
    on_run: OnRun | None,
) -> SequenceFigures:
    """Frames come one after the other; the graphs and their buffers stay."""
    found = _one(runtime, meter, scenario, report_progress, on_run)
    return SequenceFigures(**attributes(found), frames_per_second=round(1000 / found.total.p50, 2))


def _endurance(
    runtime: Runtime, meter: GraphProfiler, scenario: Scenario, report_progress: ProgressReporter
) -> EnduranceFigures:
    """Image after image, nothing kept of any: does memory stay? The same few scenes come again."""
    scenes = list(islice(scenario.draw(), DIFFERENT))
    progress = Progress(report_progress, scenario.name, scenario.scenes)
    seconds, resident = np.zeros(scenario.scenes), np.zeros(scenario.scenes)
    for number in range(scenario.scenes):
        scene = scenes[number % len(scenes)]
        record = timed_run(runtime.open(scene.image), meter, scenario.rules, query_of(scene))
        seconds[number], resident[number] = record.seconds, resident_bytes() or 0
        progress.step()
    first, later = resident[:SETTLED], resident[SETTLED:]
    known = len(later) > 0 and first[-1] > 0
    return EnduranceFigures(
        total=percentiles(seconds[scenario.warm_up :].tolist()),
        resident_megabytes=_thinned(resident / 1e6),
        memory_growth=round(float(later.max() / first[-1]) - 1, 4) if known else None,
    )


def _thinned(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """About twenty of the values, the last among them."""
    return tuple(round(float(v), 1) for v in values[:: -max(len(values) // 20, 1)][::-1])


def _many(
    runtime: Runtime, meter: GraphProfiler, scenario: Scenario, report_progress: ProgressReporter
) -> ManyFigures:
    """N expressions on one canvas, and the same on a fresh canvas each, in turn."""
    out = {}
    for count in scenario.expressions:
        shared, fresh = list[float](), list[float]()
        progress = run_progress(report_progress, scenario, f" {count}")
        for number, scene in enumerate(scenario.draw(max(scenario.expressions))):
            times = _shared_and_fresh(runtime, scenario, scene, count)
            if number >= scenario.warm_up:
                shared.append(times[0])
                fresh.append(times[1])
            progress.step()
        out[str(count)] = SharedCanvasFigures(
            shared=percentiles(shared),
            fresh=percentiles(fresh),
            masks_per_second=round(count / float(np.median(shared)), 2),
            gain=round(float(np.median(np.array(fresh) / np.array(shared))), 3),
        )
    return ManyFigures(out)


def _shared_and_fresh(
    runtime: Runtime, scenario: Scenario, scene: Scene, count: int
) -> tuple[float, float]:
    asked = [query_of(scene, n) for n in range(count)]
    canvas = runtime.open(scene.image)
    return (
        _timed([canvas] * count, asked, scenario),
        _timed([runtime.open(scene.image) for _ in asked], asked, scenario),
    )


def _timed(canvases: Iterable[Canvas], asked: Sequence[BenchQuery], scenario: Scenario) -> float:
    """Seconds to answer every question on its canvas, masks at full size included."""
    start = time.perf_counter()
    for canvas, each in zip(canvases, asked, strict=True):
        final_mask(canvas.annotate(each.expression, rules=scenario.rules), each.target)
    return time.perf_counter() - start


def _ablation(
    runtime: Runtime, meter: GraphProfiler, scenario: Scenario, report_progress: ProgressReporter
) -> AblationFigures:
    return run_ablation(runtime, scenario, report_progress)


def _growth(
    runtime: Runtime, meter: GraphProfiler, scenario: Scenario, report_progress: ProgressReporter
) -> GrowthFigures:
    return grow(runtime, scenario, report_progress)


def _deadline(
    runtime: Runtime, meter: GraphProfiler, scenario: Scenario, report_progress: ProgressReporter
) -> DeadlineFigures:
    """The loop run to its end, then stopped at shares of its median time."""
    scenes = list(scenario.draw())
    whole = [
        timed_run(runtime.open(scene.image), meter, scenario.rules, query_of(scene))
        for scene in scenes
    ][scenario.warm_up :]
    usual = float(np.median([run.seconds for run in whole]))
    shares = {}
    for share in scenario.shares:
        limit = share * usual
        ended = [_until(runtime, scenario, limit, scene) for scene in scenes[scenario.warm_up :]]
        shares[str(share)] = _deadline_share(limit, ended)
        report_progress(f"{scenario.name} {share:.0%}")
    return DeadlineFigures(figures(whole), shares)


def _until(
    runtime: Runtime, scenario: Scenario, limit: float, scene: Scene
) -> tuple[float, float, bool]:
    """Seconds taken, IoU of the result, and whether there was one."""
    asked, rules = query_of(scene), replace(scenario.rules, deadline=limit)
    start = time.perf_counter()
    found = runtime.open(scene.image).annotate(asked.expression, rules=rules)
    seconds = time.perf_counter() - start
    mask = final_mask(found, asked.target)
    return seconds, iou(mask, asked.target), found.prediction is not None


def _deadline_share(limit: float, ended: Sequence[tuple[float, float, bool]]) -> DeadlineShare:
    tolerance = max(0.010, 0.05 * limit)
    over = [seconds - limit for seconds, _, _ in ended]
    return DeadlineShare(
        deadline=_ms(limit),
        tolerance=_ms(tolerance),
        in_time=round(float(np.mean([late <= tolerance for late in over])), 4),
        late=percentiles([max(late, 0.0) for late in over]),
        with_mask=round(float(np.mean([has for _, _, has in ended])), 4),
        miou=round(float(np.mean([value for _, value, _ in ended])), 4),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
