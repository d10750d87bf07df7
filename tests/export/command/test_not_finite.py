"""Numbers that are not finite fail the gate wherever they are, and no option lets them pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from segagent_rt.bundle.bundle import open_bundle

pytestmark = pytest.mark.export

QUERY, DOWN = "1.self_attn.q_proj.weight", "layers.2.mlp.down_proj.weight"
TABLE, ENCODER = "embed_tokens.weight", "vision_encoder.layers.0.mlp.lin1.weight"


def spoilt(source: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of a checkpoint with a last number of `value` in the tensor whose name ends so."""
    copy = Path(shutil.copytree(source, folder / "spoilt"))
    tensors = load_file(copy / "model.safetensors")
    (found,) = (tensor for key, tensor in tensors.items() if key.endswith(name))
    found.view(-1)[-1] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def export(terminal: Any, source: Path, part: str, family: str, *options: str) -> Any:
    recipe = source.parent / "mine.toml"
    recipe.write_text(
        f'[{part}]\nfamily = "{family}"\nsource = "{source}"\nvariants = ["cpu-w8"]\n'
    )
    return terminal("export", recipe, "-o", source.parent / "bundle", *options)


CASES = {
    "an MLLM with NaN": ("mllm", "qwen2_5_vl", QUERY, float("nan")),
    "an MLLM with infinity": ("mllm", "qwen2_5_vl", QUERY, float("inf")),
    "a segmenter with NaN": ("segmenter", "sam", ENCODER, float("nan")),
}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_refused(terminal, sources, tmp_path, case, allowed):
    part, family, name, value = CASES[case]
    source = spoilt(sources(family), tmp_path, name, value)
    more = ["--allow-below-gate"] if allowed else []
    done = export(terminal, source, part, family, *more)
    assert done.code == 3, done.err
    assert "not finite" in done.err
    assert "download it again" in done.err
    assert not (tmp_path / "bundle" / part).exists()


def test_an_embedding_that_no_prompt_uses_is_looked_at_too(terminal, sources, tmp_path):
    source = spoilt(sources("qwen2_5_vl"), tmp_path, TABLE, float("nan"))
    done = export(terminal, source, "mllm", "qwen2_5_vl")
    assert done.code == 1
    assert "the table of embeddings is not finite" in done.err


def test_a_variant_that_overflows_is_left_out_and_the_others_are_written(
    terminal, sources, tmp_path
):
    """In fp16 a weight of 1e5 is infinite; the reference computes with it."""
    source = spoilt(sources("qwen2_5_vl"), tmp_path, DOWN, 1e5)
    chosen = ["--variant", "gpu-fp16", "--variant", "reference", "--allow-below-gate"]
    done = export(terminal, source, "mllm", "qwen2_5_vl", *chosen)
    assert done.code == 4, done.err
    assert "mllm\tleft out\tgpu-fp16\t" in done.out
    assert "not finite" in done.out
    assert "gpu-fp16 of the mllm did not pass the gate" in done.err
    part = open_bundle(tmp_path / "bundle").part("mllm")
    assert list(part.manifest.variants) == ["reference"]
    assert not (part.folder / "gpu-fp16").exists()
    assert "not finite" in part.manifest.verified["left_out"]["gpu-fp16"][0]
    text = (part.folder / "manifest.json").read_text("utf-8")
    json.loads(text, parse_constant=pytest.fail)
