"""Collects cases while a command runs, keeps drawings of the worst, and writes the file."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from segagent_rt.html_report.case import ReportCase
from segagent_rt.html_report.cases_html import case_html, score_of, title_of
from segagent_rt.html_report.page import Table, page, text
from segagent_rt.io import write_result
from segagent_rt.types import RgbImage

LoadImage: TypeAlias = Callable[[], RgbImage | None]

DRAWN = 24
"""So many of the worst cases are drawn; the others are lines of the list."""

LISTED = 1000
"""So many cases are listed."""

LONGEST_SIDE, LONGEST_SIDE_OF_MANY = 1280, 640
"""Pixels of the longer side of photos: of up to four cases, and of more."""

FEW = 4


@dataclass(frozen=True, slots=True)
class _Line:
    """What the list says of a case."""

    key: tuple[float, int]
    title: str
    source: str
    score: str
    clicks: int
    milliseconds: float | None
    stop: str | None


@dataclass(slots=True)
class ReportBuilder:
    """Takes cases one by one, so that a run of any length fits into memory.

    Attributes:
        expected: how many cases will come; it decides how large photos are.
        slowest_first: sort by time instead of quality.
    """

    expected: int = 1
    slowest_first: bool = False
    _targets: bool = False
    _lines: list[_Line] = field(default_factory=list)
    _drawn: list[tuple[tuple[float, int], str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many cases there are."""
        return len(self._lines)

    def add(self, case: ReportCase, load: LoadImage | None = None) -> None:
        """Take a case; it is drawn if it is one of the worst so far.

        Args:
            case: with its image, or without.
            load: reads the image of a case that has none, if it is drawn.
        """
        number = len(self._lines)
        self._targets |= case.target is not None
        worth = -(case.milliseconds or 0.0) if self.slowest_first else case.quality
        key = (worth, number)
        clicks = sum(step.click is not None for step in case.steps)
        self._lines.append(
            _Line(
                key, title_of(case), case.source, score_of(case.result), clicks,
                case.milliseconds, case.stop,
            )
        )  # fmt: skip
        badness = (-worth, -number)
        if len(self._drawn) == DRAWN and badness < self._drawn[0][0]:
            return
        if load is not None:
            case = replace(case, image=load())
        longest = LONGEST_SIDE if self.expected <= FEW else LONGEST_SIDE_OF_MANY
        name = f"case-{number + 1}"
        put = heapq.heappush if len(self._drawn) < DRAWN else heapq.heappushpop
        put(self._drawn, (badness, name, case_html(case, name, longest)))

    def write(
        self,
        path: Path,
        title: str,
        facts: Mapping[str, object],
        tables: Iterable[Table] = (),
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the file.

        Args:
            path: of the file.
            title: of the page.
            facts: what ran on what, by name; those that are None are left out.
            tables: figures, above the cases.
            overwrite: also replace a file that segagent-rt did not write.

        Raises:
            OutputError: it cannot be written, or somebody else wrote the file that is there.
        """
        known = {name: value for name, value in facts.items() if value not in (None, "")}
        drawn = [html for *_, html in sorted(self._drawn, reverse=True)]
        content = page(title, known, tables, self._index(), [*self._legend(), *drawn])
        write_result(path, content, overwrite=overwrite)

    def _index(self) -> str:
        """All cases as a table, the worst first; nothing if there is only one."""
        if len(self._lines) < 2:
            return ""
        drawn = {name for _, name, _ in self._drawn}
        rows = []
        ordered = sorted(self._lines, key=lambda line: line.key)
        for line in ordered[:LISTED]:
            name = f"case-{line.key[1] + 1}"
            title = text(line.title)
            title = f'<a href="#{name}">{title}</a>' if name in drawn else title
            spent = "" if line.milliseconds is None else f"{line.milliseconds:.0f}"
            cells = [line.score, line.clicks, spent, line.stop or ""]
            columns = "".join(f"<td>{text(cell)}</td>" for cell in cells)
            words = f'<td class="words">{text(line.source)}</td>'
            rows.append(f'<tr><th scope="row">{title}</th>{words}{columns}</tr>')
        order = "slowest first" if self.slowest_first else "worst first"
        caption = f"{len(self._lines)} cases, {order}"
        if len(self._lines) > LISTED:
            caption += f"; the first {LISTED} are listed"
        heads = ("case", "image", "score", "clicks", "ms", "stop")
        aligned = {"image": ' class="words"'}
        head_row = "".join(f'<th scope="col"{aligned.get(head, "")}>{head}</th>' for head in heads)
        return (
            f'<section class="wide"><table><caption>{caption}</caption>'
            f"<thead><tr>{head_row}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
        )

    def _legend(self) -> Iterable[str]:
        if self._drawn:
            target = "Dashed magenta: true mask. " if self._targets else ""
            yield (
                f'<p class="legend">Green: mask. {target}Blue circle: positive click. '
                "Red square: negative click. Numbers are the order of the clicks. "
                "Dashed white: the part that the steps enlarge.</p>"
            )
