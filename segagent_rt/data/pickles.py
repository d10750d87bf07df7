"""Pickles from anywhere, read without running anything in them, in bounded time and memory.

A pickle is a program for a machine with a stack. The reader below has the instructions that build
plain data and nothing else, and it takes as keys only what can be hashed at once: the hash of
nested tuples in 88 bytes takes for ever, that of deep ones crashes Python, and whole numbers can be
chosen so that all have the same. Time and memory then grow with the length, which callers bound.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

MOST_CONTAINERS = 4_000_000
"""Lists, dictionaries, sets and tuples that may be made; REFER's files have half a million."""

DEEPEST, LARGEST = 100, 30_000_000
"""How deeply values may be nested, and how many there may be if shared ones are counted each time:
a few bytes can describe a tree that nobody can walk through."""

_CONTAINERS = """
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT DICT EMPTY_SET FROZENSET
"""
_OTHERS = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE
SHORT_BINUNICODE APPEND APPENDS SETITEM SETITEMS ADDITEMS GET BINGET LONG_BINGET PUT BINPUT
LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""

_HASHED = {
    "SETITEM": slice(-2, -1),
    "SETITEMS": slice(0, None, 2),
    "DICT": slice(0, None, 2),
    "ADDITEMS": slice(None),
    "FROZENSET": slice(None),
}
"""The items of the stack that an instruction hashes."""


def check_keys(keys: Iterable[Any]) -> None:
    """Raise `UnpicklingError` unless every key is a text, bytes, None or a number of 60 bits."""
    for key in keys:
        small = isinstance(key, int) and abs(key) < 1 << 60
        if not small and not isinstance(key, (str, float, bytes, type(None))):
            raise pickle.UnpicklingError("it has a key that is neither a text nor a number")


class _Instructions(dict[int, Callable[[Any], None]]):
    """What each instruction does, by its code."""

    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError("it has an instruction that plain data does not need")


def _bounded(name: str) -> Callable[[Any], None]:
    """An instruction that is counted if it makes a container, and looks at what it hashes."""
    load = pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
    hashed, container = _HASHED.get(name), name in _CONTAINERS.split()

    def step(unpickler: Any) -> None:
        unpickler.containers += container
        if unpickler.containers > MOST_CONTAINERS:
            raise pickle.UnpicklingError("it makes more lists than any real file")
        if hashed is not None:
            check_keys(unpickler.stack[hashed])
        load(unpickler)

    return step if container or hashed is not None else load


class BoundedUnpickler(pickle._Unpickler):  # the one in Python: its instructions can be chosen
    """Reads one pickle of plain data; it refuses every name unless `find_class` is overridden.

    Attributes:
        stack: what the program works on.
        containers: lists and the like made so far.
    """

    dispatch: ClassVar[dict[int, Any]] = _Instructions(
        {getattr(pickle, name)[0]: _bounded(name) for name in (_CONTAINERS + _OTHERS).split()}
    )
    stack: list[Any]

    def __init__(self, stream: io.BytesIO, *, encoding: str = "utf-8") -> None:
        """Read from a stream; texts that Python 2 wrote are in that encoding."""
        super().__init__(stream, encoding=encoding)
        self.containers = 0

    def find_class(self, module: str, name: str) -> Any:
        """Refuse a name that the pickle mentions."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse a reference to something outside of the pickle."""
        raise pickle.UnpicklingError("it refers to something outside of itself")

    def load(self) -> Any:
        """The value of the pickle.

        Raises:
            UnpicklingError: it would do what is not allowed, or make too much. A damaged pickle
                can raise nearly anything else.
        """
        value = super().load()
        check_size(value)
        return value


def check_size(value: Any) -> None:
    """Raise `UnpicklingError` if a value cannot be walked through: too deep, or too many items."""
    _count(value, {}, 0)


def _count(value: Any, known: dict[int, int], depth: int) -> int:
    """How many values there are in a value; `known` are the numbers of those seen, by `id`."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) in known:
        if not known[id(value)]:
            raise pickle.UnpicklingError("a value in it contains itself")
        return known[id(value)]
    if depth == DEEPEST:
        raise pickle.UnpicklingError(f"its values are nested more than {DEEPEST} deep")
    known[id(value)] = 0
    inner = [*(value.values() if isinstance(value, dict) else value)]
    inner += [value.state] if hasattr(value, "state") else []
    count = 1 + sum(_count(item, known, depth + 1) for item in inner)
    if count > LARGEST:
        raise pickle.UnpicklingError("its values are too many: shared ones multiply")
    known[id(value)] = count
    return count
