"""Puts the images of a data set before a runtime, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segagent_rt.data.images import read_picture
from segagent_rt.data.record import Sample
from segagent_rt.errors import DataInvalid, ImageUnreadable
from segagent_rt.runtime import Canvas, Runtime


class CanvasCache:
    """Holds the canvas of the last image: samples of one image follow each other."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._shown: tuple[Path, Canvas] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been shown yet."""
        return self._shown is None

    def show(self, sample: Sample) -> Canvas:
        """The canvas of a sample's image.

        Raises:
            ImageUnreadable: it is not there, or cannot be read.
            DataInvalid: it is not of the size that the data says.
        """
        path = sample.image
        if self._shown is None or self._shown[0] != path:
            if not path.is_file():
                raise ImageUnreadable(f"there is no image {path}")
            self._shown = path, self.runtime.open(read_picture(path))
        canvas = self._shown[1]
        check_size(canvas.image.shape, sample.size, path)
        return canvas


def check_size(shape: Sequence[int], size: tuple[int, int], path: Path) -> None:
    """Raise `DataInvalid` unless an image is of the size of its mask."""
    if tuple(shape[:2]) != size:
        raise DataInvalid(
            f"{path} is {shape[0]} x {shape[1]} pixels high and wide, "
            f"its mask {size[0]} x {size[1]}",
            hint="use the image that was annotated",
        )
