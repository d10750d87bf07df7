"""The NVIDIA driver, asked directly; no CUDA package is needed to know what is there."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

from segagent_rt.errors import BackendUnavailable

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_INTEGRATED = 18
_MAJOR, _MINOR = 75, 76
"""Attributes of a device, numbered as in cuda.h."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its driver describes it; `memory` in bytes, `cuda` the driver's CUDA version."""

    name: str
    capability: tuple[int, int]
    memory: int
    integrated: bool
    cuda: tuple[int, int]

    @property
    def sm(self) -> str:
        """Its compute capability as compilers write it: `sm_87`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@lru_cache(1)
def gpu() -> Gpu:
    """The first GPU.

    Raises:
        BackendUnavailable: there is no driver, or no GPU that it knows.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        raise BackendUnavailable(
            f"there is no NVIDIA driver here ({LIBRARY} cannot be loaded)",
            hint="install the driver, start the container with its GPU, or use --backend cpu",
        ) from None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        raise _no_gpu("the NVIDIA driver does not start")
    if count.value == 0:
        raise _no_gpu("the NVIDIA driver knows no GPU")
    return _describe(driver)


def _no_gpu(problem: str) -> BackendUnavailable:
    return BackendUnavailable(problem, hint="check with `nvidia-smi`, or use --backend cpu")


def _describe(driver: ctypes.CDLL) -> Gpu:
    """What the driver says of device 0."""

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, 0)
        return value.value

    name, memory, version = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGetName(name, 256, 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        memory=memory.value,
        integrated=bool(attribute(_INTEGRATED)),
        cuda=(version.value // 1000, version.value % 1000 // 10),
    )
