"""The published model that an export is compared with: transformers' own code, or for Qwen-VL ours
in plain torch, from the image to the logits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segagent_rt.types import RgbImage, Size
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.families.weight_names import common_name
from segagent_rt_export.registry import code, mllm_exporter
from segagent_rt_export.sources.lazy_weights import unloaded
from segagent_rt_export.sources.lora import HEAD, TABLE, adapt, renamed
from segagent_rt_export.sources.mllm_config import open_processor
from segagent_rt_export.sources.quantised import open_weights
from segagent_rt_export.sources.shards import open_shards, read_object
from segagent_rt_export.sources.weights import Stored

Floats = npt.NDArray[np.float32]


class MllmReference(Protocol):
    """An MLLM in torch, float32, without a cache."""

    def picture(self, image: RgbImage) -> Tensor:
        """Embeddings of a picture, [tokens, hidden]."""

    def logits(self, image: RgbImage, lead: list[int], tail: list[int]) -> Floats:
        """Logits [len(tail), V] of the tokens behind a picture."""

    def resized(self, size: Size) -> Size | None:
        """Height and width that a picture is resized to; None if all become equally large."""


def open_reference(
    folder: Path, source: MllmSource, adapter: Path | None, *, streamed: bool = False
) -> MllmReference:
    """The model of a folder; a `streamed` one holds one module's weights at a time.

    An adapter is merged by peft, unless the model is streamed or peft cannot read the adapter. A
    model that comes quantised is streamed, too: transformers would need other libraries to load it.
    """
    described = read_object(folder / "config.json")
    streamed |= "quantization_config" in described
    if own := mllm_exporter(source.family).reference:
        stored = open_weights(folder)
        if adapter is not None:
            stored = adapt(stored, adapter, lambda name: name)
        reference: MllmReference = code(own)(LazyTensors(stored), described)
        return reference
    model = None
    if not streamed:
        model = load_whole(folder)
        model = model if adapter is None else merged_by_peft(model, adapter, source.family)
    if model is None:
        model = _streamed(folder, source, adapter)
    return TransformersReference(model, folder, source)


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._stored[name].read())

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def load_whole(folder: Path) -> Any:
    """A model that transformers loads."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True,
        attn_implementation="eager",
    ).eval()  # fmt: skip


def merged_by_peft(model: Any, adapter: Path, family: str) -> Any:
    """The model with an adapter, as peft merges it; None where peft cannot read the adapter.

    The adapter's tensors get the names that the model has in this version of transformers. The
    model is not to be used any more.
    """
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    known = {common_name(family, n): n for n, _ in model.named_parameters(remove_duplicate=False)}
    tensors = dict[str, Tensor]()
    for name, stored in open_shards(adapter, "adapter_model").items():
        own = renamed(name, lambda base: known.get(common_name(family, base)))
        if own is None:
            return None
        tensors[own] = torch.from_numpy(np.array(stored.read()))
    described = read_object(adapter / "adapter_config.json")
    fields = {key: described[key] for key in LoraConfig.__dataclass_fields__ if key in described}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about keys and ties
        try:
            adapted = get_peft_model(model, LoraConfig(**fields))
        except (TypeError, ValueError):
            return None
        result = set_peft_model_state_dict(adapted, tensors)
        if result.unexpected_keys or any("lora_" in key for key in result.missing_keys):
            return None
        return adapted.merge_and_unload().eval()


def _streamed(folder: Path, source: MllmSource, adapter: Path | None) -> Any:
    """The same model, which reads weights when they are needed, with our own merge."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tensors = source.weights.tensors
    parted = adapter is not None and HEAD in tensors
    tied = getattr(config, "tie_word_embeddings", False) and not parted

    def read(name: str) -> Tensor:
        common = common_name(source.family, name)
        if common == HEAD and tied:
            common = TABLE
        return torch.from_numpy(tensors[common].read())

    return unloaded(
        lambda: AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, trust_remote_code=False, attn_implementation="eager"
        ),
        read,
    )


class TransformersReference:
    """A model in transformers, asked in its own way on its own device, with its own image
    processor."""

    def __init__(self, model: Any, folder: Path, source: MllmSource) -> None:
        self._model = model
        self._processor, self._cap = _processor(folder, source), source.model.cap
        picture = source.tokenizer.token_to_id(mllm_exporter(source.family).picture)
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
        text = [[*lead, *[self._picture] * count, *tail]]
        ids = torch.tensor(text, device=self._device())
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._picture).int()
        found: Tensor = self._model(input_ids=ids, **inputs).logits[0]
        return np.asarray(found[-len(tail) :].float().numpy(force=True))

    def resized(self, size: Size) -> Size | None:
        if self._cap is None:
            return None
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        processor = self._processor
        unit = processor.patch_size * processor.merge_size
        limits = processor.size["shortest_edge"], processor.size["longest_edge"]
        height, width = smart_resize(*size, unit, *limits)
        return height, width

    def inputs(self, image: RgbImage) -> dict[str, Tensor]:
        """What the image processor makes of a picture, as the model takes it."""
        made: dict[str, Tensor] = dict(self._processor(images=[image], return_tensors="pt"))
        device = self._device()
        return {name: tensor.to(device) for name, tensor in made.items()}

    def _device(self) -> torch.device:
        """Where the model computes; one that reads its weights when they are needed has them
        nowhere, and computes on the CPU."""
        device: torch.device = self._model.device
        return torch.device("cpu") if device.type == "meta" else device


def _processor(folder: Path, source: MllmSource) -> Any:
    """The checkpoint's own image processor; the largest picture is at most what the caller wants
    and the context holds."""
    settings, family = open_processor(folder), mllm_exporter(source.family)
    pads = settings.flag("do_pad") and family.padding_processor is not None
    kind = code(
        f"transformers.models.{family.padding_processor if pads else family.image_processor}"
    )
    try:
        processor = (
            kind.from_pretrained(folder, local_files_only=True) if settings.fields else kind()
        )
    except (OSError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise CheckpointInvalid(f"transformers cannot open {settings.where}: {why}") from error
    if source.model.cap is not None:
        most = min(processor.size["longest_edge"], source.model.cap)
        least = min(processor.size["shortest_edge"], most)
        processor.size = type(processor.size)(shortest_edge=least, longest_edge=most)
    return processor
