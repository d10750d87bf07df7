"""From the documents that `bench` writes to a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from segagent_rt.data.reading import read_json
from segagent_rt.errors import InputError

Document: TypeAlias = Mapping[str, Any]
Curve: TypeAlias = list[tuple[float, float]]

COLUMNS = ("p50", "p90", "p99", "max", "n")
PARTS = ("paint", "prepare", "vision", "language", "generate", "encode", "segment")
"""Stages that do not contain one another, in the order of a click."""

HEAD = """# Benchmarks

Written by `segagent-rt bench report`; with `--check` it says whether this page is what the files in
`results/` give. A file there is what `segagent-rt bench --output` wrote. Milliseconds unless said
otherwise; warm-up is apart; `n` says of how many runs a figure is. A ratio is made pair by pair in
one run, and told only behind the parity check of that run: the same clicks in the same states, the
same masks after them, no lower accuracy.
"""


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """A document with the name of its file."""

    name: str
    document: Document

    def scenarios(self) -> dict[str, Document]:
        """Figures by scenario, or by who ran where two were compared."""
        found: dict[str, Document] = self.document.get("scenarios", self.document.get("stages", {}))
        return found or {self.name: self.document}


def read_results(folder: Path) -> list[BenchmarkResult]:
    """Every document in a folder, by name.

    Raises:
        InputError: there is none, or one is not JSON.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        if not isinstance(document, dict):
            raise InputError(f"{path} is no document of a benchmark", hint="move it elsewhere")
        results.append(BenchmarkResult(path.stem, document))
    if not results:
        raise InputError(
            f"there are no results in {folder}",
            hint=f"segagent-rt bench --output {folder / 'mine.json'}",
        )
    return results


def stage_stacks(results: Sequence[BenchmarkResult]) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part of a walk, by what was measured."""
    stacks = {}
    for label, figures in _measured(results):
        stages = figures.get("stages", {})
        parts = {part: stages[part]["p50"] for part in PARTS if part in stages}
        if parts:
            stacks[label] = parts
    return stacks


def by_click(results: Sequence[BenchmarkResult]) -> dict[str, Curve]:
    """Median milliseconds of a click over its number."""
    curves = {}
    for label, figures in _measured(results):
        clicks = figures.get("by_click", {})
        if len(clicks) > 1:
            curves[label] = [(float(number), spread["p50"]) for number, spread in clicks.items()]
    return curves


def over_time(results: Sequence[BenchmarkResult]) -> dict[str, Curve]:
    """Mean IoU of the mask that is ready after so many milliseconds."""
    curves = {}
    for label, figures in _measured(results):
        if "shares" in figures:
            curve = [(each["deadline"], each["miou"]) for each in figures["shares"].values()]
            whole = figures["whole"]
            curves[label] = sorted([*curve, (whole["total"]["p50"], whole["miou"])])
    return curves


def growth(results: Sequence[BenchmarkResult]) -> dict[str, Curve]:
    """Median milliseconds over what grows, by its name."""
    return {
        f"{label}: {name}": [(float(figure), spread["p50"]) for figure, spread in curve.items()]
        for label, figures in _measured(results)
        for name, curve in figures.get("growth", {}).items()
    }


def plots(results: Sequence[BenchmarkResult]) -> dict[str, str]:
    """The plots that these results give: path relative to the page, and caption."""
    wanted = {
        "plots/stages.svg": ("Stages of a walk", stage_stacks),
        "plots/clicks.svg": ("Latency over clicks", by_click),
        "plots/time.svg": ("IoU over time", over_time),
        "plots/growth.svg": ("How cost grows", growth),
    }
    return {path: caption for path, (caption, found) in wanted.items() if found(results)}


def page(results: Sequence[BenchmarkResult]) -> str:
    """The page as Markdown."""
    lines = [HEAD]
    lines += [f"![{caption}]({path})\n" for path, caption in plots(results).items()]
    for result in results:
        lines += [f"## {result.name}\n", _about(result.document), ""]
        if "ratios" in result.document:
            lines += [*_comparison(result.document), ""]
        for name, figures in result.scenarios().items():
            lines += [*_table(name, figures), ""]
        for graphs in result.document.get("roofline", {}).values():
            lines += [*_roofline(graphs), ""]
    return "\n".join(lines).rstrip() + "\n"


def _measured(results: Sequence[BenchmarkResult]) -> Iterator[tuple[str, Document]]:
    for result in results:
        for name, figures in result.scenarios().items():
            yield f"{result.name}: {name}", figures


def _about(document: Document) -> str:
    machine, bundle = document.get("machine", {}), document.get("bundle", "")
    named = " ".join(str(v) for v in bundle.values()) if isinstance(bundle, dict) else str(bundle)
    facts = {
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "load": machine.get("load"),
        "commit": machine.get("commit"),
        "bundle": named,
        "backend": document.get("backend"),
        "threads": document.get("threads"),
        "load_ms": document.get("load_ms"),
        "peak_megabytes": document.get("peak_megabytes"),
    } | document.get("ceilings", {})
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value) + "."


def _comparison(document: Document) -> Iterator[str]:
    clicks, other = document["clicks"], document["reference"]
    facts = ", ".join(f"{name} {value}" for name, value in other.items())
    yield f"Against plain PyTorch at {clicks} clicks ({facts}).\n"
    yield "| times as fast | median | p10 | p90 | n |\n|---|---|---|---|---|"
    for name, ratio in document["ratios"].items():
        cells = [ratio[key] for key in ("median", "p10", "p90", "n")] if ratio else ["not told"] * 4
        yield _row(name, cells)
    yield "\n| accuracy | mIoU | clicks |\n|---|---|---|"
    for name, accuracy in document["accuracy"].items():
        yield _row(name, [accuracy["miou"], accuracy["clicks_mean"]])
    parity = document["parity_figures"]
    yield (
        f"\nParity {'holds' if document['parity'] else 'FAILS'} over {parity['states']} states: "
        f"same clicks {parity['same_clicks']}, IoU of masks {parity['mask_iou']}. "
        f"Decoder calls after the prompt {document['decoder_calls_after_prefill']} for "
        f"{document['tokens_per_reply']} tokens; equal to masked greedy decoding "
        f"{document['token_equality']}."
    )


def _table(name: str, figures: Document) -> Iterator[str]:
    yield f"| {name} | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    for path, spread in spreads(figures):
        yield _row(path, [spread[column] for column in COLUMNS])
    scalars = [f"{path} {value}" for path, value in _scalars(figures)]
    if scalars:
        yield "\n" + ", ".join(scalars) + "."


def _roofline(graphs: Document) -> Iterator[str]:
    """A graph's call against its arithmetic and its weights at this machine's ceilings."""
    yield "| graph | MB | GFLOP | floor | call | floor / call |\n|---|---|---|---|---|---|"
    for name, row in graphs.items():
        share = f"{row['percent']} %"
        cells = [row["bytes"] / 1e6, row["gflop"], row["floor_ms"], row["call_ms"]]
        yield _row(name, [*cells, share])


def _row(name: str, cells: Sequence[Any]) -> str:
    shown = (str(round(cell, 2) if isinstance(cell, float) else cell) for cell in cells)
    return f"| {name} | {' | '.join(shown)} |"


def spreads(figures: Document, path: str = "") -> Iterator[tuple[str, Document]]:
    """Every set of percentiles in a document, with where it lies."""
    for key, value in figures.items():
        if isinstance(value, dict) and "p50" in value:
            yield f"{path}{key}", value
        elif isinstance(value, dict):
            yield from spreads(value, f"{path}{key}.")


def _scalars(figures: Document, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if isinstance(value, dict) and "p50" not in value:
            if key not in ("machine", "ceilings", "bundle"):
                yield from _scalars(value, f"{path}{key}.")
        elif isinstance(value, (int, float)):
            yield f"{path}{key}", value
