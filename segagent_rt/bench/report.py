"""From the documents that `bench` writes to a page of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.bench import gpu_section, loop_sections, model_sections, peer_sections
from segagent_rt.bench.sections import Document, Section, table_row, wrapped
from segagent_rt.data.reading import read_json
from segagent_rt.errors import InputError

COLUMNS = ("p50", "p90", "p99", "max", "n")

HEAD = """# Benchmarks

Each section answers one question with one table and one plot. Times are medians; warm-up runs are
excluded. Most results are of the small demo bundle, because its weights are part of the package;
the last sections have the sizes of published models. The machine is named in each section. Ratios
compare runs that took turns on one machine.

[How the benchmarks measure](../docs/benchmarks.md) explains the method and how to repeat them on
your machine. [All percentiles](percentiles.md) has every figure. `segagent-rt bench report` writes
both pages from the files in `results/`.
"""

PERCENTILES_HEAD = """# All percentiles

`segagent-rt bench report` writes this page from the files in `results/`. Times are milliseconds
unless the name says otherwise. Warm-up runs are excluded. `n` is the number of timed runs.
[Benchmarks](README.md) explains the figures that matter.
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
            raise InputError(
                f"{path} is not a result of a benchmark", hint="move it to another folder"
            )
        results.append(BenchmarkResult(path.stem, document))
    if not results:
        raise InputError(
            f"there are no results in {folder}",
            hint=f"measure some: segagent-rt bench --output {folder / 'mine.json'}",
        )
    return results


def sections(results: Sequence[BenchmarkResult]) -> list[Section]:
    """The questions that these results answer."""
    documents = {result.name: result.document for result in results}
    questions = (
        *loop_sections.QUESTIONS,
        *model_sections.QUESTIONS,
        *peer_sections.QUESTIONS,
        gpu_section.gpu_section,
    )
    found = (question(documents) for question in questions)
    return [section for section in found if section is not None]


def page(results: Sequence[BenchmarkResult]) -> str:
    """The page for people as Markdown: one section for each question."""
    answers = sections(results)
    texts = [section.markdown() for section in answers]
    if not any(section.question == gpu_section.QUESTION for section in answers):
        texts.append(gpu_section.not_measured())
    return "\n".join([HEAD, "\n\n".join(texts)]) + "\n"


def percentiles_page(results: Sequence[BenchmarkResult]) -> str:
    """The appendix as Markdown: every percentile of every result."""
    lines = [PERCENTILES_HEAD]
    for result in results:
        lines += [f"## {result.name}\n", *wrapped(_about(result.document)), ""]
        if "ratios" in result.document:
            lines += [*_comparison(result.document), ""]
        for name, figures in result.scenarios().items():
            lines += [*_table(name, figures), ""]
        for graphs in result.document.get("roofline", {}).values():
            lines += [*_roofline(graphs), ""]
    return "\n".join(lines).rstrip() + "\n"


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
    yield from wrapped(f"Against plain PyTorch at {clicks} clicks ({facts}).")
    yield ""
    yield "| times as fast | median | p10 | p90 | n |\n|---|---|---|---|---|"
    for name, ratio in document["ratios"].items():
        cells = (
            [ratio[key] for key in ("median", "p10", "p90", "n")] if ratio else ["not reported"] * 4
        )
        yield _row(name, cells)
    yield "\n| accuracy | mIoU | clicks |\n|---|---|---|"
    for name, accuracy in document["accuracy"].items():
        yield _row(name, [accuracy["miou"], accuracy["clicks_mean"]])
    parity = document["parity_figures"]
    yield ""
    yield from wrapped(
        f"Parity {'holds' if document['parity'] else 'FAILS'} over {parity['states']} states: "
        f"same clicks {parity['same_clicks']}, IoU of masks {parity['mask_iou']}. "
        f"Decoder calls after the prompt {document['decoder_calls_after_prefill']} for "
        f"{document['tokens_per_reply']} tokens; equal to masked greedy decoding "
        f"{document['token_equality']}."
    )


def _table(name: str, figures: Document) -> Iterator[str]:
    yield f"| {name} | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"
    for path, spread in spreads(figures):
        yield _row(path, [spread[column] for column in COLUMNS])
    scalars = list(_scalars(figures))
    if scalars:
        yield "\n| figure | value |\n|---|---|"
        yield from (_row(path, [value]) for path, value in scalars)


def _roofline(graphs: Document) -> Iterator[str]:
    """A graph's call against its arithmetic and its weights at this machine's ceilings."""
    yield "| graph | MB | GFLOP | floor | call | floor / call |\n|---|---|---|---|---|---|"
    for name, row in graphs.items():
        share = f"{row['percent']} %"
        cells = [row["bytes"] / 1e6, row["gflop"], row["floor_ms"], row["call_ms"]]
        yield _row(name, [*cells, share])


def _row(name: str, cells: Sequence[Any]) -> str:
    return table_row([name, *map(_figure, cells)])


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else str(round(value, 2))


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
            if key not in ("machine", "ceilings", "bundle", "begun_at_s"):
                yield from _scalars(value, f"{path}{key}.")
        elif isinstance(value, (int, float)):
            yield f"{path}{key}", value
