"""Published configurations of real size: accepted, and their graphs equal transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.mllm.prompts import MAX_PIXELS
from segagent_rt_export.recipe import PublishedFacts, read_recipe, tracked_recipes
from tests.cli.terminal import Terminal
from tests.export.published import MLLMS, SEGMENTERS, save_edgetam

pytestmark = [pytest.mark.export, pytest.mark.slow]
NOT_MADE = {"dhkim2810/MobileSAM", "checkpoints/cocolvis_vit_large.pth", "zzzmmz/SegAgent-Model"}
"""Sources of recipes that are no model of transformers."""


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Terminal:
    return Terminal(monkeypatch, capsys)


def export(terminal: Terminal, part: str, family: str, source: Path, folder: Path) -> float:
    """Export the reference; returns the largest distance of a graph from transformers."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[{part}]\nfamily = "{family}"\nsource = "{source}"\nvariants = ["reference"]\n'
    )
    done = terminal("export", recipe, "-o", folder / "bundle")
    assert done.code == 0, done.err
    manifest = json.loads((folder / "bundle" / part / "manifest.json").read_text())
    assert manifest["verified"]["gate"] == "passed"
    return float(max(manifest["verified"]["graphs"].values()))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_published_segmenter(terminal: Terminal, tmp_path: Path, name: str) -> None:
    published = SEGMENTERS[name]
    source = published.save(tmp_path / "checkpoint")
    assert export(terminal, "segmenter", published.family, source, tmp_path) < 1e-4


def test_edgetam(terminal: Terminal, tmp_path: Path) -> None:
    source = save_edgetam(tmp_path / "checkpoint")
    assert export(terminal, "segmenter", "edgetam", source, tmp_path) < 1e-4


@pytest.mark.parametrize("name", MLLMS)
def test_a_published_mllm(terminal: Terminal, tmp_path: Path, name: str) -> None:
    published = MLLMS[name]
    source = published.save(tmp_path / "checkpoint")
    assert export(terminal, "mllm", published.family, source, tmp_path) < 1e-4


def facts() -> dict[str, PublishedFacts]:
    """What the tracked recipes say of checkpoints, by the hub's name."""
    parts = [part for path in tracked_recipes() for part in read_recipe(path).parts.values()]
    named = {part.source.split(":")[-1].split("@")[0]: part.published for part in parts}
    return {name: found for name, found in named.items() if found is not None}


@pytest.mark.parametrize("name", sorted({*facts()} - NOT_MADE))
def test_a_recipes_figures_are_those_of_the_published_configuration(name: str) -> None:
    """Weights within 2 %, and what they take in the variants `cpu-w8a8-dynamic` and
    `reference`."""
    if name == "yonigozlan/EdgeTAM-hf":
        pytest.skip("its 9 million weights are counted in test_edgetam's checkpoint")
    known = facts()[name]
    mllm = name in MLLMS
    model = MLLMS[name].whole() if mllm else SEGMENTERS[name].whole()
    sizes = {key: math.prod(tensor.shape) for key, tensor in model.named_parameters()}
    count = sum(sizes.values())
    assert known.parameters_m == pytest.approx(count / 1e6, rel=0.02)
    table = next((n for key, n in sizes.items() if "embed_tokens" in key), 0)
    tied = mllm and MLLMS[name].tied
    stored = count - (0 if tied else table)
    size = stored + 4 * table if mllm else 5 * count
    assert known.bundle_mb == pytest.approx(size / 1e6, rel=0.05)


@pytest.mark.parametrize("name", sorted({*facts()} & {*MLLMS}))
def test_the_shapes_for_the_memory_plan_are_those_of_the_published_configuration(name: str) -> None:
    known, published = facts()[name].shape, MLLMS[name]
    assert known is not None
    sizes = {
        key: math.prod(tensor.shape) / 1e6 for key, tensor in published.whole().named_parameters()
    }
    parts = ("visual", "language_model.layers", "embed_tokens")
    found = [sum(n for key, n in sizes.items() if part in key) for part in parts]
    assert [known.vision_m, known.decoder_m, known.table_m] == pytest.approx(found, rel=0.001)
    text = published.text
    assert known.layers == text["num_hidden_layers"]
    assert known.hidden == text["hidden_size"]
    assert known.kv_heads == text["num_key_value_heads"]
    assert known.head_width == text.get(
        "head_dim", text["hidden_size"] // text["num_attention_heads"]
    )
    assert known.patches == MAX_PIXELS // published.vision["patch_size"] ** 2
    assert known.visual_tokens == known.patches // 4
