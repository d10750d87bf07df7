"""The published model that an export is compared with: transformers' own code, or for Qwen-VL ours
in plain torch, from the image to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segagent_rt.mllm.pictures import Smart
from segagent_rt.types import RgbImage
from segagent_rt_export.mllm.chats import PICTURES
from segagent_rt_export.mllm.lora import Adapted, adapt
from segagent_rt_export.mllm.names import common_name
from segagent_rt_export.mllm.prequantised import open_weights
from segagent_rt_export.mllm.published_v1 import QwenVlV1
from segagent_rt_export.mllm.shards import read_object
from segagent_rt_export.mllm.source import MllmSource
from segagent_rt_export.mllm.unloaded import unloaded
from segagent_rt_export.mllm.weights import Stored

Floats = npt.NDArray[np.float32]

_PROCESSORS = {
    "qwen2_vl": ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
    "qwen2_5_vl": ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
    "qwen3_vl": ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
    "clip": ("clip.image_processing_pil_clip", "CLIPImageProcessorPil"),
    "llava": ("llava.image_processing_pil_llava", "LlavaImageProcessorPil"),
}
"""Image processors that need no torchvision: module below `transformers.models`, and class."""


class Published(Protocol):
    """An MLLM in torch, float32, without a cache."""

    def picture(self, image: RgbImage) -> Tensor:
        """Embeddings of a picture, [tokens, hidden]."""

    def logits(self, image: RgbImage, lead: list[int], tail: list[int]) -> Floats:
        """Logits [len(tail), V] of the tokens behind a picture."""


def open_published(
    folder: Path, source: MllmSource, adapter: Path | None, *, streamed: bool = False
) -> Published:
    """The model of a folder; a `streamed` one holds one module's weights at a time.

    One that comes quantised is streamed, too: transformers would need other libraries to load it.
    """
    described = read_object(folder / "config.json")
    streamed |= "quantization_config" in described
    if source.family == "qwen_vl":
        stored = open_weights(folder)
        if adapter is not None:
            stored = adapt(stored, adapter, lambda name: name)
        return QwenVlV1(OnDisk(stored), described)
    return FromTransformers((_streamed if streamed else _whole)(folder, source), folder, source)


class OnDisk(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._stored[name].read())

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _whole(folder: Path, source: MllmSource) -> Any:
    """A model that transformers loads, with an adapter's changes in its weights."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True,
        attn_implementation="eager",
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            stored = source.weights.tensors.get(common_name(source.family, name))
            if isinstance(stored, Adapted):
                weight.copy_(torch.from_numpy(stored.read()))
    return model


def _streamed(folder: Path, source: MllmSource) -> Any:
    """The same model, which reads weights when they are needed."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tensors = source.weights.tensors

    def read(name: str) -> Tensor:
        common = common_name(source.family, name)
        if common == "head.weight" and source.model.tied:
            common = "language.embed_tokens.weight"
        return torch.from_numpy(tensors[common].read())

    return unloaded(
        lambda: AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation="eager"
        ),
        read,
    )


class FromTransformers:
    """A model in transformers, asked in its own way, with its own image processor."""

    def __init__(self, model: Any, folder: Path, source: MllmSource) -> None:
        self._model = model
        self._processor = _processor(folder, source)
        picture = source.tokenizer.token_to_id(PICTURES[source.family])
        assert picture is not None
        self._picture = int(picture)
        self._seen: tuple[RgbImage, Tensor] | None = None

    @torch.no_grad()
    def picture(self, image: RgbImage) -> Tensor:
        """Embeddings of a picture; those of the last one are kept."""
        if self._seen is None or self._seen[0] is not image:
            features = self._model.model.get_image_features(**self.inputs(image))
            self._seen = image, torch.cat(list(features.pooler_output)).flatten(0, -2)
        return self._seen[1]

    @torch.no_grad()
    def logits(self, image: RgbImage, lead: Sequence[int], tail: Sequence[int]) -> Floats:
        inputs, count = self.inputs(image), len(self.picture(image))
        ids = torch.tensor([[*lead, *[self._picture] * count, *tail]])
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._picture).int()
        found: Tensor = self._model(input_ids=ids, **inputs).logits[0]
        return np.asarray(found[-len(tail) :].numpy())

    def inputs(self, image: RgbImage) -> dict[str, Tensor]:
        """What the image processor makes of a picture, as the model takes it."""
        return dict(self._processor(images=[image], return_tensors="pt"))


def _processor(folder: Path, source: MllmSource) -> Any:
    """The image processor that the folder configures, with the export's limits on sizes."""
    own, shared = folder / "preprocessor_config.json", folder / "processor_config.json"
    settings: dict[str, Any] = {}
    if own.is_file():
        settings = read_object(own)
    elif shared.is_file():
        settings = read_object(shared).get("image_processor", {})
    family = source.family
    if family == "llava" and not settings.get("do_pad"):
        family = "clip"
    resize = source.settings.vision.resize
    if isinstance(resize, Smart):
        settings["size"] = {"shortest_edge": resize.least, "longest_edge": resize.most}
    module, name = _PROCESSORS[family]
    kind = getattr(import_module(f"transformers.models.{module}"), name)
    dropped = ("image_processor_type", "processor_class", "min_pixels", "max_pixels")
    return kind(**{key: value for key, value in settings.items() if key not in dropped})
