"""The processor's cores: how many there are for us, and whether two graphs should share them."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

FEW = 2
"""With so many, encoding beside the MLLM takes longer than encoding behind it
(docs/decisions/threads.md); with more that was not measured."""


def usable_cores() -> int:
    """Cores that this process may use: in a container often fewer than the machine has.

    The affinity of the process counts, and the CPU quota of its control groups, rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def thread_count(asked: int | None) -> int:
    """Threads to start: as many as asked for, but never more than there are cores for us.

    Args:
        asked: None for one for each core.
    """
    cores = usable_cores()
    return cores if asked is None else max(1, min(asked, cores))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU quota of this process in cores, from cgroup v2 or v1; None if there is none.

    Args:
        root: where `/proc` and `/sys` lie.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    quotas = [
        quota
        for group in groups
        for folder in _group_folders(group, root / "sys/fs/cgroup")
        if (quota := _quota(folder)) is not None
    ]
    return min(quotas, default=None)


def _group_folders(group: str, mount: Path) -> Iterator[Path]:
    """The folders of a control group and of those above it, by a line of `/proc/self/cgroup`."""
    _, _, named = group.partition(":")
    controllers, _, path = named.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    bases = [mount / controllers, mount / "cpu"] if controllers else [mount, mount / "unified"]
    inside = PurePosixPath(path.lstrip("/"))
    for base in bases:
        yield from (base / part for part in (inside, *inside.parents) if ".." not in part.parts)


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            texts = (folder / "cpu.max").read_text("utf-8").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            texts = [(folder / name).read_text("utf-8") for name in names]
        quota, period = map(int, texts)  # "max" is no number: there is no quota
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def oversubscribed(threads: int | None) -> bool:
    """Whether two graphs at a time, with so many threads each, would be in each other's way."""
    cores = usable_cores()
    return cores <= FEW and 2 * thread_count(threads) > cores


def platform_name() -> str:
    """System and processor architecture, such as `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"
