"""The plain loop at real size: transformers' own model and image processor, and EdgeTAM in torch.

As `reference/loop.py` it reuses nothing: every click paints the mask, passes the picture through a
JPEG file, tokenises the prompt, runs the whole vision encoder and prompt, and generates to the end
token with the whole head. The segmenter encodes once for each expression, before the first click.

Random weights give no reply that ends, so what is generated is dictated, token by token: the work
is that of a model which says it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_bundle import BundlePlace
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from segagent_rt.image import jpeg_round_trip, overlay
from segagent_rt.segmenters.sam import Sam, SamSettings
from segagent_rt.timing import Stopwatch
from segagent_rt.types import Click, Mask, Prediction, RgbImage, Segmenter
from segagent_rt_export.families.edgetam.export import load_edgetam
from segagent_rt_export.families.edgetam.repvit import merged_branches
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.families.sam.export import load_sam
from segagent_rt_export.families.sam2.export import Hiera, load_sam2
from segagent_rt_export.gate.mllm_reference import TransformersReference
from segagent_rt_export.graphs.sam2 import FEATURES, RESULTS, PyramidEncoder, Sam2Decoder
from segagent_rt_export.graphs.sam_decoder import SamDecoder
from segagent_rt_export.graphs.sam_encoder import SamEncoder
from segagent_rt_export.graphs.sam_export import Pair

END = "<|im_end|>"


class Dictated(LogitsProcessor):  # type: ignore[misc]
    """Makes one token after the other the likeliest."""

    def __init__(self, tokens: Sequence[int], start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._tokens[input_ids.shape[1] - self._start]] = torch.inf
        return scores


@dataclass(frozen=True, slots=True)
class PlainClick:
    """What one click took: seconds of `paint`, `prepare`, `generate`, and of `vision` within it."""

    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """The whole click, without the segmenter."""
        return sum(s for name, s in self.seconds.items() if name != "vision")

    @property
    def language(self) -> float:
        """Reading the prompt and generating the reply."""
        return self.seconds["generate"] - self.seconds["vision"]


class PlainMllm:
    """The checkpoint in transformers."""

    def __init__(self, place: BundlePlace, dtype: torch.dtype, device: str = "cpu") -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.source: MllmSource = place.source()
        self.model = AutoModelForImageTextToText.from_pretrained(
            place.checkpoint, dtype=dtype, local_files_only=True, attn_implementation="sdpa"
        ).to(device).eval()  # fmt: skip
        self._net = TransformersReference(self.model, place.checkpoint, self.source)
        self._dtype, self._watch = dtype, Stopwatch()
        self._end = int(self.source.tokenizer.token_to_id(END) or 0)
        self._hooks = _time_calls(self.model.model.visual, self._watch)

    def forget_hooks(self) -> None:
        """Take no times of the vision encoder, which would part what torch compiles."""
        for hook in self._hooks:
            hook.remove()

    def choices(self, image: RgbImage, expression: str, tokens: Sequence[int]) -> np.ndarray:
        """Logits [choices, rows] over the tokens of the grammar wherever a reply of these tokens
        leaves a choice, all read at once and without a cache."""
        lead, tail = self.source.codec.prompt(expression)
        picture = jpeg_round_trip(image)
        whole = self._net.logits(picture, lead, [*tail, *tokens])[len(tail) - 1 :]
        at = list(places_of_choice(self.source, expression, tokens))
        return np.asarray(whole[at][:, list(self.source.settings.head_rows)], np.float32)

    @torch.inference_mode()
    def picture(self, image: RgbImage) -> tuple[np.ndarray, float]:
        """Embeddings [tokens, hidden] of a picture, and the seconds of the vision encoder."""
        inputs = self._net.inputs(image)
        self._watch.seconds.clear()
        features = self.model.model.get_image_features(**inputs).pooler_output
        found = torch.cat(list(features)).float().numpy(force=True)
        return found, self._watch.seconds["vision"]

    @torch.inference_mode()
    def click(
        self,
        image: RgbImage,
        shown: Prediction | None,
        expression: str,
        tokens: Sequence[int],
        **generation: Any,
    ) -> PlainClick:
        """One click, from the mask that is shown to the end token behind the reply's tokens;
        `generation` are further options of `generate`."""
        watch = Stopwatch()
        with watch("paint"):
            painted = image if shown is None else overlay(image, shown.mask())
            picture = jpeg_round_trip(painted)
        with watch("prepare"):
            inputs = self.inputs(picture, expression)
        said = [*tokens, self._end]
        start = inputs["input_ids"].shape[1]
        self._watch.seconds.clear()
        with watch("generate"):
            whole = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=len(said), eos_token_id=self._end,
                pad_token_id=self._end,
                logits_processor=LogitsProcessorList([Dictated(said, start)]), **generation,
            )  # fmt: skip
        assert whole[0, start:].tolist() == said
        return PlainClick(watch.seconds | self._watch.seconds)

    def inputs(self, picture: RgbImage, expression: str) -> dict[str, Tensor]:
        """What `generate` takes."""
        settings = self.source.settings
        inputs = self._net.inputs(picture)
        rows, columns = inputs["image_grid_thw"][0, 1:].tolist()
        lead, tail = self.source.codec.prompt(expression)
        token = int(self.source.tokenizer.token_to_id(settings.picture) or 0)
        ids = torch.tensor(
            [[*lead, *[token] * (rows * columns // settings.vision.merge**2), *tail]],
            device=self.model.device,
        )
        return inputs | {
            "pixel_values": inputs["pixel_values"].to(self._dtype),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == token).int(),
        }


def places_of_choice(source: MllmSource, expression: str, tokens: Sequence[int]) -> Iterator[int]:
    """Where in a reply the grammar allows more than one token; up to its end."""
    grammar = source.codec.grammar(expression, (1, 1))
    assert grammar is not None
    state = grammar.start
    for at, token in enumerate(tokens):
        edges = grammar.edges(state)
        if len(edges) > 1:
            yield at
        state = edges[token]


def _time_calls(module: nn.Module, watch: Stopwatch) -> list[Any]:
    """Add the module's time to a stopwatch, as `vision`; returns the hooks that do it."""
    begun = list[float]()
    return [
        module.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())),
        module.register_forward_hook(
            lambda *_: watch.add("vision", time.perf_counter() - begun.pop())
        ),
    ]


class TorchSession:
    """A torch module where the runtime expects a graph. What it keeps stays on its device."""

    def __init__(
        self,
        module: nn.Module,
        outputs: tuple[str, ...],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._module, self._outputs = module.eval().to(device, dtype), outputs
        self._at = device, dtype

    @torch.inference_mode()
    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str],
        *,
        into: None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Any]:
        """Call the module; results are arrays, those of `keep` tensors."""
        found = self._module(**{n: torch.as_tensor(f).to(*self._at) for n, f in feeds.items()})
        named = dict(
            zip(self._outputs, found if isinstance(found, tuple) else (found,), strict=True)
        )
        return {n: named[n] if n in keep else named[n].float().numpy(force=True) for n in outputs}


def torch_segmenter(family: str, checkpoint: Path) -> Pair:
    """The encoder and the decoder of a segmenter in torch. EdgeTAM's branches are merged, which
    makes it faster than it was published."""
    if family == "sam":
        net = load_sam(checkpoint)
        side = net.config.vision_config.image_size
        decoder = SamDecoder(net.prompt_encoder, net.mask_decoder, side)
        return Pair(SamEncoder(net.vision_encoder), decoder, side)
    if family == "sam2":
        net = load_sam2(checkpoint)
        side = net.config.prompt_encoder_config.image_size
        trunk: nn.Module = Hiera(net.vision_encoder.backbone, side)
    else:
        net = load_edgetam(checkpoint)
        side = net.prompt_encoder.input_image_size
        trunk = merged_branches(net.vision_encoder.backbone["timm_model"])
    sam2_decoder = Sam2Decoder(net.prompt_encoder, net.mask_decoder, side)
    return Pair(PyramidEncoder(trunk, net), sam2_decoder, side, FEATURES, RESULTS)


def plain_segmenter(
    pair: Pair,
    settings: SamSettings,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Segmenter:
    """A segmenter in torch, with the runtime's host around it; `dtype` is the encoder's."""
    own = deepcopy(pair.encoder)  # shares layers with the decoder, whose type may be another
    encoder = TorchSession(own, pair.features, device, dtype)
    return Sam(encoder, TorchSession(pair.decoder, pair.results, device), settings)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class PlainRun:
    """A loop's clicks, masks and seconds."""

    encode: float
    clicks: tuple[PlainClick, ...]
    segment: tuple[float, ...]
    masks: tuple[Mask, ...]

    @property
    def each(self) -> list[float]:
        """Seconds of every click with its mask."""
        return [c.total + s for c, s in zip(self.clicks, self.segment, strict=True)]

    def seconds(self, clicks: float) -> float:
        """Of so many clicks, each taken to be as long as these are in the mean."""
        return self.encode + clicks * sum(self.each) / len(self.each)


def plain_run(
    mllm: PlainMllm,
    segmenter: Segmenter,
    image: RgbImage,
    expression: str,
    replies: Sequence[Sequence[int]],
) -> PlainRun:
    """The loop with dictated replies, which must hold clicks."""
    watch, size = Stopwatch(), (image.shape[0], image.shape[1])
    with watch("encode"):
        embedding = segmenter.encode(image)
    made, clicks, segment, masks = list[Click](), list[PlainClick](), list[float](), list[Mask]()
    shown: Prediction | None = None
    for tokens in replies:
        clicks.append(mllm.click(image, shown, expression, tokens))
        with timed(segment):
            reading = mllm.source.settings.reply.read(mllm.source.codec.decode(tokens), size)
            assert isinstance(reading.action, Click)
            made.append(reading.action)
            shown = segmenter.decode(embedding, made, prior=shown)
            masks.append(shown.mask())
    return PlainRun(watch.seconds["encode"], tuple(clicks), tuple(segment), tuple(masks))


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the seconds of the block."""
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)
