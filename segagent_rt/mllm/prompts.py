"""What MLLMs are asked, and how they answer: presets for fine-tunes and for models as they come.

The chat frame around the instruction is the family's; `{expression}` is filled in by whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from segagent_rt.mllm.preprocess import Resize, SmartResize
from segagent_rt.reply import AnyReplyProtocol, BoxListProtocol, ReplyProtocol

SEGAGENT = (
    "Please optimize the semi-transparent green mask in a point-wise manner based on the image and "
    "description content, so that it covers the target object as accurately as possible. The "
    "object description is as follows:<ref>{expression}</ref>"
)
"""The instruction of SegAgent's Qwen models, letter by letter."""

SEGAGENT_LLAVA = (
    "This provides an overview of the picture.\n"
    "You are a highly skilled segmentation annotator. We have provided you with an image and an "
    "initial mask marked by a **semi-transparent green mask** that roughly covers the object "
    "described below. Your task is to refine this mask to make it as accurate as possible. Based "
    "on the given image and the mask, perform the following actions:\n\n"
    "1. Positive Point (x, y): \n"
    "   Add a positive point if any part of the object is not covered by the mask. This will "
    "expand the mask to include the missing area.  \n"
    "   *Example:* Add a positive point on any corner or edge of the object that the mask does not "
    "cover.\n\n"
    "2. Negative Point (x, y):  \n"
    "   Add a negative point if an area outside the object is incorrectly included in the mask. "
    "This will refine the mask by excluding unnecessary regions.  \n"
    "   *Example:* Add a negative point where the mask extends into the background or any "
    "non-object area.\n\n"
    "Please choose the action that best enhances the accuracy of the mask.\n\n"
    "The description of the object is as follows: {expression}."
)
"""The instruction of SegAgent's LLaVA models (paper, figure 6), letter by letter."""

MAX_PIXELS = 512 * 512
"""Pixels of the largest image, in training as in export, unless a recipe says otherwise: where a
click points depends on it."""


_TASK = (
    "A half-transparent green mask is painted over the picture; at the beginning there is none. It "
    "should cover exactly this object: {expression}.\n"
    "Correct it by one click. If a part of the object is not covered, put a positive point into "
    "the middle of that part. If the mask covers something else, put a negative point there. "
)
_RELATIVE = "x and y count from 0 to 1000 of the picture's width and height."
_PIXELS = "x and y are pixels of the picture."
_FORM = 'Answer "Positive point: (x, y)" or "Negative point: (x, y)", '
_END = 'or "Finish" if nothing is wrong. '


UNIT_28, UNIT_32 = (SmartResize(side, 4 * side**2, 1280 * side**2) for side in (28, 32))
"""Sizes of 4 to 1,280 visual tokens, in multiples of 28 pixels (Qwen2-VL, Qwen2.5-VL) and of 32
pixels (Qwen3-VL)."""

R = TypeVar("R", bound=AnyReplyProtocol, covariant=True)


@dataclass(frozen=True)
class Preset(Generic[R]):
    """An instruction, the protocol of the reply to it, and the image size that goes with it.

    `resize` is for models behind a server; a bundle states its own.
    """

    instruction: str
    reply: R
    resize: Resize = UNIT_28


PRESETS: Mapping[str, Preset[AnyReplyProtocol]] = {
    "segagent": Preset(
        SEGAGENT,
        ReplyProtocol(
            "<ref>{expression}</ref> Current IOU: {iou}  {sign} point: ({row}, {column})"
        ),
    ),
    "segagent-plain": Preset(SEGAGENT, ReplyProtocol(" {sign} point: ({row}, {column})")),
    "segagent-box": Preset(
        SEGAGENT,
        ReplyProtocol(
            "<ref>{expression}</ref><box>({x0},{y0}),({x1},{y1})</box>"
            " {sign} point: ({row}, {column})"
        ),
    ),
    "segagent-rated": Preset(
        SEGAGENT, ReplyProtocol(" Current IOU: {iou}  {sign} point: ({row}, {column})")
    ),
    "segagent-llava": Preset(
        SEGAGENT_LLAVA, ReplyProtocol("{sign} point: ({row}, {column})", unit="decimal")
    ),
    "qwen2.5-vl": Preset(
        "Locate {expression} in this image and output the bbox coordinates in JSON format.",
        BoxListProtocol("pixels"),
    ),
    "qwen3-vl": Preset(
        'Locate every object that matches the description "{expression}" in the image. '
        "Report bbox coordinates in JSON format.",
        BoxListProtocol("relative"),
        UNIT_32,
    ),
    "qwen2.5-vl-clicks": Preset(
        _TASK + _FORM + _END + _PIXELS,
        ReplyProtocol("{sign} point: ({column}, {row})", endings=("Finish",), unit="pixels"),
    ),
    "qwen3-vl-clicks": Preset(
        _TASK + _FORM + _END + _RELATIVE,
        ReplyProtocol("{sign} point: ({column}, {row})", endings=("Finish",)),
        UNIT_32,
    ),
    "box-then-clicks": Preset(
        _TASK
        + 'First write the object\'s box as "<box>(x1,y1),(x2,y2)</box>", then "Positive point: '
        + '(x, y)" or "Negative point: (x, y)"; '
        + _RELATIVE,
        ReplyProtocol(
            "<box>({x0},{y0}),({x1},{y1})</box> {sign} point: ({column}, {row})", box_scale=1000
        ),
    ),
}
"""What each kind of checkpoint is asked.

`segagent*` are for SegAgent's checkpoints and fine-tunes on its data. `qwen2.5-vl` and `qwen3-vl`
are for the stock models: their authors' own grounding instruction and reply. The three presets that
ask a stock model for clicks are experimental, because it was never trained to click. Qwen2-VL and
LLaVA have no grounding preset, because their authors publish no instruction for it.
"""
