"""Objects and images as the API's JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from segagent_rt.data.record import corners
from segagent_rt.image import mask_to_rle
from segagent_rt.result_formats import coco_of
from segagent_rt.results import describe_clicks, describe_step
from segagent_rt.serve.mask_formats import MaskFormat, encode_mask
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.serve.open_images import OpenImage


def object_answer(state: ObjectState, form: MaskFormat) -> dict[str, Any]:
    """An object with its mask; the fields are those of `schemas.ObjectAnswer`."""
    shown, mask = state.step, None if state.prediction is None else state.prediction.mask()
    pixels = None if mask is None else int(np.count_nonzero(mask))
    return {
        "object": state.number,
        "expression": state.expression,
        "steps": [
            {
                "by": "person" if step.turn is None else "model",
                "has_mask": step.prediction is not None,
                **describe_step(step),
            }
            for step in state.steps
        ],
        "shown": state.shown,
        "rating": None if shown is None or shown.rating is None else round(shown.rating, 4),
        "estimate": _estimate(state),
        "stop": state.steps[-1].stop if state.steps else None,
        "pixels": pixels,
        "bounds": asdict(corners(mask)) if mask is not None and pixels else None,
        "undoable": state.undoable,
        "redoable": state.redoable,
        "mask": None if mask is None else {"format": form, "value": encode_mask(mask, form)},
    }


def image_answer(image: OpenImage, form: MaskFormat = "none") -> dict[str, Any]:
    """An open image with its objects; the fields are those of `schemas.ImageAnswer`."""
    height, width = image.canvas.image.shape[:2]
    return {
        "image": image.id,
        "name": image.name,
        "bundle": image.bundle,
        "height": height,
        "width": width,
        "seconds": {stage: round(spent, 6) for stage, spent in image.seconds.items()},
        "objects": [object_answer(state, form) for state in image.states],
    }


def image_document(image: OpenImage) -> dict[str, Any]:
    """An open image as `segagent-rt run` describes a result, with what a person did in it."""
    height, width = image.canvas.image.shape[:2]
    bundle = image.canvas.runtime.bundle
    return {
        "image": image.name,
        "height": height,
        "width": width,
        "bundle": bundle.index.name,
        "digest": bundle.digest,
        "results": [_result(state) for state in image.states if state.steps],
    }


def image_coco(image: OpenImage) -> dict[str, Any]:
    """An open image as a COCO document: one annotation for each object with a mask."""
    return coco_of([(image.name, image_document(image))])


def _result(state: ObjectState) -> dict[str, Any]:
    shown = state.step
    mask = None if state.prediction is None else state.prediction.mask()
    clicks = [step.click for step in state.steps if step.click is not None]
    return {
        "expression": state.expression,
        "clicks": describe_clicks(clicks),
        "predicted_iou": None if shown is None or shown.rating is None else round(shown.rating, 4),
        "estimated_iou": _estimate(state),
        "stop": state.steps[-1].stop,
        "steps": [
            {"by": "person" if step.turn is None else "model", **describe_step(step)}
            for step in state.steps
        ],
        "shown": state.shown,
        "empty": None if mask is None else not mask.any(),
        "mask": None if mask is None else mask_to_rle(mask),
    }


def _estimate(state: ObjectState) -> float | None:
    score = None if state.prediction is None else state.prediction.score
    return None if score is None else round(float(score), 4)
