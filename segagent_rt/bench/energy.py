"""Energy of a block of work, where the board tells: a Jetson's rails, or NVML on a PC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

HWMON = Path("/sys/class/hwmon")
WHOLE, SHARES = "VDD_IN", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""Rails of a Jetson: Nano, NX measure the whole module with one, AGX with these together."""
PERIOD = 0.02
"""Seconds between readings of a power rail."""

Reader = Callable[[], float]


def find_meter() -> Reader | None:
    """A function that reads the power in watts, or None where nothing tells."""
    return _jetson() or _nvml()


class EnergyMeter:
    """`with EnergyMeter(reader) as meter: ...`, then `meter.joules`; None without a reader."""

    def __init__(self, reader: Reader | None) -> None:
        self._reader, self._stop = reader, threading.Event()
        self.joules: float | None = None

    def __enter__(self) -> EnergyMeter:
        if self._reader is not None:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        assert self._reader is not None
        total, before = 0.0, time.perf_counter()
        while not self._stop.wait(PERIOD):
            try:
                watts = self._reader()
            except Exception:  # a rail that vanishes, a driver that is reset: no figure then
                self.joules = None
                return
            now = time.perf_counter()
            total, before = total + watts * (now - before), now
            self.joules = total


def _jetson() -> Reader | None:
    """The input rails of a Jetson's INA3221: millivolts times milliamperes."""
    rails: dict[str, tuple[Path, Path]] = {}
    for label in sorted(HWMON.glob("hwmon*/in*_label")):
        try:
            name = label.read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        number = label.name[2:-6]
        rails[name] = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
    if WHOLE in rails:
        return partial(_watts, [rails[WHOLE]])
    if all(name in rails for name in SHARES):
        return partial(_watts, [rails[name] for name in SHARES])
    return None


def _watts(rails: Sequence[tuple[Path, Path]]) -> float:
    return sum(int(v.read_text("ascii")) * int(a.read_text("ascii")) for v, a in rails) / 1e6


def _nvml() -> Reader | None:
    """The first NVIDIA GPU of a PC, through the package `nvidia-ml-py` if it is installed."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetPowerUsage(handle)
    except Exception:  # not installed, no driver, no GPU, no permission: nothing tells
        return None
    return lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
