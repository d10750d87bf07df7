"""TensorRT-RTX's parser and builder, which need no GPU, take the graphs of every family.

Networks are strongly typed: the precision that a graph says is the one that is built. That engines
compute what they should is not shown here, and needs a GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen2_5_VLConfig, Sam3TrackerConfig, Sam3TrackerModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import EngineRefused
from segagent_rt_export.families.click_net.export import export_click_net
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.export import (
    language_shape,
    mllm_settings,
    vision_encoder_shape,
)
from segagent_rt_export.families.demo_mllm.net import TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.families.mllm_export import export_mllm_graphs
from segagent_rt_export.families.mllm_source import read_model, read_source
from segagent_rt_export.families.segmenters import export_segmenter
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.language_model import build_decoder
from segagent_rt_export.graphs.precision import MllmPrecision, Precision
from segagent_rt_export.graphs.shape_profiles import mllm_profiles
from segagent_rt_export.passes.weight_quant import write_variant
from segagent_rt_export.recipe import SegmenterRecipe
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters
from segagent_rt_export.sources.weights import StateDict
from segagent_rt_export.variants import SEGMENTER_VARIANTS
from tests.export.mllm.test_families import QWEN25_3B, QWEN25_PIXELS
from tests.export.sam.conftest import awaken
from tests.export.sam.test_sam3 import described
from tests.export.simple_click import made_up

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`")

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch's exporter, about itself
]

PRECISIONS = {
    "fp32": MllmPrecision(),
    "fp16": MllmPrecision(Precision("fp16"), Precision("fp16")),
    "blocks": MllmPrecision(Precision("8bit"), Precision("4bit")),
}


@pytest.fixture(scope="module")
def library():
    from segagent_rt.backends.engine_library import load_library

    return load_library("rtx")


def build(library, path: Path, profiles=()) -> None:
    plan = library.build(path, profiles, b"", lambda phase: None).plan
    print(f"{path.name} {path.stat().st_size / 1e6:.2f} MB, engine {len(plan) / 1e6:.2f} MB")
    assert len(plan) > 1000


def test_networks_are_strongly_typed(library):
    assert library._typed() == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    precisions = {"FP16", "BF16", "INT8", "FP8", "INT4"}
    assert not precisions & set(trt.BuilderFlag.__members__)


def test_a_graph_with_an_operator_of_onnx_runtime_is_refused_by_name(library):
    decoder = open_bundle().part("mllm").graphs("decoder", "cpu-w8a8-static")[0].path
    with pytest.raises(EngineRefused, match="GroupQueryAttention"):
        build(library, decoder)


def test_the_bundle_that_ships_as_it_is(terminal):
    """Every role has a graph that is taken, with the shapes that its manifest names."""
    done = terminal("build", "tiny", "--backend", "rtx", "--dry-run")
    assert done.code == 0, done.err
    told = dict(line.split("\t")[:2] for line in done.out.splitlines())
    for part in open_bundle().parts.values():
        for role in part.roles:
            said = {told[str(graph)] for graph in part.graphs(role)}
            assert "accepted" in said
            assert said <= {"accepted", "not for rtx"}


def test_the_segmenter_that_ships(library, tmp_path):
    for path in export_click_net(SegmenterNet().eval(), tmp_path).values():
        build(library, path)


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_mllm_that_ships(library, tmp_path, name):
    tokenizer, precision = build_tokenizer(), PRECISIONS[name]
    state = TinyMllm(tiny_config(tokenizer.get_vocab())).model.state_dict()
    language = StateDict(state, "model.language_model.")
    rows = np.asarray(language("embed_tokens.weight"))[list(mllm_settings(tokenizer).head_rows)]
    with new_graph(tmp_path / "vision.onnx", "portable") as g:
        vision_encoder_shape().build(g, StateDict(state, "model.visual."), precision.vision)
    with new_graph(tmp_path / "decoder.onnx", "portable") as g:
        build_decoder(g, language_shape(), language, rows, precision.language)
    for role in ("vision", "decoder"):
        build(library, tmp_path / f"{role}.onnx")


@pytest.mark.parametrize("family", segmenter_exporters())
def test_a_segmenter(library, sources, tmp_path, family):
    source = sources(family)
    recipe = SegmenterRecipe(family, str(source), ("gpu-fp16", "reference"))
    exported = export_segmenter(recipe, source, tmp_path)
    write_variant(exported.graphs_for("gpu"), tmp_path / "half", SEGMENTER_VARIANTS["gpu-fp16"])
    for path in (*exported.graphs.values(), *exported.for_gpu.values()):
        build(library, path)
    for path in exported.graphs.values():
        build(library, tmp_path / "half" / path.name)


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("family", mllm_exporters())
def test_an_mllm(library, sources, tmp_path, family, name):
    source = read_source(sources(family))
    graphs = export_mllm_graphs(source, tmp_path, PRECISIONS[name], "portable")
    profiles = mllm_profiles(graphs, source.codec)
    for role, path in graphs.items():
        build(library, path, profiles[role])


@pytest.mark.parametrize("scheme", ["fp32", "fp16"])
def test_a_vision_encoder_of_qwen2_5_vl_at_its_true_width(library, sources, tmp_path, scheme):
    """Two of its 32 layers, for pictures of up to 1,280 visual tokens: attention over all patches
    takes more scratch memory than 2 GiB."""
    vision = QWEN25_3B["vision_config"] | {"depth": 2, "fullatt_block_indexes": [1]}
    (tmp_path / "config.json").write_text(json.dumps(QWEN25_3B | {"vision_config": vision}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN25_PIXELS))
    model = read_model(tmp_path, 1280 * 28 * 28)
    described = Qwen2_5_VLConfig(vision_config=vision).vision_config
    state = Qwen2_5_VisionTransformerPretrainedModel(described).state_dict()
    with new_graph(tmp_path / "vision.onnx", "portable") as g:
        model.vision_encoder.build(g, StateDict(state), Precision(scheme))
    small = read_source(sources("qwen2_5_vl"))
    codec = replace(small, settings=replace(small.settings, vision=model.vision_settings)).codec
    paths = {"vision": tmp_path / "vision.onnx"}
    build(library, paths["vision"], mllm_profiles(paths, codec)["vision"])


@pytest.mark.slow
def test_a_simple_click_vit_l_at_its_true_width(library, tmp_path):
    """Four of its 24 layers; the net that the paper's figures are of."""
    sizes = made_up.Sizes(1024, 4, 16, 14, (192, 384, 768, 1536), 256)
    source = made_up.save(tmp_path / "vit_l.pth", made_up.content(sizes))
    recipe = SegmenterRecipe("simple_click", str(source), ("gpu-fp16", "reference"))
    exported = export_segmenter(recipe, source, tmp_path)
    build(library, exported.graphs["net"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["reference", "gpu-fp16"])
def test_a_sam_3_at_its_published_size(library, tmp_path, scheme):
    """1008 pixels, widths and windows as published, with one layer of each kind instead of 32."""
    config = described(1008)
    layers = {"num_hidden_layers": 2, "global_attn_indexes": [1]}
    config["vision_config"]["backbone_config"] |= layers
    source = tmp_path / "checkpoint"
    awaken(Sam3TrackerModel(Sam3TrackerConfig(**config))).save_pretrained(source)
    recipe = SegmenterRecipe("sam3", str(source), ("gpu-fp16", "reference"))
    exported = export_segmenter(recipe, source, tmp_path)
    graphs = exported.graphs_for("gpu")
    if scheme != "reference":
        write_variant(graphs, tmp_path / "half", SEGMENTER_VARIANTS[scheme])
        graphs = {role: tmp_path / "half" / path.name for role, path in graphs.items()}
    for path in graphs.values():
        build(library, path)
