"""Just enough of torchvision to import packages that need it for other things than we use."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

MODULES = (
    "torchvision",
    "torchvision.ops",
    "torchvision.ops.boxes",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
)


class AnyMember(type):
    """A class whose every attribute is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Stub(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyMember(name, (), {"__init__": lambda self, *args, **kwargs: None})


@contextmanager
def stubbed() -> Iterator[None]:
    """While this lasts, torchvision can be imported; it resizes pictures, with Pillow."""
    stubs = {name: Stub(name) for name in MODULES}
    for name, stub in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    functional: Any = stubs["torchvision.transforms.functional"]
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda picture, size: picture.resize(
        (size[1], size[0]), Image.Resampling.BILINEAR
    )
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)


def import_or_skip(name: str) -> Any:
    """A module that needs torchvision to be imported; skips the test if it is not installed."""
    with stubbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            pytest.skip(f"needs {missing.name}, which is not installed")
