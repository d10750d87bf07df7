"""A video of a moving camera: how often the annotator is asked, with the mask of the frame before
and without.

python benchmarks/video.py FOLDER NAME...    photos FOLDER/images/NAME.jpg, and masks of one object
                                             FOLDER/masks/NAME.png; writes results/video.json

Frames are crops of the photo, whose window moves and zooms, so every true mask is known. The
annotator is simulated: it knows the true mask. A look is one picture that it is shown; a picture
that is rated and then clicked on is one look. Seconds are those of the segmenter alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segagent_rt.annotators.oracle import OracleAnnotator, OracleView
from segagent_rt.bench.machine import describe_machine
from segagent_rt.data.masks import load_mask
from segagent_rt.draw import png
from segagent_rt.image import load_image
from segagent_rt.io import dump_json
from segagent_rt.metrics import iou
from segagent_rt.results import Result
from segagent_rt.runtime import Runtime, load
from segagent_rt.types import (
    GREEDY,
    AnnotationItem,
    Mask,
    ObjectPrompt,
    Prediction,
    Rating,
    Request,
    RgbImage,
    Sampling,
    Turn,
)
from segagent_rt.video import Video, track

RESULT = Path(__file__).parent / "results" / "video.json"
SIZE = (360, 640)
EXPRESSION = "the object"


@dataclass
class KnowingAnnotator:
    """The simulated annotator of every frame. `looks` counts the pictures that it is shown."""

    targets: dict[bytes, Mask]
    looks: int = 0

    def check(self, expression: str) -> str:
        return expression

    def look(self, image: RgbImage) -> CountingView:
        return CountingView(self, OracleAnnotator(self.targets[image.tobytes()]).look(image))


@dataclass
class CountingView:
    """A frame, and the masks that it was shown with."""

    owner: KnowingAnnotator
    view: OracleView
    seen: list[Prediction | None] = field(default_factory=list)

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        self._count(requests)
        return self.view.propose(requests, sampling)

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        self._count(requests)
        return self.view.rate(requests)

    def _count(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if not any(mask is request.prediction for mask in self.seen):
                self.seen.append(request.prediction)
                self.owner.looks += 1


def windows(count: int, size: tuple[int, int]) -> Iterable[tuple[int, int, int, int]]:
    """x, y, width and height of each frame's crop: two loops of a smooth path, zooming slowly."""
    height, width = size
    for at in np.linspace(0, 2 * np.pi, count, endpoint=False):
        share = 0.8 + 0.1 * np.cos(2 * at)
        across, down = (0.5 + 0.5 * np.sin(at)), (0.5 + 0.5 * np.sin(2 * at))
        w, h = int(width * share), int(height * share)
        yield int(across * (width - w)), int(down * (height - h)), w, h


def write_frames(image: RgbImage, mask: Mask, count: int, folder: Path) -> dict[bytes, Mask]:
    """Write the frames, and return the true mask of each by its pixels."""
    targets = {}
    for number, (x, y, w, h) in enumerate(windows(count, mask.shape)):
        crop = np.s_[y : y + h, x : x + w]
        frame = np.asarray(
            cv2.resize(image[crop], SIZE[::-1], interpolation=cv2.INTER_AREA), np.uint8
        )
        target = cv2.resize(mask[crop].astype(np.uint8), SIZE[::-1]) > 0
        (folder / f"{number:05d}.png").write_bytes(png(frame))
        targets[frame.tobytes()] = target
    return targets


def measure(
    runtime: Runtime, targets: dict[bytes, Mask], results: Callable[[Runtime], Iterable[Result]]
) -> dict[str, Any]:
    """One way through the video."""
    annotator = KnowingAnnotator(targets)
    runtime._annotator = annotator  # in the place of the MLLM
    begun = time.perf_counter()
    found = list(results(runtime))
    seconds = time.perf_counter() - begun
    pairs = [(result.mask, targets[result.image.tobytes()]) for result in found]
    ious = [0.0 if mask is None else iou(mask, target) for mask, target in pairs]
    clicks = [sum(s.turn is not None and s.click is not None for s in r.trajectory.steps)
              for r in found]  # fmt: skip
    return {
        "frames": len(found),
        "looks": annotator.looks,
        "annotator_clicks_per_frame": round(sum(clicks) / len(found), 3),
        "frames_per_second": round(len(found) / seconds, 2),
        "mean_iou": round(float(np.mean(ious)), 4),
        "worst_iou": round(min(ious), 4),
    }


def measure_ways(image: RgbImage, mask: Mask, frames: int) -> dict[str, Any]:
    """The ways through the video that is made of a photo.

    Args:
        image: uint8 [H, W, 3] RGB, the photo.
        mask: bool [H, W], of one object.
        frames: how many to make.
    """
    prompts = (ObjectPrompt(EXPRESSION),)
    with tempfile.TemporaryDirectory() as scratch, load("photo", threads=1) as runtime:
        folder = Path(scratch)
        targets = write_frames(image, mask, frames, folder)

        def tracked(every: int) -> Callable[[Runtime], Iterable[Result]]:
            return lambda runtime: (
                results[0] for results in track(runtime, Video(folder), prompts, look_every=every)
            )

        def cold(runtime: Runtime) -> Iterable[Result]:
            paths = sorted(folder.iterdir())
            return runtime.annotate_many(AnnotationItem(path, prompts) for path in paths)

        return {
            "cold start on every frame": measure(runtime, targets, cold),
            "previous mask, a look at every frame": measure(runtime, targets, tracked(1)),
            "previous mask, a look at every 10th": measure(runtime, targets, tracked(10)),
        }


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description="How often the annotator is asked in a video.")
    parser.add_argument("folder", type=Path, help="of images/NAME.jpg and masks/NAME.png")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    photos = dict[str, Any]()
    for name in given.names:
        image = load_image(given.folder / "images" / f"{name}.jpg")
        mask = load_mask(given.folder / "masks" / f"{name}.png")
        photos[name] = measure_ways(image, mask, given.frames)
    document = {"machine": describe_machine(), "size": SIZE, "photos": photos}
    given.output.write_text(dump_json(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
