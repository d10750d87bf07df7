"""A round of StaR+ (SegAgent, algorithm 1): the MLLM clicks, and learns where it went wrong.

A click that makes the mask better is kept. One that does not is replaced by the simulated
annotator's about the same mask; the trajectory then goes on from what the bad click made, as it
would in use. The schema of trajectories has one mask after each click, so that is where a
trajectory ends and the next one starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segagent_rt.annotators.oracle import next_click
from segagent_rt.data.canvas_cache import CanvasCache
from segagent_rt.data.demonstrate import Attempt, EncodedImage, Limits, TrajectoryBuilder
from segagent_rt.data.generation import Made
from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.reading import field, read_json
from segagent_rt.data.record import ExpressionQuery, RunLengths, Sample, expression_queries
from segagent_rt.data.sources import DataSet
from segagent_rt.data.trajectories import (
    Demonstration,
    Start,
    check_record,
    describe_demonstration,
    write_trajectories,
)
from segagent_rt.data.work_items import ProcessAll, ProcessItem, complete_in_order
from segagent_rt.io import check_replaceable
from segagent_rt.runtime import Runtime
from segagent_rt.types import Click, Mask, Request, View


@dataclass(frozen=True, slots=True)
class Round:
    """How the MLLM clicks: `limits.most` clicks for each expression, without a look at its ratings;
    `limits` say too which of them are good ones. `restart` forgets what an earlier run has done.
    """

    limits: Limits
    restart: bool = False

    def heading(self, data: DataSet, runtime: Runtime) -> dict[str, Any]:
        """What decides the content of such trajectories."""
        return {
            "digest": data.digest,
            "bundle": runtime.bundle.digest,
            "n_clicks": self.limits.most,
            "target_iou": self.limits.good,
            "least_gain": self.limits.least_gain,
        }

    def corrector(self, runtime: Runtime) -> ProcessItem[ExpressionQuery]:
        """Has the MLLM click for one question and corrects it; returns records for the file."""
        canvases = CanvasCache(runtime)

        def correct(question: ExpressionQuery) -> dict[str, Any]:
            canvas = canvases.show(question.sample)
            bench = EncodedImage(runtime.segmenter, canvas.embedding.result())
            sample = replace(question.sample, expressions=(question.expression,))
            found = list(corrected(sample, canvas.view, bench, self.limits))
            return {
                "records": [describe_demonstration(each.demonstration) for each in found],
                "replaced": sum(each.replaced for each in found),
            }

        return correct


@dataclass(frozen=True, slots=True)
class Corrected:
    """A stretch of a trajectory; `replaced` if its last click is the simulated annotator's."""

    demonstration: Demonstration
    replaced: bool


def corrected(
    sample: Sample, view: View, bench: EncodedImage, limits: Limits
) -> Iterator[Corrected]:
    """The stretches of one trajectory for the sample's only expression.

    It ends with a good mask, with the last click allowed, with a reply that is none, or with a
    click that leaves the mask as it is: the MLLM would say the same again. Where the annotator's
    click loses too, nothing is to be learnt.

    Raises:
        ExpressionRefused: the MLLM cannot take the expression.
    """
    target = sample.mask.mask()
    start = Start("empty", RunLengths.empty(sample.size))
    builder = TrajectoryBuilder(target, start, bench)
    for _ in range(limits.most):
        if builder.iou >= limits.good:
            break
        before, tried = builder.mask, _next_of(view, sample.expressions[0], builder)
        if tried is not None and limits.gains(builder.iou, tried.iou):
            builder.keep(tried)
            continue
        replaced = _correct(builder, target)
        if builder.kept:
            yield Corrected(Demonstration(sample, start, tuple(builder.kept)), replaced)
        if tried is None or np.array_equal(tried.mask, before):
            return
        start = Start("walk", RunLengths.of(tried.mask), tried.iou)
        builder = TrajectoryBuilder(target, start, bench)
    if builder.kept:
        yield Corrected(Demonstration(sample, start, tuple(builder.kept)), replaced=False)


def _next_of(view: View, expression: str, builder: TrajectoryBuilder) -> Attempt | None:
    """What the MLLM's next click makes; None if its reply holds none. A box is not drawn: the
    schema of trajectories has none."""
    turn = view.propose([Request(builder.prediction, expression)])[0][0]
    return builder.attempt(turn.action) if isinstance(turn.action, Click) else None


def _correct(builder: TrajectoryBuilder, target: Mask) -> bool:
    """Click as the simulated annotator would, unless that loses. It need not gain at once: a wrong
    object has to be taken away, and the IoU is none until the right one is found."""
    click = next_click(target, builder.mask)
    tried = None if click is None else builder.attempt(click)
    if tried is None or tried.iou < builder.iou:
        return False
    builder.keep(tried)
    return True


def _check_entry(entry: Any) -> None:
    field(entry, "replaced", int, "the journal")
    for record in field(entry, "records", list, "the journal"):
        check_record(record)


def add_round(
    data: DataSet,
    made: Made,
    runtime: Runtime,
    how: Round,
    spread: ProcessAll[ExpressionQuery],
    report_progress: CountReporter,
) -> Made:
    """Write the trajectories that were made already and those of a round into one more file.

    `spread` has questions processed as `how.corrector` does. The journal lies beside the file.

    Raises:
        OutputError: a file cannot be written, or belongs to another run.
    """
    path = made.path.with_name(f"{data.title}.star.trajectories.json")
    check_replaceable([path], overwrite=how.restart)
    heading, noted = how.heading(data, runtime), path.with_suffix(".journal.jsonl")
    journal = Journal(noted, heading, check=_check_entry, overwrite=how.restart)
    asked = list(expression_queries(data.samples))
    entries, problems = complete_in_order(journal, asked, spread, report_progress)
    first = read_json(made.path)
    records = [*first["data"], *(record for entry in entries for record in entry["records"])]
    about = {**first["info"]["args"], "star": heading}
    write_trajectories(path, records, about, overwrite=how.restart)
    return Made(
        path,
        trajectories=len(records),
        clicks=sum(len(record["clicks_list"]) for record in records),
        replaced=sum(entry["replaced"] for entry in entries),
        problems=problems,
    )
