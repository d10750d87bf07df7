"""Record click trajectories from images and masks, as training data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segagent_rt.choices import AfterLoss
from segagent_rt.cli import console
from segagent_rt.cli.option_groups import ComputeOptions, DataOptions, RayOptions
from segagent_rt.cli.parameters import (
    MOST_CLICKS,
    SEARCH,
    BundleOption,
    JsonOption,
    OutputOption,
    RestartOption,
    check_options,
    number_option,
    one_of,
    option,
)
from segagent_rt.errors import BatchFailed, GateFailed

if TYPE_CHECKING:
    from collections.abc import Collection

    from segagent_rt.bundle.manifest import PartName
    from segagent_rt.data.generation import Made, Replayed
    from segagent_rt.data.sources import DataSet

LEAST_SAME = 0.99
"""Fewer trajectories that replay to the same masks are a failed gate."""


MAKING = "making trajectories"
ONLY_WITH = dict.fromkeys(
    (
        "start", "max_clicks", "good", "least_gain", "after_loss", "seed", "star", "output",
        "overwrite", "ray", "workers",
    ),
    (MAKING,),
)  # fmt: skip


def command(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(help="Data files, folders of images and masks, or splits by name."),
    ],
    check: Annotated[
        bool, option("Replay trajectories and compare the masks, instead of recording.", "--check")
    ] = False,
    *,
    reading: DataOptions,
    start: Annotated[
        list[str] | None,
        option(
            "How trajectories start: empty, box, point or grid. May be repeated.",
            panel=SEARCH,
            metavar="empty|box|random|grid",
        ),
    ] = None,
    max_clicks: Annotated[
        int, option("Largest number of clicks.", panel=SEARCH, min=1, max=MOST_CLICKS)
    ] = 20,
    good: Annotated[
        float, number_option("IoU at which a trajectory ends.", panel=SEARCH, min=0, max=1)
    ] = 0.98,
    least_gain: Annotated[
        float, number_option("IoU that a click must add.", panel=SEARCH, min=0, max=1)
    ] = 0.0,
    after_loss: Annotated[
        AfterLoss,
        option("What to do after a click that adds less: stop, or discard it.", panel=SEARCH),
    ] = "end",
    seed: Annotated[int, option("Seed of the random starts.", panel=SEARCH)] = 0,
    star: Annotated[
        int | None,
        option(
            "Add a StaR+ round, in which the bundle's MLLM makes this many clicks.",
            panel=SEARCH,
            min=1,
            max=MOST_CLICKS,
        ),
    ] = None,
    output: OutputOption = Path("segagent-trajectories"),
    overwrite: RestartOption = False,
    bundle: BundleOption = None,
    compute: ComputeOptions,
    ray: RayOptions,
    as_json: JsonOption = False,
) -> None:
    """Writes <data>.trajectories.json in SegAgent's schema.

    The simulated annotator clicks with the bundle's segmenter. The same command continues an
    interrupted run. With --star, <data>.star.trajectories.json also has the MLLM's own clicks; the
    annotator replaces those that do not improve the mask.
    """
    report_progress = console.progress
    check_options(context, "--check" if check else MAKING, ONLY_WITH)
    from segagent_rt.data.demonstrate import Limits
    from segagent_rt.data.generation import Generation, generate, replay
    from segagent_rt.data.ray_pool import distribute
    from segagent_rt.data.sources import open_all, open_trajectories
    from segagent_rt.data.star import Round, add_round
    from segagent_rt.data.trajectories import StartKind
    from segagent_rt.io import check_writable
    from segagent_rt.runtime import load

    places, cluster = reading.places(), ray.cluster()
    parts: Collection[PartName] | None = ["segmenter"] if star is None else None
    here = parts if cluster.address is None else ()  # on a cluster, the workers load
    with load(bundle, backend=compute.backend, threads=compute.threads, parts=here) as runtime:
        if check:
            found = [shown for name in data for shown in open_trajectories(name, places)]
            _judge(replay(found, runtime, report_progress("replayed")), as_json)
            return
        check_writable(output)
        limits = Limits(max_clicks, good, least_gain, after_loss)
        starts = [one_of(StartKind, kind, "--start") for kind in start or ["empty"]]
        how = Generation(limits, tuple(dict.fromkeys(starts)), seed, restart=overwrite)
        opened = open_all(data, places)
        with distribute(cluster, runtime, how.demonstrator, parts) as spread:
            made = [
                generate(
                    each, runtime, how, _file(output, each), spread, report_progress(each.title)
                )
                for each in opened
            ]
        if star is not None:
            more = Round(replace(limits, most=star), restart=overwrite)
            with distribute(cluster, runtime, more.corrector, parts) as spread:
                made += [
                    add_round(
                        each, first, runtime, more, spread, report_progress(f"{each.title}, StaR+")
                    )
                    for each, first in zip(opened, made, strict=True)
                ]
    _report(made, as_json)


def _file(folder: Path, data: DataSet) -> Path:
    return folder / f"{data.title}.trajectories.json"


def _report(made: list[Made], as_json: bool) -> None:
    if as_json:
        console.show_json([{**asdict(each), "path": str(each.path)} for each in made])
    else:
        for each in made:
            count = console.counted(each.trajectories, "trajectory", "trajectories")
            replaced = [f"{each.replaced} of them replaced"] if each.replaced else []
            console.show_row(each.path, count, console.counted(each.clicks, "click"), *replaced)
    problems = dict.fromkeys(problem for each in made for problem in each.problems)
    _tell_problems(problems, "object without a trajectory", "objects without a trajectory")


def _tell_problems(problems: Collection[str], one: str, many: str) -> None:
    """Name what failed, and raise `BatchFailed` if anything did."""
    for problem in problems:
        console.warn(problem)
    if problems:
        raise BatchFailed(console.counted(len(problems), one, many))


def _judge(found: Replayed, as_json: bool) -> None:
    if as_json:
        console.show_json(asdict(found))
    else:
        console.show(
            f"{found.same_trajectories} of {found.trajectories} trajectories, "
            f"{found.same_masks} of {found.masks} masks are the same"
        )
    if found.share < LEAST_SAME:
        raise GateFailed(
            f"only {100 * found.share:.1f} % of the trajectories replay to the same masks",
            hint="use the bundle whose segmenter recorded them: --bundle",
        )
    _tell_problems(found.problems, "trajectory was not replayed", "trajectories were not replayed")
