"""What the scripts in benchmarks/ measured at real size, as answers to questions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

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

VARIANTS = {
    "reference": "32-bit floats",
    "cpu-w8": "8-bit weights",
    "cpu-w4": "4-bit weights",
    "cpu-w8a8-dynamic": "8-bit weights and activations",
    "cpu-w8a8-static": "8-bit weights and activations, calibrated",
    "openvino-fp32": "OpenVINO, 32-bit floats",
    "openvino-bf16": "OpenVINO, bfloat16",
    "torch fp32": "PyTorch, 32-bit floats",
    "torch bf16": "PyTorch, bfloat16",
}
RANDOM = "Random weights give real times, but no real answers"


@first_document
def real_click(name: str, document: Document) -> Section | None:
    """One click of a model at real size, beside plain PyTorch."""
    ways = document.get("ways", {})
    if "torch fp32" not in ways or not document.get("parity"):
        return None
    ratios = document["times_as_fast"]
    ours = {way: median_of(ways[way]["click"]) for way in ways if way in VARIANTS}
    fastest = min((way for way in ours if not way.startswith("torch")), key=ours.__getitem__)
    count = ways[fastest]["click"]["n"]
    return Section(
        "real-click",
        "How fast is one click of a real model?",
        f"One click takes {milliseconds(ours[fastest])} with {VARIANTS[fastest]}, and "
        f"{milliseconds(ours['torch fp32'])} in PyTorch",
        f"{document['model']}, random weights, medians of {count} clicks, {machine_of(document)}",
        (
            "graphs",
            "one click",
            "language model alone",
            "speed-up over 32-bit PyTorch",
            "over bfloat16 PyTorch",
        ),
        tuple(
            (
                VARIANTS[way],
                milliseconds(value),
                milliseconds(median_of(ways[way]["language"])),
                *(
                    ""
                    if way.startswith("torch")
                    else ratio_text(ratios[f"{way} against {other}"]["whole click"])
                    for other in ("torch fp32", "torch bf16")
                ),
            )
            for way, value in ours.items()
        ),
        BarChart(
            "seconds for one click",
            tuple(
                Bar(
                    VARIANTS[way],
                    value / 1000,
                    owner="other" if way.startswith("torch") else "ours",
                )
                for way, value in ours.items()
            ),
            "{:.1f}",
        ),
        f"{RANDOM}. Brackets hold the 10th and the 90th percentile.",
        source_of("python benchmarks/real_loop.py click FOLDER", name),
    )


@first_document
def real_loop(name: str, document: Document) -> Section | None:
    """Several clicks of a model at real size, beside plain PyTorch."""
    ratios = document.get("times_as_fast", {})
    if "same_clicks" not in ratios or not document["parity"]:
        return None
    clicks = document["clicks"]
    words = {
        "same_clicks": f"{clicks} clicks, equal work",
        "same_clicks_with_our_last_rating": f"{clicks} clicks, the last mask rated, too",
        "with_stop": f"Early stopping ({document['clicks_with_stop']:.1f} clicks, mean)",
    }
    kinds = [kind for kind in words if kind in ratios]
    return Section(
        "real-loop",
        "How fast is the loop of a real model?",
        f"segagent-rt is {ratios['same_clicks']['median']:.1f} times as fast as PyTorch for "
        "the same clicks",
        f"{document['model']}, random weights, {ratios['same_clicks']['n']} runs of {clicks} "
        f"clicks, {machine_of(document)}",
        ("work", "speed-up over 32-bit PyTorch (10th to 90th percentile)"),
        tuple((words[kind], ratio_text(ratios[kind])) for kind in kinds),
        BarChart(
            "speed-up over 32-bit PyTorch",
            tuple(
                Bar(words[kind], r["median"], r["p10"], r["p90"])
                for kind, r in ((kind, ratios[kind]) for kind in kinds)
            ),
            "{:.1f}",
        ),
        f"One click takes {milliseconds(median_of(document['torch']['click']))} in PyTorch and "
        f"{milliseconds(median_of(document['ours']['per_click']))} here. {RANDOM}; early "
        f"stopping combines these steps with the number of clicks of the demo bundle.",
        source_of("python benchmarks/real_loop.py walk FOLDER", name),
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
    medians = [ratio["whole"]["median"] for ratio in ratios.values()]
    span = _range_text(f"{min(medians):.1f}", f"{max(medians):.1f}")
    turns = next(iter(ratios.values()))["whole"]["n"]
    return Section(
        "other-language-runtimes",
        "How fast are other runtimes with the language model?",
        f"segagent-rt is {span} times as fast as "
        + _listed(list(dict.fromkeys(called[way][0] for way in ratios))),
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
    medians = [ratio["median"] for ratio in told.values()]
    span = _range_text(f"{min(medians):.1f}", f"{max(medians):.1f}")
    return Section(
        "other-vision-runtimes",
        "How fast are other runtimes with the vision encoder?",
        f"segagent-rt is {span} times as fast as "
        + _listed(list(dict.fromkeys(called[way][0] for way in told))),
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


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


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
    medians = [ratio["median"] for *_, ratio in compared]
    runtimes = list(dict.fromkeys(runtime.split(",")[0] for _, _, runtime, _, _ in compared))
    counts = sorted({ratio["n"] for *_, ratio in compared})
    turns = _range_text(str(counts[0]), str(counts[-1]))
    span = _range_text(f"{min(medians):.1f}", f"{max(medians):.1f}")
    return Section(
        key,
        question,
        f"segagent-rt is {span} times as fast as {_listed(runtimes)}",
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


def memory_of_models(documents: Mapping[str, Document]) -> Section | None:
    """How much memory an exported language model takes, and how long one answer."""
    rows, bars, sources, machine = [], [], [], ""
    for name, document in documents.items():
        if "checkpoint_gigabytes" not in document:
            continue
        for variant in (key for key in document if key in VARIANTS):
            found = document[variant]
            rows.append(
                (
                    document["model"],
                    VARIANTS[variant],
                    f"{document['checkpoint_gigabytes']:.1f} GB",
                    f"{found['loaded_anonymous_gb']:.1f} GB",
                    f"{median_of(found['load_ms']['wall']) / 1000:.0f} s",
                    f"{median_of(found['answer_ms']['wall']) / 1000:.0f} s",
                    f"{median_of(found['decode_ms']['wall']):.0f} ms",
                )
            )
            bars.append(
                Bar(f"{document['model']} with {VARIANTS[variant]}", found["loaded_anonymous_gb"])
            )
        bars.append(
            Bar(
                f"{document['model']}, the checkpoint's files",
                document["checkpoint_gigabytes"],
                owner="other",
            )
        )
        sources.append(name)
        machine = machine_of(document)
    if not rows:
        return None
    least = min((bar for bar in bars if bar.owner == "ours"), key=lambda bar: bar.value)
    return Section(
        "memory",
        "How much memory does a real model need?",
        f"{least.label} takes {least.value:.1f} GB of memory",
        f"The MLLM alone, random weights, one process for each row, {machine}",
        (
            "model", "graphs", "checkpoint", "memory when loaded", "loading", "first answer",
            "each further token",
        ),
        tuple(rows),
        BarChart("gigabytes", tuple(bars), "{:.1f}"),
        f"Memory is anonymous memory of the process; files that it maps are not counted. {RANDOM}. "
        "An answer reads a photo and a prompt and writes a click; its time is the median of three.",
        source_of("python benchmarks/real_size.py MODEL FOLDER", *sources),
    )  # fmt: skip


@first_document
def segmenters(name: str, document: Document) -> Section | None:
    """How long segmenters take for an image, and for each click on it."""
    if "sam" not in document or "edgetam" not in document:
        return None
    rows, bars, failed = [], [], []
    titles = {"sam": "SAM ViT-B", "edgetam": "EdgeTAM", "simple_click": "SimpleClick ViT-L"}
    for model, title in titles.items():
        for variant, words in VARIANTS.items():
            if variant not in document.get(model, {}):
                continue
            found = document[model][variant]
            encode, click = (
                median_of(found[key]["wall"]) for key in ("encode_ms", "later_click_ms")
            )
            passed = document[model]["verified"]["variants"].get(variant, {})
            agrees = passed.get("mask_iou_mean")
            rows.append(
                (
                    title,
                    words,
                    milliseconds(encode),
                    milliseconds(click),
                    "" if agrees is None else f"{agrees:.3f}",
                )
            )
            if model != "simple_click":
                bars.append(Bar(f"{title}, {words}", click))
            if agrees is not None and agrees < 0.98:
                failed.append(f"{title} with {words}")
    clicks = [bar.value for bar in bars]
    notes = "The last column compares masks with those of 32-bit floats."
    if "simple_click" in document:
        notes += " SimpleClick, SegAgent's default, computes everything anew for each click."
    if failed:
        notes += f" Below 0.98 an export fails: {' and '.join(failed)} may not be used."
    return Section(
        "segmenters",
        "How fast is a segmenter?",
        f"Once SAM or EdgeTAM has encoded the image, a click takes {min(clicks):.0f} to "
        f"{max(clicks):.0f} ms",
        f"Images of {document['scenes']}, several clicks each, random weights, "
        f"{machine_of(document)}",
        ("segmenter", "graphs", "image, once", "each click", "mask IoU with 32 bits"),
        tuple(rows),
        BarChart("milliseconds for a click on an encoded image", tuple(bars)),
        notes,
        source_of("python benchmarks/segmenters.py FOLDER", name),
    )


@first_document
def encoders(name: str, document: Document) -> Section | None:
    """Which graphs and which library encode an image fastest."""
    titles = {"edgetam": "EdgeTAM", "mobile_sam": "MobileSAM"}
    if "openvino-fp32" not in document.get("edgetam", {}):
        return None
    rows, bars = [], []
    for model, title in titles.items():
        usual = median_of(document[model]["cpu-w8"])
        for way, figures in document[model].items():
            value = median_of(figures)
            rows.append((title, VARIANTS[way], milliseconds(value), f"{usual / value:.1f}"))
            bars.append(Bar(f"{title}, {VARIANTS[way]}", value))
    found = document["edgetam"]
    usual, *others = (median_of(found[way]) for way in ("cpu-w8", "cpu-w8a8-static"))
    count = found["reference"]["n"]
    return Section(
        "encoders",
        "Which graphs encode an image fastest?",
        f"EdgeTAM encodes an image in {milliseconds(min(others))} with integers, and in "
        f"{milliseconds(usual)} without",
        f"Image of {document['image']}, random weights, medians of {count} runs in turn, "
        f"{machine_of(document)}",
        ("encoder", "graphs", "one image", "times as fast as 8-bit weights"),
        tuple(rows),
        BarChart("milliseconds for one image", tuple(bars)),
        "Without another name, ONNX Runtime runs the graphs. Recipes ask for 8-bit weights, "
        "which are unpacked when loaded. Integers need photos to measure ranges on "
        "(`--calibration`). `segagent-rt build --backend openvino` uses bfloat16 where the "
        f"masks stay the same. {RANDOM}.",
        source_of("python benchmarks/encoders.py FOLDER", name),
    )


QUESTIONS: tuple[Question, ...] = (
    real_click,
    real_loop,
    other_language_runtimes,
    other_vision_runtimes,
    other_sam_runtimes,
    memory_of_models,
    segmenters,
    encoders,
)
