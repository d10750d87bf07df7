"""How much memory a bundle takes, computed from its manifests before anything is loaded.

Weights are counted as TensorRT-RTX keeps them: codes of 8 and 4 bits stay packed in an engine.
Buffers are counted as this package holds them for one open image. Activations are estimated as if
no kernel fused attention, and as if each graph kept its own. So most backends need less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from segagent_rt.annotators.mllm import MllmSettings
from segagent_rt.bench.boards import GIB, DeviceBoard
from segagent_rt.bench.buffers import FLOAT, MllmShape, mllm_buffers, mllm_shape
from segagent_rt.bundle.bundle import Bundle, Part
from segagent_rt.bundle.manifest import PartName, Variant
from segagent_rt.families import segmenter_family
from segagent_rt.memory import build_memory
from segagent_rt.mllm.language_model import cache_rows
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.runtime import open_prompt_codec

ROWS = 20
"""Activations of a transformer's layer that are alive together, counted in rows of its width."""

HEADS = 16
"""Heads where the manifest does not tell, as in most of these models."""

CHANNELS = 32
"""Channels that other segmenters keep at the picture's full size, in all their maps together."""

BUFFERED = 16
"""Numbers of inputs, outputs and features at the picture's full size, of families that do not say
how many they have."""

BASE: Mapping[PartName, int] = {"segmenter": 16 << 20, "mllm": 48 << 20}
"""What a library takes for a loaded graph, beside its weights: kernels and their descriptions grow
with layers and profiles (`tests/export/command/test_true_widths.py` compares with engines)."""


@dataclass(frozen=True, slots=True)
class PartMemory:
    """Bytes that one variant of a part takes, and, for a while, building its engines."""

    part: str
    variant: str
    weights: int
    buffers: int
    activations: int
    building: int

    @property
    def total(self) -> int:
        return self.weights + self.buffers + self.activations


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A bundle on a board: what each part would take there, and what is left, in bytes."""

    needs: tuple[PartMemory, ...]
    memory: int
    kept: int

    @property
    def left(self) -> int:
        return self.memory - self.kept - sum(need.total for need in self.needs)

    @property
    def fits(self) -> bool:
        return self.left >= 0

    @property
    def left_building(self) -> int:
        """What is left while the largest engine is built, with nothing else loaded."""
        return self.memory - self.kept - max(need.building for need in self.needs)


def budget(bundle: Bundle, where: DeviceBoard) -> MemoryBudget:
    """What a bundle takes on a board."""
    needs = tuple(_need(part, chosen(part)) for part in bundle.parts.values())
    return MemoryBudget(needs, where.memory, where.kept)


@dataclass(frozen=True, slots=True)
class VariantFit:
    """Whether one variant of a part suits a board with a GPU; `problem` says why not."""

    need: PartMemory
    tensorrt: str | None
    problem: str | None


def suitable_variants(
    bundle: Bundle, where: DeviceBoard, tensorrt: str | None = None
) -> list[VariantFit]:
    """Every variant that a GPU may be given, in the manifests' order, and whether it suits a board.

    Args:
        bundle: what is to run there.
        where: the board.
        tensorrt: the version of TensorRT there; None if it is not known.
    """
    needs = {
        name: [_need(part, n) for n, v in part.manifest.variants.items() if v.device != "cpu"]
        for name, part in bundle.parts.items()
    }
    versions = {
        name: part.manifest.verified.get("tensorrt", {}) for name, part in bundle.parts.items()
    }
    return judge_variants(needs, where, versions, tensorrt)


def judge_variants(
    needs: Mapping[PartName, Sequence[PartMemory]],
    where: DeviceBoard,
    versions: Mapping[PartName, Mapping[str, str]],
    tensorrt: str | None = None,
) -> list[VariantFit]:
    """Whether each variant of a bundle suits a board, beside the smallest one of the other part.

    Args:
        needs: the variants of each part.
        where: the board.
        versions: the oldest TensorRT of a variant, by part; variants may be missing.
        tensorrt: the version of TensorRT there; None if it is not known.
    """
    least = {name: min((n.total for n in found), default=0) for name, found in needs.items()}
    usable, fits = where.memory - where.kept, list[VariantFit]()
    for name, found in needs.items():
        beside = sum(total for other, total in least.items() if other != name)
        for need in found:
            taken = versions.get(name, {}).get(need.variant)
            problem = _problem(need, usable, beside, taken, tensorrt)
            fits.append(VariantFit(need, taken, problem))
    return fits


def _problem(
    need: PartMemory, usable: int, beside: int, taken: str | None, tensorrt: str | None
) -> str | None:
    """Why a variant does not suit; `beside` is what the other parts take at least."""
    if taken is not None and not _VERSION.fullmatch(taken):
        return f"not for TensorRT: {taken}"
    if taken is not None and tensorrt is not None and _older(tensorrt, taken):
        return f"needs TensorRT {taken}"
    if need.total + beside > usable:
        return f"takes {need.total / GIB:.1f} GiB, and {(usable - beside) / GIB:.1f} GiB are left"
    if need.building > usable:
        return f"building takes {need.building / GIB:.1f} GiB of {usable / GIB:.1f} GiB"
    return None


_VERSION = re.compile(r"\d+\.\d+")


def _older(version: str, other: str) -> bool:
    """Whether a version of TensorRT is older than another one."""
    numbers = [[int(n) for n in re.findall(r"\d+", text)[:2]] for text in (version, other)]
    return numbers[0] < numbers[1]


def chosen(part: Part) -> str:
    """The variant that runs on a board with a GPU: made for one, or for anything, or the first."""
    variants = part.manifest.variants
    for device in ("gpu", "any"):
        for name, variant in variants.items():
            if variant.device == device:
                return name
    return next(iter(variants))


def _need(part: Part, name: str) -> PartMemory:
    manifest = part.manifest
    variant = manifest.variants[name]
    stored = list(_stored(part, variant))
    buffers = activations = table = 0
    if manifest.kind == "mllm":
        table = sum(r.size for f, r in manifest.files.items() if f == "embed.npy")
        buffers, activations = _mllm(part)
    else:
        side, flip = int(manifest.settings["side"]), bool(manifest.settings.get("flip"))
        activations = (2 if flip else 1) * segmenter_activations(manifest.family, side)
        buffers = _segmenter_buffers(part, side)
    unpacked = 4 if _unpacks(variant) else 1
    loaded = [size * unpacked for size in stored]
    building = max(build_memory(size, variant.precision) for size in stored)
    return part_memory(manifest.kind, name, loaded, table, (buffers, activations), building)


def part_memory(
    kind: PartName,
    variant: str,
    graphs: Sequence[int],
    table: int,
    working: tuple[int, int],
    building: int,
) -> PartMemory:
    """What one variant takes.

    Args:
        kind: of the part.
        variant: its name.
        graphs: bytes of each graph's weights when it is loaded.
        table: bytes of the table of embeddings, for an MLLM.
        working: bytes of buffers, and of activations.
        building: bytes while the largest graph is built, alone.
    """
    loaded = sum(graphs) + BASE[kind] * len(graphs) + table
    return PartMemory(kind, variant, loaded, *working, building)


def _stored(part: Part, variant: Variant) -> Iterator[int]:
    """Bytes on disk of each graph with its weights."""
    for file in dict.fromkeys(variant.graphs.values()):
        yield sum(part.manifest.files[name].size for name in (file, *part.weights(file)))


def _unpacks(variant: Variant) -> bool:
    """Whether eight bits of each weight on disk are unpacked to 32 when it is loaded."""
    return "stored" in variant.precision or "arithmetic fp32" in variant.precision


def _mllm(part: Part) -> tuple[int, int]:
    """Bytes of buffers and of activations, for the largest picture and the longest question."""
    settings = part.settings(MllmSettings)
    patches, grid = _patches(settings), settings.vision.grid
    visual = grid[0] * grid[1] if grid else patches // settings.vision.merge**2
    tokens = cache_rows(open_prompt_codec(part).room(visual))
    return mllm_working(mllm_shape(settings, patches=patches, visual=visual, tokens=tokens))


def mllm_working(shape: MllmShape) -> tuple[int, int]:
    """Bytes of buffers and of activations of an MLLM."""
    reading = _layer(shape.tokens, shape.hidden, shape.hidden // shape.head_width)
    return mllm_buffers(shape), reading + _layer(shape.patches, shape.hidden, HEADS)


def _patches(settings: MllmSettings) -> int:
    resize, patch = settings.vision.resize, settings.vision.patch
    pixels = resize.most if isinstance(resize, SmartResize) else resize.side**2
    return pixels // patch**2


def _segmenter_buffers(part: Part, side: int) -> int:
    family = segmenter_family(part.manifest.family)
    if family is None or family.buffers is None:
        return unknown_buffers(side)
    return family.buffers(part.settings(family.settings))


def unknown_buffers(side: int) -> int:
    """Bytes of buffers of a segmenter that does not say how many it has; `side` in pixels."""
    return side**2 * BUFFERED * FLOAT


def segmenter_activations(family: str, side: int) -> int:
    """Bytes of activations of a segmenter for one square picture."""
    known = segmenter_family(family)
    if known is not None and known.attention_patch is not None:
        return _layer((side // known.attention_patch) ** 2, 64 * HEADS, HEADS)
    return side**2 * CHANNELS * FLOAT


def _layer(rows: int, width: int, heads: int) -> int:
    """Activations of a layer: its rows, and the scores of all heads before and after softmax."""
    return FLOAT * (ROWS * rows * width + 2 * heads * rows**2)
