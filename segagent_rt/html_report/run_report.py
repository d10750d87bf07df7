"""The report of `run`: cases of images as they are done, and of those that earlier runs did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segagent_rt.errors import InputError
from segagent_rt.html_report.builder import ReportBuilder
from segagent_rt.html_report.case import ReportCase, ReportStep, case_of_trajectory
from segagent_rt.image import Range, load_image, rle_to_mask
from segagent_rt.types import Box, Click, Mask, RgbImage, Trajectory

if TYPE_CHECKING:
    from segagent_rt.batch import ImageOutcome

EARLIER = "An earlier run did this image. Its document holds the first and the returned mask only."


@dataclass(slots=True)
class RunReport:
    """Takes the results of `run`, of one image or of a batch.

    Attributes:
        path: of the file.
        builder: takes the cases.
        max_megapixels, value_range: how images of earlier runs are read.
    """

    path: Path
    builder: ReportBuilder
    max_megapixels: float
    value_range: Range | None = None
    _done: set[tuple[str, int | None]] = field(default_factory=set)
    _about: dict[str, Any] = field(default_factory=dict)

    def add(self, pixels: RgbImage, found: Sequence[Trajectory], about: Mapping[str, Any]) -> None:
        """Take the results of an image that was done now.

        Args:
            pixels: uint8 [H, W, 3] RGB, the image.
            found: a trajectory for each object.
            about: made by `about_run`.
        """
        self._done.add(_key(about))
        self._about = dict(about)
        for trajectory in found:
            self.builder.add(case_of_trajectory(_named(about), pixels, trajectory))

    def follow(self, outcomes: Iterator[ImageOutcome]) -> Iterator[ImageOutcome]:
        """Pass the outcomes of a batch on, and take those that this run did not do itself."""
        for outcome in outcomes:
            document = outcome.document
            if document is None:
                note = outcome.problem or ""
                self.builder.add(ReportCase(outcome.image, "", None, (), None, "failed", note=note))
            elif _key(document) not in self._done:
                self._about = self._about or document
                self._add_earlier(document)
            yield outcome

    def write(self, *, overwrite: bool) -> None:
        """Write the file.

        Raises:
            OutputError: it cannot be written, or somebody else wrote the file that is there.
        """
        title = f"segagent-rt run: {Path(self._about.get('image', 'no image')).name}"
        facts = run_facts(self._about)
        if self.builder.count > 1:
            title = f"segagent-rt run: {self.builder.count} objects"
        else:
            facts["size"] = f"{self._about.get('width')} x {self._about.get('height')}"
        self.builder.write(self.path, title, facts, overwrite=overwrite)

    def _add_earlier(self, document: Mapping[str, Any]) -> None:
        load = None if "frame" in document else partial(self._load, Path(document["image"]))
        for result in document["results"]:
            self.builder.add(case_of_document(_named(document), result), load)

    def _load(self, path: Path) -> RgbImage | None:
        try:
            return load_image(path, self.max_megapixels, value_range=self.value_range)
        except InputError:  # it was moved since
            return None


def run_facts(about: Mapping[str, Any]) -> dict[str, object]:
    """What ran, from what `about_run` says."""
    placed = {
        f"{place.get('backend')} {place.get('precision') or ''}".strip()
        for place in (about.get("backends") or {}).values()
    }
    endpoint = about.get("endpoint") or {}
    return {
        "bundle": f"{about.get('bundle', '')} {about.get('digest', '')}".strip(),
        "backends": ", ".join(sorted(placed)),
        "server of the MLLM": endpoint.get("url"),
        "model": endpoint.get("model"),
    }


def case_of_document(source: str, result: Mapping[str, Any]) -> ReportCase:
    """A result of a document as a case without an image.

    Args:
        source: the image's path.
        result: made by `describe`.
    """
    returned = _returned(result)
    first = next((n for n, step in enumerate(result["steps"]) if step["click"] or step["box"]), -1)
    shot = result["one_shot"] or {}
    steps = [
        ReportStep(
            click=None if step["click"] is None else Click(**step["click"]),
            box=None if step["box"] is None else Box(**step["box"]),
            mask=_mask(
                result["mask"] if at == returned else shot.get("mask") if at == first else None
            ),
            reply=step["reply"],
            rating=step["rating"],
            estimate=result["estimated_iou"] if at == returned else None,
            seconds=step["seconds"],
            restarted=step["restarted"],
            problem=step["problem"],
        )
        for at, step in enumerate(result["steps"])
    ]
    return ReportCase(
        source, result["expression"], None, steps, returned, result["stop"], note=EARLIER
    )


def _returned(result: Mapping[str, Any]) -> int | None:
    """Index of the step that made the returned mask: the one with so many clicks up to it."""
    if result["mask"] is None:
        return None
    clicks = 0
    for at, step in enumerate(result["steps"]):
        clicks += step["click"] is not None
        if clicks == result["returned"]:
            return at
    return None


def _mask(packed: Mapping[str, Any] | None) -> Mask | None:
    return None if packed is None else rle_to_mask(dict(packed))


def _key(about: Mapping[str, Any]) -> tuple[str, int | None]:
    return about["image"], about.get("frame")


def _named(about: Mapping[str, Any]) -> str:
    frame = f", frame {about['frame']}" if "frame" in about else ""
    return f"{about['image']}{frame}"
