"""What families have in common: what they read, and what they make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segagent_rt.mllm.language_model import LanguageSettings
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.mllm.vision_encoder import VisionSettings
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.graphs.blocks import ACTIVATIONS
from segagent_rt_export.graphs.language_model import LanguageShape
from segagent_rt_export.graphs.patch_embedding import Pixels, VisionEncoderShape
from segagent_rt_export.sources.mllm_config import Config

LEAST_PIXELS, MOST_PIXELS = 56 * 56, 28 * 28 * 1280
"""Fewest and most pixels of a picture where a processor does not say, as in transformers."""

LONGEST_TEXT = 768
"""Tokens kept for the instruction, the expression and the reply."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model's shapes on both sides, exporter and runtime.

    Attributes:
        tied: whether the output head is the table of embeddings.
        cap: the most pixels of a picture beside the processor's own limit; None where all pictures
            become equally large.
    """

    family: str
    vision_encoder: VisionEncoderShape
    language: LanguageShape
    vision_settings: VisionSettings
    language_settings: LanguageSettings
    tied: bool
    cap: int | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What a family reads: the configuration, the image processor's, and the most pixels wanted."""

    config: Config
    processor: Config
    most_pixels: int

    @property
    def text(self) -> Config:
        """The language model's section; older configurations are flat."""
        nested = self.config.section("text_config")
        return nested if nested.fields else self.config

    @property
    def vision(self) -> Config:
        """The vision encoder's section."""
        return self.config.section("vision_config")

    @property
    def tied(self) -> bool:
        """Whether the output head is the table of embeddings."""
        return self.config.flag("tie_word_embeddings") or self.text.flag("tie_word_embeddings")

    def pixels(self, default: Pixels) -> Pixels:
        """The processor's mean and standard deviation."""
        mean = self.processor.colours("image_mean", default.mean)
        return Pixels(mean, self.processor.colours("image_std", default.std))

    def language(self, defaults: Mapping[str, int], epsilon: float) -> LanguageShape:
        """A decoder as LLaMA and the later Qwens have it."""
        text = self.text
        if text.text("hidden_act", "silu") != "silu":
            raise text.refuse("hidden_act", "the decoder is built with silu")
        if text.flag("use_sliding_window"):
            raise text.refuse("use_sliding_window", "every token attends to all before it here")
        hidden = text.size("hidden_size", defaults.get("hidden"))
        count = text.size("num_attention_heads", defaults.get("heads"))
        kv = text.size("num_key_value_heads", count)
        width = text.size("head_dim", defaults.get("head_dim", hidden // count))
        return LanguageShape(
            layers=text.size("num_hidden_layers", defaults.get("layers")),
            hidden=hidden,
            inner=text.size("intermediate_size", defaults.get("inner")),
            heads=Heads(count, kv, width),
            epsilon=text.number("rms_norm_eps", epsilon),
        )

    def rope(
        self, width: int, theta: float, layout: Literal["plain", "chunked", "interleaved"]
    ) -> RopeSettings:
        """Rotary positions, from either place where configurations keep them."""
        text = self.text
        scaling = text.section("rope_parameters")
        scaling = scaling if scaling.fields else text.section("rope_scaling")
        name = "rope_type" if "rope_type" in scaling.fields else "type"
        if scaling.text(name, "default") not in ("default", "mrope"):
            raise scaling.refuse(name, "scaled rotary positions are not supported")
        theta = scaling.number("rope_theta", text.number("rope_theta", theta))
        if layout == "plain":
            return RopeSettings(width, theta)
        sections = scaling.sizes("mrope_section", (16, 24, 24))
        if len(sections) != 3 or min(sections) < 1 or sum(sections) != width // 2:
            raise scaling.refuse("mrope_section", f"it does not divide {width // 2} frequencies")
        time, row, column = sections
        return RopeSettings(width, theta, layout, (time, row, column))

    def cap(self, unit: int, context: int) -> int:
        """The most pixels of a picture that the caller wants and the context holds; visual tokens
        are squares of `unit` pixels.

        Raises:
            CheckpointInvalid: the context is too short for any picture.
        """
        if context <= LONGEST_TEXT:
            raise self.text.refuse("max_position_embeddings", f"prompts need {LONGEST_TEXT} tokens")
        return min(self.most_pixels, (context - LONGEST_TEXT) * unit**2)

    def smart(self, unit: int, cap: int) -> SmartResize:
        """How pictures are resized: as transformers reads the processor's limits, where the older
        `min_pixels` and `max_pixels` go before `size`, and to `cap` pixels at most."""
        least, most = pixel_limits(self.processor)
        most = min(most, cap)
        return SmartResize(unit, min(least, most), most)


def pixel_limits(processor: Config) -> tuple[int, int]:
    """Fewest and most pixels of a picture, as transformers reads them."""
    size = processor.section("size")
    least = processor.size("min_pixels", size.size("shortest_edge", LEAST_PIXELS))
    return least, processor.size("max_pixels", size.size("longest_edge", MOST_PIXELS))


def settings_of(shape: LanguageShape, rope: RopeSettings, context: int) -> LanguageSettings:
    """A decoder's settings for the runtime."""
    return LanguageSettings(
        shape.layers, shape.hidden, shape.heads.kv, rope, context, deepstack=shape.deepstack
    )


def activation_of(section: Config, default: str, name: str = "hidden_act") -> str:
    """The name of an activation that the exporter knows."""
    found = section.text(name, default)
    if found not in ACTIVATIONS:
        raise section.refuse(name, "the exporter knows " + ", ".join(ACTIVATIONS))
    return found
