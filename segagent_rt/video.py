"""Videos: frames one at a time, and masks that are carried from frame to frame.

The annotator is asked on the first frame and on every Nth after it. On the others the segmenter
alone goes on. It is given the mask of the frame before, and a click in its middle.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from segagent_rt.batch import BatchFolder, ImageOutcome, describe_prompts, file_digest, load_for
from segagent_rt.data.journal import CountReporter
from segagent_rt.errors import ImageUnreadable, SegagentWarning
from segagent_rt.image import MAX_MEGAPIXELS, load_image, rle_to_mask
from segagent_rt.inputs import find_pictures
from segagent_rt.io import open_regular
from segagent_rt.results import Result, about_run
from segagent_rt.search import SearchConfig
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.timing import Stopwatch
from segagent_rt.types import Click, Mask, ObjectPrompt, RgbImage, Step, Trajectory

if TYPE_CHECKING:
    from segagent_rt.runtime import Canvas, Runtime

CONTAINERS = ((4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"\0\0\1\xba"))
"""Where a video file has which bytes: MP4 and MOV, MKV and WebM, AVI, MPEG. Other formats that
FFmpeg reads can be lists of further files and addresses, and it would open those."""

ReadFrame: TypeAlias = Callable[[], RgbImage]
"""Decodes a frame, uint8 [H, W, 3] RGB."""


class Video:
    """The frames of a video file, or the pictures of a folder in the order of their names.

    Args:
        path: of the file or the folder.
        max_megapixels: larger frames are refused.

    Raises:
        ImageUnreadable: it is neither.
    """

    def __init__(self, path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> None:
        self.path, self._most = path, max_megapixels
        self._pictures = find_pictures(str(path)) if path.is_dir() else None
        if self._pictures is None:
            with open_regular(path, ImageUnreadable) as stream:
                head = stream.read(16)
            if not any(head[at : at + len(mark)] == mark for at, mark in CONTAINERS):
                raise ImageUnreadable(
                    f"{path} is not a video that can be read",
                    hint="MP4, MOV, MKV, WebM, AVI and MPEG files are read, and folders of frames",
                )

    @property
    def digest(self) -> str:
        """The SHA-256 of all content."""
        if self._pictures is None:
            return file_digest(self.path)
        digests = "".join(map(file_digest, self._pictures))
        return hashlib.sha256(digests.encode()).hexdigest()

    @property
    def count(self) -> int:
        """How many frames there are; 0 if the file does not say."""
        if self._pictures is not None:
            return len(self._pictures)
        capture = self._open()
        try:
            return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        finally:
            capture.release()

    def frames(self) -> Iterator[ReadFrame]:
        """What decodes each frame in turn; only valid until the next one is taken.

        Raises:
            ImageUnreadable: the file cannot be decoded.

        Warns:
            SegagentWarning: it ends long before its end.
        """
        if self._pictures is not None:
            for path in self._pictures:
                yield partial(load_image, path, self._most)
            return
        expected, number = self.count, 0
        capture = self._open()
        try:
            while capture.grab():
                yield partial(self._retrieve, capture)
                number += 1
        finally:
            capture.release()
        if number == 0:
            raise self._damaged("it has no frame that can be decoded")
        if number < 0.95 * expected:
            warnings.warn(
                f"{self.path} ends after {number} of {expected} frames: it is damaged",
                SegagentWarning,
                stacklevel=2,
            )

    def _open(self) -> cv2.VideoCapture:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        height = capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        width = capture.get(cv2.CAP_PROP_FRAME_WIDTH)
        if not capture.isOpened():
            raise self._damaged("its codec is unknown, or it was cut off")
        if height * width > self._most * 1e6:
            capture.release()
            raise self._damaged(f"its frames have more than {self._most:g} megapixels")
        return capture

    def _retrieve(self, capture: cv2.VideoCapture) -> RgbImage:
        decoded, pixels = capture.retrieve()
        if not decoded or pixels is None:
            raise self._damaged("a frame cannot be decoded")
        return np.ascontiguousarray(np.asarray(pixels, np.uint8)[..., ::-1])

    def _damaged(self, why: str) -> ImageUnreadable:
        return ImageUnreadable(
            f"{self.path} cannot be decoded: {why}",
            hint="convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
        )


def track(
    runtime: Runtime,
    video: Video,
    prompts: Sequence[ObjectPrompt],
    *,
    look_every: int = 10,
    config: SearchConfig | None = None,
) -> Iterator[list[Result]]:
    """Segment the same objects in every frame of a video.

    Args:
        runtime: what segments.
        video: the frames.
        prompts: what says which objects are meant; clicks and boxes are about the first frame.
        look_every: N; the annotator is asked on the first frame and on every Nth after it.
        config: how widely to search and when to stop.

    Yields:
        For each frame a result for each prompt; one without a mask if the object is lost.

    Raises:
        InputError: a frame cannot be decoded, or a prompt is refused.
    """
    previous: list[Mask | None] = [None] * len(prompts)
    for number, read in enumerate(video.frames()):
        canvas = runtime.open(read())
        found = annotate_frame(
            canvas, prompts, previous, number, look_every=look_every, config=config
        )
        source = str(video.path.with_name(f"{video.path.stem}.{number:06d}{video.path.suffix}"))
        about = {**about_run(video.path, canvas.image, runtime), "frame": number}
        results = [
            Result(canvas.image, each, source, at, about) for at, each in enumerate(found, 1)
        ]
        previous = [result.mask for result in results]
        yield results


def annotate_frame(
    canvas: Canvas,
    prompts: Sequence[ObjectPrompt],
    previous: Sequence[Mask | None],
    number: int,
    *,
    look_every: int,
    config: SearchConfig | None = None,
) -> list[Trajectory]:
    """Segment one frame.

    Args:
        canvas: the frame.
        prompts: what says which objects are meant.
        previous: the mask of each object in the frame before, bool [H, W]; None if it has none.
        number: of the frame, from 0.
        look_every: N; the annotator is asked on every Nth frame. If it rates masks, it starts
            from the mask that the segmenter carried over, and is done if that one is good.
        config: how widely to search and when to stop.

    Returns:
        A trajectory for each prompt, without a step if the object is lost.
    """
    found = list[Trajectory]()
    for prompt, mask in zip(prompts, previous, strict=True):
        known = mask is not None and mask.shape == canvas.image.shape[:2] and bool(mask.any())
        carried = _carry_over(canvas, prompt, mask) if known and mask is not None else None
        if number % look_every or (prompt.by_hand and number):
            found.append(carried or Trajectory(prompt.expression, ()))
        else:
            found.append(_look(canvas, prompt, carried, config))
    return found


def _look(
    canvas: Canvas, prompt: ObjectPrompt, carried: Trajectory | None, config: SearchConfig | None
) -> Trajectory:
    """Ask the annotator, from the mask that was carried over if it can rate it."""
    made = None if carried is None else carried.prediction
    if made is not None:
        how = config or SearchConfig(candidates=1)
        said = canvas.runtime.annotator.check(prompt.expression)
        steps = canvas.search_steps(said, config=how, prior=made)
        first = next(steps)
        if first.rating is not None:
            return Trajectory(said, tuple(chain((first,), steps)))
    return canvas.annotate_prompts([prompt], config=config)[0]


def _carry_over(canvas: Canvas, prompt: ObjectPrompt, mask: Mask) -> Trajectory:
    """The mask of the frame before, corrected by the segmenter alone."""
    watch, click = Stopwatch(), inner_click(mask)
    with watch("segment"):
        made = canvas.segment([click], prior=GivenMask(mask))
    step = Step(click, made, seconds=watch.seconds, stop="tracked")
    return Trajectory(prompt.expression, (step,))


def inner_click(mask: Mask) -> Click:
    """A positive click on the pixel farthest from the edge of a mask, bool [H, W] and not empty."""
    padded = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), mask.shape)
    return Click(int(x), int(y), positive=True)


def annotate_video(
    runtime: Runtime,
    video: Video,
    prompts: Sequence[ObjectPrompt],
    batch: BatchFolder,
    report_progress: CountReporter,
    *,
    look_every: int,
) -> Iterator[ImageOutcome]:
    """Segment every frame that is not finished yet; see `batch.annotate_images`.

    A frame starts from the mask of the one before as it lies in the folder, so a run that was
    killed goes on with the same masks.

    Yields:
        An outcome for each frame in order. A frame without the object is no failure.

    Raises:
        InputError: a frame cannot be decoded, or a prompt is refused.
        OutputError: a result cannot be written.
        AnnotatorError: the annotator's server failed.
    """
    digest, total, loaded = video.digest, video.count, False
    previous: list[Mask | None] = [None] * len(prompts)
    batch.remove_partials([f"{video.path.stem}."])
    for number, read in enumerate(video.frames()):
        files = batch.plan(video.path, len(prompts), kind=f".{number:06d}")
        key = batch.key(
            files, digest, describe_prompts(prompts), str(video.path), number, look_every
        )
        document = batch.finished(key, files)
        if document is None:
            if not loaded:
                load_for(runtime, [prompts])
                loaded = True
            canvas = runtime.open(read())
            found = annotate_frame(
                canvas, prompts, previous, number,
                look_every=look_every, config=batch.options.config,
            )  # fmt: skip
            about = {**about_run(video.path, canvas.image, runtime), "frame": number}
            document = batch.write(key, files, canvas.image, found, about)
        masks = (result["mask"] for result in document["results"])
        previous = [None if mask is None else rle_to_mask(mask) for mask in masks]
        report_progress(number + 1, max(total, number + 1))
        yield batch.add(ImageOutcome.of(document, files))
