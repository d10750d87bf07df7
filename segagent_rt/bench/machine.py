"""What was measured on: the machine in words, and its ceilings in numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt import __version__
from segagent_rt.doctor import examine

VECTOR_UNITS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX",
    "asimddp": "NEON dot products",
    "i8mm": "NEON int8 matrices",
}
"""Names of the processor's flags, as Linux lists them."""


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system, versions, commit; nothing that names a person or a path."""
    report = examine()
    return {
        **report["machine"],
        "processor": _processor(),
        "vector_units": vector_units(),
        "packages": report["packages"],
        "commit": _commit(),
        "load": [round(n, 2) for n in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def measure_ceilings(seconds: float = 1.0) -> dict[str, float]:
    """Best of repeated short runs: float32 matrix product in GFLOP/s, copying in GB/s.

    NumPy's BLAS uses every core; both are what a program can hope for on this machine now.
    """
    side = 1024
    a, b = (np.random.default_rng(n).random((side, side), np.float32) for n in (0, 1))
    out = np.empty_like(a)
    product = _best(lambda: np.matmul(a, b, out=out), seconds / 2)
    source, target = np.ones(1 << 24, np.float32), np.zeros(1 << 24, np.float32)
    copy = _best(lambda: np.copyto(target, source), seconds / 2)
    return {
        "gflops": float(f"{2 * side**3 / product / 1e9:.4g}"),
        "gbytes_per_second": float(f"{2 * source.nbytes / copy / 1e9:.4g}"),
    }


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM, where the system tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
    """The most memory that this process has had in RAM, where the system tells."""
    try:  # `ru_maxrss` of a process on Linux begins with what its parent had
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _best(work: Callable[[], object], seconds: float) -> float:
    """Least seconds of a run, of three runs or as many as fit in the time."""
    taken, stop = list[float](), time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _processor() -> str:
    names = _cpuinfo("model name")
    return names[0] if names else platform.processor() or platform.machine()


def vector_units() -> list[str]:
    """What decides the speed of integers and bfloat16, from the oldest to the newest unit."""
    flags = {flag for row in (*_cpuinfo("flags"), *_cpuinfo("Features")) for flag in row.split()}
    return [name for flag, name in VECTOR_UNITS.items() if flag in flags]


def _cpuinfo(key: str) -> list[str]:
    """The values that Linux lists for each core; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _commit() -> str:
    """The commit of the checkout that this file is tracked in, or the version that is installed."""
    here = Path(__file__)
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    commit = tracked and _git(here.parent, "describe", "--always", "--dirty")
    return commit or f"version {__version__}"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing if it fails or is not there."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
