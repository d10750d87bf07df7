"""Trajectories for whole data sets: a broken run goes on, a replay checks what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.data.canvas_cache import CanvasCache
from segagent_rt.data.demonstrate import EncodedImage, Limits, begin, demonstrate, same_masks
from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.record import Sample
from segagent_rt.data.sources import DataSet
from segagent_rt.data.trajectories import (
    Demonstration,
    StartKind,
    check_record,
    describe_demonstration,
    write_trajectories,
)
from segagent_rt.data.work_items import ProcessAll, ProcessItem, complete_in_order
from segagent_rt.errors import DataInvalid, InputError
from segagent_rt.io import check_replaceable
from segagent_rt.runtime import Runtime
from segagent_rt.scenes.rng import DeterministicRng


@dataclass(frozen=True, slots=True)
class Task:
    """A trajectory to be made of a sample, the data set's `at`-th, from a start."""

    at: int
    sample: Sample
    start: StartKind

    @property
    def key(self) -> str:
        return f"{self.at}.{self.start}"


@dataclass(frozen=True, slots=True)
class Generation:
    """How trajectories are made: from which starts, up to which limits, with which draws.

    `restart` forgets what an earlier run has done, and replaces files that are not ours.
    """

    limits: Limits = field(default_factory=Limits)
    starts: tuple[StartKind, ...] = ("empty",)
    seed: int = 0
    restart: bool = False

    def heading(self, data: DataSet, runtime: Runtime) -> dict[str, Any]:
        """What decides the content of a file of trajectories, and stands in it as `info`."""
        return {
            "digest": data.digest,
            "segmenter": runtime.bundle.part("segmenter").digest,
            "starts": list(self.starts),
            "n_clicks": self.limits.most,
            "target_iou": self.limits.good,
            "least_gain": self.limits.least_gain,
            "after_loss": self.limits.after_loss,
            "seed": self.seed,
            "record_trace": True,
        }

    def demonstrator(self, runtime: Runtime) -> ProcessItem[Task]:
        """What makes trajectories, one after the other, as records of their file."""
        canvases = CanvasCache(runtime)

        def make(task: Task) -> dict[str, Any]:
            bench, target = _bench(canvases, task.sample), task.sample.mask.mask()
            start = begin(task.start, target, bench, DeterministicRng("start", self.seed, task.at))
            clicks = demonstrate(target, start, bench, self.limits)
            return describe_demonstration(Demonstration(task.sample, start, tuple(clicks)))

        return make

    def tasks(self, data: DataSet) -> list[Task]:
        """Every sample, from every start."""
        return [
            Task(at, sample, kind)
            for at, sample in enumerate(data.samples)
            for kind in self.starts
            if not sample.crowd
        ]


@dataclass(frozen=True, slots=True)
class Made:
    """A file of trajectories: how many there are, how many clicks they hold, how many of these
    stand in place of an MLLM's, and what was left out."""

    path: Path
    trajectories: int
    clicks: int
    problems: list[str]
    replaced: int = 0


def _bench(canvases: CanvasCache, sample: Sample) -> EncodedImage:
    return EncodedImage(canvases.runtime.segmenter, canvases.show(sample).embedding.result())


def generate(
    data: DataSet,
    runtime: Runtime,
    how: Generation,
    path: Path,
    spread: ProcessAll[Task],
    report_progress: CountReporter,
) -> Made:
    """Write the trajectories of a data set to `path`; its journal lies beside it.

    `spread` has them made as `how.demonstrator` does.

    Raises:
        OutputError: a file cannot be written, or belongs to another run.
    """
    check_replaceable([path], overwrite=how.restart)
    heading, noted = how.heading(data, runtime), path.with_suffix(".journal.jsonl")
    journal = Journal(noted, heading, check=check_record, overwrite=how.restart)
    records, failures = complete_in_order(journal, how.tasks(data), spread, report_progress)
    write_trajectories(path, records, heading, overwrite=how.restart)
    clicks = sum(len(record["clicks_list"]) for record in records)
    return Made(path, len(records), clicks, list(dict.fromkeys(failures)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """Of how many trajectories and masks a replay gives every pixel again.

    `problems` says which trajectories could not be replayed; they are not counted.
    """

    trajectories: int
    same_trajectories: int
    masks: int
    same_masks: int
    problems: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.same_trajectories / self.trajectories if self.trajectories else 1.0


def replay(
    demonstrations: Sequence[Demonstration], runtime: Runtime, report_progress: CountReporter
) -> Replayed:
    """Click every trajectory again.

    Raises:
        DataInvalid: none of them has a picture that can be read.
    """
    canvases, same, whole, masks = CanvasCache(runtime), 0, 0, 0
    problems = list[str]()
    for done, demonstration in enumerate(demonstrations, 1):
        try:
            found = same_masks(demonstration, _bench(canvases, demonstration.sample))
        except InputError as error:
            problems.append(str(error))
        else:
            same += found
            whole += found == len(demonstration.clicks)
            masks += len(demonstration.clicks)
        report_progress(done, len(demonstrations))
    if problems and len(problems) == len(demonstrations):
        raise DataInvalid(f"no trajectory can be replayed: {problems[0]}")
    done = len(demonstrations) - len(problems)
    return Replayed(done, whole, masks, same, tuple(problems))
