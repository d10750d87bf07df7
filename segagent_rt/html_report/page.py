"""The page around the cases: head, facts, tables, list of cases, and the style.

The page has no script and asks for nothing: its content security policy allows pictures inside it
and its own style only. Every text that comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from segagent_rt import __version__
from segagent_rt.errors import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Attributes:
        title: its caption.
        heads: the names of the columns.
        rows: the name of a row and its cells; fractions are rounded to two digits.
        bars: for each row a share, 0..1, drawn as a bar in its first cell; empty for no bars.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    bars: Sequence[float] = ()


def text(value: object) -> str:
    """Any text from outside, as text of the page: without control characters, escaped."""
    return escape(printable(str(value)))


def page(
    title: str,
    facts: Mapping[str, object],
    tables: Iterable[Table] = (),
    index: str = "",
    body: Iterable[str] = (),
) -> bytes:
    """The file.

    Args:
        title: of the page.
        facts: what ran on what, by name.
        tables: figures.
        index: the list of the cases, as HTML.
        body: the cases, as HTML.

    Returns:
        UTF-8.
    """
    listed = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts.items())
    style = files("segagent_rt.html_report").joinpath("style.css").read_text("utf-8")
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="segagent-rt {__version__}">',
        f"<title>{text(title)}</title><style>{style}</style></head><body>",
        f"<header><h1>{text(title)}</h1><dl>{listed}</dl></header><main>",
        *map(_table, tables),
        index,
        *body,
        f"</main><footer>segagent-rt {__version__}</footer></body></html>\n",
    ]
    return "\n".join(parts).encode("utf-8", "replace")


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{text(head)}</th>' for head in table.heads)
    rows = []
    for number, row in enumerate(table.rows):
        share = 100 * table.bars[number] if table.bars else 0
        bar = f'<span class="bar" style="width:{share:.1f}%"></span>' if table.bars else ""
        first, *others = row
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{text(first)}{bar}</th>{cells}</tr>')
    return (
        f'<section class="wide"><table class="figures"><caption>{text(table.title)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else text(value)
