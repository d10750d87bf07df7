"""Rates annotations by the MLLM's predicted IoU, and sorts the doubtful ones out.

SegAgent's annotation filtering (supplement, table 3): one look at each mask, no click.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segagent_rt.data.canvas_cache import CanvasCache
from segagent_rt.data.journal import CountReporter
from segagent_rt.data.record import Sample
from segagent_rt.errors import InputError
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Mask, Request


@dataclass(frozen=True, slots=True)
class Rated:
    """A sample with its rating, 0..1, or with a sentence that says why it has none."""

    sample: Sample
    rating: float | None
    problem: str | None = None


def rate(canvas: Canvas, mask: Mask, expressions: Sequence[str]) -> float:
    """The predicted IoU of a mask, 0..1: the mean over what is said of it.

    Raises:
        ExpressionRefused: the MLLM cannot take an expression.
        InputError: its replies rate nothing.
    """
    given = GivenMask(mask)
    rated = canvas.view.rate([Request(given, text) for text in expressions])
    ratings = [rating.value for rating in rated if rating.value is not None]
    if not ratings:
        raise InputError(
            "this bundle's MLLM does not rate masks",
            hint="its reply protocol needs {iou}: one fine-tuned on SegAgent's data has it",
        )
    return float(np.mean(ratings))


def rate_all(
    samples: Sequence[Sample], runtime: Runtime, report_progress: CountReporter
) -> Iterator[Rated]:
    """Every sample but crowds with its rating; `report_progress` is called with the number done and
    of all."""
    canvases, samples = CanvasCache(runtime), [sample for sample in samples if not sample.crowd]
    for done, sample in enumerate(samples, 1):
        try:
            rating = rate(canvases.show(sample), sample.mask.mask(), sample.expressions)
            yield Rated(sample, rating)
        except InputError as error:
            yield Rated(sample, None, str(error))
        report_progress(done, len(samples))


def filtered(
    document: Mapping[str, Any], rated: Sequence[Rated], below: float | None
) -> dict[str, Any]:
    """A COCO document without the annotations rated below a share of 1.

    Those that stay carry `predicted_iou`; those without a rating stay as they are.
    """
    ratings = {each.sample.id: each.rating for each in rated}
    kept = []
    for annotation in document["annotations"]:
        number = annotation.get("id") if isinstance(annotation, dict) else None
        rating = ratings.get(number) if isinstance(number, (int, str)) else None
        if rating is None:
            kept.append(annotation)
        elif below is None or rating >= below:
            kept.append({**annotation, "predicted_iou": round(rating, 4)})
    return {**document, "annotations": kept}
