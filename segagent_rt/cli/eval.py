"""Measure the accuracy of a bundle on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segagent_rt.choices import Ablation, AnnotatorName, Rule, StartName
from segagent_rt.cli import console
from segagent_rt.cli.option_groups import ComputeOptions, DataOptions, RayOptions, SearchOptions
from segagent_rt.cli.parameters import (
    DATA,
    MOST_SCENES,
    RESULTS,
    SEARCH,
    BundleOption,
    JsonOption,
    OutputOption,
    ReportOption,
    RestartOption,
    check_options,
    option,
)

if TYPE_CHECKING:
    from segagent_rt.bundle.bundle import Bundle
    from segagent_rt.data.ray_pool import Cluster
    from segagent_rt.data.sources import DataSet
    from segagent_rt.eval.evaluation import Evaluation
    from segagent_rt.eval.figures import EvalResult, SceneSuiteResult
    from segagent_rt.eval.loop_runs import EvalRunner
    from segagent_rt.eval.report_cases import EvalReport
    from segagent_rt.eval.scores import MaskChoice
    from segagent_rt.loop import StoppingRules
    from segagent_rt.runtime import Runtime


SCENES = "Synthetic scenes"
ON_SCENES, ON_DATA, ON_PREDICTIONS = "synthetic scenes", "data", "predictions"
ONLY_WITH = {
    **dict.fromkeys(("scenes", "seed", "ablate", "rate_every_mask"), (ON_SCENES,)),
    **dict.fromkeys(
        (
            "images", "root", "split", "mask_label", "annotator", "start", "candidates",
            "temperature", "visualize", "patience", "record", "ray", "workers",
        ),
        (ON_DATA,),
    ),
    **dict.fromkeys(
        ("select", "click_id", "limit", "skip_bad", "output", "overwrite"),
        (ON_DATA, ON_PREDICTIONS),
    ),
    **dict.fromkeys(
        ("max_clicks", "bundle", "backend", "threads", "report"), (ON_SCENES, ON_DATA)
    ),
}  # fmt: skip


def command(
    context: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="Data files, folders of images and masks, splits by name (refcoco_val), or "
            "predictions. Default: generated scenes.",
            show_default=False,
        ),
    ] = None,
    *,
    reading: DataOptions,
    split: Annotated[
        list[str] | None,
        option("Split of the named benchmarks: val, testA. May be repeated.", panel=DATA),
    ] = None,
    select: Annotated[
        Rule,
        option("Mask to evaluate: best-rated, by SegAgent's own rule, or last.", panel=RESULTS),
    ] = "full",
    click_id: Annotated[
        int | None,
        option("Evaluate the mask after this click instead, counted from 0.", panel=RESULTS, min=0),
    ] = None,
    annotator: Annotated[
        AnnotatorName,
        option("Who clicks: the bundle's MLLM, or an oracle that knows the mask.", panel=SEARCH),
    ] = "mllm",
    start: Annotated[
        StartName,
        option(
            "Start without a mask, or from the true mask degraded to an IoU of 0.5 to 0.7.",
            panel=SEARCH,
        ),
    ] = "nothing",
    search: SearchOptions,
    limit: Annotated[
        int | None,
        option("Evaluate only this many expressions of each data set.", panel=DATA, min=1),
    ] = None,
    output: OutputOption = Path("segagent-eval"),
    visualize: Annotated[
        bool,
        option("Write pictures of the evaluated masks and clicks.", "--visualize", panel=RESULTS),
    ] = False,
    report: ReportOption = None,
    record: Annotated[
        bool,
        option(
            "Go on after a first box, and write into bundle.json what the clicks added. If "
            "they helped, `run` goes on clicking after a box.",
            "--record",
            panel=RESULTS,
        ),
    ] = False,
    overwrite: RestartOption = False,
    scenes: Annotated[
        int, option("Number of generated scenes.", panel=SCENES, min=1, max=MOST_SCENES)
    ] = 100,
    seed: Annotated[int, option("Seed of the first generated scene.", panel=SCENES)] = 1000,
    ablate: Annotated[
        Ablation,
        option("Ablate the expressions, to test whether the model uses them.", panel=SCENES),
    ] = "none",
    patience: Annotated[
        int | None,
        option("Stop after this many masks in a row without a better rating.", panel=SEARCH, min=1),
    ] = None,
    bundle: BundleOption = None,
    compute: ComputeOptions,
    ray: RayOptions,
    as_json: JsonOption = False,
) -> None:
    """On a data set: cIoU, gIoU, clicks, latency, and predictions and tables in SegAgent's format.

    On generated scenes, it prints the figures. The same command continues an interrupted run.
    """
    from segagent_rt.data.sources import check_titles, open_all, recordings_in
    from segagent_rt.eval.evaluation import Evaluation, check_complete, summary_lines, title_of
    from segagent_rt.eval.loop_runs import EvalRunner
    from segagent_rt.eval.scores import MaskChoice
    from segagent_rt.io import check_writable
    from segagent_rt.runtime import load

    if not data:
        from segagent_rt.bundle.manifest import to_json

        check_options(context, ON_SCENES, ONLY_WITH)
        with load(bundle, backend=compute.backend, threads=compute.threads) as runtime:
            taken = _report(report, MaskChoice(), overwrite=False)
            found = _on_scenes(runtime, (scenes, seed, ablate), search.config().rules, taken)
        if as_json:
            console.show_json(found.to_json())
        else:
            console.show(text(to_json(found.to_json())))
        return
    names = named(data, split)
    places = reading.places()
    recordings = {name: recordings_in(name, places) for name in names}
    recorded = None not in recordings.values()
    check_options(context, ON_PREDICTIONS if recorded else ON_DATA, ONLY_WITH)
    check_writable(output)
    if record and (annotator, start, select, click_id) != ("mllm", "nothing", "full", None):
        raise typer.BadParameter(
            "--record measures what `run` does: the bundle's MLLM, from nothing, best-rated mask"
        )
    choice = MaskChoice(select, click_id)
    taken = _report(report, choice, overwrite=overwrite)
    asked = Evaluation(
        output, choice, limit, restart=overwrite, pictures=visualize,
        on_answers=None if taken is None else taken.add_answers,
    )  # fmt: skip
    opened = open_all([name for name in names if recordings[name] is None], places)
    recordings_by_title = [(title_of(name), found) for name, found in recordings.items() if found]
    check_titles([title for title, _ in recordings_by_title] + [each.title for each in opened])
    results = [asked.score(title, found) for title, found in recordings_by_title]
    if opened:
        config = search.config(
            accept_above=None, retry_below=None, patience=patience,
            stop_after_box=False if record else None,
        )  # fmt: skip
        runner = EvalRunner(config, annotator, start)
        cluster = ray.cluster()
        here = runner.parts if cluster.address is None else ()  # on a cluster, the workers load
        with load(bundle, backend=compute.backend, threads=compute.threads, parts=here) as runtime:
            if record:
                check_writable(runtime.bundle.folder)
            run = _evaluate(opened, asked, runner, runtime, cluster)
            results += run
            if record:
                _record(runtime.bundle, run)
            if taken is not None:
                about = {"bundle": f"{runtime.bundle.index.name} {runtime.bundle.digest}"}
                taken.write(about, results, overwrite=overwrite)
                console.say(f"report: {report}")
    if as_json:
        console.show_json({"results": [each.to_json() for each in results]})
    else:
        console.show("\n\n".join("\n".join(summary_lines(each)) for each in results))
    check_complete(results)


def _report(path: Path | None, choice: MaskChoice, *, overwrite: bool) -> EvalReport | None:
    """What takes answers for a report; None if none is wanted.

    Raises:
        OutputError: the file cannot be written, or somebody else wrote the one that is there.
    """
    if path is None:
        return None
    from segagent_rt.eval.report_cases import EvalReport
    from segagent_rt.html_report.builder import ReportBuilder
    from segagent_rt.io import check_replaceable, check_writable

    check_writable(path.parent)
    check_replaceable([path], overwrite=overwrite)
    return EvalReport(path, choice, ReportBuilder(expected=0))


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


def _evaluate(
    opened: list[DataSet], asked: Evaluation, runner: EvalRunner, runtime: Runtime, cluster: Cluster
) -> list[EvalResult]:
    """Every file was read before the first trajectory: a mistake in the last one shows at once."""
    from segagent_rt.data.ray_pool import distribute

    with distribute(cluster, runtime, runner.answerer, runner.parts) as spread:
        return [
            asked.evaluate(
                each, runner.heading(each, runtime), spread, console.progress(each.title)
            )
            for each in opened
        ]


def _record(bundle: Bundle, results: list[EvalResult]) -> None:
    from segagent_rt.bundle.loop_gain import record_loop_gain
    from segagent_rt.eval.evaluation import loop_gain_of

    gains = {each.data: loop_gain_of(each, bundle.digest) for each in results}
    record_loop_gain(bundle, gains)
    for data, measured in gains.items():
        console.say(f"{bundle.folder}: loop_gain on {data} is {measured.gain:+.4f}")


def _on_scenes(
    runtime: Runtime, which: tuple[int, int, Any], rules: StoppingRules, report: EvalReport | None
) -> SceneSuiteResult:
    from segagent_rt.eval.scenes import SceneSuite, evaluate_scenes

    scenes, seed, ablate = which
    suite = SceneSuite(scenes, seed, ablate=ablate)
    report_progress = console.progress("scenes")
    on_scene = None
    if report is not None:
        report.builder.expected, on_scene = scenes, report.add_scene
    found = evaluate_scenes(
        runtime, suite, rules, lambda done: report_progress(done, scenes), on_scene
    )
    if report is not None:
        about = {"bundle": f"{runtime.bundle.index.name} {runtime.bundle.digest}", "seed": seed}
        report.write(about, [found], overwrite=False)
        console.say(f"report: {report.path}")
    return found


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
