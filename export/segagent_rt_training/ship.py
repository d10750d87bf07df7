"""From a training folder to the bundle that ships: exported, judged, and described."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segagent_rt.bundle.loop_gain import record_accept_unrated
from segagent_rt.bundle.manifest import (
    MANIFEST_FILE,
    Manifest,
    UnratedAcceptance,
    read_json,
    to_json,
)
from segagent_rt.eval.accept_unrated import calibrate
from segagent_rt.eval.figures import SceneSuiteResult
from segagent_rt.eval.scenes import SceneSuite, evaluate_scenes
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import Runtime, load
from segagent_rt.scenes import GENERATOR
from segagent_rt_export.bundle_writer import new_part, write_json
from segagent_rt_export.demo_bundle import write_demo_bundle
from segagent_rt_export.families.demo_mllm.export import LANGUAGE
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.gate.agreement import check_gate, measure_agreement
from segagent_rt_training.checkpoints import PLAN_FILE, last_stage, stages_of, trained_nets
from segagent_rt_training.torch_sessions import annotator_as_trained, segmenter_as_trained

EVAL_SEED, AGREEMENT_SEED, CALIBRATION_SEED = 1000, 5000, 10_000
"""First scenes of what is measured; training draws its scenes by other names."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How much is measured before a bundle may ship, and whether the gate decides."""

    states: int = 500
    scenes: int = 500
    calibration_scenes: int = 2500
    gated: bool = True


def ship(
    training: Path, target: Path, trial: Trial, report_progress: Callable[[str], None]
) -> None:
    """Write the bundle to `target`, its figures in its manifests.

    Raises:
        GateFailed: it is not what was trained; nothing is written.
    """
    stage = last_stage(training)
    with new_part(target) as folder:
        bundle = folder / "bundle"
        report_progress(f"export {stage}")
        write_demo_bundle(*trained_nets(training, stage), bundle)
        with load(bundle) as runtime:
            report_progress(f"compare {trial.states} replies with the weights before export")
            agreement = _agreement(runtime, training, stage, trial.states)
            if trial.gated:
                check_gate(agreement)
            figures = evaluate(runtime, trial.scenes, report_progress)
        origin = provenance(training)
        seen = {"oracle_miou_by_click": figures["scenes"]["oracle_miou_by_click"]}
        _describe(bundle / "segmenter" / MANIFEST_FILE, origin, seen)
        _describe(bundle / "mllm" / MANIFEST_FILE, origin, {"agreement": agreement, **figures})
        calibrate_bundle(bundle, trial.calibration_scenes, report_progress)
        for path in list(bundle.iterdir()):
            path.rename(folder / path.name)
        bundle.rmdir()


def calibrate_bundle(
    bundle: Path, scenes: int, report_progress: Callable[[str], None]
) -> UnratedAcceptance | None:
    """Write into `bundle.json` from where on masks are accepted without a look that rates them.

    Returns:
        What was written; None if every mask is to be rated.
    """
    report_progress(f"calibrate on {scenes} scenes")
    with load(bundle) as runtime:
        found = calibrate(runtime, SceneSuite(scenes, CALIBRATION_SEED), lambda _: None)
        record_accept_unrated(runtime.bundle, found)
    return found


def _agreement(runtime: Runtime, training: Path, stage: str, states: int) -> dict[str, Any]:
    segmenter, net = trained_nets(training, stage)
    true = annotator_as_trained(net, build_tokenizer())
    return measure_agreement(
        runtime, true, segmenter_as_trained(segmenter), LANGUAGE, states, AGREEMENT_SEED
    )


def evaluate(
    runtime: Runtime, scenes: int, report_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Figures on held-out scenes, and first clicks without or with a wrong expression."""

    def run(ablate: Any, rules: StoppingRules) -> SceneSuiteResult:
        report_progress(f"evaluate {scenes} scenes, expressions {ablate}")
        suite = SceneSuite(scenes, EVAL_SEED, ablate=ablate)
        return evaluate_scenes(runtime, suite, rules, lambda _: None)

    def first_click(ablate: Any) -> dict[str, Any]:
        found = run(ablate, StoppingRules(max_clicks=1))
        return {name: getattr(found.figures, name) for name in ("first_click_hit", "hit_by_rules")}

    main = to_json(run("none", StoppingRules(accept_unrated=False)).to_json())
    for volatile in ("bundle", "seconds"):
        main.pop(volatile)
    return {
        "scenes": main,
        "ablations": {ablate: first_click(ablate) for ablate in ("remove", "shuffle")},
    }


def provenance(training: Path) -> dict[str, Any]:
    """Recipe, samples seen, and the commit whose code trained."""
    plan = training / PLAN_FILE
    logs = {stage: training / f"{stage}.jsonl" for stage in stages_of(training)}
    last = {
        stage: json.loads(path.read_text("utf-8").splitlines()[-1])
        for stage, path in logs.items()
        if path.exists()
    }
    return {
        "trained_by": "python -m segagent_rt_training all",
        "generator": GENERATOR,
        "plan": json.loads(plan.read_text("utf-8")) if plan.exists() else None,
        "samples": {stage: row["seen"] for stage, row in last.items()},
        "cpu_minutes": {stage: row["cpu_minutes"] for stage, row in last.items()},
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """The commit of this code, or None outside a repository."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _describe(path: Path, origin: dict[str, Any], verified: dict[str, Any]) -> None:
    manifest: Manifest = read_json(path, Manifest)
    write_json(path, replace(manifest, provenance=origin, verified=verified))
