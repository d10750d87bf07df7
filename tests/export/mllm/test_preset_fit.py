"""Presets: one for each family, a warning if a checkpoint answers otherwise, room for replies."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from segagent_rt.data import training
from segagent_rt.mllm.families import qwen3_vl, qwen_vl
from segagent_rt.mllm.prompts import MAX_PIXELS, PRESETS
from segagent_rt.reply import ReplyProtocol

pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_source import Choices, read_source
from segagent_rt_export.gate.preset_fit import preset_fit
from segagent_rt_export.recipe import MllmRecipe

pytestmark = pytest.mark.export


class Trained:
    """A model that was trained on one preset: it repeats a reply of that form, other numbers in it,
    and holds to the form whatever numbers it is shown."""

    def __init__(self, source: Any, preset: str) -> None:
        self._codec, self._reply = source.codec, PRESETS[preset].reply
        assert isinstance(self._reply, ReplyProtocol)

    def logits(self, image: Any, lead: list[int], tail: list[int]) -> Any:
        """The next token after each of `tail`, with certainty."""
        text = self._codec.decode(tail)
        start = text.rindex("assistant") + len("assistant\n")
        scores = np.zeros((len(tail), 4096), np.float32)
        for at in range(len(tail)):
            said = self._codec.decode(tail[: at + 1])[start:]
            scores[at, self._next(said, text[start:])] = 1
        return scores

    def _next(self, said: str, shown: str) -> int:
        """The token that follows in this model's form: its fixed text, else what it is shown."""
        import re

        form = re.escape(self._reply.template)
        for name in ("expression", "iou", "row", "column", "x0", "y0", "x1", "y1", "sign"):
            form = form.replace(re.escape(f"{{{name}}}"), "[^<(:]*?" if name != "iou" else r"\d*")
        if re.fullmatch(form, shown):
            return int(self._codec.encode(shown[len(said) :] or "<|im_end|>")[0])
        return int(self._codec.encode(self._reply.template[len(said) :] or ".")[0])


@pytest.mark.parametrize("preset", ["segagent", "segagent-plain", "segagent-rated", "segagent-box"])
def test_the_right_preset_is_silent_and_a_wrong_one_names_the_right_one(
    small: Any, preset: str
) -> None:
    folder = small("qwen2_5_vl").folder
    source = read_source(folder, Choices(preset=preset))
    fit = preset_fit(source, Trained(source, preset))  # type: ignore[arg-type]
    assert fit.share > 0.9
    assert fit.warning(preset) is None
    other = "segagent-plain" if preset != "segagent-plain" else "segagent-rated"
    source = read_source(folder, Choices(preset=other))
    fit = preset_fit(source, Trained(source, preset))  # type: ignore[arg-type]
    assert fit.better == preset
    assert f'preset = "{preset}" fits' in str(fit.warning(other))


def test_convert_recipes_and_the_default_agree(small: Any) -> None:
    """What `convert` writes is what an export without a preset expects, pixels included."""
    source = read_source(small("qwen3_vl").folder)
    assert source.settings.reply == PRESETS["segagent-rated"].reply
    assert training.TARGETS["llama-factory"].preset == qwen3_vl.FAMILY.preset
    assert training.TARGETS["qwen-vl"].preset == qwen_vl.FAMILY.preset == "segagent"
    assert read_source(small("qwen_vl").folder).settings.reply == PRESETS["segagent"].reply
    recipe = training.RECIPE.format(
        model="m", template="t", folder="f", name="n", pixels=MAX_PIXELS
    )
    assert "image_max_pixels: 262144 " in recipe
    assert MllmRecipe("qwen3_vl", "s", ("cpu-w8",)).most_pixels == 262144


def changed(folder: Any, target: Any, **fields: Any) -> Any:
    """The same checkpoint with other fields in its configuration."""
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    place = config.get("text_config", config)
    place.update(fields)
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_a_context_that_is_too_short_is_refused_with_a_hint_that_helps(
    small: Any, tmp_path: Any
) -> None:
    short = changed(small("qwen_vl").folder, tmp_path, seq_length=900)
    with pytest.raises(CheckpointInvalid, match="reads at most 900 tokens") as caught:
        read_source(short, Choices(preset="segagent"))
    assert 'preset = "segagent-rated"' in str(caught.value.hint)
    read_source(short, Choices(preset="segagent-rated"))
    config = json.loads((short / "config.json").read_text()) | {"seq_length": 700}
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match="reads at most 700 tokens") as caught:
        read_source(short, Choices(preset="segagent-rated"))
    assert "a longer context" in str(caught.value.hint)


@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size"]
)
def test_absurd_dimensions_are_refused(small: Any, tmp_path: Any, field: str) -> None:
    folder = changed(small("qwen2_5_vl").folder, tmp_path, **{field: 10**8})
    with pytest.raises(CheckpointInvalid, match=f"{field} = 100000000 is absurd"):
        read_source(folder)


@pytest.mark.parametrize("kind", ["timm_wrapper", "timm_backbone", "siglip_vision_model"])
def test_llava_with_another_vision_encoder_is_refused(small: Any, tmp_path: Any, kind: str) -> None:
    """transformers would build it, and timm's wrappers download weights when they are built."""
    folder = changed(small("llava").folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match="exported with CLIP only"):
        read_source(folder)
