"""For which shapes engines of an MLLM's graphs are built: all that its pictures and questions can
have.

Axes go by the names that they have in the graphs: N patches, M tokens and W windows of a picture;
S tokens of a call, T rows of the buffer, L tokens that are scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import onnx

from segagent_rt.annotators.mllm import MllmCodec
from segagent_rt.bundle.manifest import Profile, Range
from segagent_rt.mllm.language_model import MOST_BRANCH_TOKENS, cache_rows
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.types import Size

Span: TypeAlias = tuple[int, int, int]
"""Least, typical and largest length of an axis."""

PHOTO: Size = (480, 640)
"""What engines are tuned for, where pictures are not all of one size."""

FEW: Span = (1, 16, MOST_BRANCH_TOKENS)
"""Tokens of a call while a reply is written: up to five, and usually a dozen in branches."""

SCORED: Span = (1, 1, 32)


def mllm_profiles(graphs: Mapping[str, Path], codec: MllmCodec) -> dict[str, tuple[Profile, ...]]:
    """Profiles by role, narrow ones first: the first that fits is taken."""
    picture = _picture(codec, _patches(codec))
    visual = visual_tokens(codec)
    texts = sum(map(len, codec.prompt("")))
    rooms = [codec.room(tokens) for tokens in visual]
    buffer = {"T": _span(*map(cache_rows, rooms)), "L": SCORED}
    calls = {
        "vision": (picture,),
        "decoder": ({"S": FEW, **buffer}, {"S": (1, visual[1] + texts, rooms[2]), **buffer}),
        "head": ({"L": SCORED},),
    }
    return {
        role: tuple(_profile(path, spans) for spans in calls[role]) for role, path in graphs.items()
    }


def visual_tokens(codec: MllmCodec) -> Span:
    """Fewest, typical and most tokens of a picture in a prompt; some vision encoders make as many
    of any."""
    grid = codec.settings.vision.grid
    if grid is not None:
        return (grid[0] * grid[1],) * 3
    return _picture(codec, _patches(codec))["M"]


def _patches(codec: MllmCodec) -> Span:
    vision = codec.settings.vision
    resize, area = vision.resize, vision.patch**2
    if not isinstance(resize, SmartResize):
        return (resize.side**2 // area,) * 3
    rows, columns = resize.target(PHOTO)
    return resize.least // area, rows * columns // area, resize.most // area


def _picture(codec: MllmCodec, patches: Span) -> dict[str, Span]:
    """Spans of a vision graph's axes."""
    vision = codec.settings.vision
    tokens = _span(*(count // vision.merge**2 for count in patches))
    side = vision.window or 1
    few, many = tokens[1] // side**2, tokens[2] // side**2 + tokens[2] // side + 2
    return {"N": patches, "M": tokens, "W": (1, max(few, 1), many)}


def _profile(graph: Path, spans: Mapping[str, Span]) -> Profile:
    """The range of every input of a graph that has one."""
    model = onnx.load(graph, load_external_data=False)
    profile = {}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if any(axis.dim_param for axis in axes):
            sizes = [spans[a.dim_param] if a.dim_param else (a.dim_value,) * 3 for a in axes]
            profile[value.name] = Range(*zip(*sizes, strict=True))
    return profile


def _span(least: int, typical: int, most: int) -> Span:
    return least, typical, most
