"""Golden inputs and outputs of a bundle's graphs, recorded on a drawn scene.

The export records compact examples of every variant for GPUs and keeps them in the bundle. For
variants without, they are recorded where engines are built, which loads all graphs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.registry import get_backend
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.bundle import Part
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt.engine_cache.golden_example import (
    SAMPLES,
    GoldenExample,
    reference,
    sampled,
)
from segagent_rt.runtime import open_mllm, open_segmenter
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import (
    Annotator,
    Array,
    Buffers,
    Click,
    DeviceTensor,
    Feed,
    Feeds,
    Names,
    Request,
    Segmenter,
    Session,
)

SEED, SIDE = 7, 512
"""The scene."""

MOST = 4
"""Examples of one graph; only calls with shapes not seen before are kept."""

MOST_CALLS = 2
"""Calls of one graph that a bundle holds."""

HALF_MOST = 65504.0
"""The largest number in fp16."""

OpenSession: TypeAlias = Callable[[Part, str], Session]

Examples: TypeAlias = dict[str, list[GoldenExample]]
"""By role."""


class RecordingSession:
    """A session that keeps what goes in and what comes out."""

    def __init__(self, session: Session) -> None:
        self._session, self.examples = session, list[GoldenExample]()
        self._seen: set[object] = set()

    @property
    def inputs(self) -> Names:
        return self._session.inputs

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        before = {name: _copy(feed) for name, feed in feeds.items()}
        results = self._session.run(feeds, outputs, into=into, keep=keep)
        shapes = tuple(array.shape for array in before.values())
        if shapes not in self._seen and len(self.examples) < MOST:
            self._seen.add(shapes)
            after = {name: _copy(array) for name, array in {**results, **(into or {})}.items()}
            self.examples.append((before, after))
        return results

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceTensor:
        return self._session.allocate(shape, dtype)

    def close(self) -> None:
        self._session.close()


def _copy(feed: Feed) -> Array:
    return np.array(feed if isinstance(feed, np.ndarray) else feed.numpy())


def record_golden(part: Part, backend: str) -> Examples:
    """Let a part work on the CPU with the safest graphs that a backend takes.

    Raises:
        BundleMissing: it takes none.
    """
    watched: dict[str, RecordingSession] = {}

    def watch(part: Part, role: str) -> Session:
        graph = compatible_graphs(part.graphs(role), backend)[-1]
        watched[role] = RecordingSession(open_session(graph.path, SessionOptions("cpu")))
        return watched[role]

    if part.manifest.kind == "segmenter":
        _click(open_segmenter(part, watch))
    else:
        annotator = open_mllm(part, watch)
        if get_backend(backend).nvidia:
            annotator.model.allow_branches()
        _ask(annotator)
    for session in watched.values():
        session.close()
    return {role: session.examples for role, session in watched.items()}


class CompactRecorder(RecordingSession):
    """Keeps the first calls in the form that bundles hold: see `golden_example`.

    Large inputs are rounded to fp16 before the graph sees them.
    """

    def __init__(self, session: Session, most: int) -> None:
        super().__init__(session)
        self._most = most
        self._fed: Mapping[str, Feed] = {}

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        if len(self.examples) == self._most:
            return self._session.run(feeds, outputs, into=into, keep=keep)
        written = {id(buffer): name for name, buffer in (into or {}).items()}
        given = {n: f if id(f) in written else _rounded(_copy(f)) for n, f in feeds.items()}
        kept = dict[str, Array]()
        for name, feed in given.items():
            named = self._named(name, feeds[name], written.get(id(feeds[name])))
            kept[name] = _copy(feed) if named is None else named
        self._fed = feeds
        results = self._session.run(given, outputs, into=into, keep=keep)
        after = {name: _compact(name, _copy(a)) for name, a in {**results, **(into or {})}.items()}
        self.examples.append((kept, after))
        return results

    def _named(self, name: str, feed: Feed, written: str | None) -> Array | None:
        """How an input is named instead of written out, if it is."""
        if written is not None:
            return reference(f"out/{written}" if self.examples else _zeros(_copy(feed)))
        kept = not isinstance(feed, np.ndarray) and self._fed.get(name) is feed
        return reference(f"in/{name}") if kept else None


def _zeros(array: Array) -> str:
    return "zeros/" + "/".join(map(str, array.shape))


def _rounded(array: Array) -> Array:
    """A large array of fp32 as fp16 would hold it."""
    if array.dtype != np.float32 or array.size <= SAMPLES or np.abs(array).max() > HALF_MOST:
        return array
    return array.astype(np.float16).astype(np.float32)


def _compact(name: str, array: Array) -> Array:
    """Masks and logits whole, of other outputs a sample."""
    whole = name in ("masks", "logits") or array.size <= SAMPLES
    return array if whole else sampled(array)


def record_variant(part: Part, variant: str, open_session: OpenSession) -> Examples:
    """Compact examples of all graphs of a variant, for the bundle.

    Args:
        part: holds the variant.
        variant: its name.
        open_session: opens its graphs on the CPU.
    """
    recorders: dict[str, CompactRecorder] = {}

    def record(part: Part, role: str) -> Session:
        recorders[role] = CompactRecorder(open_session(part, role), MOST_CALLS)
        return recorders[role]

    if part.manifest.kind == "segmenter":
        _click(open_segmenter(part, record))
    else:
        annotator = open_mllm(part, record)
        annotator.model.allow_branches()
        scene = make_scene(SEED, SIDE)
        request = Request(None, scene.expressions[0].text)
        annotator.look(scene.image).propose([request])
    return {role: recorder.examples for role, recorder in recorders.items()}


def _click(segmenter: Segmenter) -> None:
    """Encode the scene; one click, then two, then four, each on the mask before."""
    scene = make_scene(SEED, SIDE)
    inside = np.argwhere(scene.mask(scene.expressions[0].target))
    outside = np.argwhere(scene.labels == 0)
    places = [inside[len(inside) // 2], outside[0], inside[0], outside[-1]]
    clicks = [Click(int(x), int(y), number % 2 == 0) for number, (y, x) in enumerate(places)]
    embedding = segmenter.encode(scene.image)
    prediction = None
    for count in (1, 2, 4):
        prediction = segmenter.decode(embedding, clicks[:count], prior=prediction)


def _ask(annotator: Annotator) -> None:
    """Ask for a click with no mask, and with a wrong one."""
    scene = make_scene(SEED, SIDE)
    wrong = scene.mask((scene.expressions[0].target + 1) % len(scene.objects))
    view = annotator.look(scene.image)
    for prediction in (None, GivenMask(wrong)):
        view.propose([Request(prediction, scene.expressions[0].text)])
