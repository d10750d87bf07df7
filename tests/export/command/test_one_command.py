"""`segagent-rt export NAME --yes` on a machine without the checkpoints, against a hub of our own:
one command from nothing to a bundle that is found by its name, and a sentence for each failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.cli import console
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests.hub.conftest import hub
from tests.hub.server import COMMIT, HubServer

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning")]
__all__ = ["hub"]

RECIPE = """
about = "tiny EdgeTAM + tiny Qwen3-VL"
[segmenter]
family = "edgetam"
source = "hf:edge/tam"
variants = ["cpu-8bit", "reference"]
[segmenter.published]
licence = "MIT"
parameters_m = 9.1
download_mb = 1
bundle_mb = 1
memory_mb = 1500
[mllm]
family = "qwen3_vl"
source = "hf:stock/vl@{commit}"
variants = ["cpu-8bit"]
preset = "qwen3-vl"
[mllm.published]
licence = "apache-2.0"
parameters_m = 2100
download_mb = 2
bundle_mb = 2
memory_mb = 2500
"""


@pytest.fixture
def recipe(hub: HubServer, sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose checkpoints only the hub has."""
    hub.models = {
        "edge/tam": files_of(sources("edgetam")),
        "stock/vl": files_of(sources("qwen3_vl")),
    }
    monkeypatch.setenv("SEGAGENT_DATA", str(tmp_path / "data"))
    (tmp_path / "stock-edge.toml").write_text(RECIPE.format(commit=COMMIT))
    return tmp_path / "stock-edge.toml"


def files_of(folder: Path) -> dict[str, bytes]:
    page = {"README.md": b"---\nlicense: apache-2.0\n---\n", "preprocessor_config.json": b"{}"}
    return page | {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.thorough
@pytest.mark.parametrize("storage", ["lfs", "xet"])
def test_from_nothing_to_a_bundle_that_is_found_by_name(
    recipe: Path, hub: HubServer, terminal: Any, tmp_path: Path, storage: Any
) -> None:
    hub.storage, hub.cut_after, hub.cuts = storage, 50_000, 0 if storage == "xet" else 2
    done = terminal("export", recipe, "--yes", "--allow-below-gate")
    assert done.code == 0, done.err
    assert "segmenter: edgetam, hf:edge/tam, 9 M parameters, licence MIT" in done.err
    assert f"downloads hf:edge/tam, hf:stock/vl@{COMMIT}: 3 MB" in done.err
    assert "on this machine" in done.err
    bundle = open_bundle("stock-edge")
    assert bundle.folder == tmp_path / "data" / "bundles" / "stock-edge"
    origins = [bundle.part(name).manifest.provenance for name in ("segmenter", "mllm")]
    assert [(o["model"], o["commit"], o["licence"]) for o in origins] == [
        ("hf:edge/tam", COMMIT, "apache-2.0"), ("hf:stock/vl", COMMIT, "apache-2.0"),
    ]  # fmt: skip  # what the pages say goes before what a recipe says
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(make_scene(3, 300).image))
    clicked = terminal("run", photo, "--click", "+120,80", "-b", "stock-edge", "-o", tmp_path)
    assert clicked.code == 0, clicked.err
    hub.requests.clear()
    again = terminal("export", recipe, "--resume", "--allow-below-gate")
    assert [line.split("\t")[1] for line in again.out.splitlines()] == ["kept", "kept"]
    assert hub.requests == []


def test_a_model_without_a_pinned_commit_is_announced_and_can_be_pinned(
    recipe: Path, hub: HubServer, terminal: Any
) -> None:
    said = terminal("export", recipe).err
    assert "the recipe pins no commit of hf:edge/tam: this takes the newest" in said
    assert "--pin hf:edge/tam@COMMIT takes another" in said
    assert "no commit of hf:stock/vl" not in said
    pinned = terminal("export", recipe, "--pin", f"hf:edge/tam@{COMMIT}")
    assert "pins no commit" not in pinned.err
    assert f"the model hf:edge/tam@{COMMIT} is not on this machine" in pinned.err
    refused(terminal("export", recipe, "--pin", "hf:edge/other@1"), "cannot pin", "hf:edge/tam")
    text = recipe.read_text().replace(
        'source = "hf:edge/tam"', f'source = "hf:edge/tam"\nsha256 = "{"0" * 64}"'
    )
    recipe.write_text(text)
    assert "pins no commit" not in terminal("export", recipe).err


def test_another_file_than_the_recipes_is_not_exported(
    terminal: Any, sources: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[segmenter]\nfamily = "mobile_sam"\nsource = "{sources("mobile_sam")}"\n'
        f'variants = ["reference"]\nsha256 = "{"0" * 64}"\n'
    )
    done = terminal("export", recipe, "-o", tmp_path / "bundle")
    refused(done, "mobile_sam.pt is not the file that the recipe names", "download it again")
    assert not (tmp_path / "bundle").exists()


def test_without_consent_nothing_is_asked_for(
    recipe: Path, hub: HubServer, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = terminal("export", recipe)
    assert done.code == 1
    assert "error: the model hf:edge/tam is not on this machine\n\nhint: --yes" in done.err
    asked: list[str] = []
    monkeypatch.setattr(console, "ask", lambda question: bool(asked.append(question)))
    assert terminal("export", recipe).code == 1
    assert asked == ["Download and export?"]
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        ({"gated": True}, "the hub refuses access to", "accept the model's licence on https://"),
        ({"token": "right"}, "the hub refuses the token", "hf auth login"),
        ({"status": 404}, "the hub has no hf:edge/tam", "check owner, name and revision"),
    ],
    ids=["gated model", "wrong token", "no such model"],
)  # fmt: skip
def test_each_failure_is_a_sentence_and_a_hint(
    recipe: Path, hub: HubServer, terminal: Any, monkeypatch: Any, fault: Any, said: str, hint: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret") if "token" in fault else None
    for name, value in fault.items():
        setattr(hub, name, value)
    refused(terminal("export", recipe, "--yes"), said, hint)


def test_no_disk(recipe: Path, hub: HubServer, terminal: Any, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
        refused(terminal("export", recipe, "--yes"), "take about 0.0 GB of the disk", "-o names")
    assert hub.requests == []


def test_a_checkpoint_that_no_hub_has_is_missed_before_the_download(
    recipe: Path, hub: HubServer, terminal: Any
) -> None:
    text = recipe.read_text().replace('"hf:edge/tam"', '"x.pth"\norigin = "the authors"')
    recipe.write_text(text)
    refused(terminal("export", recipe, "--yes"), "there is no checkpoint x.pth", "the authors")
    assert hub.requests == []


def refused(done: Any, said: str, hint: str) -> None:
    assert done.code == 1
    error, _, advice = done.err[done.err.index("error: ") :].partition("\n\n")
    assert said in error
    assert "\n" not in error
    assert advice.startswith("hint: ")
    assert hint in advice
    assert json.dumps(done.out) == '""'
