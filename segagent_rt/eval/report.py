"""The files that an evaluation leaves, named after its data set.

`T.predictions.json` holds the predictions in SegAgent's schema, `T_clicknew2None.csv` and its text
the tables of SegAgent's own rule (`T.full_...` those of another), `T.figures.json` the figures.
None of them depends on how often the run was broken off. Timings, which do, are in
`T.timings.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.data.canvas_cache import check_size
from segagent_rt.data.images import read_picture
from segagent_rt.data.predictions import Recording, write_predictions
from segagent_rt.data.record import RunLengths
from segagent_rt.data.tables import write_tables
from segagent_rt.draw import draw_overlay, png
from segagent_rt.errors import InputError
from segagent_rt.eval.figures import EvalResult
from segagent_rt.eval.latency import latencies
from segagent_rt.eval.loop_runs import EvalRuns
from segagent_rt.eval.scores import MaskChoice, Measured, figures, measure, overlaps
from segagent_rt.eval.selection import select
from segagent_rt.io import check_replaceable, json_bytes, write_result


@dataclass(frozen=True, slots=True)
class Report:
    """Where results of a data set go."""

    folder: Path
    title: str
    overwrite: bool = False
    """Also replace files that we did not write."""

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.title}{ending}"

    def check(self, endings: Sequence[str]) -> None:
        """Find out before the work whether files can be written.

        Raises:
            OutputError: somebody else wrote one of them.
        """
        check_replaceable(map(self.path, endings), overwrite=self.overwrite)

    def _write(self, path: Path, content: bytes) -> None:
        write_result(path, content, overwrite=self.overwrite)

    def write_trajectories(self, answered: EvalRuns) -> dict[str, Any]:
        """Predictions and timings; returns the latter."""
        write_predictions(
            self.path(".predictions.json"), answered.records, overwrite=self.overwrite
        )
        timings = latencies(answered.entries)
        self._write(self.path(".timings.json"), json_bytes(timings, indent=1))
        return timings

    def write_figures(
        self, recordings: Sequence[Recording], choice: MaskChoice, budget: int, **about: Any
    ) -> EvalResult:
        """Write tables and figures; `about` are the further attributes of the result."""
        measured = [measure(recording) for recording in recordings]
        rule = "" if choice.rule == "ref" else f".{choice.rule}"
        rows = overlaps(measured, choice)
        write_tables(self.path(rule), choice.click, rows, overwrite=self.overwrite)
        found = EvalResult(self.title, figures(measured, choice, budget), **about)
        self._write(self.path(".figures.json"), json_bytes(found.document(), indent=1))
        return found

    def draw(
        self, recordings: Sequence[Recording], images: Sequence[Path], choice: MaskChoice
    ) -> list[str]:
        """A picture of each chosen mask; returns why some could not be drawn."""
        problems = list[str]()
        for number, (recording, image) in enumerate(zip(recordings, images, strict=True), 1):
            at = select(recording, choice.rule, choice.click)
            try:
                pixels = read_picture(image)
                check_size(pixels.shape, recording.size, image)
            except InputError as error:
                problems.append(str(error))
                continue
            shown = _picture(measure(recording), at, pixels)
            self._write(self.folder / f"{self.title}.pictures" / f"{number:05d}.png", shown)
        return problems


def _picture(measured: Measured, at: int | None, pixels: Any) -> bytes:
    recording = measured.recording
    steps = recording.steps[: 0 if at is None else at + 1]
    packed = steps[-1].mask if steps else None
    mask = (packed or RunLengths.empty(recording.size)).mask()
    clicks = [step.click for step in steps if step.click is not None]
    both, either = measured.after(at)
    value = both / either if either else 1.0
    caption = f"{recording.expression}   IoU {value:.2f}"
    if packed is not None and steps[-1].rating is not None:
        caption += f", rated {steps[-1].rating:.2f}"
    return png(draw_overlay(pixels, mask, clicks, caption))
