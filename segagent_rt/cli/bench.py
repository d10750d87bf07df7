"""Measure latency, accuracy and memory on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segagent_rt.cli import bench_report, console
from segagent_rt.cli.option_groups import ComputeOptions
from segagent_rt.cli.parameters import (
    BundleArgument,
    JsonOption,
    OverwriteOption,
    ReportOption,
    check_options,
    option,
)
from segagent_rt.errors import ExtraMissing, GateFailed

if TYPE_CHECKING:
    from segagent_rt.bench.figures import ComparisonResult

SCENARIOS = ("one", "many", "deadline")


LIST = "--list"
MEASURING = "measuring"


class GROUP(typer.core.TyperGroup):
    """`bench BUNDLE` is `bench measure BUNDLE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that is meant if none is named."""
        known = (*self.commands, *ctx.help_option_names)
        if not args or args[0] not in known:
            args = ["measure", *args]
        return list(super().parse_args(ctx, args))


def command(
    context: typer.Context,
    bundle: BundleArgument = None,
    scenario: Annotated[
        list[str] | None,
        option("A packaged scenario or a TOML file. May be repeated.", "--scenario", "-s"),
    ] = None,
    list_scenarios: Annotated[bool, option("List the packaged scenarios.", "--list")] = False,
    against: Annotated[
        Literal["reference"] | None,
        option("Compare with SegAgent's loop in PyTorch (needs the extra `export`)."),
    ] = None,
    weights: Annotated[
        Path | None,
        option("Folder of a training, whose weights the reference uses.", readable=False),
    ] = None,
    output: Annotated[
        Path | None,
        option("Also write the results to this JSON file.", "--output", "-o", readable=False),
    ] = None,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    *,
    compute: ComputeOptions,
    as_json: JsonOption = False,
) -> None:
    """Prints or writes one JSON document. Warm-up runs are excluded; `n` counts timed runs."""
    check_options(context, LIST if list_scenarios else MEASURING, ONLY_WITH)
    from segagent_rt.bench.figures import BenchResult, LoopFigures
    from segagent_rt.bench.flops import flops_per_call
    from segagent_rt.bench.machine import describe_machine, measure_ceilings, peak_bytes
    from segagent_rt.bench.measure import run_scenario
    from segagent_rt.bench.profiling import GraphProfiler
    from segagent_rt.bench.report_cases import BenchReport
    from segagent_rt.bench.roofline import roofline, weight_bytes
    from segagent_rt.bench.scenario import packaged_scenarios, read_scenario
    from segagent_rt.bundle.manifest import to_json
    from segagent_rt.io import check_replaceable, check_writable, json_bytes, write_result
    from segagent_rt.runtime import load

    if list_scenarios:
        names = packaged_scenarios()
        if as_json:
            console.show_json(list(names))
        else:
            console.show("\n".join(names))
        return
    if against and len(scenario or ()) > 1:
        raise typer.BadParameter("--against takes one --scenario")
    chosen = [read_scenario(name) for name in scenario or (("one",) if against else SCENARIOS)]
    files = [path for path in (output, report) if path is not None]
    for path in files:
        check_writable(path.parent)
    check_replaceable(files, overwrite=overwrite)
    slowest = BenchReport()
    meter = GraphProfiler()
    start = time.perf_counter()
    with load(bundle, backend=compute.backend, threads=compute.threads, wrap=meter.wrap) as runtime:
        loaded, machine = time.perf_counter() - start, describe_machine()
        ceilings = measure_ceilings()
        bundle_name = {"name": runtime.bundle.index.name, "digest": runtime.bundle.digest}
        found, rooflines, comparison = {}, {}, None
        if against:
            comparison = _compare(runtime, meter, chosen[0], weights)
        else:
            found = {
                s.name: run_scenario(runtime, meter, s, _report_progress, slowest.add)
                for s in chosen
            }
            sizes, flops = weight_bytes(runtime), flops_per_call(runtime, next(chosen[0].draw()))
            rooflines = {
                name: roofline(sizes, flops, ceilings, each.figures.per_call)
                for name, each in found.items()
                if isinstance(each.figures, LoopFigures)
            }
    result = BenchResult(
        load_ms=round(1000 * loaded, 1),
        machine=machine,
        ceilings=ceilings,
        bundle=bundle_name,
        backend=compute.backend,
        threads=compute.threads or machine["cores"],
        peak_megabytes=round((peak_bytes() or 0) / 1e6, 1),
        scenarios=found,
        roofline=rooflines,
        comparison=comparison,
    )
    document = to_json(result.to_json())
    if output is not None:
        write_result(output, json_bytes(document, indent=1), overwrite=overwrite)
    if report is not None:
        slowest.write(report, document, overwrite=overwrite)
        console.say(f"report: {report}")
    if as_json:
        console.show_json(document)
    else:
        console.show(_table(document))
    if document.get("parity") is False:
        raise GateFailed(
            "the two loops do not make the same clicks and masks, so there is no speed-up",
            hint="`parity_figures` in --json has the differences",
        )


def _compare(runtime: Any, meter: Any, scenario: Any, weights: Path | None) -> ComparisonResult:
    from segagent_rt.bench.compare_reference import Comparison

    contender = open_reference_loop(runtime.bundle, weights, runtime.where.threads)
    return Comparison(runtime, meter, contender, scenario).run(_report_progress)


def open_reference_loop(bundle: Any, weights: Path | None, threads: int | None) -> Any:
    """The packaged reference loop; its file is no module of this package, for it needs torch.

    Raises:
        ExtraMissing: torch or transformers are not installed.
    """
    import importlib.util
    import sys

    from segagent_rt.backends.amx import keep_onednn_off_amx
    from segagent_rt.bench.packaged import packaged

    keep_onednn_off_amx()
    spec = importlib.util.spec_from_file_location(
        "segagent_rt_reference", packaged("reference") / "loop.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError:
        raise ExtraMissing("bench --against reference", "export") from None
    return module.open_reference(bundle, weights, threads)


_report_progress = console.phases(every=console.EVERY_LINE)

ONLY_WITH = dict.fromkeys(
    (
        "bundle",
        "scenario",
        "against",
        "weights",
        "output",
        "report",
        "overwrite",
        "backend",
        "threads",
    ),
    (MEASURING,),
)

COMMANDS = {
    "measure": (command, "Measure a bundle. This is the default."),
    "report": (bench_report.command, bench_report.__doc__),
}
"""The commands of `bench`."""


def _table(document: dict[str, Any]) -> str:
    """The main figures as text."""
    machine = document["machine"]
    lines = ["", f"{machine['processor']}, {machine['cores']} cores, {document['bundle']['name']}"]
    if "ratios" in document:
        lines += _comparison(document)
    for name, figures in document.get("scenarios", document.get("stages", {})).items():
        lines += ["", f"{name}, milliseconds:"]
        for path, spread in _spreads(figures):
            row = "  ".join(f"{key} {spread[key]:9.2f}" for key in ("p50", "p90", "p99", "max"))
            lines.append(f"  {path:34s} {row}  n {spread['n']}")
        for key in ("miou", "clicks_mean", "glue_share"):
            if key in figures:
                lines.append(f"  {key:34s} {figures[key]}")
    return "\n".join(lines)


def _comparison(document: dict[str, Any]) -> list[str]:
    """The ratios, or that there are none to tell."""
    lines = ["", f"against plain PyTorch, {document['clicks']} clicks:"]
    for name, ratio in document["ratios"].items():
        text = "not reported"
        if ratio is not None:
            text = "{median:.2f} times as fast (p10 {p10:.2f}, p90 {p90:.2f}, n {n})".format(
                **ratio
            )
        lines.append(f"  {name:34s} {text}")
    for name, accuracy in document["accuracy"].items():
        lines.append(f"  {'miou ' + name:34s} {accuracy['miou']}")
    parity = document["parity_figures"]
    for key in ("same_clicks", "mask_iou", "states"):
        lines.append(f"  {'parity: ' + key:34s} {parity[key]}")
    for key in ("decoder_calls_after_prefill", "tokens_per_reply", "token_equality"):
        lines.append(f"  {key:34s} {document[key]}")
    return lines


def _spreads(figures: dict[str, Any], path: str = "") -> Any:
    for key, value in figures.items():
        if isinstance(value, dict):
            here = f"{path}{key}"
            if "p50" in value:
                yield here, value
            else:
                yield from _spreads(value, f"{here}.")
