"""Recipes from checkpoints alone, for the layouts in which models are published and trained.

Configurations hold what their owners publish in the fields that a recipe depends on; weights are
not read but for files whose tensors' names are all that tells them apart.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from segagent_rt_export.detection import Wishes, detect_recipe  # noqa: E402
from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid, SourceMissing  # noqa: E402
from segagent_rt_export.recipe import parse_recipe  # noqa: E402

pytestmark = pytest.mark.export

GOLDEN = Path(__file__).parents[1] / "golden"


def qwen2_5_vl(hidden: int, layers: int, heads: int, kv: int, inner: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inner, "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 151936, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
            "num_heads": 16, "out_hidden_size": hidden, "patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "spatial_merge_size": 2,
        },
    }  # fmt: skip


def qwen3_vl(hidden: int, inner: int, layers: int, heads: int, vision: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 262144, "rope_theta": 5e6,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
                             "rope_type": "default"},
        },
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 24, "hidden_size": vision, "num_heads": 16,
            "intermediate_size": 4 * vision, "out_hidden_size": hidden, "patch_size": 16,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
            "hidden_act": "gelu_pytorch_tanh",
        },
    }  # fmt: skip


QWEN2_VL = {
    "model_type": "qwen2_vl", "hidden_size": 3584, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
}  # fmt: skip
QWEN_VL = {
    "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 4096,
    "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
    "kv_channels": 128, "seq_length": 2048, "rotary_pct": 1.0, "rotary_emb_base": 10000,
    "visual": {"heads": 16, "image_size": 448, "layers": 48, "mlp_ratio": 4.9231,
               "output_dim": 4096, "patch_size": 14, "width": 1664},
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "projector_hidden_act": "gelu", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                      "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14,
                      "num_hidden_layers": 24},
}  # fmt: skip
OLD_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
NEW_PIXELS = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16}
CROP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}

TWO, SEVEN = qwen3_vl(2048, 6144, 28, 16, 1024), qwen2_5_vl(3584, 28, 28, 4, 18944)
THREE, EIGHT = qwen2_5_vl(2048, 36, 16, 2, 11008), qwen3_vl(4096, 12288, 36, 32, 1152)
FOUR = qwen3_vl(2560, 9728, 36, 32, 1024)


def hub(place: Path, owner: str, name: str) -> Path:
    """Where a download puts a model."""
    return place / "checkpoints" / owner / name


def write(folder: Path, **files: Any) -> Path:
    """JSON files by their names without the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def names_in(file: str) -> dict[str, Any]:
    return dict.fromkeys((GOLDEN / file).read_text("utf-8").split(), torch.zeros(1))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


SEGMENTER_FOLDERS = {
    "facebook/sam-vit-base": ("sam", "sam"),
    "facebook/sam-vit-large": ("sam", "sam"),
    "facebook/sam-vit-huge": ("sam", "sam"),
    "nielsr/slimsam-77-uniform": ("sam", "sam"),
    "syscv-community/sam-hq-vit-base": ("sam_hq", "sam_hq"),
    "facebook/sam2.1-hiera-tiny": ("sam2_video", "sam2"),
    "facebook/sam2-hiera-large": ("sam2_video", "sam2"),
    "yonigozlan/EdgeTAM-hf": ("edgetam_video", "edgetam"),
    "facebook/sam3": ("sam3_video", "sam3"),
    "saved/sam3-tracker": ("sam3_tracker_video", "sam3"),
}


@pytest.mark.parametrize("model", SEGMENTER_FOLDERS)
def test_segmenters_in_the_layout_of_transformers(model, tmp_path):
    kind, family = SEGMENTER_FOLDERS[model]
    write(hub(tmp_path, *model.split("/")), config={"model_type": kind})
    recipe, _ = detect_recipe(f"hf:{model}", Wishes())
    assert recipe.segmenter.family == family
    assert recipe.segmenter.source == f"hf:{model}"
    assert recipe.mllm is None
    assert recipe.name == model.split("/")[1]


SEGMENTER_FILES = {
    "sam_vit_b_01ec64.pth": ("sam", lambda: names_in("sam_original_names.txt")),
    "sam_hq_vit_l.pth": ("sam_hq", lambda: names_in("sam_hq_original_names.txt")),
    "sam2.1_hiera_tiny.pt": ("sam2", lambda: {"model": names_in("sam2_original_names.txt")}),
    "edgetam.pt": ("edgetam", lambda: {"model": {
        "image_encoder.trunk.body.stem_0.c.weight": torch.zeros(1)}}),
    "mobile_sam.pt": ("mobile_sam", lambda: {
        "image_encoder.layers.1.blocks.0.attn.qkv.weight": torch.zeros(1)}),
    "cocolvis_vit_large.pth": ("simple_click", lambda: {
        "config": {"class": "isegm.model.is_plainvit_model.PlainVitModel", "params": {}},
        "state_dict": {"patch_embed_coords.proj.weight": torch.zeros(1)}}),
    "trained.pth": ("sam", lambda: {"epoch": 3, "model": {
        f"module.{name}": t for name, t in names_in("sam_original_names.txt").items()}}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTER_FILES)
def test_segmenters_in_the_files_of_their_authors(name, tmp_path):
    family, content = SEGMENTER_FILES[name]
    torch.save(content(), tmp_path / name)
    recipe, _ = detect_recipe(name, Wishes())
    assert (recipe.segmenter.family, recipe.segmenter.source) == (family, name)


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str, int | None]] = {
    "Qwen/Qwen3-VL-2B-Instruct": (TWO, NEW_PIXELS, "qwen3_vl", "qwen3-vl", 262144),
    "Qwen/Qwen3-VL-8B-Instruct": (EIGHT, NEW_PIXELS, "qwen3_vl", "qwen3-vl", 262144),
    "Qwen/Qwen2.5-VL-3B-Instruct": (THREE, OLD_PIXELS, "qwen2_5_vl", "qwen2.5-vl", 262144),
    "Qwen/Qwen2.5-VL-7B-Instruct": (SEVEN, OLD_PIXELS, "qwen2_5_vl", "qwen2.5-vl", 262144),
    "Qwen/Qwen2.5-VL-3B-Instruct-AWQ": (
        THREE | {"quantization_config": {"quant_method": "awq"}}, OLD_PIXELS, "qwen2_5_vl",
        "qwen2.5-vl", 262144),
    "Qwen/Qwen3-VL-8B-Instruct-FP8": (
        EIGHT | {"quantization_config": {
            "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
            "weight_block_size": [128, 128]}}, NEW_PIXELS, "qwen3_vl", "qwen3-vl", 262144),
    "Qwen/Qwen2-VL-7B-Instruct": (QWEN2_VL, OLD_PIXELS, "qwen2_vl", "segagent-rated", 262144),
    "llava-hf/llava-1.5-7b-hf": (LLAVA, CROP, "llava", "segagent-llava", None),
    "zzzmmz/SegAgent-Model": (QWEN_VL, {}, "qwen_vl", "segagent", None),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_mllms(model, tmp_path):
    config, processor, family, preset, pixels = PUBLISHED[model]
    write(hub(tmp_path, *model.split("/")), config=config, preprocessor_config=processor)
    recipe, _ = detect_recipe(f"hf:{model}", Wishes())
    assert (recipe.mllm.family, recipe.mllm.preset) == (family, preset)
    assert recipe.mllm.jpeg == (family == "qwen_vl")
    if pixels is not None:
        assert recipe.mllm.most_pixels == pixels
    by_path = detect_recipe(f"checkpoints/{model}", Wishes())[0]
    assert by_path.mllm.preset == preset


def test_pixels_are_at_most_those_of_the_processor_and_of_the_context(tmp_path):
    small = OLD_PIXELS | {"max_pixels": 200704}
    write(tmp_path / "a", config=THREE, preprocessor_config=small, trainer_state={})
    assert detect_recipe("a", Wishes())[0].mllm.most_pixels == 200704
    short = THREE | {"max_position_embeddings": 1024}
    write(tmp_path / "b", config=short, preprocessor_config=OLD_PIXELS, trainer_state={})
    assert detect_recipe("b", Wishes())[0].mllm.most_pixels == 256 * 28**2


def test_what_llama_factory_trained_whole_has_the_preset_of_its_training_data(tmp_path):
    write(tmp_path / "saves" / "mine", config=TWO, preprocessor_config=NEW_PIXELS, trainer_state={})
    recipe, text = detect_recipe("saves/mine", Wishes())
    assert (recipe.mllm.preset, recipe.mllm.source) == ("segagent-rated", "saves/mine")
    assert recipe.name == "mine"
    assert "trainer_state.json" in text


def adapter(folder: Path, **config: Any) -> Path:
    return write(folder, adapter_config={"peft_type": "LORA", "r": 8, **config})


def test_an_adapter_names_its_base_by_path_or_by_hub(tmp_path):
    base = write(hub(tmp_path, "Qwen", "Qwen2.5-VL-3B-Instruct"), config=THREE,
                 preprocessor_config=OLD_PIXELS)  # fmt: skip
    for named, source in (
        ("Qwen/Qwen2.5-VL-3B-Instruct", "hf:Qwen/Qwen2.5-VL-3B-Instruct"),
        (str(base), base.as_posix()),
    ):
        adapter(tmp_path / "saves" / "lora", base_model_name_or_path=named)
        part = detect_recipe("saves/lora", Wishes())[0].mllm
        assert (part.source, part.adapter, part.preset) == (source, "saves/lora", "segagent-rated")


def test_an_adapter_whose_base_is_elsewhere_is_a_question(tmp_path):
    adapter(tmp_path / "lora", base_model_name_or_path="/data/models/Qwen3-VL-2B")
    with pytest.raises(RecipeInvalid, match="/data/models") as caught:
        detect_recipe("lora", Wishes())
    assert "--base" in caught.value.hint
    write(tmp_path / "base", config=TWO, preprocessor_config=NEW_PIXELS)
    assert detect_recipe("lora", Wishes(base="base"))[0].mllm.source == "base"


def test_an_adapter_whose_base_was_not_downloaded_says_how(tmp_path):
    adapter(tmp_path / "lora", base_model_name_or_path="Qwen/Qwen3-VL-2B-Instruct")
    with pytest.raises(SourceMissing) as caught:
        detect_recipe("lora", Wishes())
    assert "--yes" in caught.value.hint


def test_a_pissa_adapter_is_taken_in_the_form_that_llama_factory_converted_it_to(tmp_path):
    write(tmp_path / "base", config=TWO, preprocessor_config=NEW_PIXELS)
    folder = adapter(tmp_path / "pissa", base_model_name_or_path="base",
                     init_lora_weights="pissa_niter_16")  # fmt: skip
    adapter(folder / "pissa_converted", base_model_name_or_path="base", init_lora_weights=True)
    assert detect_recipe("pissa", Wishes())[0].mllm.adapter.endswith("pissa/pissa_converted")


@pytest.mark.parametrize("config", [TWO, THREE])
def test_a_model_without_a_trace_is_a_question_about_its_preset(tmp_path, config):
    """Merged fine-tunes, and models that others tuned for grounding, such as nvidia/EGM-4B."""
    write(tmp_path / "merged", config=config, preprocessor_config=NEW_PIXELS)
    with pytest.raises(RecipeInvalid, match="trained to click") as caught:
        detect_recipe("merged", Wishes())
    assert "--preset segagent-rated" in caught.value.hint
    assert detect_recipe("merged", Wishes(preset="segagent-plain"))[0].mllm.preset
    with pytest.raises(RecipeInvalid, match="preset"):
        detect_recipe("merged", Wishes(preset="nothing"))


REFUSED = {
    "Qwen3-VL-30B-A3B-Instruct": {"model_type": "qwen3_vl_moe", "text_config": {}},
    "Qwen3.5-9B": {"model_type": "qwen3_5"},
    "Qwen3.5-35B-A3B": {"model_type": "qwen3_5_moe"},
    "InternVL3-8B": {"model_type": "internvl"},
    "liuhaotian/llava-v1.5-7b": {
        "model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    "llava_llama": {"model_type": "llava_llama"},
    "DINOv3": {"model_type": "dinov3_vit"},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_exported_are_refused_with_the_way_through_a_server(name, tmp_path):
    write(tmp_path / "model", config=REFUSED[name], preprocessor_config={})
    with pytest.raises(CheckpointInvalid) as caught:
        detect_recipe("model", Wishes())
    assert "\n" not in str(caught.value)
    assert "--endpoint" in caught.value.hint
    if name.startswith("liuhaotian"):
        assert "convert_llava_weights_to_hf" in caught.value.hint


def test_folders_that_hold_no_model_say_what_to_name(tmp_path):
    write(tmp_path / "saves" / "checkpoint-500", config=TWO)
    write(tmp_path / "saves" / "checkpoint-1000", config=TWO)
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "sam2.1_hiera_tiny.pt").write_bytes(b"")
    for folder, said in (("saves", "checkpoint-1000"), ("gguf", "llama.cpp"),
                         ("files", "sam2.1_hiera_tiny.pt")):  # fmt: skip
        with pytest.raises(CheckpointInvalid, match=r"config\.json") as caught:
            detect_recipe(folder, Wishes())
        assert said in caught.value.hint
    preset = Wishes(preset="segagent-rated")
    write(tmp_path / "saves" / "checkpoint-1000", preprocessor_config=NEW_PIXELS)
    assert detect_recipe("saves/checkpoint-1000", preset)[0].name == "saves-checkpoint-1000"


def test_the_other_part_is_a_checkpoint_or_that_of_a_recipe(tmp_path):
    write(tmp_path / "mine", config=TWO, preprocessor_config=NEW_PIXELS, trainer_state={})
    write(tmp_path / "edgetam", config={"model_type": "edgetam_video"})
    both = detect_recipe("mine", Wishes(segmenter="edgetam", variants=("gpu-fp16",)))[0]
    assert (both.segmenter.family, both.segmenter.variants) == ("edgetam", ("gpu-fp16",))
    assert both.mllm.variants == ("gpu-fp16",)
    lent = detect_recipe("mine", Wishes(segmenter="qwen3-vl-2b-edgetam"))[0].segmenter
    assert lent.source.startswith("hf:yonigozlan/EdgeTAM-hf@")
    for wrong in ("mine", "nothing"):
        with pytest.raises(RecipeInvalid):
            detect_recipe("mine", Wishes(segmenter=wrong))
    with pytest.raises(RecipeInvalid):
        detect_recipe("edgetam", Wishes(segmenter="edgetam"))


def test_what_is_printed_is_what_is_exported(tmp_path):
    write(
        tmp_path / 'a "quoted" name', config=TWO, preprocessor_config=NEW_PIXELS, trainer_state={}
    )
    recipe, text = detect_recipe('a "quoted" name', Wishes())
    assert parse_recipe(text, Path("other.toml")) == recipe


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "sam.pt")
    with pytest.raises(CheckpointInvalid, match="not a regular file"):
        detect_recipe(str(tmp_path / "sam.pt"), Wishes())
