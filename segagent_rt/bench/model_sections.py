"""What the scripts in benchmarks/ measured at real size, as answers to questions."""

from __future__ import annotations

from collections.abc import Mapping

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
                    milliseconds(encode) if encode >= 1 else "",
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
    memory_of_models,
    segmenters,
    encoders,
)
