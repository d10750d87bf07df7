"""The MLLM as a bundle holds it, to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx
from tokenizers import Tokenizer
from torch import Tensor

from segagent_rt.annotators.mllm import MllmSettings
from segagent_rt.bundle.bundle import Part
from segagent_rt_export.families.demo_mllm.activation_moments import block_layers
from segagent_rt_export.families.demo_mllm.export import (
    language_shape,
    mllm_settings,
    vision_encoder_shape,
)
from segagent_rt_export.families.demo_mllm.net import PATCH, TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.graphs.builder import GraphBuilder
from segagent_rt_export.graphs.language_model import build_decoder
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.graphs.stored_weights import (
    fill,
    outline,
    read_graph,
    read_settings,
    refused,
)
from segagent_rt_export.sources.weights import Blocks, StateDict, Weight

VISION, LANGUAGE = "model.visual.", "model.language_model."
KERNEL, BIAS = f"{VISION}patch_embed.proj.weight", f"{VISION}patch_embed.proj.bias"
HEAD = "head"
"""Stands for the rows of the table that the decoder holds a second time."""


def mllm_from_part(part: Part) -> TinyMllm:
    """The model with the weights of a part that `export_mllm` wrote, to within their rounding.

    Raises:
        CheckpointInvalid: the part is not such a one.
        BundleError: a file of it is missing or was altered.
    """
    tokenizer = build_tokenizer()
    settings = mllm_settings(tokenizer)
    if read_settings(part, "qwen3_vl", MllmSettings) != settings:
        raise refused(part, "its sizes, words or prompts are not those of the model that ships")
    if _vocabulary(part) != tokenizer.get_vocab():
        raise refused(part, "its tokenizer is not that of the model that ships")
    net = TinyMllm(tiny_config(tokenizer.get_vocab()))
    table = _table(part, tuple(net.embedding.shape))

    def encoder(g: GraphBuilder, weights: _Noted, precision: Precision) -> None:
        vision_encoder_shape().build(g, weights, precision)

    def decoder(g: GraphBuilder, weights: _Noted, precision: Precision) -> None:
        head = table[list(settings.head_rows)]
        build_decoder(g, language_shape(), weights, head, precision)
        weights.names.append(HEAD)

    blank = net.model.state_dict()
    unknown = {name: _unknown(layer.weight) for name, layer in block_layers(net).items()}
    vision = _weights(part, "vision", _Noted(blank, VISION, unknown), encoder)
    language = _weights(part, "decoder", _Noted(blank, LANGUAGE), decoder)
    del language[HEAD]
    tied = {f"{LANGUAGE}embed_tokens.weight": table, "lm_head.weight": table}
    fill(net.model, _unfolded(vision) | language | tied, part)
    return net


class _Noted(StateDict):
    """Weights that note, by their whole names and in order, which of them were asked for."""

    def __init__(
        self,
        tensors: Mapping[str, object],
        prefix: str,
        rounded: Mapping[str, Blocks] | None = None,
    ) -> None:
        super().__init__(tensors, prefix, rounded)
        self.names: list[str] = []

    def __call__(self, name: str) -> Weight:
        self.names.append(self._prefix + name)
        return super().__call__(name)


_Build: TypeAlias = Callable[[GraphBuilder, _Noted, Precision], None]


def _weights(part: Part, role: str, noted: _Noted, build: _Build) -> dict[str, Weight]:
    """Weights of a stored graph by their names in the net.

    Graphs do not keep these names. But the exporter asks for weights in the order in which its
    nodes use them; so it writes the graph once more, which must come out the same.
    """
    stored, again = read_graph(part, role), GraphBuilder(role)
    build(again, noted, _precision(stored.graph))
    if outline(stored.graph) != outline(again.model().graph):
        raise refused(part, f"this version's exporter writes another {role}")
    return dict(zip(noted.names, stored.unpacked(), strict=True))


def _unknown(weight: Tensor) -> Blocks:
    """Integers of a weight's shape, of as many bits as `gptq_round` makes."""
    outputs, inputs = weight.shape
    zeros, scales = np.zeros((outputs, 1), np.uint8), np.ones((outputs, 1), np.float32)
    return Blocks(7, np.zeros((outputs, inputs), np.uint8), zeros, scales)


def _precision(graph: onnx.GraphProto) -> Precision:
    kinds = {node.op_type for node in graph.node}
    options = [attribute for node in graph.node for attribute in node.attribute]
    block = next((option.i for option in options if option.name == "block_size"), 32)
    if "MatMulIntegerToFloat" in kinds:
        return Precision("int8", block)
    if "MatMulInteger" in kinds:
        return Precision("rounded", block)
    if "MatMulNBits" in kinds:
        return Precision("8bit", block)
    return Precision("stored" if "DequantizeLinear" in kinds else "fp32", block)


def _unfolded(vision: Mapping[str, Weight]) -> dict[str, Weight]:
    """The patch embedding without the processor's arithmetic, shared out to both frames: the
    inverse of `frame_kernel` and `Pixels.embed`."""
    pixels = vision_encoder_shape().pixels
    folded, offset = vision[BIAS], vision[KERNEL]  # asked for in this order, used in the other
    kernel = folded.astype(np.float64).reshape(len(folded), 3, PATCH, PATCH)
    kernel = kernel * (255 * np.asarray(pixels.std))[:, None, None]
    shift = np.asarray(pixels.mean) / np.asarray(pixels.std)
    bias = offset + kernel.sum((2, 3)) @ shift
    frames = np.stack([kernel / 2, kernel / 2], 2)
    return {**vision, KERNEL: frames.astype(np.float32), BIAS: bias.astype(np.float32)}


def _table(part: Part, shape: tuple[int, ...]) -> Weight:
    try:
        table = np.load(part.file("embed.npy"), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise refused(part, f"its embed.npy cannot be read ({str(error)[:80]})") from None
    if table.shape != shape or table.dtype not in (np.float16, np.float32):
        raise refused(part, f"its embed.npy is {table.dtype} {table.shape}, not {shape}")
    return np.asarray(table, np.float32)


def _vocabulary(part: Part) -> dict[str, int]:
    try:
        return dict(Tokenizer.from_file(str(part.file("tokenizer.json"))).get_vocab())
    except Exception as error:  # the library raises nothing more precise
        raise refused(part, f"its tokenizer cannot be read ({str(error)[:80]})") from None
