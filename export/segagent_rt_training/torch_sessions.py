"""The nets as they were trained, in fp32 torch, in the seats of the graphs made from them.

With these the runtime's own loop, prompt and grammar run on the weights before export: what then
differs from the bundle is what the export changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.vision_encoder import VisionEncoder, VisionOutput
from segagent_rt.segmenters.click_net import MAPS, ClickNet, ClickNetSettings
from segagent_rt.types import Array, Buffers, Feeds, Names, RgbImage
from segagent_rt_export.families.click_net.export import ClickDecoderGraph, ClickEncoderGraph
from segagent_rt_export.families.click_net.net import SIDE, SegmenterNet
from segagent_rt_export.families.demo_mllm.export import mllm_settings
from segagent_rt_export.families.demo_mllm.net import CELLS, LAYERS, TinyMllm, attend


@dataclass(frozen=True, slots=True)
class TorchBuffer:
    """A tensor that is written in place."""

    tensor: Tensor

    def numpy(self) -> Array:
        return np.asarray(self.tensor.numpy())


class _Seat:
    """What every session can do."""

    inputs: Names = ()
    """Not listed: a net in torch reads no branches."""

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> TorchBuffer:
        return TorchBuffer(torch.from_numpy(np.zeros(shape, dtype)))

    def close(self) -> None:
        """Nothing is held."""


class ModuleSession(_Seat):
    """A module whose arguments and results have the names of a graph's inputs and outputs."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._module, self._inputs, self._outputs = module.eval(), inputs, outputs

    @torch.inference_mode()
    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs]
        made = dict(zip(self._outputs, self._module(*tensors), strict=True))
        return {name: made[name].numpy() for name in outputs}


class LanguageSession(_Seat):
    """The language model with the decoder graph's inputs and outputs."""

    def __init__(self, net: TinyMllm, rows: Sequence[int]) -> None:
        self._net, self._head = net.eval(), net.embedding[list(rows)]

    @torch.inference_mode()
    def run(
        self, feeds: Mapping[str, Any], outputs: Names, *, into: Any = None, keep: Names = ()
    ) -> dict[str, Any]:
        x = torch.from_numpy(feeds["inputs_embeds"])
        stop = int(feeds["length"][0])
        start = stop - x.shape[1]
        angles = [torch.from_numpy(feeds[f"rope_{f}"][start:stop]) for f in ("cos", "sin")]
        cos, sin = (torch.cat([angle, angle], -1)[None] for angle in angles)
        bias = torch.full((x.shape[1], stop), -1e9).triu(start + 1)
        for number in range(LAYERS):
            layer = self._net.language.layers[number]
            query, key, value = self._net._project(
                layer.self_attn, layer.input_layernorm(x), cos, sin
            )
            pairs = zip(("key", "value"), (key, value), strict=True)
            past = [self._append(feeds[f"past.{number}.{k}"], new, start) for k, new in pairs]
            mixed = attend(query, past[0], past[1], bias)
            x = x + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden = self._net.language.norm(x)[0, torch.from_numpy(feeds["logits_at"])]
        made = {"hidden": hidden, "logits": hidden @ self._head.T}
        return {name: made[name].numpy() for name in outputs}

    @staticmethod
    def _append(buffer: TorchBuffer, rows: Tensor, start: int) -> Tensor:
        """Write new rows behind the old ones; one row of the buffer serves several heads."""
        kept = buffer.tensor.shape[1]
        groups = rows.shape[1] // kept
        stop = start + rows.shape[2]
        buffer.tensor[:, :, start:stop] = rows[:, ::groups]
        return buffer.tensor[:, :, :stop].repeat_interleave(groups, 1)


class TorchVisionEncoder(VisionEncoder):
    """The vision encoder."""

    def __init__(self, net: TinyMllm, encoder: VisionEncoder) -> None:
        super().__init__(encoder._session, encoder._settings)
        self._net = net.eval()

    @torch.inference_mode()
    def embed(self, picture: RgbImage) -> VisionOutput:
        tokens = self._net.see(torch.from_numpy(picture)[None]).tokens
        return VisionOutput(tokens.numpy(), (CELLS, CELLS))


def annotator_as_trained(net: TinyMllm, tokenizer: Tokenizer) -> MllmAnnotator:
    """The MLLM with its weights in fp32."""
    settings = mllm_settings(tokenizer)
    session = LanguageSession(net, settings.head_rows)
    table = net.embedding.detach().numpy()
    return MllmAnnotator(
        vision_encoder=TorchVisionEncoder(net, VisionEncoder(session, settings.vision)),
        model=LanguageModel(session, table, settings.language),
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=False)),
        settings=settings,
    )


def segmenter_as_trained(net: SegmenterNet) -> ClickNet:
    """The segmenter with its weights in fp32."""
    encoder = ModuleSession(ClickEncoderGraph(net), ["image"], MAPS)
    inputs = [*MAPS, "points", "prior_logits"]
    decoder = ModuleSession(ClickDecoderGraph(net), inputs, ["logits", "iou"])
    return ClickNet(encoder, decoder, ClickNetSettings(SIDE))
