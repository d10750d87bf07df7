"""Unpickle torch's checkpoints without running anything that is in them.

A pickle is a program. This reader lets it build dicts, lists, sets, numbers, strings and references
to tensors. Whatever else it names becomes an inert `Foreign` object, and a call of that is refused.

`torch.load(weights_only=True)` is no substitute: it hashes whatever a pickle uses as a key, so some
nested tuples in 88 bytes keep it busy for ever, and it refuses SimpleClick's checkpoints.
"""

from __future__ import annotations

import io
import mmap
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch

from segagent_rt_export.errors import CheckpointInvalid

PICKLE_LIMIT = 8 << 20
"""Bytes of one pickle; those of large models have some hundred thousand."""

DEEPEST, LARGEST = 100, 10_000_000
"""How deeply values may be nested, and how many there may be if shared ones are counted each time:
a few bytes can describe a tree that no computer can print."""

_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE
SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT
DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT
MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""
OPCODES = frozenset(getattr(pickle, name)[0] for name in _OPCODES.split())

PLAIN = (str, int, float, bytes, type(None))
"""Types of keys. Tuples are none of them: hashing nested ones can take for ever."""

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class StorageRef(NamedTuple):
    """A flat run of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int


class TensorRef(NamedTuple):
    """A tensor as a view of a storage; nothing about it has been checked."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickled(NamedTuple):
    """The value of a pickle, the storages that it mentions, and where it ends in the file."""

    value: Any
    storages: list[StorageRef]
    end: int


class Foreign(dict[Any, Any]):
    """Stands for an object of a class that is not read: its items, and its state."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ForeignClass(type):
    """A foreign name. Pickle may make objects of it, but not call it."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise CheckpointInvalid(
            f"loading it would call `{cls.__name__}`",
            hint="only checkpoints made of tensors and plain data are read",
        )


class _RebuildTensor:
    """`torch._utils._rebuild_tensor_v2`; without attributes, so that a pickle can change none."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef:
        return TensorRef(storage, offset, size, stride)


class _RebuildParameter:
    """`torch._utils._rebuild_parameter`: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _MakeOrderedDict:
    """`collections.OrderedDict`."""

    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        listed = [(key, value) for key, value in pairs]
        _check_keys(key for key, _ in listed)
        return OrderedDict(listed)


class _MakeSet:
    """`set`."""

    __slots__ = ()

    def __call__(self, items: Any = ()) -> set[Any]:
        listed = list(items)
        _check_keys(listed)
        return set(listed)


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _MakeOrderedDict(),
    ("builtins", "set"): _MakeSet(),
    ("__builtin__", "set"): _MakeSet(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):  # the one in Python: its opcodes can be chosen
    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code in OPCODES
    }

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storages: list[StorageRef] = []
        self._foreign: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        full = f"{module}.{name}"
        return self._foreign.setdefault(full, _ForeignClass(full, (Foreign,), {}))

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # the old layout keeps the source code of a class beside its name
            return pid[1]
        kind, dtype, key, _, numel, *view = pid
        known = kind == "storage" and isinstance(dtype, torch.dtype) and not any(view)
        if not known or not isinstance(key, str) or not isinstance(numel, int):
            raise CheckpointInvalid("it stores tensors in a way that is not known here")
        self.storages.append(StorageRef(key, dtype, numel))
        return self.storages[-1]


def _with_plain_keys(opcode: bytes, keys: slice) -> None:
    """Let an opcode check those items of the stack that it will hash."""
    load = _Unpickler.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        _check_keys(unpickler.stack[keys])
        load(unpickler)

    _Unpickler.dispatch[opcode[0]] = checked


_with_plain_keys(pickle.SETITEM, slice(-2, -1))
for _opcode in (pickle.SETITEMS, pickle.DICT):
    _with_plain_keys(_opcode, slice(0, None, 2))
for _opcode in (pickle.ADDITEMS, pickle.FROZENSET):
    _with_plain_keys(_opcode, slice(None))


def _check_keys(keys: Iterable[Any]) -> None:
    if not all(isinstance(key, PLAIN) for key in keys):
        raise CheckpointInvalid("it has a key that is neither a text nor a number")


def unpickle(content: mmap.mmap, start: int) -> Unpickled:
    """Read the pickle that begins at `start`.

    Tensors come as `TensorRef`, objects of unknown classes as `Foreign`.

    Raises:
        CheckpointInvalid: it is too long, or would do what is not allowed. Damaged pickles can
            raise any other exception.
    """
    stream = io.BytesIO(content[start : start + PICKLE_LIMIT])
    unpickler = _Unpickler(stream)
    try:
        value = unpickler.load()
    except CheckpointInvalid:
        raise
    except Exception as error:
        longer = stream.tell() == PICKLE_LIMIT
        if longer or (isinstance(error, KeyError) and error.args[0] in range(256)):  # an opcode
            raise CheckpointInvalid("it is not a pickle as torch.save writes it") from error
        raise
    _check_size(value, {})
    return Unpickled(value, unpickler.storages, start + stream.tell())


def _check_size(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values there are in a value; `known` are the numbers of those seen, by `id`."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) in known:
        if not known[id(value)]:
            raise CheckpointInvalid("a value in it contains itself")
        return known[id(value)]
    if depth == DEEPEST:
        raise CheckpointInvalid(f"its values are nested more than {DEEPEST} deep")
    known[id(value)] = 0
    inner: list[Any] = [*(value.values() if isinstance(value, dict) else value)]
    inner += [value.state] if isinstance(value, Foreign) else []
    count = 1 + sum(_check_size(item, known, depth + 1) for item in inner)
    if count > LARGEST:
        raise CheckpointInvalid("its values are too many: shared ones multiply")
    known[id(value)] = count
    return count
