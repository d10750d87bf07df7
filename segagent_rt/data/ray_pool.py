"""Pieces of work spread over the workers of a Ray cluster: the outcomes of one process, in any
order.

A worker that dies is started again by Ray, and does again what it was doing. If there is no room
for it any more, because its machine is gone, the others take over what it had.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias

from segagent_rt.bundle.manifest import PartName
from segagent_rt.data.work_items import (
    Outcome,
    P,
    ProcessAll,
    ProcessItem,
    attempt,
    sequentially,
    shards,
)
from segagent_rt.errors import BundleError, ClusterError, ExtraMissing, SegagentError
from segagent_rt.runtime import Runtime, load

Prepare: TypeAlias = Callable[[Runtime], ProcessItem[P]]
"""Makes of a runtime what does pieces of work."""

LOCAL = "local"
"""The address of a cluster of this machine alone, which lives as long as the run."""

ITEMS_AT_ONCE = 4
"""Pieces that a worker is given at a time: no more are lost with it."""

MAX_RESTARTS = 5
"""So many times a worker may die; the pieces that it had are tried again each time."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to work: LOCAL or the address of a Ray cluster, None for this process.

    `workers` is how many work there; None for as many as it has room for.
    """

    address: str | None = None
    workers: int | None = None


@contextmanager
def distribute(
    cluster: Cluster,
    runtime: Runtime,
    prepare: Prepare[P],
    parts: Collection[PartName] | None = None,
) -> Iterator[ProcessAll[P]]:
    """What has pieces done on a cluster, or in this process.

    Raises:
        ExtraMissing: Ray is not installed.
        ClusterError: there is no such cluster, or not enough room on it.
    """
    if cluster.address is None:
        yield sequentially(prepare(runtime))
        return
    try:
        import ray
    except ModuleNotFoundError:
        raise ExtraMissing("eval --ray", "ray") from None
    copy = RuntimeCopy.of(runtime, parts)
    try:
        _join(ray, cluster.address, (cluster.workers or 0) * copy.threads)
        workers = _room(ray, cluster.workers, copy.threads)
        gpus = ray.cluster_resources().get("GPU", 0) / workers if copy.backend != "cpu" else 0
        worker = ray.remote(RayWorker).options(
            num_cpus=copy.threads,
            num_gpus=min(1.0, gpus),
            max_restarts=MAX_RESTARTS - 1,
            max_task_retries=-1,
        )
        yield RayPool([worker.remote(copy, prepare) for _ in range(workers)]).spread
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class RuntimeCopy:
    """A runtime as another process can open it, if the bundle lies at the same path there."""

    folder: Path
    digest: str
    backend: str
    threads: int
    parts: tuple[PartName, ...] | None = None

    @classmethod
    def of(cls, runtime: Runtime, parts: Collection[PartName] | None = None) -> RuntimeCopy:
        bundle, where = runtime.bundle, runtime.where
        names = None if parts is None else tuple(parts)
        return cls(bundle.folder.resolve(), bundle.digest, where.backend, where.threads or 1, names)

    def load(self) -> Runtime:
        """Open it.

        Raises:
            BundleError: the bundle is not there, or another one is.
        """
        runtime = load(self.folder, backend=self.backend, threads=self.threads, parts=self.parts)
        if runtime.bundle.digest != self.digest:
            raise BundleError(f"{self.folder} holds another bundle on a worker's machine")
        return runtime


class RayWorker(Generic[P]):
    """One worker. It loads what it needs with its first piece, and keeps it."""

    def __init__(self, copy: RuntimeCopy, prepare: Prepare[P]) -> None:
        self._copy, self._prepare = copy, prepare
        self._do: ProcessItem[P] | None = None

    def work(self, items: Sequence[P]) -> list[Outcome]:
        self._do = self._do or self._prepare(self._copy.load())
        return [attempt(self._do, item) for item in items]


@dataclass(frozen=True, slots=True)
class RayPool:
    """The workers, as handles of Ray's."""

    workers: Sequence[Any]

    def spread(self, items: Sequence[Any]) -> Iterator[Outcome]:
        """Have pieces done; their outcomes, each once.

        Raises:
            ClusterError: no worker is left.
            SegagentError: what a worker raised.
        """
        left = dict(enumerate(shards(items, ITEMS_AT_ONCE)))
        waiting, idle = deque(left), list(self.workers)
        given: dict[Any, tuple[Any, int]] = {}
        while left:
            while idle and (at := _next(waiting, left, [n for _, n in given.values()])) is not None:
                worker = idle.pop()
                given[worker.work.remote(left[at])] = worker, at
            reference = _first(given)
            worker, at = given.pop(reference)
            outcomes = _result(reference)
            if outcomes is not None:
                idle.append(worker)
                if left.pop(at, None) is not None:
                    yield from outcomes


def _next(waiting: deque[int], left: dict[int, Any], given: list[int]) -> int | None:
    """What to give to an idle worker: what nobody has, then what one alone has had the longest."""
    for _ in range(len(waiting)):
        at = waiting.popleft()
        if at in left:
            waiting.append(at)
            if given.count(at) < 2:
                return at
    return None


def _first(given: dict[Any, tuple[Any, int]]) -> Any:
    """Wait until a worker is done, or dead."""
    import ray

    if not given:
        raise ClusterError(
            f"every worker died {MAX_RESTARTS} times",
            hint="give them more memory; the same command continues this run",
        )
    return ray.wait(list(given))[0][0]


def _result(reference: Any) -> list[Outcome] | None:
    """What a worker has done; None if it is dead."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        found: list[Outcome] = ray.get(reference)
        return found
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, SegagentError) else error from None
    except RayActorError:
        return None


def _join(ray: Any, address: str, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            ray.init(LOCAL, num_cpus=cpus or None, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"there is no Ray cluster at {address}: {str(error).partition('. ')[0].strip()}",
            hint="start one with `ray start --head`, or use the cores of this machine: --ray local",
        ) from error


def _knock(address: str) -> None:
    """Find out at once whether anybody is there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isascii() and port.isdecimal() and int(port) < 1 << 16:
        socket.create_connection((host, int(port)), timeout=10).close()


def _room(ray: Any, workers: int | None, threads: int) -> int:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < (workers or 1) * threads:
        raise ClusterError(
            f"the cluster has {cpus} CPUs, too few for {workers or 1} workers of {threads} threads",
            hint="ask for less: --workers, --threads",
        )
    return workers or cpus // threads
