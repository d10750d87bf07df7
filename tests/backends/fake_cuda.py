"""The part of cuda-python's runtime module that this package calls, on host memory.

Functions return (error, value) as the real ones do. Work goes into a stream: it is done at once, or
recorded while the stream captures. Addresses are real, and every access is checked.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from enum import IntEnum

OK, INVALID, OUT_OF_MEMORY = 0, 1, 2


class cudaMemcpyKind(IntEnum):
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class Device:
    """What the fake GPU holds; `limit` is its memory in bytes."""

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array] = {}
        self.host: dict[int, ctypes.Array] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.numbers = itertools.count(1)
        self.limit = 1 << 30
        self.calls: list[str] = []

    def holds(self, address: int, size: int) -> bool:
        blocks = (*self.memory.items(), *self.host.items())
        return any(start <= address and address + size <= start + len(b) for start, b in blocks)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            work()


device = Device()


def reset() -> Device:
    global device
    device = Device()
    return device


def _block(blocks: dict[int, ctypes.Array], size: int) -> tuple[int, int]:
    block = (ctypes.c_uint8 * size)(*b"\xab" * min(size, 64))
    address = ctypes.addressof(block)
    blocks[address] = block
    return OK, address


def cudaMalloc(size):
    if sum(map(len, device.memory.values())) + size > device.limit:
        return OUT_OF_MEMORY, None
    device.calls.append("malloc")
    return _block(device.memory, size)


def cudaFree(address):
    device.calls.append("free")
    return (OK if device.memory.pop(address, None) is not None else INVALID,)


def cudaHostAlloc(size, flags):
    assert flags == 2
    return _block(device.host, size)


def cudaFreeHost(address):
    return (OK if device.host.pop(address, None) is not None else INVALID,)


def cudaMemcpyAsync(target, source, size, kind, stream):
    assert kind == cudaMemcpyKind.cudaMemcpyDefault
    if not (device.holds(target, size) or device.holds(source, size)):
        return (INVALID,)
    device.calls.append("copy")
    device.enqueue(int(stream), lambda: ctypes.memmove(target, source, size))
    return (OK,)


def cudaMemsetAsync(address, value, size, stream):
    if not device.holds(address, size):
        return (INVALID,)
    device.enqueue(int(stream), lambda: ctypes.memset(address, value, size))
    return (OK,)


def cudaStreamCreate():
    return OK, next(device.numbers)


def cudaStreamDestroy(stream):
    return (OK,)


def cudaStreamSynchronize(stream):
    return (INVALID if int(stream) in device.capturing else OK,)


def cudaStreamBeginCapture(stream, mode):
    device.capturing[int(stream)] = []
    return (OK,)


def cudaStreamEndCapture(stream):
    return OK, device.capturing.pop(int(stream))


def cudaGraphInstantiate(graph, flags):
    assert flags == 0
    number = next(device.numbers)
    device.graphs[number] = list(graph)
    device.calls.append("capture")
    return OK, number


def cudaGraphDestroy(graph):
    return (OK,)


def cudaGraphLaunch(graph, stream):
    device.calls.append("launch")
    for work in device.graphs[graph]:
        work()
    return (OK,)


def cudaGraphExecDestroy(graph):
    return (OK if device.graphs.pop(graph, None) is not None else INVALID,)
