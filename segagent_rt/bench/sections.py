"""The parts of a page for people: one question, one finding, one table, one plot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeAlias

Document: TypeAlias = Mapping[str, Any]
Curve: TypeAlias = tuple[tuple[float, float], ...]
Owner: TypeAlias = Literal["ours", "other"]
"""Whose figure a bar shows; bars of one owner have one colour."""

_WORD = re.compile(r"`[^`]*`\S*|\S+")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with the value written at its end.

    Attributes:
        label: what was measured, in words.
        value: the median, in the unit of the chart.
        low, high: ends of the whisker; None for none.
        owner: whose figure it is.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    owner: Owner = "ours"


@dataclass(frozen=True, slots=True)
class BarChart:
    """Horizontal bars from zero; `unit` stands at the axis and `form` writes a value."""

    unit: str
    bars: tuple[Bar, ...]
    form: str = "{:.0f}"


@dataclass(frozen=True, slots=True)
class Panel:
    """One curve with the words at its axes."""

    x: str
    y: str
    curve: Curve


@dataclass(frozen=True, slots=True)
class PanelChart:
    """Curves side by side."""

    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """The answer to one question.

    Attributes:
        slug: names the plot.
        question: the title on the page.
        finding: one sentence, without a full stop; also the title of the plot.
        measured: what was measured, how often, on what machine; the plot's second line.
        head: the titles of the table's columns.
        rows: the cells.
        chart: the plot.
        notes: sentences below the table.
        source: the result's file and the command that writes it.
    """

    slug: str
    question: str
    finding: str
    measured: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chart: BarChart | PanelChart
    notes: str
    source: str

    @property
    def plot(self) -> str:
        """Path of the plot, from the page."""
        return f"plots/{self.slug}.svg"

    def markdown(self) -> str:
        """The section as Markdown."""
        lines = [
            f"## {self.question}\n",
            f"{self.finding}.\n",
            f"![{self.finding}]({self.plot})\n",
            table_row(self.head),
            "|" + "---|" * len(self.head),
            *(table_row(row) for row in self.rows),
            "",
            *wrapped(f"{self.measured}. {self.notes}"),
            "",
            *wrapped(self.source),
        ]
        return "\n".join(lines)


def table_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def wrapped(text: str) -> list[str]:
    """Lines of at most 100 columns; what is in backticks stays on one line."""
    lines, line = [], ""
    for word in _WORD.findall(text):
        if line and len(line) + 1 + len(word) > 100:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def machine_of(document: Document) -> str:
    """The processor and its cores, with a warning if other programs kept them busy."""
    machine = document.get("machine", {})
    cores = machine.get("cores")
    units = machine.get("vector_units") or []
    with_units = f" with {units[-1]}" if units else ""
    name = f"{machine.get('processor', 'unknown processor')}{with_units}, {cores} cores"
    load = (machine.get("load") or [0])[0]
    busy = cores is not None and load > 1.5 * cores
    return f"{name} (busy with other programs, load {load:.0f})" if busy else name


def source_of(command: str, *names: str) -> str:
    """Where the figures of a section are from."""
    files = " and ".join(f"`results/{name}.json`" for name in names)
    return f"Source: {files}, from the command `{command}`."


def scenarios_of(documents: Mapping[str, Document]) -> Iterator[tuple[str, Document, Document]]:
    """Each result's name and document, with each of its scenarios."""
    for name, document in documents.items():
        for figures in document.get("scenarios", {}).values():
            yield name, document, figures


Question: TypeAlias = Callable[[Mapping[str, Document]], Section | None]
"""From results by the names of their files to a section; None if they do not hold the answer."""


def first_document(answer: Callable[[str, Document], Section | None]) -> Question:
    """A question that one result answers: the first one that can."""

    @wraps(answer)
    def ask(documents: Mapping[str, Document]) -> Section | None:
        found = (answer(name, document) for name, document in documents.items())
        return next((section for section in found if section is not None), None)

    return ask


def first_scenario(answer: Callable[[str, Document, Document], Section | None]) -> Question:
    """A question that one scenario of a result answers: the first one that can."""

    @wraps(answer)
    def ask(documents: Mapping[str, Document]) -> Section | None:
        found = (answer(*each) for each in scenarios_of(documents))
        return next((section for section in found if section is not None), None)

    return ask


def median_of(spread: Document) -> float:
    """The median of a set of percentiles."""
    return float(spread["p50"])


def milliseconds(value: float) -> str:
    """A time in the unit in which it has few digits."""
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def ratio_text(ratio: Document | None) -> str:
    """A ratio with its spread, or that there is none."""
    if ratio is None:
        return "not reported"
    return f"{ratio['median']:.1f} ({ratio['p10']:.1f} to {ratio['p90']:.1f})"
