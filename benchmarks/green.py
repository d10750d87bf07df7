"""How well is a green mask seen on objects of each colour? Decides whether scenes may hold green.

The MLLM sees the mask as half-transparent green. For every colour: the CIELAB distance that the
paint moves it, and which colour of the palette the painted object then resembles most.
"""

from __future__ import annotations

import cv2
import numpy as np

from segagent_rt.image import overlay
from segagent_rt.scenes.layout import COLOURS

GREEN = (40, 160, 50)


def lab(colour: tuple[int, int, int]) -> np.ndarray:
    """CIELAB coordinates of an sRGB colour."""
    pixel = np.array([[colour]], np.float32) / 255
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0])


def painted(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour under the mask."""
    pixel = overlay(np.array([[colour]], np.uint8), np.array([[True]]))[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def main() -> None:
    """Print a table, least visible colour first."""
    palette = {**COLOURS, "green": GREEN}
    rows = []
    for name, colour in palette.items():
        moved = float(np.linalg.norm(lab(colour) - lab(painted(colour))))
        near = {
            other: float(np.linalg.norm(lab(painted(colour)) - lab(value)))
            for other, value in palette.items()
        }
        like = min(near, key=lambda other: near[other])
        rows.append((moved, name, like, near[like]))
    print("colour   moved by the mask   then nearest to")
    for moved, name, like, distance in sorted(rows):
        print(f"{name:8s} {moved:17.1f}   {like} ({distance:.1f})")


if __name__ == "__main__":
    main()
