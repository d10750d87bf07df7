"""Make click trajectories out of images and masks: the data that SegAgent learns from."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from segagent_rt.cli.parameters import (
    BackendOption,
    BundleOption,
    ImagesOption,
    JsonOption,
    MaskLabelOption,
    OutputOption,
    RayOption,
    RootOption,
    SkipBadOption,
    ThreadsOption,
    WorkersOption,
    cluster_of,
    one_of,
    telling,
)
from segagent_rt.errors import BatchFailed, GateFailed

if TYPE_CHECKING:
    from segagent_rt.data.generation import Made, Replayed
    from segagent_rt.data.sources import DataSet

LEAST_SAME = 0.99
"""Fewer trajectories that replay to the same masks are a failed gate."""


def command(
    data: Annotated[
        list[str],
        typer.Argument(help="Data files, folders of images and masks, or splits by name."),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Replay the files of trajectories named instead.")
    ] = False,
    images: ImagesOption = None,
    skip_bad: SkipBadOption = False,
    mask_label: MaskLabelOption = None,
    root: RootOption = Path(),
    start: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Start empty, or from a box, a random point, a grid; repeatable."),
    ] = None,
    max_clicks: Annotated[int, typer.Option(min=1, help="The most clicks tried.")] = 20,
    good: Annotated[float, typer.Option(min=0, max=1, help="An IoU to stop at.")] = 0.98,
    least_gain: Annotated[float, typer.Option(min=0, help="IoU that a click must gain.")] = 0.0,
    after_loss: Annotated[
        str,
        typer.Option(help="A click that gains less: end there, or discard it and go on."),
    ] = "end",
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    star: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Add a StaR+ round: the bundle's MLLM walks so many clicks."),
    ] = None,
    output: OutputOption = Path("segagent-trajectories"),
    overwrite: Annotated[bool, typer.Option(help="Start anew, do not go on.")] = False,
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes <data>.trajectories.json in SegAgent's schema.

    The simulated annotator clicks with the bundle's segmenter. A broken run goes on where it was.
    With --star, <data>.star.trajectories.json holds them again, and the MLLM's own walks, in which
    the annotator's clicks replace those that made a mask no better.
    """
    from segagent_rt.data.demonstrate import AfterLoss, Limits
    from segagent_rt.data.generation import Generation, generate, replay
    from segagent_rt.data.ray_pool import distribute
    from segagent_rt.data.sources import Places, open_all, open_trajectories
    from segagent_rt.data.star import Round, add_round
    from segagent_rt.data.trajectories import StartKind
    from segagent_rt.files import check_writable
    from segagent_rt.runtime import load

    places, cluster = Places(root, images, skip_bad, mask_label), cluster_of(ray, workers)
    with load(bundle, backend=backend, threads=threads) as runtime:
        if check:
            found = [shown for name in data for shown in open_trajectories(name, places)]
            _judge(replay(found, runtime, telling("replayed")), as_json)
            return
        check_writable(output)
        limits = Limits(max_clicks, good, least_gain, one_of(AfterLoss, after_loss, "--after-loss"))
        starts = [one_of(StartKind, kind, "--start") for kind in start or ["empty"]]
        how = Generation(limits, tuple(dict.fromkeys(starts)), seed, restart=overwrite)
        opened = open_all(data, places)
        with distribute(cluster, runtime, how.demonstrator) as spread:
            made = [
                generate(each, runtime, how, _file(output, each), spread, telling(each.title))
                for each in opened
            ]
        if star is not None:
            more = Round(replace(limits, most=star), restart=overwrite)
            with distribute(cluster, runtime, more.walker) as spread:
                made += [
                    add_round(each, first, runtime, more, spread, telling(f"{each.title}, StaR+"))
                    for each, first in zip(opened, made, strict=True)
                ]
    _report(made, as_json)


def _file(folder: Path, data: DataSet) -> Path:
    return folder / f"{data.title}.trajectories.json"


def _report(made: list[Made], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{**asdict(each), "path": str(each.path)} for each in made]))
    else:
        for each in made:
            replaced = f"\t{each.replaced} of them replaced" if each.replaced else ""
            typer.echo(
                f"{each.path}\t{each.trajectories} trajectories\t{each.clicks} clicks{replaced}"
            )
    problems = dict.fromkeys(problem for each in made for problem in each.problems)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise BatchFailed(f"{len(problems)} objects have no trajectory")


def _judge(found: Replayed, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(
            f"{found.same_trajectories} of {found.trajectories} trajectories, "
            f"{found.same_masks} of {found.masks} masks are the same"
        )
    if found.share < LEAST_SAME:
        raise GateFailed(
            f"only {100 * found.share:.1f} % of the trajectories replay to the same masks",
            hint="were they made with this bundle's segmenter?",
        )
