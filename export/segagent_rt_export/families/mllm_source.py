"""A folder with an MLLM's checkpoint, understood: shapes, weights, tokenizer, settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from segagent_rt.annotators.mllm import MllmCodec, MllmSettings, prompt_codec
from segagent_rt.bench.progress import Progress
from segagent_rt.errors import InputError
from segagent_rt.families import mllm_family
from segagent_rt.mllm.grammar import compile_grammar
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.mllm.prompts import MAX_PIXELS, PRESETS
from segagent_rt.mllm.tokenizer import parse_tokenizer
from segagent_rt_export.dimensions import check_dimensions
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.chat_templates import HOLE, frame_of
from segagent_rt_export.families.mllm_model import Given, Model
from segagent_rt_export.families.weight_names import common_name, rename
from segagent_rt_export.files import read_bounded
from segagent_rt_export.graphs.shape_profiles import visual_tokens
from segagent_rt_export.progress import Counted
from segagent_rt_export.registry import MllmExporter, code, mllm_exporter, mllm_exporters
from segagent_rt_export.sources.lora import HEAD, adapt
from segagent_rt_export.sources.mllm_config import Config, open_processor
from segagent_rt_export.sources.quantised import open_weights
from segagent_rt_export.sources.weights import Checkpoint, Stored

STOPS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "</s>")
"""Tokens that end a reply, in families that have them."""

SERVED = (
    "serve it (vLLM, SGLang, llama.cpp) and use `segagent-rt run --endpoint URL --model NAME "
    "--preset qwen3-vl`, see docs/servers.md"
)
"""What works with a model that cannot be exported, mixtures of experts and Qwen3.5 among them."""

LARGEST_TOKENIZER = 64_000_000
"""Bytes of a tokenizer.json; Qwen's has 11 million."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user of a checkpoint decides.

    Attributes:
        preset: name of the instruction and reply form; the family's own if None.
        decoding: within the reply grammar, or free.
        adapter: folder of a LoRA adapter to merge.
        most_pixels: pixels of the largest picture, up to what the checkpoint allows and the context
            holds.
        jpeg: whether painted images pass through a JPEG file, as in SegAgent's own code.
    """

    preset: str | None = None
    decoding: Literal["grammar", "free"] = "grammar"
    adapter: Path | None = None
    most_pixels: int = MAX_PIXELS
    jpeg: bool = False


@dataclass(frozen=True, slots=True)
class MllmSource:
    """Everything that an export needs of a checkpoint. Weights are read when graphs are built."""

    model: Model
    weights: Checkpoint
    tokenizer: Tokenizer
    settings: MllmSettings
    provenance: Mapping[str, Any]

    @property
    def family(self) -> str:
        return self.model.family

    @property
    def codec(self) -> MllmCodec:
        """How the model is asked."""
        return prompt_codec(self.tokenizer, self.settings)


def read_source(folder: Path, choices: Choices | None = None) -> MllmSource:
    """Understand a folder in transformers' format.

    Raises:
        CheckpointInvalid: it is damaged, incomplete, or of an unknown architecture.
        InputError: there is no such preset.
    """
    choices = choices or Choices()
    model = read_model(folder, choices.most_pixels)
    weights = _open_weights(folder, model, choices.adapter)
    if choices.adapter is not None and HEAD in weights:
        model = replace(model, tied=False)
    family = mllm_exporter(model.family)
    tokenizer = _open_tokenizer(folder, family)
    frame = frame_of(folder, family, tokenizer)
    settings = _settings(model, tokenizer, choices, frame)
    provenance = _provenance(folder, model, choices)
    source = MllmSource(model, weights, tokenizer, settings, provenance)
    _expect_room(source)
    return source


def _expect_room(source: MllmSource) -> None:
    """Refuse a model whose context does not hold the longest conversation about a picture."""
    settings, visual = source.settings, visual_tokens(source.codec)
    needed, most = source.codec.room(visual[2]), settings.language.most_tokens
    if needed <= most:
        return
    vision, text = settings.vision, needed - visual[2]
    if isinstance(vision.resize, SmartResize) and most - text >= visual[0]:
        pixels = (most - text) * (vision.patch * vision.merge) ** 2
        hint = f"write most_pixels = {pixels} in the recipe, for smaller pictures"
    else:
        hint = "take a checkpoint with a longer context"
        for name in ("segagent-rated", "segagent-plain"):
            reply = replace(source, settings=replace(settings, reply=PRESETS[name].reply))
            if reply.codec.room(visual[0]) <= most:
                hint = f'a shorter reply fits, if the model was trained on it: preset = "{name}"'
                break
    raise CheckpointInvalid(
        f"the model reads at most {most} tokens, and a conversation about a picture may need "
        f"{needed}",
        hint=hint,
    )


def counted(source: MllmSource, report_progress: Callable[[str], None], what: str) -> MllmSource:
    """The same source, telling how much of its weights has been read."""
    tensors = source.weights.tensors

    def weigh(tensor: Stored) -> int:
        return math.prod(tensor.shape)

    progress = Progress(report_progress, what, sum(map(weigh, tensors.values())))
    return replace(
        source, weights=replace(source.weights, tensors=Counted(tensors, weigh, progress))
    )


def read_model(folder: Path, most_pixels: int = MAX_PIXELS) -> Model:
    """A model's shapes, from its configuration alone."""
    config = Config.load(folder / "config.json")
    check_dimensions(config.fields, config.where)
    kind = config.text("model_type", "")
    families = {family.model_type: family for family in mllm_exporters().values()}
    if kind not in families:
        raise CheckpointInvalid(
            f"{config.where}: models of the type `{kind[:60]}` cannot be exported",
            hint=f"the exporter knows {', '.join(families)}; {SERVED}",
        )
    if "mm_vision_tower" in config.fields:
        raise CheckpointInvalid(
            f"{config.where} is in the layout of LLaVA's own code, whose vision encoder is another "
            "checkpoint",
            hint=f"convert it with transformers 4's convert_llava_weights_to_hf.py; or {SERVED}",
        )
    model: Model = code(families[kind].model)(Given(config, open_processor(folder), most_pixels))
    return model


def _open_weights(folder: Path, model: Model, adapter: Path | None) -> Checkpoint:
    tensors = rename(model.family, open_weights(folder))
    if adapter is not None:
        tensors = adapt(
            tensors, adapter, lambda name: common_name(model.family, name), tied=model.tied
        )
    if rearrange := mllm_exporter(model.family).rearrange:
        tensors = code(rearrange)(tensors)
    return Checkpoint(tensors)


def _open_tokenizer(folder: Path, family: MllmExporter) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        content = read_bounded(path, LARGEST_TOKENIZER)
        try:
            return parse_tokenizer(content.decode("utf-8"))
        except ValueError as error:
            raise CheckpointInvalid(f"{path} is no tokenizer: {str(error)[:120]}") from None
    own: Tokenizer | None = code(family.tokenizer)(folder) if family.tokenizer else None
    if own is not None:
        return own
    raise CheckpointInvalid(
        f"{folder} holds no tokenizer.json",
        hint="save it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
    )


def default_preset(family: str) -> str:
    """What a checkpoint of a family is asked with, unless a recipe says otherwise.

    Raises:
        InputError: the runtime does not know the family.
    """
    known = mllm_family(family)
    if known is None:
        raise InputError(
            f"the runtime has no module for the family {family}",
            hint="install the package that registers it, or name a preset in the recipe",
        )
    return known.preset


def _settings(model: Model, tokenizer: Tokenizer, choices: Choices, frame: str) -> MllmSettings:
    name = choices.preset or default_preset(model.family)
    if name not in PRESETS:
        raise InputError(f"there is no preset `{name}`", hint="choose " + ", ".join(PRESETS))
    preset, picture = PRESETS[name], mllm_exporter(model.family).picture

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    if tokenizer.token_to_id(picture) is None:
        raise CheckpointInvalid(f"the tokenizer has no token `{picture}` for pictures")
    try:
        grammar = compile_grammar(preset.reply, encode, "", (1, 1))
    except ValueError as error:
        raise CheckpointInvalid(f"replies cannot be constrained: {error}") from None
    stops = [tokenizer.token_to_id(token) for token in STOPS]
    return MllmSettings(
        language=model.language_settings,
        vision=model.vision_settings,
        prompt=frame.replace(HOLE, preset.instruction),
        reply=preset.reply,
        head_rows=tuple(sorted(grammar.tokens())),
        picture=picture,
        decoding=choices.decoding,
        stops=tuple(stop for stop in stops if stop is not None),
        jpeg=choices.jpeg,
    )


def _provenance(folder: Path, model: Model, choices: Choices) -> dict[str, Any]:
    return {
        "source": folder.name,
        "family": model.family,
        "preset": choices.preset,
        "adapter": choices.adapter.name if choices.adapter else None,
    }
