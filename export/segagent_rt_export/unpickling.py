"""Unpickle torch's checkpoints without running anything that is in them.

A pickle is a program. This reader lets it build dicts, lists, sets, numbers, strings and references
to tensors. Whatever else it names becomes an inert `Foreign` object, and a call of that is refused.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
from collections import OrderedDict
from typing import IO, Any, NamedTuple, cast

import torch

from segagent_rt_export.errors import CheckpointInvalid

PICKLE_LIMIT = 64 << 20
"""Bytes of one pickle; those of large models have some hundred thousand."""

_OPCODES = """
PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1
LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE
SHORT_BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT
DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT
MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""
OPCODES = frozenset(_OPCODES.split())

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


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
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
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise CheckpointInvalid("it stores tensors in a way that is not known here")
        self.storages.append(StorageRef(key, dtype, numel))
        return self.storages[-1]


def unpickle(content: mmap.mmap, start: int) -> Unpickled:
    """Read the pickle that begins at `start`.

    Tensors come as `TensorRef`, objects of unknown classes as `Foreign`.

    Raises:
        CheckpointInvalid: it is too long, or would do what is not allowed. Damaged pickles can
            raise any other exception.
    """
    content.seek(start)
    for opcode, argument, position in pickletools.genops(cast(IO[bytes], content)):
        assert position is not None
        done = position - start
        if opcode.name not in OPCODES or done > PICKLE_LIMIT:
            raise CheckpointInvalid("it is not a pickle as torch.save writes it")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > done:
            raise CheckpointInvalid("its pickle asks for memory that it does not need")
    end = content.tell()
    unpickler = _Unpickler(content[start:end])
    return Unpickled(unpickler.load(), unpickler.storages, end)
