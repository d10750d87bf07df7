"""CVAT's automatic annotation by words: a detection function for `cvat-cli`.

    cvat-cli task auto-annotate 12 --function-module segagent_rt.serve.adapters.cvat \\
        -p "labels=str:mug=the mug; spoon=the silver spoon" -p bundle=str:FOLDER

Labels are matched with those of the task by name. CVAT's SDK must be installed (`cvat-cli`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from segagent_rt.errors import InputError
from segagent_rt.runtime import Runtime, load
from segagent_rt.serve.mask_formats import mask_to_polygons
from segagent_rt.types import Mask, ObjectPrompt, Trajectory

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from PIL.Image import Image

ShapeKind: TypeAlias = Literal["mask", "polygon", "rectangle"]

POLYGON_TOLERANCE = 0.8
"""How far a polygon may be from the mask's outline, in pixels."""


@dataclass(frozen=True)
class WordDetection:
    """Finds one object for each label, by its expression.

    Attributes:
        runtime: what segments.
        expressions: by label.
        shape: what is answered; masks become polygons if CVAT asks for those.
    """

    runtime: Runtime
    expressions: dict[str, str]
    shape: ShapeKind = "mask"

    @cached_property
    def spec(self) -> DetectionFunctionSpec:
        """The labels, as CVAT's SDK describes them."""
        from cvat_sdk import auto_annotation as cvat

        labels = [
            cvat.label_spec(name, number, type=self.shape)
            for number, name in enumerate(self.expressions)
        ]
        return cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: DetectionFunctionContext, image: Image) -> list[Any]:
        """The shapes that are found in an image.

        Args:
            context: says from which confidence on objects count, and whether polygons are wanted.
            image: of a frame.

        Returns:
            Shapes of CVAT's SDK, in pixels of the image.
        """
        prompts = [ObjectPrompt(text) for text in self.expressions.values()]
        found = self.runtime.open(image.convert("RGB")).annotate_prompts(prompts)
        kind = "polygon" if self.shape == "mask" and context.conv_mask_to_poly else self.shape
        return [
            shape
            for number, each in enumerate(found)
            if (mask := _kept(each, context.conf_threshold)) is not None
            for shape in cvat_shapes(mask, number, kind)
        ]


def create(labels: str, bundle: str = "", shape: str = "mask", threads: int = 0) -> WordDetection:
    """Make the function; `cvat-cli` calls it with the parameters of `-p`.

    Args:
        labels: `label=expression; label=expression`. A label alone is its own expression.
        bundle: a bundle's folder or name; the demo bundle if left out.
        shape: `mask`, `polygon` or `rectangle`.
        threads: of the CPU; 0 for all cores.

    Raises:
        InputError: there is no label, or no such shape.
        BundleError: the bundle cannot be used.
    """
    if shape not in get_args(ShapeKind):
        raise InputError(f"there is no shape `{shape}`", hint="mask, polygon or rectangle")
    pairs = (each.partition("=") for each in labels.split(";") if each.strip())
    expressions = {name.strip(): (text or name).strip() for name, _, text in pairs}
    if not expressions:
        raise InputError("there is no label", hint='-p "labels=str:mug=the mug; spoon"')
    runtime = load(bundle or None, threads=threads or None)
    for text in expressions.values():
        runtime.annotator.check(text)
    return WordDetection(runtime, expressions, shape)  # type: ignore[arg-type]


def cvat_shapes(mask: Mask, label: int, kind: str) -> list[Any]:
    """A mask as shapes of CVAT's SDK; several polygons of one group if it has parts.

    Args:
        mask: bool [H, W], not empty.
        label: the number of the label in the function's specification.
        kind: `mask`, `polygon` or `rectangle`.
    """
    from cvat_sdk import auto_annotation as cvat
    from cvat_sdk.masks import encode_mask

    if kind == "mask":
        return [cvat.mask(label, encode_mask(mask))]
    if kind == "polygon":
        outlines = mask_to_polygons(mask, POLYGON_TOLERANCE)
        group = {"group": label + 1} if len(outlines) > 1 else {}
        return [cvat.polygon(label, _flat(points), **group) for points in outlines]
    rows, columns = np.nonzero(mask)
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [cvat.rectangle(label, [float(end) for end in ends])]


def _kept(found: Trajectory, threshold: float | None) -> Mask | None:
    """The mask of a result that is good enough."""
    made = found.prediction
    if made is None:
        return None
    mask, score = made.mask(), made.score if found.rating is None else found.rating
    good = threshold is None or score is None or score >= threshold
    return mask if good and mask.any() else None


def _flat(points: Sequence[Sequence[float]]) -> list[float]:
    """x and y in turn, at the centres of the outline's pixels."""
    return [value + 0.5 for point in points for value in point]
