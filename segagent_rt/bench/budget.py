"""How much memory a bundle takes, computed from its manifests before anything is loaded.

Weights and the buffers of keys and values are counted; activations are estimated as if no kernel
fused attention, and as if each graph kept its own. So most backends need less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from segagent_rt.annotators.mllm import MllmSettings
from segagent_rt.bench.boards import DeviceBoard
from segagent_rt.bundle.bundle import Bundle, Part
from segagent_rt.bundle.manifest import Variant
from segagent_rt.families import segmenter_family
from segagent_rt.memory import BUILD_BASE, BUILD_FACTOR
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.runtime import open_prompt_codec

FLOAT = 4
"""Bytes of a number, in buffers and activations."""

CACHES = 2
"""Buffers of keys and values that a walk keeps: of the clean picture, and of the painted one."""

ROWS = 20
"""Activations of a transformer's layer that are alive together, counted in rows of its width."""

HEADS = 16
"""Heads where the manifest does not tell, as in most of these models."""

CHANNELS = 32
"""Channels that other segmenters keep at the picture's full size, in all their maps together."""

BASE = 32 << 20
"""What a library takes for a loaded graph, beside its weights."""


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


def chosen(part: Part) -> str:
    """The variant that runs on a board with a GPU: made for one, or for anything, or the first."""
    variants = part.manifest.variants
    for device in ("gpu", "any"):
        for name, variant in variants.items():
            if variant.device == device:
                return name
    return next(iter(variants))


def _need(part: Part, name: str) -> PartMemory:
    variant = part.manifest.variants[name]
    stored = list(_stored(part, variant))
    loaded = sum(stored) * (4 if _unpacks(variant) else 1) + BASE * len(stored)
    buffers = activations = 0
    if part.manifest.kind == "mllm":
        loaded += sum(r.size for f, r in part.manifest.files.items() if f == "embed.npy")
        buffers, activations = _mllm(part)
    else:
        activations = _segmenter(part)
    building = BUILD_FACTOR * max(stored) + BUILD_BASE
    return PartMemory(part.manifest.kind, name, loaded, buffers, activations, building)


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
    language, patches = settings.language, _patches(settings)
    tokens = open_prompt_codec(part).room(patches // settings.vision.merge**2)
    width = language.rope.head_dim
    row = language.layers * 2 * language.kv_heads * width * FLOAT
    reading = _layer(tokens, language.hidden, language.hidden // width)
    return CACHES * tokens * row, reading + _layer(patches, language.hidden, HEADS)


def _patches(settings: MllmSettings) -> int:
    resize, patch = settings.vision.resize, settings.vision.patch
    pixels = resize.most if isinstance(resize, SmartResize) else resize.side**2
    return pixels // patch**2


def _segmenter(part: Part) -> int:
    side = int(part.manifest.settings["side"])
    batch = 2 if part.manifest.settings.get("flip") else 1
    family = segmenter_family(part.manifest.family)
    if family is not None and family.attention_patch is not None:
        return batch * _layer((side // family.attention_patch) ** 2, 64 * HEADS, HEADS)
    return batch * side**2 * CHANNELS * FLOAT


def _layer(rows: int, width: int, heads: int) -> int:
    """Activations of a layer: its rows, and the scores of all heads before and after softmax."""
    return FLOAT * (ROWS * rows * width + 2 * heads * rows**2)
