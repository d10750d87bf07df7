"""What `segagent-rt bench` measured, as answers to questions."""

from __future__ import annotations

from collections.abc import Mapping

from segagent_rt.bench.sections import (
    Bar,
    BarChart,
    Document,
    Panel,
    PanelChart,
    Question,
    Section,
    first_document,
    first_scenario,
    machine_of,
    median_of,
    milliseconds,
    ratio_text,
    scenarios_of,
    source_of,
)

LOOPS = {
    "ours_with_stop": "segagent-rt, early stopping",
    "ours": "segagent-rt, all clicks",
    "reference": "SegAgent's loop in PyTorch",
}
STAGES = {
    "vision": "Vision encoder",
    "language": "Language model",
    "segment": "Segmenter",
    "paint": "Painting the mask",
}
OPTIMISATIONS = {
    "stop_rules": "Early stopping",
    "kept_canvas": "Image read once for all expressions",
    "jump_forward": "Forced tokens skipped (jump-forward)",
    "masks_on_demand": "Only the result drawn at full size",
    "overlap": "Segmenter encodes while the MLLM looks",
}
GROWING = {
    "megapixels": "Megapixels of the image",
    "clicks": "Clicks on one object",
    "expressions": "Expressions on one image",
    "threads": "Threads",
}


@first_document
def against_pytorch(name: str, document: Document) -> Section | None:
    """How long an object takes, beside SegAgent's loop in PyTorch."""
    if "ratios" not in document:
        return None
    stages, accuracy = document["stages"], document["accuracy"]
    loops = tuple(LOOPS)
    accuracy_of = {
        "ours_with_stop": accuracy.get("ours"),
        "ours": accuracy.get("ours_same_clicks"),
        "reference": accuracy.get("reference"),
    }
    rows = []
    for loop in loops:
        clicks, found = stages[loop]["by_click"], accuracy_of[loop]
        rows.append(
            (
                LOOPS[loop],
                milliseconds(median_of(stages[loop]["total"])),
                milliseconds(median_of(clicks["1"])),
                milliseconds(median_of(clicks["2"])) if "2" in clicks else "",
                f"{found['clicks_mean']:.1f}" if found else "",
                f"{found['miou']:.3f}" if found else "",
            )
        )
    times = {loop: median_of(stages[loop]["total"]) for loop in loops}
    parity = document["parity_figures"]
    ratios = document["ratios"]
    if document["parity"]:
        notes = (
            f"Speed-up per scene, median (10th to 90th percentile): "
            f"{ratio_text(ratios['same_clicks'])} with the same clicks, "
            f"{ratio_text(ratios['with_stop'])} with early stopping. Both loops use the same "
            f"weights, scenes and threads. In {parity['states']} states, "
            f"{parity['same_clicks']:.1%} of the clicks are the same, and masks agree with a "
            f"mean IoU of {parity['mask_iou']:.3f}."
        )
    else:
        notes = "No speed-up is reported, because the two loops do not click alike."
    count = stages[loops[0]]["total"]["n"]
    return Section(
        "against-pytorch",
        "How fast is one object, compared with SegAgent's own loop?",
        f"One object takes {milliseconds(times['ours_with_stop'])} with early stopping, "
        f"{milliseconds(times['ours'])} with all clicks, and "
        f"{milliseconds(times['reference'])} in PyTorch",
        f"Demo bundle, medians of {count} generated scenes, {machine_of(document)}",
        ("loop", "one object", "first click", "second click", "clicks, mean", "mIoU"),
        tuple(rows),
        BarChart(
            "milliseconds for one object",
            tuple(
                Bar(LOOPS[loop], times[loop], owner="other" if loop == "reference" else "ours")
                for loop in loops
            ),
        ),
        notes,
        source_of("segagent-rt bench tiny --against reference", name),
    )


def time_by_stage(documents: Mapping[str, Document]) -> Section | None:
    """Which part of a loop takes how long: of the measured loops, the one with most clicks."""
    loops = [
        found
        for found in scenarios_of(documents)
        if found[2].get("kind") == "one" and "stages" in found[2]
    ]
    if not loops:
        return None
    name, document, figures = max(loops, key=lambda found: found[2].get("clicks_mean", 0))
    parts = {
        words: median_of(figures["stages"][stage])
        for stage, words in STAGES.items()
        if stage in figures["stages"]
    }
    whole = median_of(figures["total"])
    parts["Everything else"] = max(whole - sum(parts.values()), 0.0)
    first = max(parts, key=lambda words: parts[words])
    return Section(
        "stages",
        "Where does the time go?",
        f"The {first.lower()} takes {parts[first] / whole:.0%} of the time of one object",
        f"Demo bundle, {figures['clicks_mean']:.1f} clicks per object, medians of "
        f"{figures['total']['n']} generated scenes, {machine_of(document)}",
        ("part", "time", "share"),
        tuple((words, f"{value:.1f} ms", f"{value / whole:.0%}") for words, value in parts.items()),
        BarChart(
            "milliseconds for one object",
            tuple(Bar(words, value) for words, value in parts.items()),
            "{:.1f}",
        ),
        "Medians of parts do not add up exactly.",
        source_of("segagent-rt bench tiny -s one -s one-full -s many -s sequence", name),
    )


@first_scenario
def ablation(name: str, document: Document, figures: Document) -> Section | None:
    """What each optimisation saves."""
    ratios = figures.get("times_as_long_without", {})
    if not ratios:
        return None
    order = sorted(ratios, key=lambda key: -ratios[key]["median"])
    most = ratios[order[0]]["median"]
    return Section(
        "ablation",
        "What does each optimisation save?",
        f"{OPTIMISATIONS.get(order[0], order[0])} saves most: without it, one object takes "
        f"{most:.1f} times as long",
        f"Demo bundle, second of two expressions on an image, {figures['total']['n']} "
        f"generated scenes, {machine_of(document)}",
        ("optimisation", "time without it, relative (10th to 90th percentile)"),
        tuple(
            (
                OPTIMISATIONS.get(key, key),
                f"{r['median']:.2f} ({r['p10']:.2f} to {r['p90']:.2f})",
            )
            for key, r in ((key, ratios[key]) for key in order)
        ),
        BarChart(
            "time without the optimisation, relative to all optimisations",
            tuple(
                Bar(OPTIMISATIONS.get(key, key), r["median"], r["p10"], r["p90"])
                for key, r in ((key, ratios[key]) for key in order)
            ),
            "{:.2f}",
        ),
        "1.00 means that the optimisation saves nothing here.",
        source_of("segagent-rt bench tiny -s ablation", name),
    )


@first_scenario
def growth(name: str, document: Document, figures: Document) -> Section | None:
    """How cost grows with the size of the work."""
    curves = figures.get("growth", {})
    if not curves:
        return None
    steepest = figures.get("steepest", {})
    beyond = [key for key, value in steepest.items() if value > 1.05]
    finding = (
        "Time grows faster than " + " and ".join(beyond)
        if beyond
        else "Time grows no faster than pixels, clicks and expressions"
    )
    rows, panels = [], []
    for key, curve in curves.items():
        points = tuple((float(size), median_of(spread)) for size, spread in curve.items())
        rows.append(
            (
                GROWING.get(key, key),
                f"{points[0][0]:g} to {points[-1][0]:g}",
                f"{points[0][1]:.0f} to {points[-1][1]:.0f} ms",
            )
        )
        panels.append(Panel(GROWING.get(key, key), "milliseconds", points))
    count = next(iter(next(iter(curves.values())).values()))["n"]
    return Section(
        "growth",
        "How does the cost grow?",
        finding,
        f"Demo bundle, medians of {count} generated scenes, {machine_of(document)}",
        ("what grows", "from, to", "time"),
        tuple(rows),
        PanelChart(tuple(panels)),
        "Each curve changes one thing and keeps the others.",
        source_of("segagent-rt bench tiny -s growth", name),
    )


@first_scenario
def many_expressions(name: str, document: Document, figures: Document) -> Section | None:
    """What an open image saves if it is asked for several objects."""
    if figures.get("kind") != "many":
        return None
    counts = figures["expressions"]
    each = {int(n): median_of(found["shared"]) / int(n) for n, found in counts.items()}
    most = max(each)
    return Section(
        "expressions",
        "What does another object on the same image cost?",
        f"{most} objects on one image take {each[most]:.0f} ms each",
        f"Demo bundle, medians of {counts[str(most)]['shared']['n']} images, "
        f"{machine_of(document)}",
        ("objects", "one open image", "per object", "image opened for each"),
        tuple(
            (
                n,
                milliseconds(median_of(found["shared"])),
                f"{each[int(n)]:.0f} ms",
                milliseconds(median_of(found["fresh"])),
            )
            for n, found in counts.items()
        ),
        BarChart(
            "milliseconds per object, one open image",
            tuple(Bar(f"{n} object{'s' * (n > 1)}", value) for n, value in each.items()),
        ),
        "An open image keeps its embedding and its first look for all expressions.",
        source_of("segagent-rt bench tiny -s many", name),
    )


@first_scenario
def deadline(name: str, document: Document, figures: Document) -> Section | None:
    """How good the mask is if the loop is stopped early."""
    if "shares" not in figures:
        return None
    whole = figures["whole"]
    shares = sorted(figures["shares"].values(), key=lambda each: each["deadline"])
    points = [(each["deadline"], each["miou"]) for each in shares]
    points.append((median_of(whole["total"]), whole["miou"]))
    first, last = points[0], points[-1]
    return Section(
        "deadline",
        "How good is the mask when time is short?",
        f"{first[0]:.0f} ms give a mean IoU of {first[1]:.2f}, {last[0]:.0f} ms give {last[1]:.2f}",
        f"Demo bundle, {whole['total']['n']} generated scenes, {machine_of(document)}",
        ("deadline", "mean IoU", "answered in time"),
        (
            *(
                (f"{each['deadline']:.0f} ms", f"{each['miou']:.3f}", f"{each['in_time']:.0%}")
                for each in shares
            ),
            (f"none ({last[0]:.0f} ms)", f"{last[1]:.3f}", ""),
        ),
        PanelChart((Panel("milliseconds until the deadline", "mean IoU", tuple(points)),)),
        "The deadlines are fractions of the median time without one (`--deadline-ms`).",
        source_of("segagent-rt bench tiny -s deadline", name),
    )


@first_document
def cold_start(name: str, document: Document) -> Section | None:
    """How long a command takes from the shell."""
    if not {"run", "imports", "libraries", "python"} <= set(document):
        return None
    words = {
        "python": "Python alone",
        "libraries": "Python, the libraries imported",
        "imports": "Python, the modules of `run` imported",
        "run": "`segagent-rt run`, with its files",
    }
    times = {key: median_of(document[key]["wall_ms"]) for key in words}
    return Section(
        "cold-start",
        "How long does a command take from the shell?",
        f"A mask takes {times['run'] / 1000:.2f} seconds in a new process",
        f"Demo bundle, {document.get('scene', 'one scene')}, medians of "
        f"{document['run']['wall_ms']['n']} processes, {machine_of(document)}",
        ("process", "time", "peak memory"),
        tuple(
            (words[key], f"{times[key]:.0f} ms", f"{document[key]['peak_megabytes']:.0f} MB")
            for key in words
        ),
        BarChart(
            "milliseconds until the process ends",
            tuple(Bar(words[key].replace("`", ""), times[key]) for key in words),
        ),
        "Each row is a process of its own. The libraries are NumPy, OpenCV, tokenizers and "
        "ONNX Runtime; `run` imports them while it reads the image.",
        source_of("python benchmarks/cold.py", name),
    )


QUESTIONS: tuple[Question, ...] = (
    against_pytorch,
    time_by_stage,
    ablation,
    many_expressions,
    growth,
    deadline,
    cold_start,
)
