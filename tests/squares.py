"""Pictures with one bright square, and a runtime of fakes that finds it: masks known exactly."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from segagent_rt import io
from segagent_rt.errors import ExpressionRefused
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import (
    GREEDY,
    Click,
    Finish,
    Rating,
    Turn,
)


def square(x, y, side=12, size=(48, 64)):
    """uint8 [H, W, 3]: dark, with a bright square whose first pixel is (x, y)."""
    image = np.full((*size, 3), 20, np.uint8)
    image[y : y + side, x : x + side] = (250, 200, 150)
    return image


def bright(image):
    return image[..., 0] > 128


@dataclass(frozen=True)
class SeenImage:
    image: np.ndarray

    @property
    def size(self):
        return self.image.shape[:2]


@dataclass
class RegionSegmenter:
    """The connected region, bright or dark, of the last click, or of the middle of the box."""

    decoded: list = field(default_factory=list)

    def encode(self, image):
        return SeenImage(image)

    def decode(self, embedding, clicks, *, prior=None, box=None):
        self.decoded.append((tuple(clicks), prior, box))
        at = clicks[-1] if clicks else box.centre
        _, regions = cv2.connectedComponents(bright(embedding.image).astype(np.uint8))
        bright_there = regions[at.y, at.x] > 0
        mask = regions == regions[at.y, at.x] if bright_there else np.zeros(regions.shape, bool)
        return GivenMask(mask, 0.75)


@dataclass
class SquareAnnotator:
    """Clicks into the bright square; `asked` counts what it is asked. It may rate masks."""

    rates: bool = True
    asked: list = field(default_factory=list)

    def check(self, expression):
        if "unknown" in expression:
            raise ExpressionRefused(f"`{expression}` is not known")
        return expression

    def look(self, image):
        return SquareView(self, image)


@dataclass
class SquareView:
    annotator: SquareAnnotator
    image: np.ndarray

    def propose(self, requests, sampling=GREEDY):
        self.annotator.asked.append("propose")
        rows, columns = np.nonzero(bright(self.image))
        if not len(rows):
            return [[Turn("none", Finish())] for _ in requests]
        click = Click(int(columns.mean()), int(rows.mean()), positive=True)
        return [[Turn("there", click)] for _ in requests]

    def rate(self, requests):
        if not self.annotator.rates:
            return [Rating(None) for _ in requests]
        self.annotator.asked.append("rate")
        wanted = bright(self.image)
        same = [np.array_equal(request.prediction.mask(), wanted) for request in requests]
        return [Rating(0.95 if each else 0.1) for each in same]


def square_runtime(**annotator):
    """The demo bundle, whose graphs are never loaded, with the fakes in their places."""
    from segagent_rt.runtime import load

    runtime = load(parts=())
    runtime._segmenter = RegionSegmenter()
    runtime._annotator = SquareAnnotator(**annotator)
    runtime.close = lambda: None
    return runtime


@contextmanager
def stopped_after(count):
    """Stops the command at the next file after so many, with half of it written."""
    write, written = io.atomic_write, itertools.count()

    def stop(path, content):
        if next(written) < count:
            return write(path, content)
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.{0:016x}.partial").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "atomic_write", stop)
        yield


def main():
    """The command line with the fakes, for tests that kill it."""
    import sys

    from segagent_rt import cli, runtime

    made = square_runtime()
    runtime.load = lambda *arguments, **options: made
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
