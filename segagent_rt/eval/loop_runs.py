"""Annotates every question of a data set once; a journal keeps each result when it is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segagent_rt.annotators.oracle import OracleAnnotator
from segagent_rt.bundle.manifest import PartName
from segagent_rt.choices import AnnotatorName, StartName
from segagent_rt.data.canvas_cache import CanvasCache
from segagent_rt.data.images import missing_images
from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.predictions import Recording, describe_recording, read_recording, record
from segagent_rt.data.reading import expect, field
from segagent_rt.data.record import ExpressionQuery, expression_queries
from segagent_rt.data.sources import DataSet
from segagent_rt.data.work_items import ProcessAll, ProcessItem, complete
from segagent_rt.errors import DataInvalid
from segagent_rt.eval.degrade import degraded
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.search import SearchConfig, search_steps
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Mask, Trajectory


@dataclass(frozen=True, slots=True)
class EvalRunner:
    """Answers questions: the bundle's MLLM clicks, or the simulated annotator.

    `start` is what a trajectory begins with: no mask, or the true one spoilt.
    """

    search: SearchConfig
    annotator: AnnotatorName = "mllm"
    start: StartName = "nothing"

    @property
    def parts(self) -> Collection[PartName] | None:
        """The parts of a bundle that it needs; None for all."""
        return ["segmenter"] if self.annotator == "oracle" else None

    def heading(self, data: DataSet, runtime: Runtime) -> dict[str, Any]:
        """What a journal of such trajectories is about: what decides their content."""
        rules = self.search.rules
        further: dict[str, Any] = {} if rules.patience is None else {"patience": rules.patience}
        if runtime.completed_rules(rules).stop_after_box is False:
            further["stop_after_box"] = False
        return {
            "digest": data.digest,
            "bundle": runtime.bundle.digest,
            "annotator": self.annotator,
            "start": self.start,
            "max_clicks": rules.max_clicks,
            "accept": rules.accept_above,
            **further,
            "candidates": self.search.candidates,
            "temperature": self.search.temperature,
            "seed": self.search.seed,
        }

    def answerer(self, runtime: Runtime) -> ProcessItem[ExpressionQuery]:
        """What answers questions in turn: a trajectory and how long it took, for a journal.

        The first run of a process warms the graphs up; it is marked as cold.
        """
        canvases = CanvasCache(runtime)

        def answer(question: ExpressionQuery) -> dict[str, Any]:
            cold = canvases.is_empty
            trajectory = self.run_loop(canvases.show(question.sample), question)
            described = describe_recording(record(question, trajectory))
            seconds = [dict(step.seconds) for step in trajectory.steps]
            return {"record": described, "seconds": seconds, "cold": cold}

        return answer

    def run_loop(self, canvas: Canvas, question: ExpressionQuery) -> Trajectory:
        """One trajectory.

        Raises:
            ExpressionRefused: the annotator cannot take the expression.
            DataInvalid: the mask cannot be spoilt.
        """
        target, prior = question.sample.mask.mask(), None
        if self.start == "degraded":
            prior = _spoilt(target, question)
        said, config = question.expression, self.search
        if self.annotator == "mllm":
            steps = canvas.search_steps(said, config=config, prior=prior)
        else:
            view, segmenter = OracleAnnotator(target).look(canvas.image), canvas.runtime.segmenter
            steps = search_steps(
                said, view, segmenter, canvas.embedding, config=config, prior=prior
            )
        return Trajectory(said, tuple(steps))


def _spoilt(target: Mask, question: ExpressionQuery) -> GivenMask:
    mask = degraded(target, DeterministicRng("degraded", question.key))
    if mask is None:
        raise DataInvalid(f"the mask of `{question.expression}` is too small to degrade")
    return GivenMask(mask)


def check_entry(entry: Any) -> None:
    """Raise `DataInvalid` unless this is an answer, see `EvalRunner.answerer`."""
    where = "the journal"
    read_recording(field(entry, "record", dict, where), where)
    field(entry, "cold", bool, where)
    for turn in field(entry, "seconds", list, where):
        for seconds in expect(turn, dict, where).values():
            expect(seconds, float, where)


@dataclass(frozen=True, slots=True)
class EvalRuns:
    """What became of each question of a data set: an answer, or a reason why there is none.

    `missing` are the pictures that are not there, `refused` the questions that could not be put,
    by their place in the data, with a sentence.
    """

    questions: list[ExpressionQuery]
    entries: list[dict[str, Any]]
    missing: list[Path]
    refused: list[tuple[str, str]]

    @property
    def records(self) -> list[dict[str, Any]]:
        """As predictions files hold them."""
        return [entry["record"] for entry in self.entries]

    @property
    def recordings(self) -> list[Recording]:
        pairs = zip(self.entries, self.questions, strict=True)
        return [read_recording(entry["record"], q.sample.source) for entry, q in pairs]


def answer_all(
    data: DataSet,
    journal: Journal,
    spread: ProcessAll[ExpressionQuery],
    report_progress: CountReporter,
    limit: int | None = None,
) -> EvalRuns:
    """Have every question answered, or the first `limit` of them, that the journal does not hold.

    `report_progress` is called with the number of trajectories done and to do, those of earlier
    runs not counted.
    """
    wanted = list(expression_queries(data.samples))[:limit]
    missing = missing_images([question.sample for question in wanted])
    absent = set(missing)
    asked = [question for question in wanted if question.sample.image not in absent]
    problems = complete(journal, asked, spread, report_progress)
    refused = [(q.sample.source, problems[q.key]) for q in asked if q.key in problems]
    answered = [question for question in asked if question.key in journal.done]
    return EvalRuns(answered, [journal.done[q.key] for q in answered], missing, refused)
