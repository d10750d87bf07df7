"""How much memory an open image holds, by estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DEEPEST = 6
"""Levels of attributes and lists that are looked through."""


def held_bytes(roots: Iterable[Any], shared: Iterable[Any] = ()) -> int:
    """Bytes of all arrays and device tensors that are reachable from some objects.

    Args:
        roots: where to begin.
        shared: objects that others hold as well; they and what they hold directly are left out.
    """
    seen = {id(part) for each in shared for part in (each, *_inside(each))}
    return sum(_held(root, seen, DEEPEST) for root in roots)


def _held(value: Any, seen: set[int], deeper: int) -> int:
    if id(value) in seen or deeper < 0:
        return 0
    seen.add(id(value))
    if isinstance(value, np.memmap):
        return 0
    if isinstance(value, np.ndarray):
        owner = value if value.base is None else value.base
        if owner is not value and id(owner) in seen:
            return 0
        seen.add(id(owner))
        return int(value.nbytes)
    if hasattr(value, "element_type") and hasattr(value, "shape"):  # an OrtValue
        return 4 * int(math.prod(value.shape()))
    return sum(_held(inner, seen, deeper - 1) for inner in _inside(value))


def _inside(value: Any) -> list[Any]:
    """What an object holds: items of a container, attributes of one of our own objects."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if not type(value).__module__.startswith("segagent_rt"):
        return []
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    held = [getattr(value, name, None) for name in names if isinstance(name, str)]
    return [*held, *getattr(value, "__dict__", {}).values()]
