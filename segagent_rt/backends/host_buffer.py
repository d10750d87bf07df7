"""Arrays of this process where a session keeps or takes a buffer."""

from __future__ import annotations

import numpy as np

from segagent_rt.types import Array, Feed


class HostBuffer:
    """An array that inputs and outputs may be bound to."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    def numpy(self) -> Array:
        """The array itself."""
        return self.array


def on_host(feed: Feed) -> Array:
    """An array as it is; the content of another backend's buffer."""
    return feed if isinstance(feed, np.ndarray) else feed.numpy()
