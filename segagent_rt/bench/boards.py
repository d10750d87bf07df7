"""The table of boards: how much memory there is, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segagent_rt.errors import InputError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceBoard:
    """A row of the table.

    Attributes:
        memory: bytes that the GPU can use.
        shared: whether processor and GPU share it.
        kept: bytes of it that are not for us: the system without a desktop and the carve-outs of a
            Jetson, the screen of a PC, CUDA's own context. Assumed, not measured.
    """

    memory: int
    shared: bool
    kept: int


def _jetson(gibibytes: int) -> DeviceBoard:
    return DeviceBoard(gibibytes * GIB, shared=True, kept=2 * GIB)


def _card(gibibytes: int) -> DeviceBoard:
    return DeviceBoard(gibibytes * GIB, shared=False, kept=1 * GIB)


BOARDS: Mapping[str, DeviceBoard] = {
    "orin-nano-4": _jetson(4),
    "orin-nano-8": _jetson(8),
    "orin-nx-8": _jetson(8),
    "orin-nx-16": _jetson(16),
    "agx-orin-32": _jetson(32),
    "agx-orin-64": _jetson(64),
    "thor-64": _jetson(64),
    "thor": _jetson(128),
    "rtx-8": _card(8),
    "rtx-12": _card(12),
    "rtx-16": _card(16),
    "rtx-24": _card(24),
    "rtx-32": _card(32),
}
"""Jetson modules by their data sheets (`thor` is the T5000, `thor-64` the T4000), RTX cards by the
memory in their name."""


def board(name: str) -> DeviceBoard:
    """The row of a board.

    Raises:
        InputError: there is none of that name.
    """
    if name not in BOARDS:
        raise InputError(f"there is no board `{name}`", hint="choose " + ", ".join(BOARDS))
    return BOARDS[name]
