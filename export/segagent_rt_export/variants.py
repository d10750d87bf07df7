"""Named variants: how precise the graphs of a part are, and for what they are made.

The `reference` is what every other variant is compared with; it runs everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from segagent_rt_export.graphs.precision import Device, MllmPrecision, Precision
from segagent_rt_export.recipe import VariantName

REFERENCE: VariantName = "reference"
LONG, MIDDLE, SHORT = 128, 64, 32
"""Weights that share a scale. Long blocks are faster, but err more, and their products depend in
the last bits on how many rows come in at once: tokens fed together would not be tokens fed alone.
"""


@dataclass(frozen=True, slots=True)
class SegmenterVariant:
    """`linear` is for matrix products, in fp16 for convolutions too; `decoder` for those of the
    decoder, if they differ. `convolutions` of 8 bits are unpacked when loaded; as int8 they are
    multiplied in integers, but for those of the roles in `apart`, for those with the weights
    `exact`, and for what makes an output unless `outputs` says so."""

    precision: str
    linear: Precision
    device: Device = "cpu"
    convolutions: Literal["fp32", "8bit", "int8"] = "fp32"
    dialect: Literal["ort", "portable"] = "ort"
    decoder: Precision | None = None
    apart: tuple[str, ...] = ("decoder",)
    outputs: bool = False
    exact: tuple[str, ...] = ()

    def in_integers(self, roles: Iterable[str]) -> tuple[str, ...]:
        """The roles whose convolutions multiply integers."""
        return tuple(r for r in roles if self.convolutions == "int8" and r not in self.apart)


@dataclass(frozen=True, slots=True)
class MllmVariant:
    """Precisions of the vision encoder and the language model, and the dialect of their graphs."""

    precision: str
    arithmetic: MllmPrecision
    device: Device = "cpu"
    dialect: Literal["ort", "portable"] = "ort"


_WHOLE, _FAST = Precision(), Precision("int8")
_HALF = Precision("fp16")
_EIGHT, _FOUR = Precision("8bit", LONG), Precision("4bit", SHORT)
_EIGHT_OF_WORDS = Precision("8bit", SHORT)
_EIGHT_IN_HALF, _FOUR_IN_HALF = (
    Precision("8bit", LONG, half=True), Precision("4bit", MIDDLE, half=True)
)  # fmt: skip
_SEGMENTER_IN_HALF = SegmenterVariant(
    "products with weights fp16, decoder and all else fp32", _HALF, "gpu", dialect="portable",
    decoder=_WHOLE,
)  # fmt: skip

SEGMENTER_VARIANTS: Mapping[VariantName, SegmenterVariant] = {
    REFERENCE: SegmenterVariant("fp32", _WHOLE, "any"),
    "cpu-w8": SegmenterVariant("weights 8 bit", _EIGHT, convolutions="8bit"),
    "cpu-w8a8-dynamic": SegmenterVariant("matrix products int8, convolutions 8 bit", _FAST,
                                 convolutions="8bit"),
    "cpu-w8a8-static": SegmenterVariant("encoder int8, decoder weights 8 bit", _FAST,
                                 convolutions="int8", decoder=_EIGHT),
    "cpu-w4": SegmenterVariant("matrices 4 bit, convolutions 8 bit", _FOUR,
                                 convolutions="8bit"),
    "gpu-fp16": _SEGMENTER_IN_HALF,
    "gpu-w8": _SEGMENTER_IN_HALF,  # its weights are few beside those of an MLLM
    "gpu-w4": _SEGMENTER_IN_HALF,
}  # fmt: skip

MLLM_VARIANTS: Mapping[VariantName, MllmVariant] = {
    REFERENCE: MllmVariant("fp32", MllmPrecision(_WHOLE, _WHOLE), "any", "portable"),
    "cpu-w8": MllmVariant("vision 8 bit, language 8 bit",
                            MllmPrecision(_EIGHT, _EIGHT_OF_WORDS)),
    "cpu-w8a8-dynamic": MllmVariant("vision int8, language int8", MllmPrecision(_FAST, _FAST)),
    "cpu-w8a8-static": MllmVariant("vision int8, language 8 bit",
                            MllmPrecision(_FAST, _EIGHT_OF_WORDS)),
    "cpu-w4": MllmVariant("vision 8 bit, language 4 bit", MllmPrecision(_EIGHT, _FOUR)),
    "gpu-fp16": MllmVariant("products with weights fp16, all else fp32",
                            MllmPrecision(_HALF, _HALF), "gpu", "portable"),
    "gpu-w8": MllmVariant("weights 8 bit, products with them fp16, all else fp32",
                          MllmPrecision(_EIGHT_IN_HALF, _EIGHT_IN_HALF), "gpu", "portable"),
    "gpu-w4": MllmVariant("vision 8 bit, language 4 bit, products with them fp16, all else fp32",
                          MllmPrecision(_EIGHT_IN_HALF, _FOUR_IN_HALF), "gpu", "portable"),
}  # fmt: skip
