"""What other runtimes take for the same models at real size, as answers to questions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from segagent_rt.bench.model_sections import RANDOM, VARIANTS
from segagent_rt.bench.sections import (
    Bar,
    BarChart,
    Document,
    Question,
    Section,
    first_document,
    machine_of,
    median_of,
    milliseconds,
    ratio_text,
    source_of,
)

PEERS = {
    "genai": "ONNX Runtime GenAI",
    "llama.cpp": "llama.cpp",
    "openvino": "OpenVINO",
    "samexporter": "samexporter",
}

STAGES = ("whole", "prompt", "token")

Compared: TypeAlias = tuple[str, str, str, tuple[float, float], Document]
"""Work, variant, the other runtime, our time and its time in milliseconds, and the ratio."""


@first_document
def other_language_runtimes(name: str, document: Document) -> Section | None:
    """The language part of a click in other runtimes, by stage."""
    found = document.get("language", {})
    ours = {pair.split(" against ")[0] for pair in found.get("times_as_fast", {})}
    if not ours:
        return None
    times = {way: median_of(each["whole"]) for way, each in found["ways"].items()}
    fastest = min(ours, key=times.__getitem__)
    ratios = {
        way: ratio for way in times
        if (ratio := found["times_as_fast"].get(f"{fastest} against {way}")) is not None
    }  # fmt: skip
    if not ratios:
        return None
    ways = [*(way for way in times if way in ours), *ratios]
    called = {way: _runtime(way, ours) for way in ways}
    turns = next(iter(ratios.values()))["whole"]["n"]
    return Section(
        "other-language-runtimes",
        "How fast are other runtimes with the language model?",
        _finding([called[way][0] for way in ratios], [r["whole"] for r in ratios.values()]),
        f"Language part of a click, random weights, medians of {turns} turns, {machine_of(found)}",
        ("runtime", "graphs", "prompt and reply", "prompt", "each token", "ours is faster by"),
        tuple(
            (
                *called[way],
                *(milliseconds(median_of(found["ways"][way][stage])) for stage in STAGES),
                ratio_text(ratios[way]["whole"]) if way in ratios else "",
            )
            for way in ways
        ),
        BarChart(
            "prompt and reply, ms",
            tuple(Bar(", ".join(called[way]), times[way]) for way in ways),
            "{:.0f}",
        ),
        "The prompt has as many tokens as one with a picture, and every runtime writes as many as "
        "our reply has. segagent-rt feeds tokens that the reply grammar forces in one call. The "
        "runtimes take turns; the last column is a runtime's time over that of our fastest graphs, "
        f"turn by turn. {RANDOM}.",
        source_of("python benchmarks/real_peers.py measure FOLDER", name),
    )


@first_document
def other_vision_runtimes(name: str, document: Document) -> Section | None:
    """The vision encoder of a click in other runtimes."""
    away, ratios = document.get("apart_from_torch_fp32", {}), document.get("times_as_fast", {})
    times = {way: median_of(document["ways"][way]) for way in away}
    ours = [way for way in away if f"{way} against torch fp32" in ratios]
    if not ours:
        return None
    fastest = min(ours, key=times.__getitem__)
    told = {
        way: ratio for way in times
        if (ratio := ratios.get(f"{fastest} against {way}")) is not None
    }  # fmt: skip
    if not told:
        return None
    called = {
        way: _runtime(way, ours)
        if way in ours or not way.startswith("torch")
        else ("PyTorch", VARIANTS[way].partition(", ")[2])
        for way in (*ours, *told)
    }
    return Section(
        "other-vision-runtimes",
        "How fast are other runtimes with the vision encoder?",
        _finding([called[way][0] for way in told], [*told.values()]),
        f"One picture of {document['patches']:,} patches, vision encoder of {document['model']}, "
        f"random weights, medians of {next(iter(told.values()))['n']} turns, "
        f"{machine_of(document)}",
        ("runtime", "graphs", "one picture", "away from 32-bit PyTorch", "ours is faster by"),
        tuple(
            (
                *called[way],
                milliseconds(times[way]),
                f"{100 * away[way]:.1f}%",
                ratio_text(told[way]) if way in told else "",
            )
            for way in called
        ),
        BarChart(
            "one picture, ms",
            tuple(Bar(", ".join(called[way]), times[way]) for way in called),
            "{:.0f}",
        ),
        "The fourth column is the median distance of a token's embedding, relative to its length. "
        "OpenVINO's plugin chooses bfloat16 for products where the processor has it. The runtimes "
        "take turns; the last column is a runtime's time over that of our fastest graphs, turn by "
        f"turn. {RANDOM}.",
        source_of("python benchmarks/vision_peers.py measure FOLDER", name),
    )


def _runtime(way: str, ours: Collection[str]) -> tuple[str, str]:
    """A runtime, and its graphs in words."""
    if way in ours:
        return "segagent-rt", VARIANTS[way]
    peer, precision = way.split()
    return PEERS[peer], precision


def _finding(runtimes: Sequence[str], ratios: Sequence[Document]) -> str:
    """From the least to the largest ratio, and the runtimes, each named once."""
    medians = [ratio["median"] for ratio in ratios]
    span = _range_text(f"{min(medians):.1f}", f"{max(medians):.1f}")
    *names, last = dict.fromkeys(runtimes)
    listed = f"{', '.join(names)} and {last}" if names else last
    return f"segagent-rt is {span} times as fast as {listed}"


@first_document
def other_sam_runtimes(name: str, document: Document) -> Section | None:
    """SAM's graphs in another runtime."""
    found = document.get("samexporter", {})
    compared = list[Compared]()
    for call, work in (("encode", "SAM encoder"), ("decode", "SAM decoder")):
        for variant, ratios in (found.get("times_as_fast") or {}).items():
            if ratios is not None:
                ways = (variant, "samexporter")
                times = tuple(median_of(found["ways"][way][call]) for way in ways)
                runtime = "samexporter, 32-bit floats"
                compared.append((work, variant, runtime, (times[0], times[1]), ratios[call]))
    question = "How fast are other exports of SAM?"
    return _other_runtimes("other-sam-runtimes", question, name, found, compared, "")


def _other_runtimes(
    key: str, question: str, name: str, found: Document, compared: Sequence[Compared], note: str
) -> Section | None:
    if not compared:
        return None
    runtimes = [runtime.split(",")[0] for _, _, runtime, _, _ in compared]
    counts = sorted({ratio["n"] for *_, ratio in compared})
    turns = _range_text(str(counts[0]), str(counts[-1]))
    return Section(
        key,
        question,
        _finding(runtimes, [ratio for *_, ratio in compared]),
        f"Random weights, medians of {turns} turns, {machine_of(found)}",
        ("work", "graphs", "time", "other runtime", "its time", "speed-up"),
        tuple(
            (work, VARIANTS[variant], milliseconds(ours), other, milliseconds(theirs), shown)
            for (work, variant, other, (ours, theirs), ratio) in compared
            for shown in [ratio_text(ratio)]
        ),
        BarChart(
            "speed-up over the other runtime",
            tuple(
                Bar(
                    f"{work}, {VARIANTS[variant]}\nagainst {other}",
                    ratio["median"],
                    ratio["p10"],
                    ratio["p90"],
                )
                for work, variant, other, _, ratio in compared
            ),
            "{:.1f}",
        ),
        f"{note}The runtimes take turns, so each speed-up compares neighbours in time. {RANDOM}.",
        source_of("python benchmarks/real_peers.py measure FOLDER", name),
    )


def _range_text(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


QUESTIONS: tuple[Question, ...] = (
    other_language_runtimes,
    other_vision_runtimes,
    other_sam_runtimes,
)
