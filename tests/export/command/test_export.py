"""`segagent-rt export`: a bundle that runs, parts that are kept and shared, and refusals that come
before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from segagent_rt_export import pipeline, plan
from segagent_rt_export.families import mllm_export

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def places(tmp_path_factory: Any, recipe_text: Any) -> Path:
    """A folder with a recipe, `pair.toml`, in which bundles are made."""
    folder = tmp_path_factory.mktemp("bundles")
    text = recipe_text("cpu-w8", segmenter="sam", mllm="qwen2_5_vl")
    (folder / "pair.toml").write_text(text)
    return folder


@pytest.fixture
def pair(places: Path, terminal: Any) -> Path:
    """The bundle of the recipe, exported once."""
    bundle = places / "pair"
    if not (bundle / "bundle.json").is_file():
        done = terminal("export", places / "pair.toml", "-o", bundle)
        assert done.code == 0, done.err
        assert [line.split("\t")[:2] for line in done.out.splitlines()] == [
            ["segmenter", "exported"], ["mllm", "exported"],
        ]  # fmt: skip
        assert "GB of memory" in done.err
        assert "mllm: writing cpu-w8, 9" in done.err
        assert "\r" not in done.err
    return bundle


def test_the_bundle_runs_with_words_and_with_clicks(pair, terminal, tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(make_scene(3, 300).image))
    words = terminal("run", photo, "the red circle", "-b", pair, "-o", tmp_path / "words")
    assert words.code == 0, words.err
    clicks = terminal("run", photo, "--click", "+120,80", "-b", pair, "-o", tmp_path / "clicks")
    assert clicks.code == 0, clicks.err
    assert (tmp_path / "clicks" / "photo.segagent.mask.png").is_file()


def test_the_manifest_holds_every_number_and_inspect_prints_them(pair, terminal):
    document = json.loads(terminal("inspect", pair, "--verify", "--json").out)
    segmenter, mllm = (document["parts"][n]["verified"] for n in ("segmenter", "mllm"))
    assert segmenter["gate"] == mllm["gate"] == "passed"
    assert max(segmenter["graphs"].values()) < 1e-4
    assert segmenter["host"]["mask_iou"] > 0.99
    assert segmenter["variants"]["cpu-w8"]["mask_iou_mean"] >= 0.98
    assert max(mllm["graphs"].values()) < 1e-4
    assert mllm["variants"]["cpu-w8"]["states"] == 24
    assert mllm["quality"] == "not measured"
    assert 0 <= mllm["preset_share"] <= 1
    for name, file in (("segmenter", "model.safetensors"), ("mllm", "model.safetensors")):
        provenance = json.loads((pair / name / "manifest.json").read_text())["provenance"]
        recorded = {entry["file"]: entry["sha256"] for entry in provenance["files"]}
        assert len(recorded[file]) == len(recorded["config.json"]) == 64
    assert document["strangers"] == []
    said = terminal("inspect", pair, "--all").out
    assert "agreement: 1.0" in said
    assert "mask_iou_mean" in said


def test_a_reference_that_nobody_asked_for_is_gone(pair):
    assert not list(pair.rglob("reference"))
    for part in open_bundle(pair).parts.values():
        assert list(part.manifest.variants) == ["cpu-w8"]


def test_resume_keeps_finished_parts(pair, places, terminal, monkeypatch):
    monkeypatch.setattr(pipeline, "make_segmenter", None)
    monkeypatch.setattr(pipeline, "make_mllm", None)
    digest = open_bundle(pair).digest
    done = terminal("export", places / "pair.toml", "-o", pair, "--resume")
    assert done.code == 0, done.err
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["kept", "kept"]
    assert open_bundle(pair).digest == digest


@pytest.fixture
def other(pair: Path, places: Path, recipe_text: Any) -> Path:
    """The recipe of a bundle with the same MLLM and another variant of the segmenter."""
    text = recipe_text("cpu-w8", mllm="qwen2_5_vl") + recipe_text("cpu-w4", segmenter="sam")
    (places / "other.toml").write_text(text)
    return places / "other.toml"


def test_a_bundle_with_an_equal_part_beside_it_can_be_copied_alone(
    pair, other, places, terminal, tmp_path
):
    done = terminal("export", other, "-o", places / "other", "--allow-below-gate")
    assert done.code == 0, done.err
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["exported", "reused"]
    alone = open_bundle(shutil.copytree(places / "other", tmp_path / "alone"))
    assert alone.index.parts["mllm"] == "mllm"
    alone.part("mllm").verify()
    assert alone.part("mllm").digest == open_bundle(pair).part("mllm").digest
    one, two = (b / "mllm" / "embed.npy" for b in (pair, places / "other"))
    assert one.samefile(two)
    shutil.rmtree(places / "other")


def test_an_equal_part_is_shared_on_request(pair, other, places, terminal):
    done = terminal("export", other, "-o", places / "other", "--share", "--only", "mllm")
    assert done.code == 0, done.err
    assert [line.split("\t")[:2] for line in done.out.splitlines()] == [["mllm", "shared"]]
    assert not (places / "other" / "mllm").exists()
    assert open_bundle(places / "other").index.parts["mllm"] == "../pair/mllm"
    shutil.rmtree(places / "other")


def test_a_damaged_part_beside_it_is_made_again(pair, other, places, terminal):
    """Its manifest says that it passed, but one byte of a graph is another."""
    good = (pair / "mllm" / "embed.npy").read_bytes()
    (pair / "mllm" / "embed.npy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        done = terminal("export", other, "-o", places / "other", "--only", "mllm")
    finally:
        (pair / "mllm" / "embed.npy").write_bytes(good)
    assert done.code == 0, done.err
    assert [line.split("\t")[:2] for line in done.out.splitlines()] == [["mllm", "exported"]]
    open_bundle(places / "other").part("mllm").verify()
    shutil.rmtree(places / "other")


def test_one_part_alone_and_the_other_later(places, terminal, monkeypatch, tmp_path):
    bundle = tmp_path / "halves"
    done = terminal("export", places / "pair.toml", "-o", bundle, "--only", "segmenter")
    assert done.code == 0, done.err
    assert set(open_bundle(bundle).parts) == {"segmenter"}
    done = terminal(
        "export", places / "pair.toml", "-o", bundle, "--only", "mllm", "--allow-below-gate",
        "--variant", "cpu-w4",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert set(open_bundle(bundle).parts) == {"segmenter", "mllm"}
    assert list(open_bundle(bundle).part("mllm").manifest.variants) == ["cpu-w4"]


def test_a_failure_half_way_leaves_finished_parts_and_nothing_else(
    places, terminal, monkeypatch, tmp_path
):
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    bundle = tmp_path / "broken"
    monkeypatch.setattr(mllm_export, "build_decoder", full)
    done = terminal("export", places / "pair.toml", "-o", bundle)
    assert done.code == 1
    assert "No space left on device" in done.err
    assert "--resume" in done.err
    assert sorted(p.name for p in bundle.iterdir() if p.name != ".lock") == ["segmenter"]
    monkeypatch.undo()


def test_what_a_killed_export_left_is_removed(pair, places, terminal):
    (pair / ".mllm-123").mkdir()
    shutil.move(pair / "segmenter", pair / ".segmenter-old")
    done = terminal("export", places / "pair.toml", "-o", pair, "--resume", "--only", "mllm")
    assert done.code == 0, done.err
    assert not list(pair.glob(".mllm-*"))
    assert set(open_bundle(pair).parts) == {"segmenter", "mllm"}


def refused(done: Any, said: str, hint: str = "") -> None:
    assert done.code in (1, 2)
    assert said in done.err
    assert hint in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_refusals_come_before_any_work(places, terminal, tmp_path, monkeypatch, recipe_text):
    for name in ("make_segmenter", "make_mllm"):
        monkeypatch.setattr(pipeline, name, None)
    target = tmp_path / "never"
    refused(terminal("export"), "name a recipe")
    refused(terminal("export", "pear"), "there is no recipe `pear`", "--list")
    recipe = places / "pair.toml"
    refused(terminal("export", recipe, "--only", "head"), "'head' is not one of")
    refused(terminal("export", recipe, "--variant", "fast", "-o", target), "`fast` is unknown")
    text = recipe_text("cpu-w8", mllm="qwen2_5_vl")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(text.replace('family = "qwen2_5_vl"', 'family = "qwen3_vl"'))
    refused(terminal("export", wrong, "-o", target), "of the family qwen2_5_vl, not qwen3_vl")
    wrong.write_text(text.replace('source = "', 'source = "/nowhere'))
    refused(terminal("export", wrong, "-o", target), "there is no checkpoint /nowhere")
    with monkeypatch.context() as patch:
        patch.setattr("segagent_rt.cli.export.find_spec", lambda name: None)
        done = terminal("export", recipe, "-o", target)
        refused(done, "needs packages that are not installed", "[export]")
    with monkeypatch.context() as patch:
        patch.setattr(plan, "free_memory", lambda: 1000)
        refused(terminal("export", recipe, "-o", target), "GB of memory", "--only")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
        refused(terminal("export", recipe, "-o", target), "of the disk that holds")
    assert not target.exists()
    (target / "segmenter").mkdir(parents=True)
    (target / "segmenter" / "thesis.docx").touch()
    refused(terminal("export", recipe, "-o", target), "is not part of a bundle")


def test_the_list_needs_no_torch(terminal, monkeypatch):
    monkeypatch.setattr("segagent_rt.cli.export.find_spec", lambda name: None)
    done = terminal("export", "--list")
    assert done.code == 0
    assert "segagent-qwen-simpleclick-l\tsimple_click + qwen_vl\t" in done.out
