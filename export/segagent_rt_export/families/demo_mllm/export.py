"""Export of the demo bundle's MLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from segagent_rt.annotators.mllm import MllmSettings, prompt_codec
from segagent_rt.bundle.manifest import Variant
from segagent_rt.mllm.grammar import compile_grammar
from segagent_rt.mllm.language_model import LanguageSettings
from segagent_rt.mllm.patch_layout import VisionRope2D
from segagent_rt.mllm.preprocess import SquareResize
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.mllm.vision_encoder import VisionSettings
from segagent_rt.scenes.reading import VOCABULARY
from segagent_rt_export.bundle_writer import PartDraft, write_manifest
from segagent_rt_export.families.demo_mllm import net as mllm_net
from segagent_rt_export.families.demo_mllm.activation_moments import block_layers, observed_moments
from segagent_rt_export.families.demo_mllm.tokenizer import PROMPT, PROTOCOL
from segagent_rt_export.families.qwen_vl.vision_qwen3 import Qwen3Shape
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.graphs.builder import Dialect, GraphBuilder, new_graph, new_weights
from segagent_rt_export.graphs.language_model import LanguageShape, build_decoder
from segagent_rt_export.graphs.patch_embedding import HALF_PIXELS
from segagent_rt_export.graphs.precision import Precision, Scheme
from segagent_rt_export.graphs.shape_profiles import mllm_profiles
from segagent_rt_export.passes.gptq import gptq_round
from segagent_rt_export.sources.weights import Blocks, StateDict

VISION, LANGUAGE = Precision("rounded", 16), Precision("stored", 16)
"""The language model computes in fp32: so what it writes does not depend on how many tokens are fed
at once, and jump-forward stays exact. The encoder's blocks multiply integers; what follows them
errs most in integers (its inputs have outliers) and stays in fp32, too."""

SAID: Mapping[Scheme, str] = {"rounded": "int8", "stored": "weights int8"}

MLLM_FILES: Mapping[Dialect, str] = {"ort": "{}.onnx", "portable": "{}.portable.onnx"}
"""Names of a role's graphs; their weights are one file, and the same bytes."""


def export_mllm(
    net: mllm_net.TinyMllm,
    tokenizer: Tokenizer,
    folder: Path,
    vision_precision: Precision,
    language_precision: Precision,
) -> None:
    """The MLLM's part of the bundle."""
    folder.mkdir()
    settings = mllm_settings(tokenizer)
    state = net.model.state_dict()
    encoder = StateDict(state, "model.visual.", _rounded(net, vision_precision))
    language = StateDict(state, "model.language_model.")
    table = np.asarray(language("embed_tokens.weight"), np.float16).astype(np.float32)
    head = table[list(settings.head_rows)]
    graphs = {
        "vision": _in_both_dialects(
            folder, "vision", lambda g: vision_encoder_shape().build(g, encoder, vision_precision)
        ),
        "decoder": _in_both_dialects(
            folder,
            "decoder",
            lambda g: build_decoder(g, language_shape(), language, head, language_precision),
        ),
    }
    np.save(folder / "embed.npy", table.astype(np.float16))
    tokenizer.save(str(folder / "tokenizer.json"))
    ways = [SAID.get(each.scheme, each.scheme) for each in (vision_precision, language_precision)]
    precision = f"vision {ways[0]}, language {ways[1]}"
    ours, portable = (
        {role: paths[dialect] for role, paths in graphs.items()} for dialect in MLLM_FILES
    )
    variants = {
        "cpu-w8a8-static": Variant("cpu", precision, _names(ours)),
        "portable": Variant(
            "any",
            "weights int8, arithmetic fp32",
            _names(portable),
            "portable",
            mllm_profiles(portable, prompt_codec(tokenizer, settings)),
        ),
    }
    write_manifest(folder, PartDraft("mllm", "qwen3_vl", settings, variants))


def _rounded(net: mllm_net.TinyMllm, precision: Precision) -> dict[str, Blocks]:
    """Integers for the vision encoder's blocks, if that is where they are multiplied."""
    if precision.scheme != "rounded":
        return {}
    moments, layers = observed_moments(net), block_layers(net)
    return {
        name: gptq_round(layer.weight.detach().numpy(), moments[name])
        for name, layer in layers.items()
    }


def _in_both_dialects(
    folder: Path, role: str, build: Callable[[GraphBuilder], None]
) -> dict[Dialect, Path]:
    """Graphs that share one file of weights."""
    paths = {dialect: folder / name.format(role) for dialect, name in MLLM_FILES.items()}
    with new_weights(folder / f"{role}.onnx.data") as weights:
        for dialect, path in paths.items():
            with new_graph(path, dialect, weights) as g:
                build(g)
    return paths


def _names(graphs: Mapping[str, Path]) -> dict[str, str]:
    return {role: path.name for role, path in graphs.items()}


def vision_encoder_shape() -> Qwen3Shape:
    """Sizes of the vision encoder."""
    return Qwen3Shape(
        depth=mllm_net.DEPTH,
        width=mllm_net.WIDTH,
        inner=528,
        heads=mllm_net.WIDTH // 64,
        output=mllm_net.HIDDEN,
        pixels=HALF_PIXELS,
        table=mllm_net.PATCHES**2,
    )


def language_shape() -> LanguageShape:
    """Sizes of the language model."""
    return LanguageShape(mllm_net.LAYERS, mllm_net.HIDDEN, 704, Heads(4, 2, 64), head_norms=True)


def mllm_settings(tokenizer: Tokenizer) -> MllmSettings:
    """Settings of the MLLM that ships."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    side = mllm_net.SIDE
    rope = RopeSettings(head_dim=64, theta=1000.0, layout="interleaved", sections=(8, 12, 12))
    rows = sorted(compile_grammar(PROTOCOL, encode, "", (side, side)).tokens())
    return MllmSettings(
        language=LanguageSettings(mllm_net.LAYERS, mllm_net.HIDDEN, 2, rope, 1024),
        vision=VisionSettings(
            mllm_net.PATCH,
            SquareResize(side, "area"),
            mllm_net.MERGE,
            rope=VisionRope2D(64),
            table=mllm_net.PATCHES,
        ),
        prompt=PROMPT,
        reply=PROTOCOL,
        head_rows=tuple(rows),
        paint="picture",
        longest_expression=32,
        vocabulary=tuple(sorted(VOCABULARY)),
    )
