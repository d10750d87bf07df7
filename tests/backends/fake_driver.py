"""libcuda as `segagent_rt.backends.driver` calls it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass
class FakeDriver:
    """A machine with GPUs of one kind; `start` is what cuInit returns."""

    count: int = 1
    name: bytes = b"Fake Orin"
    capability: tuple[int, int] = (8, 7)
    integrated: bool = False
    version: int = 12060
    start: int = 0

    def cuInit(self, flags):
        return self.start

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        ctypes.memmove(buffer, self.name + b"\0", len(self.name) + 1)
        return 0

    def cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = 8 << 30
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        known = {18: int(self.integrated), 75: self.capability[0], 76: self.capability[1]}
        value._obj.value = known[attribute]
        return 0
