"""The training report: curves, tables, the worst cases, as a page that a command writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.draw import draw_overlay, png
from segagent_rt.eval.scenes import SceneSuite, evaluate_scenes
from segagent_rt.loop import Rules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Runtime, load
from segagent_rt.scenes import make_scene
from segagent_rt.types import RgbImage

CURVES = {
    "segmenter": (("iou", "IoU after the clicks so far"), ("rating", "error of its rating")),
    "seeing": (
        ("shape_right", "shape named right"),
        ("rank_right", "rank among its likes right"),
        ("sign_right", "sign of the next click right"),
        ("iou_off", "error of the IoU"),
    ),
    "speaking": (
        ("digits_right", "leading digits right"),
        ("signs_right", "sign right"),
        ("words", "loss of the reply"),
        ("pointing", "loss of the pointing heads"),
    ),
}
GALLERY = 12


def write_report(folder: Path, bundle: Path, docs: Path, scenes: int = 500) -> None:
    """Write docs/training.md with its pictures, from a training folder and the bundle it made."""
    pictures = docs / "training"
    pictures.mkdir(parents=True, exist_ok=True)
    rows = {stage: list(_log(folder / f"{stage}.jsonl")) for stage in _stages(folder)}
    _plot(rows, pictures / "curves.svg")
    with load(bundle) as runtime:
        suites = {
            ablate: evaluate_scenes(
                runtime, SceneSuite(scenes, 1000, ablate=ablate), Rules(), lambda _: None
            )
            for ablate in ("none", "remove", "shuffle")
        }
        worst = _worst(runtime, min(scenes, 200))
    (pictures / "failures.png").write_bytes(png(worst))
    (docs / "training.md").write_text(_page(rows, suites), "utf-8")


def _stages(folder: Path) -> list[str]:
    order = {"segmenter": 0, "seeing": 1, "speaking": 2}
    found = [path.stem for path in folder.glob("*.jsonl")]
    return sorted(found, key=lambda stage: (order.get(stage, 3), stage))


def _log(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)


def _plot(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "segagent-rt"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(4 * len(rows), 3), squeeze=False)
    for axis, (stage, log) in zip(axes[0], rows.items(), strict=True):
        for name, label in CURVES.get(stage, CURVES["speaking"]):
            points = [(row["seen"] / 1000, row[name]) for row in log if name in row]
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axis.set_title(stage)
        axis.set_xlabel("thousand pictures")
        axis.set_ylim(0, 1.05)
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _worst(runtime: Runtime, scenes: int) -> RgbImage:
    """The scenes with the worst returned masks, four to a row."""
    found = []
    for seed in range(1000, 1000 + scenes):
        scene = make_scene(seed)
        said = scene.expressions[0]
        walked = runtime.open(scene.image).annotate(said.text)
        target = scene.mask(said.target)
        mask = np.zeros_like(target) if walked.prediction is None else walked.prediction.mask()
        found.append((iou(mask, target), seed, walked, mask))
    tiles = []
    for value, seed, walked, mask in sorted(found, key=lambda item: item[:2])[:GALLERY]:
        scene = make_scene(seed)
        caption = f"{scene.expressions[0].text} (seed {seed}, IoU {value:.2f})"
        drawn = draw_overlay(scene.image, mask, walked.clicks, caption)
        tiles.append(_tile(drawn))
    return _montage(tiles, 4)


def _tile(drawn: RgbImage, width: int = 256, height: int = 300) -> RgbImage:
    small = cv2.resize(drawn, (width, round(drawn.shape[0] * width / drawn.shape[1])))
    tile = np.full((height, width, 3), 24, np.uint8)
    rows = min(height, small.shape[0])
    tile[:rows] = small[:rows]
    return tile


def _montage(tiles: Sequence[RgbImage], columns: int) -> RgbImage:
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate([row for row in rows if row.shape == rows[0].shape])


def _page(rows: dict[str, list[dict[str, Any]]], suites: dict[str, dict[str, Any]]) -> str:
    main = suites["none"]
    lines = [
        "# How the models that ship were trained",
        "",
        "Written by `segagent-rt train report`. Figures are of the bundle as shipped, on "
        f"{main['scenes']} scenes of generator `{main['generator']}` from seed {main['seed']}, "
        "which no training has seen.",
        "",
        "| stage | pictures | CPU-minutes of its first process |",
        "|---|---|---|",
    ]
    for stage, log in rows.items():
        lines.append(f"| {stage} | {log[-1]['seen']} | {log[-1]['cpu_minutes']} |")
    lines += ["", "![curves](training/curves.svg)", "", "| figure | value |", "|---|---|"]
    for name in (
        "first_click_hit", "miou", "gain", "recovery", "missed_first_clicks", "returned_worse",
        "clicks_mean", "negative_start_negative", "negative_start_hit", "predicted_iou_mae",
    ):  # fmt: skip
        lines.append(f"| {name} | {main[name]} |")
    lines.append(f"| random masks: Spearman | {main['random_masks']['spearman']} |")
    for ablate, what in (("remove", "expressions removed"), ("shuffle", "expressions shuffled")):
        lines.append(f"| first_click_hit, {what} | {suites[ablate]['first_click_hit']} |")
    lines += ["", "| expression | first click inside |", "|---|---|"]
    lines += [f"| {kind} | {hit} |" for kind, hit in main["first_click_hit_by_type"].items()]
    lines += ["", "| clicks | " + " | ".join(str(n + 1) for n in range(7)) + " |", "|---" * 8 + "|"]
    for name, title in (("miou_by_turn", "model"), ("oracle_miou_by_click", "simulated annotator")):
        lines.append(f"| mIoU, {title} | " + " | ".join(f"{v:.3f}" for v in main[name]) + " |")
    lines += [
        "",
        "The worst of the first 200 scenes:",
        "",
        "![failures](training/failures.png)",
        "",
    ]
    return "\n".join(lines)
