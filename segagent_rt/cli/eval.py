"""Measure how good a bundle is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from segagent_rt.cli.parameters import (
    BackendOption,
    BundleOption,
    CandidatesOption,
    ImagesOption,
    JsonOption,
    MaskLabelOption,
    OutputOption,
    RayOption,
    RootOption,
    SkipBadOption,
    TemperatureOption,
    ThreadsOption,
    WorkersOption,
    cluster_of,
    one_of,
    telling,
)

if TYPE_CHECKING:
    from segagent_rt.data.ray_pool import Cluster
    from segagent_rt.data.sources import Places
    from segagent_rt.eval.evaluation import Evaluation
    from segagent_rt.eval.loop_runs import EvalRunner
    from segagent_rt.loop import StoppingRules
    from segagent_rt.runtime import Runtime


def command(
    data: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Data files, folders of images and masks, splits by name (refcoco_val), or "
            "predictions; synthetic scenes if none is named.",
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    skip_bad: SkipBadOption = False,
    mask_label: MaskLabelOption = None,
    root: RootOption = Path(),
    split: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this split of the benchmarks named: val, testA; repeatable."),
    ] = None,
    select: Annotated[
        str,
        typer.Option(help="full: the best-rated mask; ref: SegAgent's own rule; last: the last."),
    ] = "full",
    click_id: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="The mask after this click, counted from 0, instead."),
    ] = None,
    annotator: Annotated[
        str,
        typer.Option(help="Who clicks: the bundle's mllm, or an oracle that knows the true mask."),
    ] = "mllm",
    start: Annotated[
        str, typer.Option(help="nothing; degraded: the true mask spoilt to an IoU of 0.5 to 0.7.")
    ] = "nothing",
    candidates: CandidatesOption = 1,
    temperature: TemperatureOption = 1.0,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the first expressions of each data set."),
    ] = None,
    output: OutputOption = Path("segagent-eval"),
    visualize: Annotated[bool, typer.Option(help="Draw the chosen masks and clicks.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start anew, do not go on.")] = False,
    scenes: Annotated[int, typer.Option(min=1, help="How many synthetic scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; the others follow.")] = 1000,
    ablate: Annotated[
        str, typer.Option(help="none, remove or shuffle the scenes' expressions: does it read?")
    ] = "none",
    max_clicks: Annotated[int, typer.Option(min=1, help="The most clicks per expression.")] = 7,
    patience: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="End a walk after so many masks rated no better than before."),
    ] = None,
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """On data: cIoU, gIoU, clicks needed and used, latency; predictions and tables as SegAgent's.

    A run that was broken off goes on where it was. On scenes: prints the figures.
    """
    from segagent_rt.data.sources import Places
    from segagent_rt.eval.evaluation import Evaluation, check_complete, summary_lines
    from segagent_rt.eval.loop_runs import AnnotatorName, EvalRunner, StartName
    from segagent_rt.eval.scores import MaskChoice
    from segagent_rt.eval.selection import Rule
    from segagent_rt.loop import StoppingRules
    from segagent_rt.runtime import load
    from segagent_rt.search import SearchConfig

    choice, cluster = (
        MaskChoice(one_of(Rule, select, "--select"), click_id),
        cluster_of(ray, workers),
    )
    if ray is not None and not data:
        raise typer.BadParameter("--ray needs data: write scenes with `segagent-rt scene --count`")
    with load(bundle, backend=backend, threads=threads) as runtime:
        if not data:
            found = _on_scenes(runtime, (scenes, seed, ablate), StoppingRules(max_clicks))
            typer.echo(json.dumps(found) if as_json else text(found))
            return
        asked = Evaluation(output, choice, limit, restart=overwrite, pictures=visualize)
        names = named(data, split)
        rules = StoppingRules(max_clicks, accept_above=None, retry_below=None, patience=patience)
        config = SearchConfig(rules, candidates, temperature)
        who = one_of(AnnotatorName, annotator, "--annotator")
        walker = EvalRunner(config, who, one_of(StartName, start, "--start"))
        places = Places(root, images, skip_bad, mask_label)
        figures = _on_data(names, places, asked, walker, runtime, cluster)
    if as_json:
        typer.echo(json.dumps({"results": figures}))
    else:
        typer.echo("\n\n".join("\n".join(summary_lines(each)) for each in figures))
    check_complete(figures)


def named(data: list[str], parts: list[str] | None) -> list[str]:
    """The data sets meant; with `--split`, those splits of the benchmarks named.

    Raises:
        typer.BadParameter: a split of something that is no benchmark.
    """
    from segagent_rt.data.refcoco import SPLITS

    for name in data if parts else ():
        if name not in SPLITS:
            raise typer.BadParameter(f"--split goes with {', '.join(SPLITS)}, not with `{name}`")
    return [f"{name}_{part}" for name in data for part in parts] if parts else data


def _on_data(
    names: list[str],
    places: Places,
    asked: Evaluation,
    walker: EvalRunner,
    runtime: Runtime,
    cluster: Cluster,
) -> list[dict[str, Any]]:
    """Every file is read before the first walk: a mistake in the last one shows at once."""
    from segagent_rt.data.ray_pool import distribute
    from segagent_rt.data.sources import check_titles, open_all, recordings_in
    from segagent_rt.eval.evaluation import title_of
    from segagent_rt.files import check_writable

    check_writable(asked.folder)
    recordings = {name: recordings_in(name, places) for name in names}
    opened = open_all([name for name in names if recordings[name] is None], places)
    recorded = [(title_of(name), found) for name, found in recordings.items() if found]
    check_titles([title for title, _ in recorded] + [each.title for each in opened])
    scored = [asked.score(title, found) for title, found in recorded]
    if not opened:
        return scored
    with distribute(cluster, runtime, walker.answerer) as spread:
        return scored + [
            asked.walk(each, walker.heading(each, runtime), spread, telling(each.title))
            for each in opened
        ]


def _on_scenes(
    runtime: Runtime, which: tuple[int, int, Any], rules: StoppingRules
) -> dict[str, Any]:
    from segagent_rt.eval.scenes import Ablation, SceneSuite, evaluate_scenes

    scenes, seed, ablate = which
    suite = SceneSuite(scenes, seed, ablate=one_of(Ablation, ablate, "--ablate"))
    return evaluate_scenes(runtime, suite, rules, _progress(scenes))


def _progress(total: int) -> Any:
    def tell(done: int) -> None:
        if done % 10 == 0 or done == total:
            typer.echo(f"\r{done} of {total} scenes", err=True, nl=done == total)

    return tell


def text(figures: dict[str, Any]) -> str:
    """The figures, one to a line."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = " ".join(f"{item:.3f}" for item in value)
        lines.append(f"{name:26s} {value}")
    return "\n".join(lines)
