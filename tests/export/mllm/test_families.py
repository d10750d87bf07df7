"""Configurations: published ones, old and new layouts, defaults, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaConfig
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from segagent_rt.errors import InputError
from segagent_rt.mllm.preprocess import CenterCrop, PadToSquare, SmartResize, SquareResize
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.chat_templates import frame_of
from segagent_rt_export.families.mllm_source import Choices, read_model, read_source
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.registry import mllm_exporter

pytestmark = pytest.mark.export

QWEN25_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008,
    "max_position_embeddings": 128000, "num_attention_heads": 16, "num_hidden_layers": 36,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": 151936, "hidden_act": "silu",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420,
        "num_heads": 16, "in_chans": 3, "out_hidden_size": 2048, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
QWEN25_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}


def written(folder: Any, config: dict[str, Any], processor: dict[str, Any] | None = None) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_a_published_qwen2_5_vl(tmp_path):
    model = read_model(written(tmp_path, QWEN25_3B, QWEN25_PIXELS))
    assert model.family == "qwen2_5_vl"
    assert model.tied
    assert model.language.heads == Heads(16, 2, 128)
    assert (model.language.layers, model.language.inner) == (36, 11008)
    assert model.language_settings.rope == RopeSettings(128, 1e6, "chunked", (16, 24, 24))
    assert model.vision_encoder.window == 4
    assert model.vision_settings.window == 4
    assert model.vision_settings.rope.head_dim == 80
    assert model.vision_settings.resize == SmartResize(28, 3136, 512 * 512)


LIMITS: dict[str, dict[str, Any]] = {
    "the older names alone": {"min_pixels": 50176, "max_pixels": 262144},
    "sizes alone": {"size": {"shortest_edge": 50176, "longest_edge": 262144}},
    "older names beside sizes": {
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        "min_pixels": 200704, "max_pixels": 262144,
    },
    "one older name beside sizes": {
        "size": {"shortest_edge": 3136, "longest_edge": 262144}, "min_pixels": 50176,
    },
    "none": {},
}  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("limits", LIMITS)
def test_pictures_are_as_large_as_transformers_makes_them(tmp_path, limits, whole):
    """Also where both files exist: the image processor within the whole processor's goes first."""
    processor = {"patch_size": 14, "merge_size": 2} | LIMITS[limits]
    folder = written(tmp_path, QWEN25_3B, QWEN25_PIXELS if whole else processor)
    if whole:
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)
    resize = read_model(folder, 4_000_000).vision_settings.resize
    for height, width in ((1000, 1400), (100, 120), (480, 640), (40, 2000)):
        rows, columns = resize.target((height, width))
        assert rows * columns // 14**2 == theirs.get_number_of_image_patches(height, width)


def test_pictures_are_as_large_as_the_caller_wants(tmp_path):
    """Up to what the checkpoint allows and its context holds."""
    folder = written(tmp_path, QWEN25_3B, QWEN25_PIXELS)
    assert read_model(folder).vision_settings.resize.most == 512 * 512
    assert read_model(folder, 100_000).vision_settings.resize.most == 100_000
    assert read_model(folder, 4_000_000).vision_settings.resize.most == 4_000_000
    assert read_model(folder, 20_000_000).vision_settings.resize.most == 12845056
    written(tmp_path, QWEN25_3B | {"max_position_embeddings": 4096})
    assert read_model(folder, 4_000_000).vision_settings.resize.most == (4096 - 768) * 28 * 28


def test_new_layouts_say_the_same(tmp_path):
    old = read_model(written(tmp_path, QWEN25_3B, QWEN25_PIXELS))
    top = {"model_type", "vision_config", "tie_word_embeddings"}
    text = {k: v for k, v in QWEN25_3B.items() if k not in top | {"rope_scaling", "rope_theta"}}
    text["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
    }  # fmt: skip
    new = {k: v for k, v in QWEN25_3B.items() if k in top} | {"text_config": text}
    (tmp_path / "preprocessor_config.json").unlink()
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": size}}))
    assert read_model(written(tmp_path, new)) == old


def test_a_published_qwen3_vl(tmp_path):
    config = {
        "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "text_config": {
            "head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728,
            "max_position_embeddings": 262144, "num_attention_heads": 32, "num_hidden_layers": 36,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 5000000,
            "rope_scaling": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            },
        },
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_size": 1024,
            "intermediate_size": 4096, "num_heads": 16, "num_position_embeddings": 2304,
            "out_hidden_size": 2560, "patch_size": 16,
        },
    }  # fmt: skip
    model = read_model(written(tmp_path, config))
    assert model.language.head_norms
    assert model.language.deepstack == model.vision_settings.deepstack == 3
    assert model.language.heads == Heads(32, 8, 128)
    assert model.language_settings.rope.layout == "interleaved"
    assert model.vision_settings.table == 48
    assert model.vision_encoder.pixels.mean == (0.5, 0.5, 0.5)


def test_the_first_qwen_vl_needs_only_its_type(tmp_path):
    """The defaults are those of Qwen-VL-Chat."""
    model = read_model(written(tmp_path, {"model_type": "qwen", "visual": {"image_size": 448}}))
    assert model.language.heads == Heads(32, 32, 128)
    assert (model.language.inner, model.vision_encoder.inner) == (11008, 8192)
    assert model.language_settings.most_tokens == 2048
    assert model.vision_settings.grid == (16, 16)
    assert model.vision_settings.resize == SquareResize(448)


LLAVA = {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}


def test_llava_takes_what_is_left_out_from_vicuna_and_clip(tmp_path):
    model = read_model(written(tmp_path, LLAVA))
    text = LlamaConfig()
    assert model.language.hidden == text.hidden_size
    assert model.language.inner == text.intermediate_size
    assert model.language.layers == text.num_hidden_layers
    assert (model.vision_encoder.depth, model.vision_encoder.grid) == (23, 24)
    assert model.vision_settings.resize == CenterCrop(336, 336)


def test_llavas_processor_decides_between_crop_pad_and_squash(tmp_path):
    mean = {"image_mean": [0.5, 0.25, 1.0]}
    found = read_model(written(tmp_path, LLAVA, {"do_pad": True} | mean)).vision_settings.resize
    assert found == PadToSquare(336, (127, 63, 255))
    whole = {"size": {"height": 336, "width": 336}}
    assert read_model(written(tmp_path, LLAVA, whole)).vision_settings.resize == SquareResize(336)


def test_defaults_of_the_vision_encoders_are_transformers(tmp_path):
    pairs = (
        ("qwen2_vl", Qwen2VLVisionConfig(), {"embed_dim": "width"}),
        ("qwen2_5_vl", Qwen2_5_VLVisionConfig(), {"hidden_size": "width"}),
        ("qwen3_vl", Qwen3VLVisionConfig(), {"hidden_size": "width"}),
    )
    same = {"depth": "depth", "num_heads": "heads", "patch_size": "patch"}
    for kind, theirs, names in pairs:
        text = {k: v for k, v in QWEN25_3B.items() if k != "vision_config"}
        if kind == "qwen3_vl":
            text = text | {"rope_scaling": {"mrope_section": [24, 20, 20]}}
        encoder = read_model(written(tmp_path, text | {"model_type": kind})).vision_encoder
        for name, ours in (same | names).items():
            assert getattr(encoder, ours) == getattr(theirs, name), (kind, name)
        if kind != "qwen2_vl":
            assert encoder.inner == theirs.intermediate_size


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "qwen4_vl"}, "`qwen4_vl` cannot be exported"),
    "no type": ({"model_type": None}, "`` cannot be exported"),
    "scaled positions": (
        {"rope_scaling": {"type": "yarn", "factor": 4}}, "rotary positions are not supported"
    ),
    "sections of another head": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "does not divide 64"
    ),
    "a sliding window": ({"use_sliding_window": True}, "every token attends"),
    "another activation": ({"hidden_act": "gelu"}, "built with silu"),
    "a size in words": ({"num_hidden_layers": "many"}, "many is not a size"),
    "no size": ({"hidden_size": None}, "is not a size"),
    "a negative size": ({"num_hidden_layers": -3}, "-3 is not a size"),
    "a list for a section": ({"vision_config": []}, "is not an object"),
    "a short context": ({"max_position_embeddings": 500}, "prompts need"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_sentence(tmp_path, fault):
    changes, said = REFUSED[fault]
    with pytest.raises(CheckpointInvalid, match=said) as caught:
        read_model(written(tmp_path, QWEN25_3B | changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_foreign_are_refused(small, tmp_path):
    with pytest.raises(CheckpointInvalid, match="there is no"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointInvalid, match="not a JSON object"):
        read_model(tmp_path)
    folder = small("qwen2_vl").folder
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointInvalid, match=r"no tokenizer\.json"):
        read_source(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointInvalid, match="is no tokenizer"):
        read_source(tmp_path)


def test_a_preset_that_does_not_exist_is_named(small):
    with pytest.raises(InputError, match="no preset `x`") as caught:
        read_source(small("qwen2_vl").folder, Choices(preset="x"))
    assert "box-then-clicks" in str(caught.value.hint)


def test_the_segagent_prompt_letter_by_letter(small):
    """SegAgent's inference prompt, with one token in place of the picture's path."""
    settings = read_source(small("qwen_vl").folder).settings
    prompt = settings.prompt.replace("<imgpad>", "PATH").replace("{expression}", "CAPTION")
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: "
        "<img>PATH</img>\nPlease optimize the semi-transparent green mask in a point-wise manner "
        "based on the image and description content, so that it covers the target object as "
        "accurately as possible. The object description is as follows:<ref>CAPTION</ref>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert settings.stops[:2] == tuple(
        read_source(small("qwen_vl").folder).tokenizer.token_to_id(t)
        for t in ("<|im_end|>", "<|endoftext|>")
    )


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
STOCK = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    + SYSTEM.replace("\n", "\\n").join(["{{ '", "' }}"])
    + "{% endif %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's, without videos."""

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant{{ '\\n' }}"
)
"""As LLaMA-Factory saves templates: contents are texts with the picture's tokens in them."""

SEEN = "<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>\n<|im_start|>assistant\n"
USER = "<|im_start|>user\n" + SEEN


def with_template(folder: Any, template: str | None, where: str = "chat_template.jinja") -> Any:
    if template is not None:
        wrapped = json.dumps({"chat_template": template})
        (folder / where).write_text(template if where.endswith("jinja") else wrapped)
    return folder


FRAMES: dict[str, tuple[str, str | None, str]] = {
    "no template": ("qwen2_5_vl", None, SYSTEM + USER),
    "the published one": ("qwen2_5_vl", STOCK, SYSTEM + USER),
    "another system prompt": (
        "qwen2_5_vl", STOCK.replace("a helpful", "an annotating"),
        SYSTEM.replace("a helpful", "an annotating") + USER,
    ),
    "no system prompt": ("qwen2_5_vl", PLAIN, USER),
    "thoughts that are closed": (
        "qwen3_vl", PLAIN + "{{ '<think>\\n\\n</think>\\n\\n' }}", USER + "<think>\n\n</think>\n\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FRAMES)
def test_the_model_is_asked_in_the_frame_of_its_chat_template(tmp_path, tokenizer, case):
    name, template, wanted = FRAMES[case]
    family = mllm_exporter(name)
    for where in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        folder = tmp_path / where
        folder.mkdir()
        assert frame_of(with_template(folder, template, where), family, tokenizer) == wanted


FRAMES_REFUSED = {
    "open thoughts": (PLAIN + "<think>\n", "thinks before it answers"),
    "no picture": ("{{ messages[0].role }}: {instruction}", "one picture and one text"),
    "no text": ("<|image_pad|>", "one picture and one text"),
    "an error": ("{{ raise_exception('no user') }}", "cannot be rendered: no user"),
    "no template at all": ("{% if %}", "cannot be rendered"),
}


@pytest.mark.parametrize("case", FRAMES_REFUSED)
def test_a_chat_template_that_cannot_be_followed_is_refused(tmp_path, tokenizer, case):
    template, said = FRAMES_REFUSED[case]
    with pytest.raises(CheckpointInvalid, match=said):
        frame_of(with_template(tmp_path, template), mllm_exporter("qwen3_vl"), tokenizer)
