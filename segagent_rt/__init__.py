"""Say what you want cut out; get the mask, at the edge.

import segagent_rt

with segagent_rt.load() as runtime:
    found = runtime.open("scene.png").annotate("the red circle left of the blue square")
mask = found.prediction.mask()
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AnnotationItem",
    "Box",
    "Canvas",
    "Click",
    "ObjectPrompt",
    "Result",
    "Runtime",
    "SegagentError",
    "StoppingRules",
    "Trajectory",
    "load",
]

if TYPE_CHECKING:
    from segagent_rt.errors import SegagentError
    from segagent_rt.loop import StoppingRules
    from segagent_rt.results import Result
    from segagent_rt.runtime import Canvas, Runtime, load
    from segagent_rt.types import AnnotationItem, Box, Click, ObjectPrompt, Trajectory

_HOMES = {
    "AnnotationItem": "types",
    "Box": "types",
    "Canvas": "runtime",
    "Click": "types",
    "ObjectPrompt": "types",
    "Result": "results",
    "Runtime": "runtime",
    "SegagentError": "errors",
    "StoppingRules": "loop",
    "Trajectory": "types",
    "load": "runtime",
}

# ONNX Runtime 1.32 and Ray report their use over the network, and ONNX Runtime writes a number for
# this device into the user's cache, unless told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_XET_TELEMETRY_ENABLED", "0")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `--help` need not wait for ONNX Runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, and those that every module has."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
