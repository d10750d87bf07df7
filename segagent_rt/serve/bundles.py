"""Loads what is to be served."""

from __future__ import annotations

from collections.abc import Sequence

from segagent_rt.annotators.endpoint import Endpoint
from segagent_rt.bundle.store import PHOTO, SHIPPED
from segagent_rt.errors import BundleError
from segagent_rt.runtime import Runtime, load


def load_bundles(
    asked: Sequence[str] = (),
    backend: str = "auto",
    threads: int | None = None,
    endpoint: Endpoint | None = None,
) -> dict[str, Runtime]:
    """Load bundles under the names by which clients choose them.

    Args:
        asked: folders or names; if there is none, the demo bundle and the segmenter of photos, or
            with an endpoint the latter alone.
        backend: see `load`.
        threads: see `load`.
        endpoint: the server that runs the MLLM of every bundle.

    Raises:
        BundleError: one cannot be used, or two have the same name.
    """
    places: list[str | None] = list(asked)
    if not places:
        places = [None] if endpoint is not None else [SHIPPED, PHOTO]
    loaded = dict[str, Runtime]()
    for place in places:
        runtime = load(place, backend=backend, threads=threads, endpoint=endpoint)
        if runtime.bundle.index.name in loaded:
            raise BundleError(
                f"two bundles have the name {runtime.bundle.index.name}",
                hint="clients choose them by name, so serve one of the two",
            )
        _ = runtime.segmenter  # a bundle without one cannot be served
        loaded[runtime.bundle.index.name] = runtime
    return loaded
