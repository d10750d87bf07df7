"""What benchmarks/gpu_session.py measured, as an answer to a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from segagent_rt.bench.sections import (
    Bar,
    BarChart,
    Document,
    Section,
    first_document,
    median_of,
    source_of,
    table_row,
    wrapped,
)

QUESTION = "How fast is it on a GPU?"
PARTS = (
    "whole click", "vision encoder", "prefill", "decode step", "image encoder", "mask decoder",
)  # fmt: skip
COMMAND = "bash benchmarks/gpu_session.sh"
OURS, CAPTURED = "segagent-rt", "segagent-rt, CUDA graph"
EAGER = ("PyTorch", "transformers generate")
COMPILED = ("torch.compile", "transformers generate, compiled")


@first_document
def gpu_section(name: str, document: Document) -> Section | None:
    """Parts and whole clicks of models of real size, beside PyTorch on the same GPU."""
    rows, bars = list(_rows(document)), list(_bars(document))
    if not rows or not bars:
        return None
    return Section(
        "gpu",
        QUESTION,
        _finding(bars),
        f"Random weights, {_measured(document)}",
        (
            "model",
            "work",
            "segagent-rt",
            "CUDA graph",
            "PyTorch",
            "torch.compile",
            "% of GPU",
        ),
        tuple(rows),
        BarChart("milliseconds", tuple(bars), "{:.1f}"),
        f"{_numerics(document)} Whole clicks begin with an image on the host, and "
        "`transformers` generates the same reply in them. Other work begins and ends in the "
        "GPU's memory. The last column is the share of its published bandwidth (decode step) "
        "or matrix rate. Why something failed stands in the file.",
        source_of(COMMAND, name),
    )


def not_measured() -> str:
    """The section as Markdown, where nobody has measured a GPU."""
    note = f"`{COMMAND}` measures it on a machine with one, and writes `results/gpu.json`."
    return "\n".join(
        [
            f"## {QUESTION}\n",
            table_row(("GPU", "time")),
            "|---|---|",
            table_row(("any", "not measured")),
            "",
            *wrapped(note),
        ]
    )


def _parts(document: Document) -> Iterator[tuple[str, str, Document]]:
    """Model, part, and what was found of it by way."""
    for model, found in document.get("models", {}).items():
        parts = found.get("parts", {})
        for part in (name for name in PARTS if name in parts):
            yield model, part, parts[part]


def _rows(document: Document) -> Iterator[tuple[str, ...]]:
    for model, part, ways in _parts(document):
        groups = ((OURS,), (CAPTURED,), EAGER, COMPILED)
        cells = [_shown(ways, names) for names in groups]
        yield (model, part, *cells, _share(ways))


def _shown(ways: Document, names: tuple[str, ...]) -> str:
    """The median of the first of these ways that there is; why there is none."""
    for name in names:
        found = ways.get(name, {})
        if "time" in found:
            return _precise(median_of(found["time"]))
        if "failed" in found:
            return "failed"
    return ""


def _share(ways: Document) -> str:
    """The best share of the GPU's published figures that graphs of ours reach."""
    shares = [
        figure
        for way in (OURS, CAPTURED)
        for key, figure in ways.get(way, {}).items()
        if key.startswith("percent_of_published")
    ]
    return f"{max(shares):.0f}" if shares else ""


def _bars(document: Document) -> Iterator[Bar]:
    for model, part, ways in _parts(document):
        if part != "whole click":
            continue
        for way in (OURS, *EAGER, *COMPILED):
            if "time" in ways.get(way, {}):
                value = median_of(ways[way]["time"])
                yield Bar(f"{model}, {way}", value, owner="ours" if way == OURS else "other")


def _finding(bars: list[Bar]) -> str:
    ours = next((bar for bar in bars if bar.owner == "ours"), None)
    other = next((bar for bar in bars if bar.owner == "other"), None)
    if ours is None or other is None:
        return "Not every way of making a click was measured"
    model = ours.label.partition(",")[0]
    return (
        f"One click of {model} takes {_precise(ours.value)}, and {_precise(other.value)} in "
        "transformers"
    )


def _measured(document: Document) -> str:
    about = document.get("gpu", {})
    laps = max(
        (
            found["time"]["n"]
            for _, _, ways in _parts(document)
            for found in ways.values()
            if isinstance(found, Mapping) and "time" in found
        ),
        default=0,
    )
    where = "a dry run on the CPU" if document.get("dry_run") else about.get("name", "unknown GPU")
    return f"medians of up to {laps} turns, {where}"


def _numerics(document: Document) -> str:
    """How many families compute what torch computes."""
    found: Document = document.get("numerics", {})
    if not found:
        return "Graphs were not compared with PyTorch."
    exact, rounded = (
        [name for name, ways in found.items() if ways.get(way, {}).get("passed")]
        for way in ("reference", "reference in TF32")
    )
    others = ", ".join(name for name in found if name not in exact)
    return (
        f"Graphs of {len(exact)} of {len(found)} model families equal PyTorch within the export "
        f"gate's tolerance{f', those of {others} do not' if others else ''}; with TF32, ONNX "
        f"Runtime's default, {len(rounded)} do."
    )


def _precise(value: float) -> str:
    """A time with three digits."""
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
