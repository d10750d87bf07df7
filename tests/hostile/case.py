"""What a case of the hostile corpus is, and how content is damaged. Every seed is fixed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Action: TypeAlias = Callable[[Path], "Sequence[object] | None"]

REFUSED: Collection[int] = (1,)
USAGE: Collection[int] = (2,)
EITHER: Collection[int] = (0, 1, 4, 5)
"""Random damage may do no harm, may be refused, and may lead to masks that are empty."""


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: unique within its kind.
        action: called with an empty folder; returns the arguments of a command that is run in this
            folder, or None if it called the library itself.
        codes: exit codes that are right. An error of the library counts as its exit code.
        seconds: of processor time after which it counts as hanging.
    """

    name: str
    action: Action
    codes: Collection[int] = EITHER
    seconds: float = 10.0


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**6, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"), "", "x", "0", "\0", "../x", "/etc/passwd",
    "\x1b]0;title\x07", "\ud800", "9" * 5000, "a" * 300, [], {}, [[]], [[[[]]]], [None], {"": None},
    {"a": {"b": []}}, [1, "x", None], "{expression}" * 9, "{iou}", "<|im_end|>", ".", "NaN",
)  # fmt: skip
"""Values that a field of JSON must not have, or hardly ever has."""


def nodes(tree: Any, path: tuple[Any, ...] = (), most: int = 6) -> list[tuple[Any, ...]]:
    """Paths to the nodes of plain data; of a long list only some."""
    found = [path] if path else []
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    if len(items) > 10 * most:
        items = items[:most] + items[-most:]
    for key, value in items:
        found += nodes(value, (*path, key), most)
    return found


def at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def damaged_tree(rng: random.Random, tree: Any, places: int = 1) -> Any:
    """Plain data with a node that is replaced, removed, repeated, wrapped or another one's."""
    tree = copy.deepcopy(tree)
    for _ in range(places):
        paths = nodes(tree)
        if not paths:
            break
        depths = sorted({len(path) for path in paths})
        depth = rng.choice(depths)  # otherwise long lists of hashes hide the few fields above
        path = rng.choice([path for path in paths if len(path) == depth])
        parent, key = at(tree, path[:-1]), path[-1]
        how = rng.choice(["replace"] * 5 + ["remove", "wrap", "repeat", "swap"])
        if how == "remove":
            del parent[key]
        elif how == "wrap":
            parent[key] = rng.choice([[parent[key]], {"x": parent[key]}, str(parent[key])])
        elif how == "repeat" and isinstance(parent[key], list):
            parent[key] = parent[key] * 3
        elif how == "swap":
            parent[key] = copy.deepcopy(at(tree, rng.choice(paths)))
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return tree


def damaged_json(rng: random.Random, content: bytes, places: int = 1) -> bytes:
    return json.dumps(damaged_tree(rng, json.loads(content), places)).encode()


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes that are cut off, flipped, zeroed, inserted or repeated."""
    work, size = bytearray(content), len(content)
    how = rng.choice(["cut", "flip", "flip", "flip", "zero", "insert", "repeat", "tail"])
    start = rng.randrange(max(1, size))
    stop = min(size, start + rng.choice([1, 2, 4, 16, 300]))
    if how == "cut":
        return bytes(work[:start])
    if how == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            work[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif how == "zero":
        work[start:stop] = bytes(stop - start)
    elif how == "insert":
        work[start:start] = rng.randbytes(stop - start)
    elif how == "repeat":
        work[start:start] = work[start:stop] * 5
    else:
        work += rng.randbytes(200)
    return bytes(work)


def flipped(rng: random.Random, content: bytes, count: int, start: int = 0) -> bytes:
    """Some bits turned, none of them before `start`."""
    work = bytearray(content)
    for _ in range(count):
        work[rng.randrange(min(start, len(work) - 1), len(work))] ^= 1 << rng.randrange(8)
    return bytes(work)


DEEP = {
    "deep lists": b"[" * 200_000,
    "deep lists that end": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a field with deep lists": b'{"schema": 1, "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many digits": b'{"schema": 1' + b"0" * 100_000 + b"}",
    "nan": b'{"schema": NaN}',
    "no UTF-8": b'{"schema": "\xff\xfe"}',
    "UTF-16": '{"schema": 1}'.encode("utf-16"),
    "nothing": b"",
    "NUL": bytes(100),
    "a number": b"7",
    "two documents": b"{}{}",
}  # fmt: skip
"""Texts that are not the JSON that anything expects."""
