"""Every family that a recipe may name, end to end at reduced size: from a checkpoint in its real
format to a bundle that passed the gate and runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from segagent_rt_export import plan
from segagent_rt_export.gate import streaming
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.graphs.precision import MllmPrecision, Precision
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from segagent_rt_export.recipe import read_recipe, tracked_recipes
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters
from segagent_rt_export.variants import MLLM_VARIANTS
from tests.export.command.checkpoints import MADE

pytestmark = [pytest.mark.export, pytest.mark.slow]

QUICK = Gate(scenes=2)


@pytest.fixture
def export(recipe, tmp_path):
    def run(*variants: str, forgiving: bool = False, **families: str):
        target = tmp_path / "bundle"
        planned = make_plan(recipe(*variants, **families), target, resume=False, below_gate=False)
        run_export(planned, GatePolicy(QUICK, forgiving), lambda text: None)
        return open_bundle(target)

    return run


def test_there_is_a_small_checkpoint_of_every_family():
    assert set(MADE) == {*segmenter_exporters(), *mllm_exporters()}


@pytest.mark.parametrize("family", segmenter_exporters())
def test_a_segmenter(export, terminal, tmp_path, family):
    bundle = export(
        "cpu-w8",
        "cpu-w8a8-dynamic",
        "cpu-w8a8-static",
        "reference",
        segmenter=family,
        forgiving=True,
    )
    verified = bundle.part("segmenter").manifest.verified
    print(family, {k: v for k, v in verified.items() if k != "variants"}, verified["variants"])
    assert max(verified["graphs"].values()) <= 1e-4
    assert verified["host"]["mask_iou"] >= 0.98
    assert not [why for why in verified.get("failures", []) if "cpu-" not in why]
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(make_scene(3, 300).image))
    done = terminal("run", photo, "--click", "+120,80", "-b", bundle.folder, "-o", tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize("family", mllm_exporters())
def test_an_mllm(export, family):
    bundle = export("cpu-w8", "cpu-w4", "reference", mllm=family, forgiving=True)
    verified = bundle.part("mllm").manifest.verified
    print(family, verified["graphs"], verified["variants"])
    assert max(verified["graphs"].values()) <= 1e-4
    assert not [why for why in verified.get("failures", []) if "cpu-" not in why]


@pytest.mark.parametrize("family", mllm_exporters())
def test_a_model_that_memory_cannot_hold_is_compared_piece_by_piece(export, monkeypatch, family):
    """The same replies as those of whole graphs, and every layer against torch.

    Random weights leave near ties; so sums are made to go in the same order on both sides. In
    blocks of 128 they would not: how a row is summed depends on how many pass at once.
    """
    short = MllmPrecision(Precision("8bit", 32), Precision("8bit", 32))
    kind = replace(MLLM_VARIANTS["cpu-w8"], arithmetic=short)
    monkeypatch.setitem(MLLM_VARIANTS, "cpu-w8", kind)
    whole = export("cpu-w8", mllm=family, forgiving=True).part("mllm").manifest.verified
    monkeypatch.setattr(plan, "WHOLE", 0)
    monkeypatch.setattr(streaming, "PARTITION_BYTES", 20_000)
    monkeypatch.setattr(
        streaming, "SessionOptions", lambda backend, skip_prepack: SessionOptions(backend)
    )
    bundle = export("cpu-w8", mllm=family, forgiving=True)
    verified = bundle.part("mllm").manifest.verified
    assert max(verified["graphs"].values()) <= 1e-4
    assert verified["variants"] == whole["variants"]
    assert not [path for path in bundle.folder.rglob("*") if "piece" in path.name]


def test_the_tracked_recipes_at_reduced_size(sources, tmp_path):
    """As they are, but for the checkpoints."""
    for path in tracked_recipes():
        text = path.read_text("utf-8")
        for part in read_recipe(path).parts.values():
            text = text.replace(f'source = "{part.source}"', f'source = "{sources(part.family)}"')
            text = re.sub(r"sha256 = .*\n", "", text)
        mine = tmp_path / path.name
        mine.write_text(text)
        target = tmp_path / "engines" / path.stem
        planned = make_plan(read_recipe(mine), target, resume=False, below_gate=True)
        run_export(planned, GatePolicy(QUICK, forgiving=True), lambda text: None)
        assert set(open_bundle(target).parts) == set(planned.recipe.parts)
