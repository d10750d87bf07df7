"""The images that clients have open, bounded in number, memory and time."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from segagent_rt.errors import InputError, NotOpen
from segagent_rt.runtime import Canvas
from segagent_rt.serve.bundle_card import takes_words
from segagent_rt.serve.compute_queue import Job
from segagent_rt.serve.held_memory import held_bytes
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.object_history import ObjectHistory, ObjectState
from segagent_rt.types import Seconds


@dataclass(slots=True, eq=False)
class OpenImage:
    """An image that a client works on, with its objects.

    Attributes:
        id: names it; cannot be guessed.
        name: of its file, as the client gave it.
        bundle: the name of the bundle that it was opened with.
        canvas: the encoded image.
        seconds: how long reading and encoding it took.
        objects: by number.
        lock: held while objects are changed.
        runs: the model's run on each object, while there is one.
    """

    id: str
    name: str
    bundle: str
    canvas: Canvas
    seconds: Seconds
    limits: ServeLimits
    objects: dict[int, ObjectHistory] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    runs: dict[int, Job] = field(default_factory=dict)
    _next: int = 1

    @property
    def states(self) -> list[ObjectState]:
        """The current states of all objects."""
        with self.lock:
            return [history.state for history in self.objects.values()]

    def check_room(self, number: int | None) -> None:
        """Check that an object is there, or that there is room for a new one.

        Args:
            number: of the object; None for a new one.

        Raises:
            NotOpen: there is no such object.
            InputError: there are too many already.
        """
        if number is not None:
            self.history(number)
        elif len(self.objects) >= self.limits.objects:
            raise InputError(
                f"the image has {len(self.objects)} objects already, which is the limit",
                hint="delete some, or open the image again",
            )

    def history(self, number: int | None) -> ObjectHistory:
        """An object, or a new one.

        Args:
            number: of the object; None for a new one.

        Raises:
            NotOpen: there is no such object.
        """
        if number is None:
            number, self._next = self._next, self._next + 1
            self.objects[number] = ObjectHistory(number, self.limits.states)
        if number not in self.objects:
            raise NotOpen(f"the image has no object {number}", hint="list the image's objects")
        return self.objects[number]

    def take_over(self, number: int) -> None:
        """End the model's run on an object, if there is one: a person goes on from here."""
        run = self.runs.pop(number, None)
        if run is not None:
            run.cancel()

    def held_bytes(self) -> int:
        """Memory that the image and its objects hold, by estimate."""
        canvas, runtime = self.canvas, self.canvas.runtime
        with self.lock:
            masks = [mask for each in self.objects.values() for mask in each.predictions]
        held: list[object] = [canvas.image, canvas.embedding.result(), *masks]
        shared: list[object] = [runtime]
        if takes_words(runtime):
            held.append(canvas.view)
            shared.append(runtime.annotator)
        return held_bytes(held, shared)


class OpenImages:
    """All open images, the one that was used last at the end.

    Args:
        limits: how many, how large together, for how long.
        clock: seconds that only grow.
    """

    def __init__(self, limits: ServeLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._images = OrderedDict[str, OpenImage]()
        self._used, self._bytes = dict[str, float](), dict[str, int]()

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._images)

    @property
    def bytes(self) -> int:
        """Memory that they hold together, by estimate."""
        return sum(self._bytes.values())

    def add(self, image: OpenImage) -> None:
        """Keep an image open; others are closed if there are too many, or they are too large."""
        held = image.held_bytes()
        with self._lock:
            self._images[image.id], self._bytes[image.id] = image, held
            self._used[image.id] = self._clock()
            self._expire()
            self._make_room()

    def get(self, id: str) -> OpenImage:
        """An open image, which counts as used.

        Raises:
            NotOpen: it was never opened, or has been closed.
        """
        with self._lock:
            self._expire()
            image = self._images.get(id)
            if image is None:
                raise NotOpen(
                    "this image is not open, or no longer",
                    hint=f"open it again; images are closed after {self._limits.idle_seconds:g} s "
                    "without use, or earlier if memory is short",
                )
            self._images.move_to_end(id)
            self._used[id] = self._clock()
            return image

    def grew(self, image: OpenImage, by: int | None = None) -> None:
        """Note that an image holds more memory now; others may have to be closed.

        Args:
            image: one that was worked on.
            by: bytes more; None to estimate everything again.
        """
        held = self._bytes.get(image.id, 0) + by if by is not None else image.held_bytes()
        with self._lock:
            if image.id in self._images:
                self._bytes[image.id] = held
                self._images.move_to_end(image.id)
                self._make_room()

    def remove(self, id: str) -> None:
        """Close an image.

        Raises:
            NotOpen: it is not open.
        """
        self.get(id)
        with self._lock:
            self._drop(id)

    def expire(self) -> None:
        """Close what nobody has used for long."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        oldest = self._clock() - self._limits.idle_seconds
        for id in [id for id, used in self._used.items() if used < oldest]:
            self._drop(id)

    def _make_room(self) -> None:
        """Close the images that were used the longest ago, but never the last one."""
        limits = self._limits
        while len(self._images) > 1 and (
            len(self._images) > limits.open_images or self.bytes > limits.open_bytes
        ):
            self._drop(next(iter(self._images)))

    def _drop(self, id: str) -> None:
        image = self._images.pop(id, None)
        self._used.pop(id, None)
        self._bytes.pop(id, None)
        if image is not None:
            for run in list(image.runs.values()):
                run.cancel()


def new_id() -> str:
    """A name that nobody can guess: 128 bits."""
    return secrets.token_urlsafe(16)
