"""The plots of a report. Needs matplotlib; imported by `bench report` alone.

All have one style: the finding as the title, what was measured below it, values written at the
marks, and a light background of their own, so that they read the same on a dark page.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from segagent_rt.bench.sections import BarChart, Panel, PanelChart, Section

WIDTH = 8.0
PAPER, INK, FAINT = "#fafafc", "#1f2937", "#6b7280"
COLOURS = {"ours": "#6366f1", "other": "#a8b0bd"}
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": "#d1d5db",
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: small files, and searchable
    "svg.hashsalt": "segagent-rt",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": INK,
}


def draw(sections: Sequence[Section]) -> dict[str, bytes]:
    """Every plot of a page, as SVG, by its path."""
    with matplotlib.rc_context(STYLE):
        return {section.plot: _drawn(section) for section in sections}


def _drawn(section: Section) -> bytes:
    chart = section.chart
    figure = _bars(chart) if isinstance(chart, BarChart) else _panels(chart)
    height = figure.get_figheight()
    title = textwrap.wrap(section.finding, 74)
    measured = textwrap.wrap(section.measured, 104)
    head = 0.27 * len(title) + 0.2 * len(measured) + 0.35
    figure.set_figheight(height + head)
    top = height + head - 0.15
    figure.text(
        0.15 / WIDTH, top / (height + head), "\n".join(title), size=13, weight="bold", va="top"
    )
    figure.text(
        0.15 / WIDTH,
        (top - 0.27 * len(title)) / (height + head),
        "\n".join(measured),
        size=9,
        color=FAINT,
        va="top",
    )
    figure.subplots_adjust(top=height / (height + head), bottom=0.72 / (height + head))
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})  # the same bytes each time
    pyplot.close(figure)
    return stream.getvalue()


def _bars(chart: BarChart) -> Any:
    """Horizontal bars, each with its value at the end and, if it has one, its spread."""
    labels = [textwrap.fill(bar.label, 34) for bar in chart.bars]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.75 + 0.2 * len(labels) + 0.2 * lines))
    most = max(bar.high or bar.value for bar in chart.bars)
    for place, bar in enumerate(chart.bars):
        axes.barh(place, bar.value, height=0.6, color=COLOURS[bar.owner])
        if bar.low is not None and bar.high is not None:
            spread = [[bar.value - bar.low], [bar.high - bar.value]]
            axes.errorbar(bar.value, place, xerr=spread, color=INK, capsize=3, linewidth=1)
        end = max(bar.value, bar.high or 0.0) + 0.012 * most
        axes.text(end, place, chart.form.format(bar.value), va="center", weight="bold")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.1)
    axes.set_xlabel(chart.unit)
    figure.subplots_adjust(left=2.75 / WIDTH, right=1 - 0.25 / WIDTH)
    return figure


def _panels(chart: PanelChart) -> Any:
    """Curves side by side, both axes from zero: what is proportional is a straight line."""
    count = len(chart.panels)
    figure, row = pyplot.subplots(1, count, figsize=(WIDTH, 2.9), squeeze=False)
    for axes, panel in zip(row[0], chart.panels, strict=True):
        _curve(axes, panel, several=count > 1)
    row[0][0].set_ylabel(chart.panels[0].y)
    figure.subplots_adjust(left=0.75 / WIDTH, right=1 - 0.25 / WIDTH, wspace=0.35)
    return figure


def _curve(axes: Any, panel: Panel, *, several: bool) -> None:
    xs, ys = zip(*panel.curve, strict=True)
    axes.plot(xs, ys, marker="o", color=COLOURS["ours"], linewidth=2, markersize=4.5)
    axes.set_xlim(0, max(xs) * 1.15)
    axes.set_ylim(0, 1.05 if max(ys) <= 1 else max(ys) * 1.2)
    axes.set_xlabel(textwrap.fill(panel.x, 22) if several else panel.x)
    whole = all(float(x).is_integer() for x in xs)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(4 if several else 8, integer=whole))
    axes.yaxis.set_major_locator(pyplot.MaxNLocator(4))
    axes.tick_params(axis="y", colors=FAINT)
    for x, y in (panel.curve[0], panel.curve[-1]) if several else panel.curve:
        beside = several and x == xs[0] and ys[-1] > ys[0]  # a rising curve hides what is above it
        axes.annotate(
            f"{y:.2f}" if max(ys) <= 1 else f"{y:.0f}",
            (x, y),
            (8, -9) if beside else (0, 6),
            textcoords="offset points",
            ha="left" if beside else "center",
            weight="bold",
        )
