"""The training report: curves, tables, the worst cases, as a page that a command writes.

Figures come from the manifest of the bundle, where the judging of it left them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.draw import draw_overlay, png
from segagent_rt.metrics import iou
from segagent_rt.runtime import Runtime, load
from segagent_rt.scenes import make_scene
from segagent_rt.types import RgbImage

CURVES = {
    "segmenter": (("iou", "IoU after the clicks so far"), ("rating", "error of its rating")),
    "vision_pretrain": (
        ("shape_right", "shape named right"),
        ("rank_right", "rank among its likes right"),
        ("sign_right", "sign of the next click right"),
        ("iou_off", "error of the IoU"),
    ),
    "joint": (
        ("digits_right", "leading digits right"),
        ("signs_right", "sign right"),
        ("words", "loss of the reply"),
        ("pointing", "loss of the pointing heads"),
    ),
}
GALLERY = 12
SHOWN = (
    "first_click_hit", "miou", "gain", "oracle_gain", "recovery", "missed_first_clicks",
    "returned_worse", "clicks_mean", "negative_start_negative", "negative_start_hit",
    "predicted_iou_mae",
)  # fmt: skip


def write_report(folder: Path, bundle: Path, docs: Path, scenes: int = 200) -> None:
    """Write docs/training.md with its pictures, from a training folder and the bundle it made; the
    gallery shows the worst of `scenes` scenes."""
    pictures = docs / "training"
    pictures.mkdir(parents=True, exist_ok=True)
    rows = {stage: list(_log(folder / f"{stage}.jsonl")) for stage in _stages(folder)}
    _plot(rows, pictures / "curves.svg")
    with load(bundle) as runtime:
        manifest = runtime.bundle.part("mllm").manifest
        worst = _worst(runtime, scenes)
        loop = _loop(runtime, scenes)
    (pictures / "failures.jpg").write_bytes(_jpeg(worst))
    (docs / "loop.png").write_bytes(png(loop))
    (docs / "training.md").write_text(training_page(rows, manifest.verified), "utf-8")


def _jpeg(picture: RgbImage) -> bytes:
    """A picture that is only looked at, in a quarter of a PNG file's bytes."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])


def _stages(folder: Path) -> list[str]:
    order = {"segmenter": 0, "vision_pretrain": 1, "joint": 2}
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
        for name, label in CURVES.get(stage, CURVES["joint"]):
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
        trajectory = runtime.open(scene.image).annotate(said.text)
        target = scene.mask(said.target)
        mask = (
            np.zeros_like(target) if trajectory.prediction is None else trajectory.prediction.mask()
        )
        found.append((iou(mask, target), seed, trajectory, mask))
    tiles = []
    for value, seed, trajectory, mask in sorted(found, key=lambda item: item[:2])[:GALLERY]:
        scene = make_scene(seed)
        caption = f"{scene.expressions[0].text} (seed {seed}, IoU {value:.2f})"
        drawn = draw_overlay(scene.image, mask, trajectory.clicks, caption)
        tiles.append(_tile(drawn))
    return _montage(tiles, 4)


def _loop(runtime: Runtime, scenes: int) -> RgbImage:
    """A trajectory click by click: the first in which a later click mattered."""
    for seed in range(scenes):
        scene = make_scene(seed)
        said = scene.expressions[0]
        trajectory = runtime.open(scene.image).annotate(said.text)
        masks = [step.prediction.mask() for step in trajectory.masks if step.prediction]
        ious = [iou(mask, scene.mask(said.target)) for mask in masks]
        if len(masks) in (2, 3) and ious[0] < 0.6 and ious[-1] > 0.9:
            break
    panels = [
        _tile(draw_overlay(scene.image, mask, trajectory.clicks[:number], said.text), 320, 352)
        for number, mask in enumerate(masks, 1)
    ]
    return np.concatenate([_tile(scene.image, 320, 352), *panels], 1)


def _tile(drawn: RgbImage, width: int = 256, height: int = 300) -> RgbImage:
    small = cv2.resize(drawn, (width, round(drawn.shape[0] * width / drawn.shape[1])))
    tile = np.full((height, width, 3), 24, np.uint8)
    rows = min(height, small.shape[0])
    tile[:rows] = small[:rows]
    return tile


def _montage(tiles: Sequence[RgbImage], columns: int) -> RgbImage:
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate([row for row in rows if row.shape == rows[0].shape])


def training_page(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], verified: Mapping[str, Any]
) -> str:
    """The text of docs/training.md.

    Args:
        rows: the log of each stage; the last row has `seen` pictures and `cpu_minutes`.
        verified: the figures in the manifest of the MLLM.

    Returns:
        Markdown, with a line break at the end.
    """
    main, ablations, agreement = (verified[k] for k in ("scenes", "ablations", "agreement"))
    figures = {name: main[name] for name in SHOWN}
    figures["Spearman over random masks"] = main["random_masks"]["spearman"]
    figures |= {f"{name}, {k}": said[name] for k, said in ablations.items() for name in said}
    judged = {k: v for k, v in agreement.items() if k != "free_different"}
    turns = main["miou_by_turn"]
    by_click = {"model": turns, "simulated annotator": main["oracle_miou_by_click"]}
    return "\n".join(
        [
            "# How the demo models were trained",
            "",
            "`python -m segagent_rt_training report` writes this page. The figures describe the "
            "shipped demo",
            f"bundle on {main['scenes']} scenes of the generator `{main['generator']}`, from seed "
            f"{main['seed']}. Training never used them.",
            "Every mask was rated. `segagent-rt inspect tiny --all` prints the same figures.",
            "[Data](data.md#what-eval-writes) explains them.",
            "",
            "## Cost",
            *_table(
                ["stage", "pictures", "CPU-minutes of the first process"],
                [[k, log[-1]["seen"], log[-1]["cpu_minutes"]] for k, log in rows.items()],
            ),
            "",
            "![Training curves by stage](training/curves.svg)",
            "",
            "## Quality",
            *_table(["figure", "value"], figures.items()),
            "",
            "First clicks by type of expression:",
            *_table(["expression", "first click inside"], main["first_click_hit_by_type"].items()),
            "",
            "mIoU after a fixed number of clicks:",
            *_table(
                ["clicks", *range(1, len(turns) + 1)],
                [[who, *(f"{v:.3f}" for v in values)] for who, values in by_click.items()],
            ),
            "",
            "## Agreement with the weights before export",
            "",
            "The states come from the bundle's own loops. `same_click` means the same sign within "
            "15/1000 of",
            "the side. `free_equal` means the same reply without the grammar.",
            *_table(["figure", "value"], judged.items()),
            "",
            "## Worst scenes",
            "",
            "![The returned masks with the lowest IoU](training/failures.jpg)",
            "",
        ]
    )


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(str(cell) for cell in row) + " |" for row in cells)]
