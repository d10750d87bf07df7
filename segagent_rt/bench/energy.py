"""Energy of a block of work, where the board tells: a Jetson's rails, or NVML on a PC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

RAILS = Path("/sys/class/hwmon")
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
            now = time.perf_counter()
            total, before = total + self._reader() * (now - before), now
            self.joules = total


def _jetson() -> Reader | None:
    """The input rail of a Jetson's INA3221: millivolts times milliamperes."""
    for label in sorted(RAILS.glob("hwmon*/in*_label")):
        try:
            name = label.read_text("ascii").strip()
        except OSError:
            continue
        if name in ("VDD_IN", "VIN_SYS_5V0", "VDD_GPU_SOC"):
            number = label.name[2:-6]
            volts = label.with_name(f"in{number}_input")
            amperes = label.with_name(f"curr{number}_input")
            return partial(_product, volts, amperes)
    return None


def _product(volts: Path, amperes: Path) -> float:
    return int(volts.read_text("ascii")) * int(amperes.read_text("ascii")) / 1e6


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
