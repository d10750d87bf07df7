"""Prompts of every preset, token for token what transformers' `apply_chat_template` makes.

Vocabularies here are small, but special tokens, normalisers, pre-tokenizers and digits are as
published. The templates render one picture and one text as the published ones do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Digits
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

from segagent_rt.annotators.mllm import MllmCodec
from segagent_rt.families import mllm_family
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt_export.families.mllm_source import Choices, read_source
from segagent_rt_export.registry import mllm_exporter
from tests.export.mllm.small_models import FAMILIES, save_family, train_tokenizer
from tests.export.mllm.test_families import STOCK

pytestmark = pytest.mark.export

QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in c %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content if c.type == 'image' %}"
    "<image>\n{% endfor %}{% for c in m.content if c.type == 'text' %}{{ c.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEMPLATES = {"qwen2_vl": STOCK, "qwen2_5_vl": STOCK, "qwen3_vl": QWEN3, "llava": LLAVA}


def qwen_tokenizer() -> Tokenizer:
    """Qwen's byte-level BPE with NFC and single digits."""
    tokenizer = train_tokenizer()
    tokenizer.normalizer = NFC()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in QWEN_SPECIALS])
    return tokenizer


def llama_tokenizer() -> Tokenizer:
    """LLaMA's BPE: spaces are letters, one is put in front, bytes stand in for unknown letters."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = Digits(individual_digits=True)  # keeps digits apart in training
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = BpeTrainer(vocab_size=450, special_tokens=specials, show_progress=False)
    texts = [preset.instruction for preset in PRESETS.values()]
    digits = " ".join("0123456789")
    tokenizer.train_from_iterator([*texts, f"Positive point: (0.1, 2) {digits}"] * 3, trainer)
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = None
    described["added_tokens"] = [t for t in described["added_tokens"] if "<0x" not in t["content"]]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.post_processor = TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Any:
    """A family's checkpoint folder with its tokenizer and chat template."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            tokenizer = llama_tokenizer() if family == "llava" else qwen_tokenizer()
            save_family(FAMILIES[family], folder, tokenizer)
            (folder / "chat_template.jinja").write_text(TEMPLATES[family])
            made[family] = folder
        return made[family]

    return make


def expressions(count: int = 200) -> list[str]:
    """Plain ones, other scripts, quotes and brackets, and texts that look like templates."""
    rng = np.random.default_rng(0)
    words = (
        "the", "left", "mug", "man's", "2nd", "1234", "T-shirt,", "(red)", "caf\u00e9",
        "cafe\u0301", "\u5de6\u8fb9\u7684\u732b", "\u043a\u043e\u0442", "\U0001f436", "\u200dx",
        'a "big" one', "{{ 7 * 7 }}", "{expression}", "{% raw %}", "<b>", "\\n", "a/b", "50%",
        "[1, 2]", "#3", "don't", "\u00bd", "\u00a0", "_x_", "...", "\u0e41\u0e21\u0e27",
    )  # fmt: skip
    return [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(count)]


def asked_by_transformers(folder: Path, family: str, instruction: str) -> Any:
    """Asks as a user of transformers does: returns tokens, with one for the picture."""
    special = {"bos_token": "<s>"} if family == "llava" else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
        **special,
    )

    def ask(texts: list[str]) -> list[list[int]]:
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            for text in (instruction.replace("{expression}", text) for text in texts)
        ]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return [list(tokens) for tokens in tokenizer(rendered)["input_ids"]]

    return ask


TEMPLATED = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Families for which transformers has a chat template; the first Qwen-VL has none."""

TRAINED = {family: found.preset for family in TEMPLATED if (found := mllm_family(family))}
"""The preset of checkpoints that were trained to click, by family."""

CASES = [
    *((name, family) for family, name in TRAINED.items()),
    *((name, "qwen2_vl") for name in PRESETS if name not in TRAINED.values()),
    ("segagent", "qwen2_vl"),
    ("qwen2.5-vl", "qwen2_5_vl"),
    ("qwen2.5-vl-clicks", "qwen2_5_vl"),
    ("qwen3-vl", "qwen3_vl"),
    ("qwen3-vl-clicks", "qwen3_vl"),
    ("box-then-clicks", "llava"),
]


def codec_of(folder: Path, preset: str) -> MllmCodec:
    return read_source(folder, Choices(preset=preset)).codec


def test_every_preset_is_among_the_cases() -> None:
    assert {preset for preset, _ in CASES} == set(PRESETS)


@pytest.mark.parametrize(("preset", "family"), CASES)
def test_prompts_are_those_of_the_chat_template(checkpoint: Any, preset: str, family: str) -> None:
    folder, texts = checkpoint(family), expressions()
    codec = codec_of(folder, preset)
    picture = codec.encode(mllm_exporter(family).picture)[-1]
    theirs = asked_by_transformers(folder, family, PRESETS[preset].instruction)(texts)
    for text, wanted in zip(texts, theirs, strict=True):
        lead, tail = codec.prompt(text)
        assert [*lead, picture, *tail] == wanted, text


def test_llavas_own_processor_gives_the_same_tokens(checkpoint: Any) -> None:
    """With its picture tokens and the token at the very beginning."""
    folder = checkpoint("llava")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>"
    )
    image = np.zeros((84, 84, 3), np.uint8)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**FAMILIES["llava"].preprocessing), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", chat_template=LLAVA,
        num_additional_image_tokens=1,
    )  # fmt: skip
    codec = codec_of(folder, "segagent-llava")
    for text in expressions(5):
        asked = PRESETS["segagent-llava"].instruction.replace("{expression}", text)
        pieces = [{"type": "image", "image": image}, {"type": "text", "text": asked}]
        found = processor.apply_chat_template(
            [{"role": "user", "content": pieces}], tokenize=True, add_generation_prompt=True,
            return_dict=True,
        )["input_ids"][0]  # fmt: skip
        lead, tail = codec.prompt(text)
        picture = codec.encode("<image>")[-1]
        assert list(found) == [*lead, *[picture] * 36, *tail], text
