"""TensorRT-RTX builds the variants for GPUs of published MLLMs at their true widths, with few
layers, and an engine is not larger than the memory plan says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs the extra `rtx`")
torch = pytest.importorskip("torch", reason="needs the extra `export`")

from transformers import (  # noqa: E402
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from segagent_rt.backends.engine_library import load_library  # noqa: E402
from segagent_rt.bench.budget import BASE  # noqa: E402
from segagent_rt_export.families.mllm_export import export_mllm_graphs  # noqa: E402
from segagent_rt_export.families.mllm_source import read_source  # noqa: E402
from segagent_rt_export.graphs.shape_profiles import mllm_profiles  # noqa: E402
from segagent_rt_export.variants import MLLM_VARIANTS  # noqa: E402
from tests.export.mllm import small_models  # noqa: E402
from tests.export.test_detection import NEW_PIXELS, OLD_PIXELS, THREE, TWO  # noqa: E402

pytestmark = [pytest.mark.rtx, pytest.mark.slow]

FEW = {"num_hidden_layers": 1, "vocab_size": small_models.VOCABULARY, "bos_token_id": None,
       "eos_token_id": None}  # fmt: skip
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "merge_size": 2}


def two_billion(tokens: dict[str, int]) -> Any:
    """Qwen3-VL-2B with one layer of 28, and two of 24 in the vision encoder."""
    vision = TWO["vision_config"] | {"depth": 2, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(
        text_config=TWO["text_config"] | FEW | {"tie_word_embeddings": True},
        vision_config=vision, image_token_id=tokens["<|image_pad|>"], tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config)


def three_billion(tokens: dict[str, int]) -> Any:
    """Qwen2.5-VL-3B with one layer of 36, and two of 32 in the vision encoder."""
    text = {k: v for k, v in THREE.items() if k not in ("vision_config", "model_type")}
    vision = THREE["vision_config"] | {"depth": 2, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=text | FEW, vision_config=vision, image_token_id=tokens["<|image_pad|>"]
    )
    return Qwen2_5_VLForConditionalGeneration(config)


MODELS = {
    "qwen3_vl": (two_billion, NEW_PIXELS | HALVES),
    "qwen2_5_vl": (three_billion, OLD_PIXELS),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    made: dict[str, Any] = {}

    def open_model(family: str) -> Any:
        if family not in made:
            make, preprocessing = MODELS[family]
            kind = replace(small_models.FAMILIES[family], make=make, preprocessing=preprocessing)
            folder = tmp_path_factory.mktemp(family)
            small_models.save_family(kind, folder, small_models.train_tokenizer())
            made[family] = read_source(folder)
        return made[family]

    return open_model


@pytest.mark.parametrize("name", ["gpu-fp16", "gpu-w8", "gpu-w4"])
@pytest.mark.parametrize("family", MODELS)
def test_an_mllm_at_its_true_width(source, tmp_path, family, name):
    kind, model = MLLM_VARIANTS[name], source(family)
    graphs = export_mllm_graphs(model, tmp_path, kind.arithmetic, kind.dialect)
    profiles = mllm_profiles(graphs, model.codec)
    for role, path in graphs.items():
        stored = sum(file.stat().st_size for file in tmp_path.glob(f"{path.name}*"))
        built = load_library("rtx").build(path, profiles[role], b"", partial(print, end=" "))
        print(f"{family} {name} {role}: {stored / 1e6:.1f} MB, engine {len(built.plan) / 1e6:.1f}")
        assert stored < len(built.plan) < stored + BASE["mllm"]
