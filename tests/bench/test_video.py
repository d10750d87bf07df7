"""Protects `benchmarks/video.py`: it follows the annotators' interface and reports every way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from segagent_rt.draw import png
from segagent_rt.scenes import make_scene

FRAMES = 30
"""With fewer ones the object jumps, and the mask of the frame before says little."""

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "video.py"


@pytest.mark.thorough
def test_previous_masks_save_looks(tmp_path: Path) -> None:
    scene = make_scene(3, 512)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "scene.jpg"), scene.image[..., ::-1])
    (tmp_path / "masks" / "scene.png").write_bytes(png(scene.mask(0)))
    result = tmp_path / "video.json"

    command = [sys.executable, str(SCRIPT), str(tmp_path), "scene", "--frames", str(FRAMES)]
    subprocess.run([*command, "--output", str(result)], check=True)

    ways = json.loads(result.read_text("utf-8"))["photos"]["scene"]
    cold, each, tenth = ways.values()
    assert {way["frames"] for way in ways.values()} == {FRAMES}
    assert tenth["looks"] < each["looks"] <= cold["looks"]
    assert min(cold["mean_iou"], each["mean_iou"]) > 0.9
