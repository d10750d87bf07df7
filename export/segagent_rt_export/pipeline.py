"""Carry out a plan: each part is made and verified aside, then moved into place whole."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from os.path import relpath
from pathlib import Path

import onnx
from filelock import FileLock, Timeout

from segagent_rt.backends.amx import keep_onednn_off_amx
from segagent_rt.bundle.bundle import Part, open_part
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    MANIFEST_FILE,
    PARTS,
    BundleIndex,
    PartName,
    Variant,
    read_json,
)
from segagent_rt.errors import GateFailed, ManifestInvalid, OutputError, SegagentWarning
from segagent_rt.runtime import open_segmenter
from segagent_rt.types import ProgressReporter, Segmenter
from segagent_rt_export.bundle_writer import (
    PartDraft,
    copy_part,
    new_part,
    write_index,
    write_manifest,
)
from segagent_rt_export.families.mllm_export import export_mllm_graphs, export_mllm_tables
from segagent_rt_export.families.mllm_source import MllmSource, counted
from segagent_rt_export.families.segmenters import FOR_GPU, export_segmenter
from segagent_rt_export.gate.golden import write_golden
from segagent_rt_export.gate.inputs import GateInputs, SceneInputs
from segagent_rt_export.gate.mllm_reference import open_reference
from segagent_rt_export.gate.photo_inputs import PhotoInputs
from segagent_rt_export.gate.preset_fit import preset_fit
from segagent_rt_export.gate.streaming import CPU
from segagent_rt_export.gate.tensorrt_support import OPSETS, oldest_tensorrt, unsupported
from segagent_rt_export.gate.verdict import Gate, Verdict
from segagent_rt_export.gate.verify import (
    verify_graphs,
    verify_masks,
    verify_mllm_reference,
    verify_reference,
    verify_replies,
)
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter
from segagent_rt_export.graphs.shape_profiles import mllm_profiles
from segagent_rt_export.passes.calibration import calibrate_ranges
from segagent_rt_export.passes.qdq_conv import Ranges
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.plan import PartPlan, Plan, too_large
from segagent_rt_export.recipe import MllmRecipe, SegmenterRecipe, VariantName
from segagent_rt_export.sources.locations import origin_of
from segagent_rt_export.variants import MLLM_VARIANTS, REFERENCE, SEGMENTER_VARIANTS

ZERO_SHOT = ("qwen2.5-vl-clicks", "qwen3-vl-clicks", "box-then-clicks")
"""Presets that ask models for clicks which were never trained to make them."""


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """The gate, whether what does not pass it is written all the same, and pictures to judge by
    instead of generated scenes."""

    gate: Gate = field(default_factory=Gate)
    forgiving: bool = False
    photos: PhotoInputs | None = None

    @property
    def inputs(self) -> GateInputs:
        """What is compared on."""
        return self.photos or SceneInputs(self.gate.scenes)

    def require(self, part: PartName, verdict: Verdict) -> None:
        """Refuse a part whose reference is not what was published.

        Raises:
            GateFailed: it is not, and that is not allowed, or its numbers are not finite.
        """
        refused = verdict.refused
        if refused is not None and (refused.hopeless or not self.forgiving):
            raise GateFailed(f"the {part} is not what was published: {refused}", hint=refused.hint)

    def left_out(
        self, part: PartName, verdict: Verdict, wanted: Collection[str]
    ) -> dict[str, list[str]]:
        """The wanted variants that are not written because they fail by themselves, and why.

        Raises:
            GateFailed: the reference fails, or no wanted variant is left.
        """
        self.require(part, verdict)
        failed = verdict.failed(forgiving=self.forgiving)
        if set(wanted) <= set(failed):
            worst = next(f for f in verdict.failures if f.variant in failed)
            raise GateFailed(f"no variant of the {part} passes the gate: {worst}", hint=worst.hint)
        return {name: reasons for name, reasons in failed.items() if name in wanted}


def run_export(plan: Plan, policy: GatePolicy, report_progress: ProgressReporter) -> None:
    """Export what the plan says is pending, then write the bundle's index.

    Raises:
        OutputError: the disk is full, or cannot be written.
        CheckpointInvalid: a checkpoint turns out to be of another kind than it seemed.
        GateFailed: a part is not what was published; the parts before it are finished.
    """
    keep_onednn_off_amx()  # the gate runs both
    places = {part.name: part.place for part in plan.parts}
    try:
        with _alone(plan.target):
            for part in plan.parts:
                if part.finished is None:
                    _make(part, places, policy, report_progress)
                elif part.state == "reused":
                    copy_part(open_part(part.finished, part.name), part.target)
            index_parts(plan, places)
    except OSError as error:
        raise OutputError(
            f"{plan.target} cannot be written: {error.strerror or error}",
            hint="finished parts are kept; make room and run the command again with --resume",
        ) from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile; what a killed export left there is removed."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target / ".lock", timeout=0):
            for name in PARTS:
                _tidy(target, name)
            yield
    except Timeout:
        raise OutputError(f"another export is writing into {target}") from None


def _tidy(target: Path, name: PartName) -> None:
    """Finish the moving of a part that was stopped half-way; forget what was not finished."""
    former = target / f".{name}-old"
    if former.exists() and not (target / name).exists():
        former.rename(target / name)
    for left in target.glob(f".{name}-*"):
        shutil.rmtree(left)


def _make(
    part: PartPlan,
    places: Mapping[PartName, Path],
    policy: GatePolicy,
    report_progress: ProgressReporter,
) -> None:
    def say(text: str) -> None:
        report_progress(f"{part.name}: {text}")

    with new_part(part.target) as folder:
        if isinstance(part.recipe, SegmenterRecipe):
            make_segmenter(part, folder, policy, say)
        else:
            make_mllm(part, folder, places.get("segmenter"), policy, say)


def index_parts(plan: Plan, places: Mapping[PartName, Path]) -> None:
    """Write bundle.json. What the bundle had before, or the folder holds, stays part of it."""
    target = plan.target
    paths: dict[PartName, str] = {
        name: name for name in PARTS if (target / name / MANIFEST_FILE).is_file()
    }
    with suppress(ManifestInvalid):  # there may be none yet
        paths |= read_json(target / BUNDLE_FILE, BundleIndex).parts
    paths |= {name: Path(relpath(place, target)).as_posix() for name, place in places.items()}
    target.mkdir(parents=True, exist_ok=True)
    write_index(target, BundleIndex(plan.recipe.name, paths, plan.recipe.about))


def make_segmenter(
    part: PartPlan, folder: Path, policy: GatePolicy, report_progress: ProgressReporter
) -> None:
    """Write a segmenter's part into a folder.

    Raises:
        GateFailed: the reference is not what was published, or no wanted variant is like it.
    """
    assert isinstance(part.recipe, SegmenterRecipe)
    # 1. The graphs in fp32, compared with torch.
    whole = folder / REFERENCE
    whole.mkdir()
    report_progress("tracing the graphs")
    exported = export_segmenter(part.recipe, part.source, whole)
    names = _with_reference((*part.recipe.variants, *part.recipe.fallback))
    variants = {str(name): _segmenter_variant(name, exported) for name in names}
    bare = _described(folder, _draft(part, exported, {REFERENCE: variants[REFERENCE]}))
    verdict = verify_reference(bare, exported.checks, policy.gate, report_progress)
    if exported.for_gpu:
        verdict = verdict.and_also(_verify_form(part, exported, folder, policy, report_progress))
    policy.require("segmenter", verdict)
    # 2. The variants, compared with them.
    ranges: Mapping[str, Ranges] | None = None
    roles = {role for variant in variants.values() for role in variant.integers}
    if roles:
        report_progress("measuring the ranges of values")
        ranges = calibrate_ranges(bare, policy.inputs.measured(), roles)
    for name in names:
        if name != REFERENCE:
            report_progress(f"storing {name}")
            kind = SEGMENTER_VARIANTS[name]
            write_variant(exported.graphs_for(kind.device), folder / name, kind, ranges)
    if exported.for_gpu:
        shutil.rmtree(whole / FOR_GPU)
    draft = _draft(part, exported, variants)
    compared = verify_masks(_described(folder, draft), policy.gate, report_progress, policy.inputs)
    record = partial(write_golden, report_progress=report_progress)
    _finish(part, folder, draft, policy, verdict.and_also(compared), record)


def _verify_form(
    part: PartPlan,
    exported: ExportedSegmenter,
    folder: Path,
    policy: GatePolicy,
    report_progress: ProgressReporter,
) -> Verdict:
    """Compare with torch what variants for GPUs are made of."""
    report_progress("comparing the graphs in their form for GPUs with torch")
    graphs = {role: p.relative_to(folder).as_posix() for role, p in exported.for_gpu.items()}
    whole = _draft(part, exported, {REFERENCE: Variant("gpu", "fp32", graphs, "portable")})
    checks = [check for check in exported.checks if check.role in graphs]
    verdict = verify_graphs(_described(folder, whole), checks, policy.gate)
    failures = [replace(f, text=f"for GPUs, {f.text}") for f in verdict.failures]
    return Verdict({"graphs_for_gpu": verdict.numbers["graphs"]}, tuple(failures))


def _segmenter_variant(name: VariantName, exported: ExportedSegmenter) -> Variant:
    kind = SEGMENTER_VARIANTS[name]
    graphs = {role: f"{name}/{path.name}" for role, path in exported.graphs.items()}
    return Variant(
        kind.device, kind.precision, graphs, kind.dialect, integers=kind.in_integers(graphs)
    )


def _draft(part: PartPlan, exported: ExportedSegmenter, variants: dict[str, Variant]) -> PartDraft:
    provenance = {**_stated_licence(part), **exported.provenance, "order": part.order}
    return PartDraft("segmenter", exported.family, exported.settings, variants, provenance)


def make_mllm(
    part: PartPlan,
    folder: Path,
    segmenter: Path | None,
    policy: GatePolicy,
    report_progress: ProgressReporter,
) -> None:
    """Write an MLLM's part into a folder.

    Raises:
        GateFailed: the reference is not what was published, or no wanted variant is like it.
    """
    source, recipe = part.mllm, part.recipe
    assert source is not None
    assert isinstance(recipe, MllmRecipe)
    # 1. The graphs in fp32, compared with torch.
    whole = {str(REFERENCE): _write_variant(source, REFERENCE, folder, report_progress)}
    report_progress("writing the embeddings")
    export_mllm_tables(source, folder)
    provenance = {
        **_stated_licence(part), **source.provenance, **origin_of(part.source), "order": part.order
    }  # fmt: skip
    if part.adapter is not None:
        provenance["adapter"] = {"source": part.adapter.name, **origin_of(part.adapter)}
    draft = PartDraft("mllm", source.family, source.settings, whole, provenance)
    opened, streamed = _described(folder, draft), too_large(part)
    reference = open_reference(part.source, source, part.adapter, streamed=streamed)
    verdict = verify_mllm_reference(
        opened, reference, policy.gate, report_progress, streamed=streamed
    )
    fit = preset_fit(source, reference)
    if warning := fit.warning(recipe.preset or "of its family"):
        warnings.warn(warning, SegagentWarning, stacklevel=2)
    del reference
    policy.require("mllm", verdict)
    # 2. The variants, compared with them.
    names = [name for name in (*recipe.variants, *recipe.fallback) if name != REFERENCE]
    more = {str(name): _write_variant(source, name, folder, report_progress) for name in names}
    draft = replace(draft, variants=more | whole)
    masks = None if segmenter is None else _open_segmenter(segmenter)
    opened = _described(folder, draft)
    compared = verify_replies(
        opened, masks, policy.gate, report_progress, policy.inputs, streamed=streamed
    )
    quality = "not measured"
    if recipe.preset in ZERO_SHOT:
        quality += "; the model was not trained for this task"
    fitted = Verdict({"quality": quality} | fit.record())
    record = partial(write_golden, report_progress=report_progress, streamed=streamed)
    _finish(part, folder, draft, policy, verdict.and_also(compared).and_also(fitted), record)


def _write_variant(
    source: MllmSource, name: VariantName, folder: Path, report_progress: ProgressReporter
) -> Variant:
    kind = MLLM_VARIANTS[name]
    (folder / name).mkdir()
    watched = counted(source, report_progress, f"writing {name}")
    paths = export_mllm_graphs(watched, folder / name, kind.arithmetic, kind.dialect)
    graphs = {role: f"{name}/{path.name}" for role, path in paths.items()}
    profiles = mllm_profiles(paths, source.codec) if kind.dialect == "portable" else {}
    return Variant(kind.device, kind.precision, graphs, kind.dialect, profiles)


def _open_segmenter(folder: Path) -> Segmenter:
    part = open_part(folder, "segmenter")
    return open_segmenter(part, lambda part, role: part.session(role, CPU))


def _stated_licence(part: PartPlan) -> dict[str, str]:
    """The licence that the recipe names; what the checkpoint's own page says goes before it."""
    facts = part.recipe.published
    return {} if facts is None else {"licence": facts.licence}


def _with_reference(variants: tuple[VariantName, ...]) -> list[VariantName]:
    """The variants, and the reference that they are compared with."""
    return list(dict.fromkeys((*variants, REFERENCE)))


def _described(folder: Path, draft: PartDraft) -> Part:
    """The part as it lies in the folder, the reference included."""
    write_manifest(folder, draft, hashed=False)
    return open_part(folder, draft.kind)


def _finish(
    part: PartPlan,
    folder: Path,
    draft: PartDraft,
    policy: GatePolicy,
    verdict: Verdict,
    record: Callable[[Part, str], dict[str, str]],
) -> None:
    """Drop variants that fail, a fallback that is not needed, and a reference that nobody asked
    for; describe what remains, with golden outputs of what engines are built from."""
    recipe = part.recipe
    failed = policy.left_out(part.name, verdict, (*recipe.variants, *recipe.fallback))
    wanted: dict[str, Variant] = {
        name: draft.variants[name] for name in recipe.variants if name not in failed
    }
    served = {variant.device for variant in wanted.values()}
    needed = [n for n in recipe.fallback if draft.variants[n].device not in served]
    wanted |= {name: draft.variants[name] for name in needed if name not in failed}
    verdict = verdict.without(set(recipe.fallback) - set(needed))
    left_out: dict[str, list[str]] = {
        name: failed[name] for name in (*recipe.variants, *needed) if name in failed
    }
    for name in set(draft.variants) - set(wanted):
        shutil.rmtree(folder / name)
    opened = _described(folder, replace(draft, variants=wanted))
    for name, variant in wanted.items():
        if variant.device != "cpu":
            wanted[name] = replace(variant, golden=record(opened, name))
    verified = verdict.record(left_out)
    if instead := _instead(left_out, wanted, draft.variants, needed):
        verified["instead"] = instead
    if taken := _taken_by_tensorrt(folder, wanted):
        verified["tensorrt"] = taken
    write_manifest(folder, replace(draft, variants=wanted, verified=verified))


def _instead(
    left_out: Collection[str],
    wanted: Collection[str],
    variants: Mapping[str, Variant],
    fallback: Sequence[str],
) -> dict[str, str]:
    """For each variant that was left out, the fallback for its device that was written."""
    written = {variants[name].device: name for name in fallback if name in wanted}
    devices = {name: variants[name].device for name in left_out}
    return {name: written[device] for name, device in devices.items() if device in written}


def _taken_by_tensorrt(folder: Path, variants: Mapping[str, Variant]) -> dict[str, str]:
    """For each variant that TensorRT may be given: the oldest version that takes all its graphs by
    NVIDIA's tables, or why none does."""
    found = dict[str, str]()
    for name, variant in variants.items():
        if variant.device == "cpu":
            continue
        graphs = [onnx.load(folder / file, load_external_data=False)
                  for file in variant.graphs.values()]  # fmt: skip
        refused = next((why for graph in graphs for why in unsupported(graph)), None)
        versions = {oldest_tensorrt(graph) for graph in graphs} - {None}
        found[name] = refused or max(
            (version for version in versions if version), key=list(OPSETS).index
        )
    return found
