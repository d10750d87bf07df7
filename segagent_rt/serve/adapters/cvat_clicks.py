"""CVAT's interactive annotation by clicks and boxes: a function for its agents.

    cvat-cli function create-native NAME --function-module segagent_rt.serve.adapters.cvat_clicks
    cvat-cli function run-agent ID --function-module segagent_rt.serve.adapters.cvat_clicks

The image is encoded once; each click after it is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from segagent_rt.bundle.store import PHOTO
from segagent_rt.runtime import Canvas, Runtime, load
from segagent_rt.serve.adapters.known_images import box_at, click_at

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import (
        InteractionFunctionContext,
        InteractionFunctionSpec,
        InteractionPrompts,
        InteractionResultShape,
    )
    from PIL.Image import Image


@dataclass(frozen=True)
class ClickSegmentation:
    """Segments what points and a box show.

    Attributes:
        runtime: what segments.
    """

    runtime: Runtime

    @cached_property
    def spec(self) -> InteractionFunctionSpec:
        """Any number of points, and a box or none."""
        from cvat_sdk import auto_annotation as cvat

        return cvat.InteractionFunctionSpec(
            min_pos_points=0, min_neg_points=0, min_bounding_boxes=0
        )

    def preprocess_image(self, context: InteractionFunctionContext, image: Image) -> Canvas:
        """Encode an image."""
        return self.runtime.open(image.convert("RGB"))

    def detect(
        self, context: InteractionFunctionContext, pp_image: Canvas, prompts: InteractionPrompts
    ) -> list[InteractionResultShape]:
        """The mask for points and a box, in pixels of the image; none for no prompt."""
        from cvat_sdk.auto_annotation import InteractionResultShape
        from cvat_sdk.masks import encode_mask
        from cvat_sdk.models import AttributeValRequest

        size = pp_image.image.shape[0], pp_image.image.shape[1]
        points = [(True, at) for at in prompts.pos_points]
        points += [(False, at) for at in prompts.neg_points]
        clicks = [click_at(x, y, size, positive=positive) for positive, (x, y) in points]
        ends = prompts.bounding_box
        box = None if ends is None else box_at((*ends[0], *ends[1]), size)
        if not clicks and box is None:
            return []
        made = pp_image.segment(clicks, box=box)
        mask = made.mask()
        if not mask.any():
            return []
        attributes: list[Any] = []
        if made.score is not None:
            confidence = min(max(float(made.score), 0.0), 1.0)
            attributes = [AttributeValRequest(spec_id=0, value=f"{confidence:.4f}")]
        shape = InteractionResultShape(type="mask", points=encode_mask(mask), attributes=attributes)
        return [shape]


def create(bundle: str = PHOTO, threads: int = 0) -> ClickSegmentation:
    """Make the function; `cvat-cli` calls it with the parameters of `-p`.

    Args:
        bundle: a bundle's folder or name; the segmenter of photos if left out.
        threads: of the CPU; 0 for all cores.

    Raises:
        BundleError: the bundle cannot be used.
    """
    return ClickSegmentation(load(bundle, threads=threads or None, parts=["segmenter"]))
