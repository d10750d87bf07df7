"""What an export will do, what it takes, and whether this machine has it: all before any work."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import segagent_rt
from segagent_rt.bundle.bundle import open_part
from segagent_rt.bundle.manifest import MANIFEST_FILE, PartName, to_json
from segagent_rt.errors import BundleError, OutputError, TooLittleRoom
from segagent_rt.io import check_writable
from segagent_rt.memory import check_disk_space, free_memory
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_source import Choices, MllmSource, read_source
from segagent_rt_export.families.segmenters import formed_for_gpu
from segagent_rt_export.gate.streaming import PARTITION_BYTES
from segagent_rt_export.gate.verdict import REVISION
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.recipe import MllmRecipe, Recipe, SegmenterRecipe
from segagent_rt_export.sources.locations import check_digest, locate
from segagent_rt_export.sources.shards import open_shards
from segagent_rt_export.variants import MLLM_VARIANTS, REFERENCE, SEGMENTER_VARIANTS

BASE_MEMORY = 1_500_000_000
"""Bytes that torch, the graphs and a picture's activations take beside weights."""

WHOLE = 5_000_000_000
"""Bytes of memory that a comparison may take before it goes piece by piece."""

BYTES: Mapping[str, float] = {"fp32": 4.0, "fp16": 2.0, "8bit": 1.0, "int8": 1.0, "4bit": 0.5}
"""Of a weight, by scheme; blocks add a scale of four bytes each."""


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """Bytes: of the finished part, of the disk while it is made, of memory to make it, and of
    memory to compare it with graphs that are loaded whole."""

    part: int
    disk: int
    memory: int
    gate: int


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One part: where it comes from and goes, and a finished one that makes the work needless.

    Attributes:
        order: names everything that decides the part's content.
        finished: the folder of a part of the same order, in this bundle or in one beside it.
        share: whether the bundle refers to such a part beside it, instead of holding its files.
    """

    name: PartName
    recipe: SegmenterRecipe | MllmRecipe
    source: Path
    target: Path
    order: str
    need: ResourceEstimate
    mllm: MllmSource | None = None
    adapter: Path | None = None
    finished: Path | None = None
    share: bool = False

    @property
    def state(self) -> Literal["exported", "kept", "reused", "shared"]:
        """What becomes of it: a reused part is another bundle's whose files this bundle holds too;
        a shared one lies in the other bundle alone."""
        if self.finished is None:
            return "exported"
        if self.finished == self.target:
            return "kept"
        return "shared" if self.share else "reused"

    @property
    def place(self) -> Path:
        """Where the part lies in the end."""
        return self.finished if self.finished and self.state == "shared" else self.target


@dataclass(frozen=True, slots=True)
class Plan:
    """A bundle to be made in `target`."""

    recipe: Recipe
    target: Path
    parts: tuple[PartPlan, ...]

    @property
    def pending(self) -> list[PartPlan]:
        """The parts that must be exported."""
        return [part for part in self.parts if part.finished is None]


def make_plan(
    recipe: Recipe,
    target: Path,
    *,
    resume: bool,
    below_gate: bool,
    pictures: str = "",
    share: bool = False,
) -> Plan:
    """Find and understand all sources.

    Args:
        recipe: what is asked for.
        target: the bundle's folder.
        resume: keep finished parts of the folder instead of making them again.
        below_gate: finished parts may be used though they did not pass the gate.
        pictures: names those that parts are judged by, if they are not generated scenes.
        share: refer to a finished part of a bundle beside this one; it is copied if left out.

    Raises:
        SourceMissing: a checkpoint is not there.
        CheckpointInvalid: one is damaged, or of another family than the recipe says.
        OutputError: the folder cannot be written, or holds something else.
    """
    check_writable(target)
    beside = Path(recipe.folder)
    parts = []
    for name, part in recipe.parts.items():
        planned = _plan_part(name, part, beside, target / name)
        planned = replace(planned, order=_judged_by(pictures, planned.order))
        places = [planned.target] if resume else []
        places += (p.parent for p in sorted(target.parent.glob(f"*/{name}/{MANIFEST_FILE}")))
        usable = (place for place in places if resume or place != planned.target)
        finished = next((p for p in usable if _fulfils(p, name, planned.order, below_gate)), None)
        parts.append(replace(planned, finished=finished, share=share))
    return Plan(recipe, target, tuple(parts))


def _plan_part(
    name: PartName, recipe: SegmenterRecipe | MllmRecipe, beside: Path, target: Path
) -> PartPlan:
    if target.exists() and not (target / MANIFEST_FILE).is_file():
        raise OutputError(
            f"{target} exists and is not part of a bundle", hint="choose another folder with -o"
        )
    source = locate(recipe.source, beside, recipe.origin)
    if isinstance(recipe, SegmenterRecipe):
        check_digest(source, recipe.sha256)
        need = estimate_segmenter(recipe, source)
        return PartPlan(name, recipe, source, target, _order(recipe, source, None), need)
    adapter = None if recipe.adapter is None else locate(recipe.adapter, beside)
    mllm = read_mllm(recipe, source, adapter)
    need, order = estimate_mllm(recipe, mllm), _order(recipe, source, adapter)
    return PartPlan(name, recipe, source, target, order, need, mllm, adapter)


def read_mllm(recipe: MllmRecipe, source: Path, adapter: Path | None) -> MllmSource:
    """An MLLM's checkpoint, understood; its weights stay on disk."""
    choices = Choices(
        preset=recipe.preset,
        decoding=recipe.decoding,
        adapter=adapter,
        most_pixels=recipe.most_pixels,
        jpeg=recipe.jpeg,
    )
    found = read_source(source, choices)
    if found.family != recipe.family:
        raise CheckpointInvalid(
            f"{source} holds a model of the family {found.family}, not {recipe.family}",
            hint="the recipe names the family; is this the right folder?",
        )
    return found


def estimate_segmenter(recipe: SegmenterRecipe, source: Path) -> ResourceEstimate:
    """Checkpoints in a file are taken to be fp32, as all published ones are."""
    if source.is_dir():
        count = sum(math.prod(tensor.shape) for tensor in open_shards(source).values())
    else:
        count = source.stat().st_size // 4
    part, tried = (
        sum(_size(count, SEGMENTER_VARIANTS[name].linear) for name in names)
        for names in (recipe.variants, recipe.fallback)
    )
    whole = 4 * count
    scratch = (REFERENCE not in recipe.variants) + formed_for_gpu(recipe)
    memory = BASE_MEMORY + 4 * whole
    return ResourceEstimate(part, part + tried + scratch * whole, memory, memory)


def estimate_mllm(recipe: MllmRecipe, source: MllmSource) -> ResourceEstimate:
    """An estimate from the shapes alone."""
    vision, decoder, table, largest = _counts(source)
    sizes = {
        name: _size(vision, MLLM_VARIANTS[name].arithmetic.vision)
        + _size(decoder, MLLM_VARIANTS[name].arithmetic.language)
        for name in {*recipe.variants, *recipe.fallback, REFERENCE}
    }
    part = sum(sizes[name] for name in recipe.variants) + 4 * table
    scratch = sum(sizes[name] for name in recipe.fallback)
    scratch += 0 if REFERENCE in recipe.variants else sizes[REFERENCE]
    # In fp32 a tensor on its way is there twice, and what torch is compared with.
    memory = BASE_MEMORY + max(8 * largest, 2 * PARTITION_BYTES)
    gate = BASE_MEMORY + 2 * (sizes[REFERENCE] + 4 * table)
    return ResourceEstimate(part, part + scratch, memory, gate)


def _counts(source: MllmSource) -> tuple[int, int, int, int]:
    """Weights of the vision encoder, of the decoder's layers, of the embeddings, of the largest
    tensor."""
    vision = decoder = table = largest = 0
    for name, tensor in source.weights.tensors.items():
        count = math.prod(tensor.shape)
        largest = max(largest, count)
        if name.startswith("visual."):
            vision += count
        elif name == "language.embed_tokens.weight":
            table = count
        elif name.startswith("language.") or source.settings.decoding == "free":
            decoder += count
    return vision, decoder, table, largest


def _size(count: int, precision: Precision) -> int:
    scales = 4 / precision.block if precision.scheme in ("8bit", "4bit") else 0
    return int(count * (BYTES[precision.scheme] + scales))


def check_room(plan: Plan) -> None:
    """Refuse what the disk or the memory cannot hold.

    Raises:
        TooLittleRoom: one of them is too small.
    """
    less = "fewer variants take less, and so does one part at a time: --variant, --only"
    disk = sum(part.need.disk for part in plan.pending)
    check_disk_space(disk, plan.target, "the export takes about", less)
    memory = free_memory()
    for part in plan.pending:
        if memory is not None and part.need.memory > memory:
            raise TooLittleRoom(
                f"the export takes about {part.need.memory / 1e9:.1f} GB of memory, "
                f"{memory / 1e9:.1f} GB are free",
                hint=less,
            )


def too_large(part: PartPlan) -> bool:
    """Whether a part is compared piece by piece."""
    free = free_memory()
    return part.need.gate > (WHOLE if free is None else min(free, WHOLE))


def describe(plan: Plan) -> Iterator[str]:
    """The plan in words, a line for each part and one for the whole."""
    for part in plan.parts:
        what = f"{part.name}: {part.recipe.family} from {part.source}"
        if part.finished is None:
            variants = ", ".join(part.recipe.variants)
            if part.recipe.fallback:
                variants += " (or " + ", ".join(part.recipe.fallback) + ")"
            yield f"{what}, {variants}, about {part.need.part / 1e6:.0f} MB"
        else:
            yield f"{what}, {part.state}: {part.finished}"
    if plan.pending:
        disk = sum(part.need.disk for part in plan.pending) / 1e9
        memory = max(_memory(part) for part in plan.pending) / 1e9
        yield f"takes about {disk:.1f} GB of disk while it works, and {memory:.1f} GB of memory"


def _memory(part: PartPlan) -> int:
    return part.need.memory if too_large(part) else max(part.need.memory, part.need.gate)


def _order(part: SegmenterRecipe | MllmRecipe, source: Path, adapter: Path | None) -> str:
    """Names what a part is made of; files count by name, size and date."""
    apart = ("origin", "source", "adapter", "published", "sha256")
    recipe = {k: v for k, v in to_json(part).items() if k not in apart}
    files = [file for place in (source, adapter) if place for file in _files(place)]
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    inputs = json.dumps([recipe, stamps, segagent_rt.__version__, REVISION], sort_keys=True)
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


def _judged_by(pictures: str, order: str) -> str:
    """Other pictures make another part: its figures, and the ranges of its integers."""
    return hashlib.sha256(f"{order} {pictures}".encode()).hexdigest()[:16] if pictures else order


def _files(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]


def _fulfils(folder: Path, name: PartName, order: str, below_gate: bool) -> bool:
    """Whether a folder holds the finished part of an order, every byte as it was exported.

    With `below_gate` variants that the gate left out are missing.
    """
    try:
        part = open_part(folder, name)
        if part.manifest.provenance.get("order") != order:
            return False
        part.verify()
    except BundleError:
        return False
    verified = part.manifest.verified
    if below_gate:
        return not verified.get("left_out")
    return verified.get("gate") == "passed"
