"""The gate that every engine passes, and the ladder down which graphs go that do not.

Half precision goes wrong silently on GPUs. So an engine must compute, when it is built and whenever
it is loaded, what ONNX Runtime computes in fp32 on the CPU. If it does not, the next variant has
its turn; a manifest lists them from the fastest to the safest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from segagent_rt.backends.engine_library import EngineLibrary, Progress
from segagent_rt.bundle.graph import Graph
from segagent_rt.bundle.integrity import is_ours, make_private, read_regular, unusable
from segagent_rt.engine_cache.golden_example import (
    LARGEST,
    SAMPLES,
    GoldenExample,
    pack_examples,
    resolve,
    sampled,
    unpack_examples,
)
from segagent_rt.engine_cache.key import EngineKey, engine_key
from segagent_rt.engine_cache.speed import LARGEST_SHARE, milliseconds_in_turn
from segagent_rt.engine_cache.store import EngineCache, EngineRecord
from segagent_rt.errors import EngineRefused, OutputError
from segagent_rt.io import atomic_write
from segagent_rt.types import Array, Session

LIMITS = {
    "not finite": 0.0,  # share of values
    "1 - cosine": 0.001,  # of the output as one long vector
    "error": 0.05,  # length of the difference over the reference's
    "1 - mask IoU": 0.01,  # of masks, which are above 0
    "other choices": 0.02,  # share of tokens chosen that the reference finds worse than its best
}
"""What an engine may differ by, output by output."""

NEAR = 0.1
"""A token whose logit is this close to the best is as good a choice."""

GOLDEN = 64 << 20
"""Bytes of the largest file of golden examples."""

TIMING = 1 << 30
"""Bytes of the largest record of a GPU's timing that is read."""


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What keeps an engine from being used, None if nothing does; the worst figures; and the times
    of the engine and of ONNX Runtime, if they were compared."""

    why: str | None
    figures: Mapping[str, float]
    milliseconds: tuple[float, float] | None = None


def check_engine(session: Session, examples: Sequence[GoldenExample]) -> EngineCheck:
    """Run the examples through a session and compare what comes out."""
    worst: dict[str, float] = {}
    why, known = None, dict[str, Array]()
    for number, (feeds, expected) in enumerate(examples):
        asked = [*expected, *_read_next(examples[number + 1 :], expected)]
        try:
            given = {name: resolve(feed, known) for name, feed in feeds.items()}
            found = session.run(given, asked)
        except (KeyError, ValueError) as error:
            raise EngineRefused(f"the golden example does not fit: {error}") from error
        known = {f"in/{name}": feed for name, feed in given.items()}
        known |= {f"out/{name}": value for name, value in found.items()}
        for output, wanted in expected.items():
            for figure, value in _figures(output, found[output], wanted):
                name = f"{output}: {figure}"
                if math.isfinite(value):  # a record holds no others
                    worst[name] = max(value, worst.get(name, value))
                if why is None and not value <= LIMITS[figure]:
                    why = f"{name} is {value:.4g}, at most {LIMITS[figure]} is good"
    return EngineCheck(why, worst)


def _read_next(later: Sequence[GoldenExample], expected: Mapping[str, Array]) -> list[str]:
    """Outputs that the next example takes as inputs, beside those that are compared."""
    feeds = later[0][0].values() if later else ()
    names = [str(feed) for feed in feeds if feed.dtype.kind == "U"]
    outputs = [name.removeprefix("out/") for name in names if name.startswith("out/")]
    return [name for name in outputs if name not in expected]


def check_speed(
    session: Session, rival: Session, examples: Sequence[GoldenExample], check: EngineCheck
) -> EngineCheck:
    """A check that passed, with the times of the engine and of what it must be faster than."""
    ours, theirs = milliseconds_in_turn([session, rival], examples)
    slow = ours > LARGEST_SHARE * theirs
    why = f"{ours:.1f} ms, ONNX Runtime {theirs:.1f} ms" if slow else None
    return EngineCheck(why, check.figures, (ours, theirs))


def _figures(output: str, found: Array, reference: Array) -> Iterator[tuple[str, float]]:
    """Figures of one output, each the better the smaller it is."""
    lost = float(np.mean(~np.isfinite(found)))
    yield "not finite", lost
    if lost:
        return
    if reference.shape == (SAMPLES,) and found.size > SAMPLES:
        found = sampled(found)
    if found.shape != reference.shape:
        yield "error", math.inf
        return
    a, b = found.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    yield "1 - cosine", 1 - float(a @ b) / lengths if lengths else float(not np.array_equal(a, b))
    yield "error", float(np.linalg.norm(a - b)) / (float(np.linalg.norm(b)) or 1.0)
    if output in ("masks", "logits") and reference.ndim == 4:
        either = np.count_nonzero((found > 0) | (reference > 0))
        both = np.count_nonzero((found > 0) & (reference > 0))
        yield "1 - mask IoU", 1 - both / either if either else 0.0
    if output == "logits" and reference.ndim == 2:
        chosen = np.take_along_axis(reference, found.argmax(-1)[:, None], -1)[:, 0]
        yield "other choices", float(np.mean(chosen < reference.max(-1) - NEAR))


def golden_examples(graph: Graph) -> list[GoldenExample]:
    """What the export recorded of a graph; none if it recorded nothing.

    Raises:
        BundleError: the file is damaged.
    """
    if graph.golden is None:
        return []
    with unusable(graph.golden):
        return unpack_examples(read_regular(graph.golden, GOLDEN), LARGEST)


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of the ladder: a graph for a library in one number format, and the engine's key."""

    library: EngineLibrary
    graph: Graph
    key: EngineKey

    @property
    def name(self) -> str:
        """The variant, with the number format where the library computes in several."""
        return f"{self.graph.name}{self._in_form}"

    @property
    def precision(self) -> str:
        """The precision of the variant, and what the library computes in instead."""
        return f"{self.graph.variant.precision}{self._in_form}"

    @property
    def _in_form(self) -> str:
        return f" in {self.library.form}" if self.library.form else ""


@dataclass(frozen=True, slots=True)
class EngineSelector:
    """Engines of one library on this machine, in a cache."""

    library: EngineLibrary
    cache: EngineCache

    def open(self, candidates: Sequence[Graph]) -> tuple[Session, Rung, dict[str, str]]:
        """The first engine that passes, what it was built of, and why those before it did not.

        Raises:
            EngineRefused: none was built for this machine, or none passes.
        """
        failed: dict[str, str] = {}
        for rung in self._rungs(candidates):
            record = self.cache.find(rung.key)
            if record is None:
                raise self._not_built(rung)
            session = self._load(rung.library, record)
            check = EngineCheck(record.why, {}) if session is None else self._check(session, record)
            if session is not None and check.why is None:
                return session, rung, failed
            failed[rung.name] = check.why or ""
        raise _none_verified(candidates, failed)

    def _rungs(self, candidates: Sequence[Graph]) -> Iterator[Rung]:
        """The ladder: each graph in each number format of the library."""
        for library in self.library.forms():
            for graph in candidates:
                yield Rung(library, graph, engine_key(graph, library.machine()))

    def _load(self, library: EngineLibrary, record: EngineRecord) -> Session | None:
        if not record.passed:
            return None
        plan, kernels = self.cache.read(record, "plan"), self.cache.path(record.key, "kernels")
        try:
            return library.open(plan, f"the {record.graph}", kernels)
        except EngineRefused:
            self.cache.forget(record.key)
            raise

    def _check(self, session: Session, record: EngineRecord) -> EngineCheck:
        """The gate at load. An engine that fails it now is not tried again until it is rebuilt."""
        check = check_engine(session, unpack_examples(self.cache.read(record, "npz")))
        if check.why is not None:
            session.close()
            self.cache.forget(record.key)
            self.cache.put(_failed(record, check), {})
        return check

    def build(
        self,
        candidates: Sequence[Graph],
        examples: Sequence[GoldenExample],
        progress: Progress,
        rival: Session | None = None,
    ) -> tuple[EngineRecord, dict[str, str]]:
        """Build down to the first engine that passes; those that are there are not built again.

        Args:
            candidates: graphs of one role, the best first.
            examples: what those must compute of which the bundle has no golden examples.
            progress: is told each phase.
            rival: what an engine must be faster than, if anything.

        Returns:
            Its record, and why those before it did not pass.

        Raises:
            EngineRefused: none passes.
        """
        failed: dict[str, str] = {}
        for rung in self._rungs(candidates):
            with self.cache.building(rung.key):
                given = golden_examples(rung.graph) or examples
                record = self.cache.find(rung.key) or self._make(rung, given, progress, rival)
            if record.passed:
                return record, failed
            failed[rung.name] = record.why or ""
        raise _none_verified(candidates, failed)

    def _make(
        self,
        rung: Rung,
        examples: Sequence[GoldenExample],
        progress: Progress,
        rival: Session | None,
    ) -> EngineRecord:
        start, plan = time.monotonic(), b""
        try:
            plan = self._compile(rung, progress)
            session = rung.library.open(plan, f"the {rung.graph}")
            progress("compare with ONNX Runtime")
            check = check_engine(session, examples)
            if check.why is None and rival is not None:
                progress("compare the speed with ONNX Runtime's")
                check = check_speed(session, rival, examples, check)
            session.close()
        except EngineRefused as error:
            check = EngineCheck(str(error), {})
        seconds = round(time.monotonic() - start, 1)
        record = EngineRecord(
            rung.key, str(rung.graph), check.why, check.figures, seconds, check.milliseconds
        )
        files = {"plan": plan, "npz": pack_examples(examples)} if record.passed else {}
        return self.cache.put(record, files)

    def _compile(self, rung: Rung, progress: Progress) -> bytes:
        timing, graph = self.cache.timing(rung.key), rung.graph
        known = read_regular(timing, TIMING) if is_ours(timing) else b""
        built = rung.library.build(graph.path, graph.profiles, known, progress)
        if built.timing:
            with suppress(OSError, OutputError):  # costs time in the next build, no more
                make_private(timing.parent)
                atomic_write(timing, built.timing)
        return built.plan

    def _not_built(self, rung: Rung) -> EngineRefused:
        unlike, graph = self.cache.explain_mismatch(rung.key), rung.graph
        why = f"the engine of the {graph} does not fit: {unlike}"
        name = self.library.backend
        return EngineRefused(
            why if unlike else f"there is no engine of the {graph} on this machine",
            hint=f"segagent-rt build {graph.path.parent.parent} --backend {name}",
        )


def _failed(record: EngineRecord, check: EngineCheck) -> EngineRecord:
    why = f"{check.why} (when it was loaded)"
    return EngineRecord(record.key, record.graph, why, check.figures, record.seconds)


def _none_verified(candidates: Sequence[Graph], failed: Mapping[str, str]) -> EngineRefused:
    said = "; ".join(f"{name}: {why}" for name, why in failed.items())
    what = f"{candidates[0].part} {candidates[0].role}"
    return EngineRefused(
        f"no engine of the {what} can be used: {said}",
        hint="--backend auto takes another backend for it",
    )
