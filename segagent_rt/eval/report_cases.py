"""The HTML report of an evaluation: figures, and every question as a case, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segagent_rt.data.images import read_picture
from segagent_rt.errors import InputError
from segagent_rt.eval.evaluation import figure_rows
from segagent_rt.eval.loop_runs import EvalRuns
from segagent_rt.eval.scores import MaskChoice, Measured, measure
from segagent_rt.eval.selection import select
from segagent_rt.html_report.builder import ReportBuilder
from segagent_rt.html_report.case import ReportCase, ReportStep, case_of_trajectory
from segagent_rt.html_report.page import Table
from segagent_rt.scenes import Scene
from segagent_rt.types import RgbImage, Seconds, Trajectory


@dataclass(slots=True)
class EvalReport:
    """Takes what an evaluation answers.

    Attributes:
        path: of the file.
        choice: which mask of a walk counts.
        builder: takes the cases.
    """

    path: Path
    choice: MaskChoice
    builder: ReportBuilder

    def add_answers(self, answered: EvalRuns) -> None:
        """Take the answers about a data set."""
        self.builder.expected += len(answered.questions)
        triples = zip(answered.recordings, answered.entries, answered.questions, strict=True)
        for recording, entry, question in triples:
            case = case_of_recording(measure(recording), self.choice, entry["seconds"])
            self.builder.add(case, partial(_load, question.sample.image, recording.size))

    def add_scene(self, scene: Scene, found: Trajectory) -> None:
        """Take the answer about a synthetic scene; its first expression is the one meant."""
        target = scene.mask(scene.expressions[0].target)
        self.builder.add(case_of_trajectory(f"scene {scene.seed}", scene.image, found, target))

    def write(
        self, about: Mapping[str, object], figures: Sequence[Mapping[str, Any]], *, overwrite: bool
    ) -> None:
        """Write the file.

        Args:
            about: what was evaluated, by name.
            figures: of each data set, or of the scenes.
            overwrite: also replace a file that segagent-rt did not write.

        Raises:
            OutputError: it cannot be written, or somebody else wrote the file that is there.
        """
        tables = [table for each in figures for table in _tables(each)]
        self.builder.write(self.path, "segagent-rt eval", about, tables, overwrite=overwrite)


def case_of_recording(
    measured: Measured, choice: MaskChoice, seconds: Sequence[Seconds] = ()
) -> ReportCase:
    """A recorded walk as a case without an image.

    Args:
        measured: the recording, with the IoU of every step.
        choice: which mask counts.
        seconds: time by stage of each step, as far as it is known.
    """
    recording = measured.recording
    timed = [*seconds, *({} for _ in recording.steps)]
    steps = [
        ReportStep(
            click=step.click,
            box=step.box,
            mask=None if step.mask is None else step.mask.mask(),
            reply=step.reply,
            rating=step.rating,
            iou=iou,
            seconds=spent,
        )
        for step, iou, spent in zip(recording.steps, measured.ious, timed, strict=False)
    ]
    returned = select(recording, choice.rule, choice.click)
    return ReportCase(
        recording.image, recording.expression, None, steps, returned, recording.stop,
        recording.target.mask(),
    )  # fmt: skip


def _load(path: Path, size: tuple[int, int]) -> RgbImage | None:
    try:
        image = read_picture(path)
    except InputError:
        return None
    return image if image.shape[:2] == size else None


def _tables(figures: Mapping[str, Any]) -> list[Table]:
    if "by_click" not in figures:
        return _scene_tables(figures)
    rows = [(name, f"{p['ciou']:.4f}", f"{p['giou']:.4f}") for name, p in figure_rows(figures)]
    bars = [pair["giou"] for _, pair in figure_rows(figures)]
    title = f"{figures['data']}: {figures['samples']} expressions"
    found = [Table(title, ("mask", "cIoU", "gIoU"), rows, bars)]
    if spreads := figures.get("milliseconds"):
        heads = ("stage, milliseconds", "p50", "p90", "p99", "n")
        most = max(spread["p50"] for spread in spreads.values()) or 1.0
        times = [
            (stage, *(spread[key] for key in ("p50", "p90", "p99", "n")))
            for stage, spread in spreads.items()
        ]
        bars = [spread["p50"] / most for spread in spreads.values()]
        found.append(Table(f"{figures['data']}: latency", heads, times, bars))
    return found


def _scene_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Figures of synthetic scenes: one to a row."""
    single = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    listed = figures["miou_by_turn"], figures["oracle_miou_by_click"]
    turns = [
        (str(number), *(f"{value:.4f}" for value in pair))
        for number, pair in enumerate(zip(*listed, strict=True), 1)
    ]
    heads = ("after click", "mIoU", "mIoU of the simulated annotator")
    return [
        Table("Figures", ("figure", "value"), [(n, f"{v:.6g}") for n, v in single.items()]),
        Table("Over clicks", heads, turns, figures["miou_by_turn"]),
    ]
