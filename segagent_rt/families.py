"""Find a model family by the name that a manifest gives it.

Each family has one module with a constant `FAMILY`: segmenters in `segagent_rt.segmenters`, MLLMs
in `segagent_rt.mllm.families`. Another installed package can add a family through an entry point
whose group is the name of that package. Only the module of the family that is asked for is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, TypeVar

from segagent_rt.types import Segmenter

SEGMENTERS, MLLMS = "segagent_rt.segmenters", "segagent_rt.mllm.families"
"""Packages with a module per family, and groups of entry points."""

Family = TypeVar("Family")


@dataclass(frozen=True, slots=True)
class SegmenterFamily:
    """How a part with a segmenter of the family is opened.

    Attributes:
        roles: its graphs, in the order in which `build` takes their sessions.
        settings: the dataclass of its settings in the manifest.
        build: makes the segmenter from the sessions and the settings.
        attention_patch: if all positions of a picture attend to each other, how many pixels a side
            one stands for; otherwise None.
        buffers: from its settings, the bytes of the inputs and outputs of its graphs and of what an
            open image keeps; None if that is only estimated.
    """

    roles: tuple[str, ...]
    settings: type[Any]
    build: Callable[..., Segmenter]
    attention_patch: int | None = None
    buffers: Callable[[Any], int] | None = None


@dataclass(frozen=True, slots=True)
class MllmFamily:
    """What the runtime knows of a family of MLLMs; all else is in the settings of its parts.

    Attributes:
        preset: instruction and reply form of a checkpoint that was trained to click, unless a
            recipe says otherwise. Training data are written for the same one.
    """

    preset: str


def segmenter_family(name: str) -> SegmenterFamily | None:
    """The family of segmenters with this name; None if no installed package has it."""
    return _find(SEGMENTERS, name, SegmenterFamily)


def mllm_family(name: str) -> MllmFamily | None:
    """The family of MLLMs with this name; None if no installed package has it."""
    return _find(MLLMS, name, MllmFamily)


def _find(package: str, name: str, kind: type[Family]) -> Family | None:
    if not name.isidentifier():  # names come from files
        return None
    module = f"{package}.{name}"
    if find_spec(module) is not None:
        found = getattr(import_module(module), "FAMILY", None)
    else:
        found = next((entry.load() for entry in entry_points(group=package, name=name)), None)
    return found if isinstance(found, kind) else None
