"""The pictures of a report. Needs matplotlib; imported by `bench report` alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from segagent_rt.bench.report import (
    PARTS,
    BenchmarkResult,
    Curve,
    by_click,
    growth,
    over_time,
    plots,
    stage_stacks,
)

SIZE = (7.5, 3.5)


def draw(results: Sequence[BenchmarkResult]) -> dict[str, bytes]:
    """Every plot of a report, as SVG, by its path."""
    clicks, time = by_click(results), over_time(results)
    draughts = {
        "plots/stages.svg": lambda: draw_stacks(stage_stacks(results)),
        "plots/clicks.svg": lambda: draw_curves(clicks, "click", "milliseconds (medians)"),
        "plots/time.svg": lambda: draw_curves(time, "milliseconds", "mean IoU"),
        "plots/growth.svg": lambda: draw_panels(growth(results), "milliseconds (medians)"),
    }
    return {path: draughts[path]() for path in plots(results)}


def draw_stacks(stacks: Mapping[str, Mapping[str, float]]) -> bytes:
    """Horizontal bars, a segment for each part of a walk."""
    figure, axes = pyplot.subplots(figsize=(SIZE[0], 1.2 + 0.35 * len(stacks)))
    names = list(stacks)
    left = [0.0] * len(names)
    for part in dict.fromkeys(part for parts in stacks.values() for part in parts):
        widths = [stacks[name].get(part, 0.0) for name in names]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("milliseconds (medians)")
    axes.invert_yaxis()
    axes.legend(fontsize="small", ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure)


def draw_curves(curves: Mapping[str, Curve], x: str, y: str) -> bytes:
    """A line for each curve, from the origin of y."""
    figure, axes = pyplot.subplots(figsize=SIZE)
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")
    return _svg(figure)


def draw_panels(curves: Mapping[str, Curve], y: str) -> bytes:
    """A panel for each curve, both axes from the origin: what is linear is a straight line."""
    figure, axes = pyplot.subplots(1, len(curves), figsize=(3 * len(curves), 2.6), squeeze=False)
    for panel, (name, curve) in zip(axes[0], curves.items(), strict=True):
        panel.plot(*zip(*curve, strict=True), marker="o")
        panel.set_xlabel(name.rpartition(": ")[2])
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
    axes[0][0].set_ylabel(y)
    return _svg(figure)


def _svg(figure: Any) -> bytes:
    """The same bytes each time: no date, no random names."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "segagent-rt"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return stream.getvalue()
