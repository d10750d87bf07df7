"""An evaluation from the data to the files it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segagent_rt.bundle.manifest import LoopGain
from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.predictions import Recording
from segagent_rt.data.record import ExpressionQuery
from segagent_rt.data.sources import DataSet
from segagent_rt.data.work_items import ProcessAll
from segagent_rt.errors import BatchFailed, DataInvalid
from segagent_rt.eval.figures import DataSetFigures, EvalResult, IouFigures
from segagent_rt.eval.loop_runs import EvalRuns, answer_all, check_entry
from segagent_rt.eval.report import Report
from segagent_rt.eval.scores import LOST, MaskChoice

NAMED = 5
"""So many missing pictures or refused questions are named in a message; the figures name all."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is asked of every data set.

    Attributes:
        folder: where the files go.
        choice: which mask of a trajectory counts.
        limit: only so many questions of each data set; None for all.
        restart: forget what an earlier run has done, and replace files that are not ours.
        pictures: draw a picture of every chosen mask.
        on_answers: called with the answers about each data set.
    """

    folder: Path
    choice: MaskChoice
    limit: int | None = None
    restart: bool = False
    pictures: bool = False
    on_answers: Callable[[EvalRuns], None] | None = None

    def evaluate(
        self,
        data: DataSet,
        heading: dict[str, Any],
        spread: ProcessAll[ExpressionQuery],
        report_progress: CountReporter,
    ) -> EvalResult:
        """Run what is not done yet, and write all files.

        Args:
            heading: what the trajectories are about, see `EvalRunner.heading`.
            spread: has questions answered, see `EvalRunner.answerer`.

        Raises:
            DataInvalid: no question could be answered.
        """
        report = Report(self.folder, data.title, self.restart)
        report.check((".predictions.json", ".timings.json", ".figures.json"))
        path = report.path(".journal.jsonl")
        with Journal(path, heading, check=check_entry, overwrite=self.restart) as journal:
            answered = answer_all(data, journal, spread, report_progress, self.limit)
        if not answered.questions:
            raise DataInvalid(f"{data.title}: {_and_why(answered)}", hint=_HINT)
        timings = report.write_trajectories(answered)
        if self.on_answers is not None:
            self.on_answers(answered)
        recordings = answered.recordings
        found = report.write_figures(
            recordings,
            self.choice,
            heading["max_clicks"],
            heading=heading,
            skipped=tuple(data.skipped),
            missing=tuple(str(path) for path in answered.missing),
            refused=tuple(f"{place}: {why}" for place, why in answered.refused),
        )
        not_drawn = list[str]()
        if self.pictures:
            images = [question.sample.image for question in answered.questions]
            not_drawn = report.draw(recordings, images, self.choice)
        return replace(found, milliseconds=timings, not_drawn=tuple(not_drawn))

    def score(self, title: str, recordings: list[Recording]) -> EvalResult:
        """Figures and tables of trajectories that were recorded elsewhere or earlier."""
        report = Report(self.folder, title, self.restart)
        report.check((".figures.json",))
        budget = max(len(recording.steps) - recording.started for recording in recordings)
        return report.write_figures(recordings[: self.limit], self.choice, budget)


def loop_gain_of(result: EvalResult, digest: str) -> LoopGain:
    """The record that a result makes in the bundle with this digest."""
    figures, budget = result.figures, result.heading["max_clicks"]
    return LoopGain(figures.samples, figures.one_shot.giou, figures.giou, budget, digest)


def title_of(predictions: str) -> str:
    """What results of a predictions file are named after."""
    return Path(predictions).stem.removesuffix(".predictions")


_HINT = "name the folder of the pictures with --images"


def check_complete(results: Sequence[EvalResult]) -> None:
    """Raise `BatchFailed` if a picture was missing or a question refused, and name them."""
    missing = [name for each in results for name in each.missing]
    refused = [text for each in results for text in each.refused]
    not_drawn = [text for each in results for text in each.not_drawn]
    if missing or refused or not_drawn:
        hint = _HINT if missing else None
        raise BatchFailed(_problem_summary(missing, refused, not_drawn), hint=hint)


def _and_why(answered: EvalRuns) -> str:
    missing = [str(path) for path in answered.missing]
    problems = _problem_summary(missing, [f"{place}: {why}" for place, why in answered.refused])
    return f"no question could be answered; {problems}" if problems else "there is no question"


def _problem_summary(missing: list[str], refused: list[str], not_drawn: Sequence[str] = ()) -> str:
    parts = (
        ("pictures are not there", missing),
        ("questions could not be put", refused),
        ("pictures could not be drawn", not_drawn),
    )
    return "; ".join(f"{len(all_)} {what} ({_first(all_)})" for what, all_ in parts if all_)


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def summary_lines(result: EvalResult) -> Iterator[str]:
    """The main figures for people, one to a line."""
    figures = result.figures
    yield f"{result.data}: {figures.samples} expressions, {figures.left_out} left out"
    yield f"  {'':24s}{'cIoU':>8s}{'gIoU':>8s}"
    for name, pair in figure_rows(figures):
        yield f"  {name:24s}{pair.ciou:8.4f}{pair.giou:8.4f}"
    if figures.loop_gain is not None:
        yield f"  the loop added {figures.loop_gain:+.4f} gIoU to the one-shot masks"
    if refined := figures.refined:
        yield f"  started from gIoU {refined.start.giou:.4f}, gained {refined.gain:.4f} each"
        yield f"  {100 * refined.worse:.1f} % lost more than {LOST}"
    noc = "  ".join(f"@{target} {value:.2f}" for target, value in figures.noc.items())
    yield f"  clicks needed: {noc}    used: {figures.clicks_mean:.2f}"
    for stage, spread in result.milliseconds.items():
        spread = "  ".join(f"{name} {value}" for name, value in spread.items())
        yield f"  {stage:12s} ms  {spread}"


def figure_rows(figures: DataSetFigures) -> list[tuple[str, IouFigures]]:
    """The names of masks that are compared, and how good they are."""
    early = figures.early
    return [
        (f"selected ({_chosen(figures)})", figures),
        ("one-shot", figures.one_shot),
        (f"accepted at {early.accept}", early),
        ("truly best", figures.truth_best),
        *((f"after click {at}", pair) for at, pair in enumerate(figures.by_click, 1)),
    ]


def _chosen(figures: DataSetFigures) -> str:
    return figures.select if figures.click_id is None else f"click {figures.click_id}"
