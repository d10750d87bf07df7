"""Recipes and the sources that they name: read strictly, without torch, errors of one sentence."""

from __future__ import annotations

import hashlib
import os
import sys
import typing
from pathlib import Path

import pytest

from segagent_rt.families import mllm_family, segmenter_family
from segagent_rt.hub.repository import HubRepository
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid, SourceMissing
from segagent_rt_export.recipe import (
    VariantName,
    find_recipe,
    read_recipe,
    tracked_recipes,
)
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters
from segagent_rt_export.sources.locations import check_digest, locate, parse_source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SEGMENTER = '[segmenter]\nfamily = "sam"\nsource = "a"\nvariants = ["cpu-w8"]\n'
MLLM = '[mllm]\nfamily = "qwen2_vl"\nsource = "b"\nvariants = ["cpu-w8"]\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_the_tracked_recipes_are_read_and_cover_the_pairs_people_want():
    found = {path.stem: read_recipe(path) for path in tracked_recipes()}
    families = {tuple(part.family for part in r.parts.values()) for r in found.values()}
    assert {
        ("simple_click", "qwen_vl"), ("sam", "qwen_vl"), ("edgetam", "qwen2_5_vl"),
        ("sam2", "qwen2_5_vl"), ("mobile_sam", "qwen2_5_vl"), ("edgetam", "qwen3_vl"),
        ("sam2", "qwen3_vl"), ("mobile_sam", "qwen3_vl"),
    } <= families  # fmt: skip
    assert all(recipe.name == stem and recipe.about for stem, recipe in found.items())


def test_every_tracked_recipe_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for path in (ROOT / "engines").glob("*.toml"):
        assert included[f"engines/{path.name}"] == f"segagent_rt/recipes/{path.name}"


def test_the_readme_names_every_family_variant_and_preset():
    text = (ROOT / "engines" / "README.md").read_text()
    families = [*segmenter_exporters(), *mllm_exporters()]
    names = [*families, *typing.get_args(VariantName), *PRESETS]
    assert [name for name in names if name not in text] == []


def test_the_runtime_knows_every_family_that_a_recipe_may_name():
    assert [name for name in mllm_exporters() if mllm_family(name) is None] == []
    assert [name for name in segmenter_exporters() if segmenter_family(name) is None] == []


@pytest.mark.parametrize("name", ["sam9", "", "window", "sam.py", "../sam", "__init__", "os.path"])
def test_a_name_that_is_no_family_is_none(name):
    """Names come from manifests, so they choose no other module."""
    assert segmenter_family(name) is None
    assert mllm_family(name) is None


def test_every_variant_is_defined_for_both_parts():
    from segagent_rt_export.variants import MLLM_VARIANTS, SEGMENTER_VARIANTS

    names = set(typing.get_args(VariantName))
    assert set(MLLM_VARIANTS) == set(SEGMENTER_VARIANTS) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[segmenter", "is not TOML"),
        ("", "neither a segmenter nor an MLLM"),
        ("colour = 1\n" + SEGMENTER, "unknown field `colour`"),
        (SEGMENTER + 'varaints = ["reference"]\n', "unknown field `varaints`"),
        (SEGMENTER.replace("source", "sauce"), "unknown field `sauce`"),
        (SEGMENTER.replace('"sam"', '"sam9"'), "family `sam9` is unknown"),
        (SEGMENTER.replace("cpu-w8", "cpu-9bit"), '"cpu-9bit" is not one of'),
        (SEGMENTER.replace('["cpu-w8"]', "[]"), "must name each variant once"),
        (SEGMENTER.replace('"cpu-w8"', '"cpu-w8", "cpu-w8"'), "each variant once"),
        (SEGMENTER + 'fallback = ["cpu-w8"]\n', "each variant once"),
        (SEGMENTER.replace('["cpu-w8"]', '"cpu-w8"'), "is not a list"),
        (SEGMENTER + "side = 448\n", "sam has no side"),
        (MLLM + 'preset = "segagnet"\n', "preset `segagnet` is unknown"),
        (MLLM + 'most_pixels = "many"\n', '"many" is not int'),
        ("x = " + "1" * 200_000, "is too long"),
    ],
)
def test_mistakes_are_named(write, text, said):
    with pytest.raises(RecipeInvalid, match=said) as caught:
        read_recipe(write(text))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(RecipeInvalid, match="not a regular file"):
        read_recipe(tmp_path / "mine.toml")


def test_former_names_of_variants_are_read(write):
    text = SEGMENTER.replace('["cpu-w8"]', '["cpu-8bit", "cpu-fast", "cpu-int8", "cpu-4bit"]')
    recipe = read_recipe(write(text))
    assert recipe.segmenter is not None
    assert recipe.segmenter.variants == ("cpu-w8", "cpu-w8a8-dynamic", "cpu-w8a8-static", "cpu-w4")
    narrow = recipe.narrowed(None, ("cpu-fast",)).segmenter
    assert narrow is not None
    assert narrow.variants == ("cpu-w8a8-dynamic",)


def test_a_part_alone_and_other_variants(write):
    recipe = read_recipe(write(SEGMENTER + MLLM))
    assert recipe.name == "mine"
    assert list(recipe.narrowed("mllm", ()).parts) == ["mllm"]
    for part in recipe.narrowed(None, ("reference", "cpu-w4")).parts.values():
        assert part.variants == ("reference", "cpu-w4")
    with pytest.raises(RecipeInvalid, match="has no mllm"):
        read_recipe(write(SEGMENTER)).narrowed("mllm", ())
    with pytest.raises(RecipeInvalid, match="`fast` is unknown") as caught:
        recipe.narrowed(None, ("fast",))
    assert "cpu-w8a8-dynamic" in caught.value.hint


def test_every_tracked_recipe_pins_what_it_can():
    """Commits or hashes; of the others no commit is known, and the export says what it takes."""
    parts = [part for path in tracked_recipes() for part in read_recipe(path).parts.values()]
    free = {part.source for part in parts if "@" not in part.source}
    free -= {part.source for part in parts if getattr(part, "sha256", "")}
    assert free == {
        "hf:nvidia/EGM-4B",
        "hf:facebook/sam-vit-large",
        "ms:zzzmmz/SegAgent-Model",
        "checkpoints/cocolvis_vit_large.pth",
    }


def test_a_commit_can_be_pinned(write):
    adapter = MLLM.replace('"b"', '"hf:a/b"') + 'adapter = "hf:a/lora"\n'
    recipe = read_recipe(write(SEGMENTER.replace('"a"', '"hf:a/s@1"') + adapter))
    assert recipe.pinned(()) == recipe
    pinned = recipe.pinned(["hf:a/b@2", "hf:a/s@refs/pr/3", "hf:a/lora@4"])
    assert pinned.sources == ["hf:a/s@refs/pr/3", "hf:a/b@2", "hf:a/lora@4"]
    for wrong in ("hf:a/b", "hf:a/c@1", "ms:a/b@1", "a/b@1", "hf:a/b@"):
        with pytest.raises(RecipeInvalid, match="cannot pin") as caught:
            recipe.pinned([wrong])
        assert "hf:a/s@1, hf:a/b, hf:a/lora" in caught.value.hint


def test_a_checkpoint_that_a_hash_pins_is_that_file(write, tmp_path):
    recipe = f'{SEGMENTER}sha256 = "{hashlib.sha256(b"weights").hexdigest()}"\n'
    segmenter = read_recipe(write(recipe)).segmenter
    assert segmenter is not None
    (tmp_path / "x.pt").write_bytes(b"weights")
    check_digest(tmp_path / "x.pt", segmenter.sha256)
    (tmp_path / "x.pt").write_bytes(b"Weights")
    with pytest.raises(CheckpointInvalid, match="is not the file that the recipe names"):
        check_digest(tmp_path / "x.pt", segmenter.sha256)
    with pytest.raises(CheckpointInvalid, match="is a folder"):
        check_digest(tmp_path, segmenter.sha256)
    check_digest(tmp_path, "")
    with pytest.raises(RecipeInvalid, match="not 64 digits"):
        read_recipe(write(SEGMENTER + 'sha256 = "6DBB"\n'))


def test_recipes_are_found_by_name_and_by_path(write):
    assert find_recipe("qwen3-vl-2b-edgetam").is_file()
    path = write(SEGMENTER)
    assert find_recipe(str(path)) == path
    with pytest.raises(RecipeInvalid, match="no recipe `qwen9`"):
        find_recipe("qwen9")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("hf:Qwen/Qwen3-VL-2B-Instruct", HubRepository("hf", "Qwen", "Qwen3-VL-2B-Instruct")),
        ("ms:a/b.c@v1.0", HubRepository("ms", "a", "b.c", "v1.0")),
        ("hf:a/b@refs/pr/1", HubRepository("hf", "a", "b", "refs/pr/1")),
    ],
)
def test_models_of_hubs(text, model):
    assert parse_source(text) == model


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "ms:a/b/c", "hf:../b", "hf:a/..", "hf:a/b@", "hf:a/b@../c", "hf:-x/y"]
)
def test_what_names_no_model_is_refused(text):
    with pytest.raises(RecipeInvalid, match="names no model"):
        parse_source(text)


def test_a_model_that_is_not_there_comes_with_the_command_that_downloads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceMissing, match="the model hf:a/b@v1 is not on") as caught:
        locate("hf:a/b@v1", tmp_path)
    assert "hf download a/b --revision v1" in caught.value.hint
    with pytest.raises(SourceMissing) as caught:
        locate("ms:a/b", tmp_path)
    assert "modelscope download --model a/b" in caught.value.hint
    (tmp_path / "checkpoints" / "a" / "b@v1").mkdir(parents=True)
    assert locate("hf:a/b@v1", tmp_path) == Path("checkpoints/a/b@v1")


def test_a_hubs_model_without_its_hub_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceMissing, match="no checkpoint Qwen/Qwen3-VL-2B-Instruct") as caught:
        locate("Qwen/Qwen3-VL-2B-Instruct", tmp_path)
    assert "write hf:Qwen/Qwen3-VL-2B-Instruct" in caught.value.hint
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.pth").touch()
    assert locate("~/x.pth", tmp_path / "recipes") == tmp_path / "x.pth"
    with pytest.raises(RecipeInvalid, match="is not known"):
        locate("~nobody-of-that-name/x.pth", tmp_path)
    with pytest.raises(RecipeInvalid, match="no path has"):
        locate("a\0b", tmp_path)


def test_a_file_that_is_not_there_comes_with_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceMissing, match=r"no checkpoint x\.pth") as caught:
        locate("x.pth", tmp_path / "recipes", "https://example.org")
    assert "https://example.org" in caught.value.hint
    beside = tmp_path / "recipes" / "x.pth"
    beside.parent.mkdir()
    beside.touch()
    assert locate("x.pth", tmp_path / "recipes") == beside
