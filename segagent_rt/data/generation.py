"""Trajectories for whole data sets: a broken run goes on, a replay checks what was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.data.demonstrate import Bench, Limits, begin, demonstrate, same_masks
from segagent_rt.data.easel import Easel
from segagent_rt.data.images import missing_images
from segagent_rt.data.journal import Journal, Tell
from segagent_rt.data.record import Sample
from segagent_rt.data.sources import DataSet
from segagent_rt.data.trajectories import (
    Demonstration,
    StartKind,
    describe_demonstration,
    write_trajectories,
)
from segagent_rt.errors import InputError
from segagent_rt.runtime import Runtime
from segagent_rt.scenes.dice import Dice


@dataclass(frozen=True, slots=True)
class Generation:
    """How trajectories are made: from which starts, up to which limits, with which draws."""

    limits: Limits = field(default_factory=Limits)
    starts: tuple[StartKind, ...] = ("empty",)
    seed: int = 0

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


@dataclass(frozen=True, slots=True)
class Made:
    """A file of trajectories: how many there are, how many clicks they hold, what was left out."""

    path: Path
    trajectories: int
    clicks: int
    problems: list[str]


def generate(
    data: DataSet,
    runtime: Runtime,
    how: Generation,
    path: Path,
    tell: Tell,
    *,
    restart: bool = False,
) -> Made:
    """Write the trajectories of a data set to `path`; its journal lies beside it.

    Raises:
        OutputError: a file cannot be written, or belongs to another run.
    """
    heading = how.heading(data, runtime)
    asked = [(at, kind) for at in range(len(data.samples)) for kind in how.starts]
    absent, problems = set(missing_images(data.samples)), dict[int, str]()
    easel = Easel(runtime)
    journal_path = path.with_suffix(".journal.jsonl")
    with Journal(journal_path, heading, overwrite=restart) as journal:
        todo = [(at, kind) for at, kind in asked if f"{at}.{kind}" not in journal.done]
        for done, (at, kind) in enumerate(todo, 1):
            sample = data.samples[at]
            try:
                if sample.image in absent:
                    raise InputError(f"the picture {sample.image} is not there")
                dice = Dice("start", how.seed, at)
                journal.append(f"{at}.{kind}", _record(easel, sample, kind, how.limits, dice))
            except InputError as error:
                problems[at] = f"{sample.source}: {error}"
            tell(done, len(todo))
        keys = [f"{at}.{kind}" for at, kind in asked]
        records = [journal.done[key] for key in keys if key in journal.done]
    write_trajectories(path, records, heading)
    clicks = sum(len(record["clicks_list"]) for record in records)
    return Made(path, len(records), clicks, list(problems.values()))


def _record(
    easel: Easel, sample: Sample, kind: StartKind, limits: Limits, dice: Dice
) -> dict[str, Any]:
    bench = _bench(easel, sample)
    target = sample.mask.mask()
    start = begin(kind, target, bench, dice)
    clicks = demonstrate(target, start, bench, limits)
    return describe_demonstration(Demonstration(sample, start, tuple(clicks)))


def _bench(easel: Easel, sample: Sample) -> Bench:
    return Bench(easel.runtime.segmenter, easel.show(sample).embedding.result())


@dataclass(frozen=True, slots=True)
class Replayed:
    """Of how many trajectories and masks a replay gives every pixel again."""

    trajectories: int
    same_trajectories: int
    masks: int
    same_masks: int

    @property
    def share(self) -> float:
        return self.same_trajectories / self.trajectories if self.trajectories else 1.0


def replay(demonstrations: Sequence[Demonstration], runtime: Runtime, tell: Tell) -> Replayed:
    """Click every trajectory again.

    Raises:
        ImageUnreadable: a picture is not there.
    """
    easel, same, whole = Easel(runtime), 0, 0
    for done, demonstration in enumerate(demonstrations, 1):
        found = same_masks(demonstration, _bench(easel, demonstration.sample))
        same += found
        whole += found == len(demonstration.clicks)
        tell(done, len(demonstrations))
    masks = sum(len(demonstration.clicks) for demonstration in demonstrations)
    return Replayed(len(demonstrations), whole, masks, same)
