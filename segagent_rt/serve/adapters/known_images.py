"""Images that tools send again with every click: each content is encoded once while it is open."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

from segagent_rt.bundle.store import PHOTO
from segagent_rt.errors import InputError, NotOpen
from segagent_rt.serve.bundle_card import takes_words
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.serve.open_images import OpenImage
from segagent_rt.serve.service import RunSettings, SegmentationService
from segagent_rt.types import Box, Click, ObjectPrompt, Size

REMEMBERED = 4096
"""Contents whose open images are remembered; the service closes images on its own terms."""


class KnownImages:
    """Opens images for tools that have no notion of an open image.

    Args:
        service: what is served.
    """

    def __init__(self, service: SegmentationService) -> None:
        self.service = service
        self._ids = OrderedDict[tuple[str, bytes], str]()
        self._lock = threading.Lock()

    def open(self, job: Job, content: bytes, bundle: str) -> OpenImage:
        """An open image with this content, or a new one.

        Args:
            job: of the request.
            content: the bytes of a picture.
            bundle: the name of a loaded bundle.

        Raises:
            SegagentError: see `SegmentationService.open_image`.
        """
        key = bundle, hashlib.sha256(content).digest()
        with self._lock:
            known = self._ids.get(key)
        if known is not None:
            with suppress(NotOpen):
                return self.service.images.get(known)
        image = self.service.open_image(job, content, bundle=bundle)
        with self._lock:
            self._ids[key] = image.id
            self._ids.move_to_end(key)
            while len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
        return image

    def segment(
        self, job: Job, image: OpenImage, prompt: ObjectPrompt, settings: RunSettings | None = None
    ) -> ObjectState:
        """Segment an object of an open image; the object itself is not kept.

        Args:
            job: of the request.
            image: an open image.
            prompt: the object, in words or by hand.
            settings: how a model's run goes.

        Raises:
            SegagentError: see `SegmentationService.segment`, `box` and `click`.
        """
        service, number, state = self.service, None, ObjectState(0)
        try:
            if prompt.box is not None:
                state = service.box(job, image.id, None, prompt.box)
                number = state.number
            if prompt.clicks:
                state = service.click(job, image.id, number, prompt.clicks)
                number = state.number
            if not prompt.by_hand:
                for state in service.segment(job, image.id, prompt.expression, settings=settings):
                    number = state.number
        finally:
            if number is not None:
                with suppress(NotOpen):
                    service.remove_object(image.id, number)
        return state


def bundle_for(service: SegmentationService, *, by_hand: bool) -> str:
    """The bundle that a tool means which names none.

    Args:
        service: what is served.
        by_hand: whether objects are shown by clicks and boxes: then the segmenter of photos is
            taken, if it is loaded. For words it is the first bundle that takes them.

    Raises:
        InputError: no loaded bundle takes words.
    """
    if by_hand:
        return PHOTO if PHOTO in service.bundles else next(iter(service.bundles))
    for name, runtime in service.bundles.items():
        if takes_words(runtime):
            return name
    raise InputError(
        "no bundle that is loaded takes words", hint="show the object with clicks or a box"
    )


def click_at(x: float, y: float, size: Size, *, positive: bool) -> Click:
    """A click on the pixel that a point lies in.

    Args:
        x, y: in pixels, with fractions: the pixel (0, 0) goes from 0 to 1. Points on the border of
            the image, or beyond, count as its nearest pixel.
        size: of the image, height and width.
        positive: whether it belongs to the object.
    """
    return Click(_pixel(x, size[1]), _pixel(y, size[0]), positive=positive)


def box_at(corners: Sequence[float], size: Size) -> Box:
    """The box of the pixels between two opposite corners.

    Args:
        corners: x, y, x, y as of `click_at`, in any order.
        size: of the image, height and width.
    """
    left, right = sorted((corners[0], corners[2]))
    top, bottom = sorted((corners[1], corners[3]))
    return Box(_pixel(left, size[1]), _pixel(top, size[0]), *_last(right, bottom, size))


def _pixel(value: float, count: int) -> int:
    return min(max(int(value // 1), 0), count - 1)


def _last(right: float, bottom: float, size: Size) -> tuple[int, int]:
    """The last column and row before an edge: an edge on a border of pixels is not in the next."""
    return _pixel(-(-right // 1) - 1, size[1]), _pixel(-(-bottom // 1) - 1, size[0])


def score_of(state: ObjectState) -> float | None:
    """The model's rating of the mask that is shown, else the segmenter's estimate, 0..1."""
    step, made = state.step, state.prediction
    known = made.score if made is not None and (step is None or step.rating is None) else None
    value = step.rating if step is not None and step.rating is not None else known
    return None if value is None else round(min(max(float(value), 0.0), 1.0), 4)
