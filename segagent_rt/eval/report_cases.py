"""The HTML report of an evaluation: figures, and every question as a case, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segagent_rt.data.images import read_picture
from segagent_rt.errors import InputError
from segagent_rt.eval.evaluation import figure_rows
from segagent_rt.eval.figures import EvalResult, SceneSuiteResult
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
        choice: which mask of a trajectory counts.
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
        self,
        about: Mapping[str, object],
        results: Sequence[EvalResult | SceneSuiteResult],
        *,
        overwrite: bool,
    ) -> None:
        """Write the file.

        Args:
            about: what was evaluated, by name.
            results: of each data set, or of the scenes.
            overwrite: also replace a file that segagent-rt did not write.

        Raises:
            OutputError: it cannot be written, or somebody else wrote the file that is there.
        """
        tables = [table for each in results for table in _tables(each)]
        self.builder.write(self.path, "segagent-rt eval", about, tables, overwrite=overwrite)


def case_of_recording(
    measured: Measured, choice: MaskChoice, seconds: Sequence[Seconds] = ()
) -> ReportCase:
    """A recorded trajectory as a case without an image.

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


def _tables(result: EvalResult | SceneSuiteResult) -> list[Table]:
    if isinstance(result, SceneSuiteResult):
        return _scene_tables(result)
    compared = figure_rows(result.figures)
    rows = [(name, f"{pair.ciou:.4f}", f"{pair.giou:.4f}") for name, pair in compared]
    bars = [pair.giou for _, pair in compared]
    title = f"{result.data}: {result.figures.samples} expressions"
    found = [Table(title, ("mask", "cIoU", "gIoU"), rows, bars)]
    if spreads := result.milliseconds:
        heads = ("stage, milliseconds", "p50", "p90", "p99", "n")
        most = max(spread["p50"] for spread in spreads.values()) or 1.0
        times = [
            (stage, *(spread[key] for key in ("p50", "p90", "p99", "n")))
            for stage, spread in spreads.items()
        ]
        bars = [spread["p50"] / most for spread in spreads.values()]
        found.append(Table(f"{result.data}: latency", heads, times, bars))
    return found


def _scene_tables(result: SceneSuiteResult) -> list[Table]:
    """Figures of synthetic scenes: one to a row."""
    document, figures = result.to_json(), result.figures
    single = {name: value for name, value in document.items() if isinstance(value, int | float)}
    listed = figures.miou_by_turn, figures.oracle_miou_by_click
    turns = [
        (str(number), *(f"{value:.4f}" for value in pair))
        for number, pair in enumerate(zip(*listed, strict=True), 1)
    ]
    heads = ("after click", "mIoU", "mIoU of the simulated annotator")
    return [
        Table("Figures", ("figure", "value"), [(n, f"{v:.6g}") for n, v in single.items()]),
        Table("Over clicks", heads, turns, [value or 0.0 for value in figures.miou_by_turn]),
    ]
