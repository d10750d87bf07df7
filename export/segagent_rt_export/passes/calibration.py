"""How small and how large the values in a segmenter's graphs get, over pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from segagent_rt.backends.checked_session import SessionWrapper
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.bundle import Part
from segagent_rt.runtime import open_segmenter
from segagent_rt.types import (
    Buffers,
    Click,
    Feeds,
    Names,
    RgbImage,
    Segmenter,
    Session,
)
from segagent_rt_export.passes.qdq_conv import QdqSelection, Ranges, ranges_of
from segagent_rt_export.variants import REFERENCE

OUTLIERS = 0.01
"""Percent of a value's numbers at either end that its range need not hold: clipping a few costs
less than coarser steps for all."""

SAMPLE = 1 << 18
"""Numbers of a value that are looked at in one picture, evenly spread."""

AT_ONCE = 32
"""Values that one run hands out: they lie in memory together."""

SPOTS = (
    (0.5, 0.5, True),
    (0.25, 0.3, False),
    (0.7, 0.4, True),
    (0.3, 0.7, True),
    (0.6, 0.8, False),
)
"""Clicks that are made on every picture: x and y in shares of its sides, and whether positive."""

CPU = SessionOptions("cpu")


class CalibrationSession(SessionWrapper):
    """A session that notes the ranges of the values that `QdqSelection` chooses."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        self._values = QdqSelection(model.graph, outputs=True).values
        self.ranges: dict[str, tuple[float, float]] = {}
        seen = {output.name for output in model.graph.output}
        extra = [onnx.ValueInfoProto(name=name) for name in self._values if name not in seen]
        model.graph.output.extend(extra)
        beside = path.with_name(f".{path.stem}-observed.onnx")  # where its weights may be, too
        try:
            beside.write_bytes(model.SerializeToString())
            self.session = open_session(beside, CPU)
        finally:
            beside.unlink(missing_ok=True)

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        for start in range(0, len(self._values), AT_ONCE):
            names = self._values[start : start + AT_ONCE]
            for name, value in self.session.run(feeds, names).items():
                self._note(name, np.asarray(value, np.float32).reshape(-1))
        return self.session.run(feeds, outputs, into=into, keep=keep)

    def _note(self, name: str, numbers: npt.NDArray[np.float32]) -> None:
        some = numbers[:: max(1, len(numbers) // SAMPLE)]
        least, most = np.percentile(some, (OUTLIERS, 100 - OUTLIERS))
        before = self.ranges.get(name, (least, most))
        self.ranges[name] = min(before[0], float(least)), max(before[1], float(most))


def calibrate_ranges(
    part: Part, images: Iterable[RgbImage], roles: Collection[str]
) -> dict[str, Ranges]:
    """For each of the roles, from the reference of a part, whose folder must be writable."""
    watched, others = dict[str, CalibrationSession](), list[Session]()

    def watch(part: Part, role: str) -> Session:
        if role not in roles:
            others.append(part.session(role, CPU, REFERENCE))
            return others[-1]
        watched[role] = CalibrationSession(part.graphs(role, REFERENCE)[0].path)
        return watched[role]

    segmenter = open_segmenter(part, watch)
    for image in images:
        _click(segmenter, image)
    for session in (*watched.values(), *others):
        session.close()
    return {role: session.ranges for role, session in watched.items()}


def _click(segmenter: Segmenter, image: RgbImage) -> None:
    """Encode an image, and click on and beside whatever is there."""
    height, width = image.shape[:2]
    made = [Click(int(x * width), int(y * height), positive) for x, y, positive in SPOTS]
    embedding, prediction = segmenter.encode(image), None
    for count in range(1, len(made) + 1):
        prediction = segmenter.decode(embedding, made[:count], prior=prediction)


def range_mismatch(part: Part, variant: str, images: Iterable[RgbImage]) -> float:
    """How many times as wide as they should be, or as narrow, a variant's ranges are on pictures:
    the median over all values."""
    factors = list[float]()
    roles = part.manifest.variants[variant].integers
    for role, measured in calibrate_ranges(part, images, roles).items():
        stored = ranges_of(onnx.load(part.graphs(role, variant)[0].path, load_external_data=False))
        for name, (low, high) in stored.items():
            least, most = measured[name]
            wanted = max(most, 0.0) - min(least, 0.0)
            factors.append(abs(np.log(max(high - low, 1e-6) / max(wanted, 1e-6))))
    return float(np.exp(np.median(factors))) if factors else 1.0
