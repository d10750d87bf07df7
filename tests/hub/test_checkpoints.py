"""What an export takes from a hub, where it finds it again, and what it records of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from segagent_rt.errors import HubError
from segagent_rt.hub.repository import HubRepository
from segagent_rt_export.announcement import fetch_missing
from segagent_rt_export.errors import SourceMissing
from segagent_rt_export.sources.downloads import is_complete, list_model
from segagent_rt_export.sources.locations import find_missing, locate, origin_of
from tests.hub.conftest import WEIGHTS
from tests.hub.server import COMMIT, HubServer

MINE = HubRepository("hf", "me", "mine")


def quiet(text: str) -> None: ...


def fetch(text: str) -> Path:
    fetch_missing(find_missing([text]), quiet, show_bars=False)
    return locate(text, Path())


def test_only_what_an_export_reads_is_taken_and_found_again(hub: HubServer) -> None:
    assert find_missing(["hf:me/mine", "hf:me/mine", "/a/folder"]) == [MINE]
    folder = fetch("hf:me/mine")
    names = {"config.json", "tokenizer.json", "README.md", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert find_missing(["hf:me/mine", f"hf:me/mine@{COMMIT}"]) == []


def test_pickles_are_taken_where_there_is_nothing_else(hub: HubServer) -> None:
    del hub.models["me/mine"]["model.safetensors"]
    assert (fetch("hf:me/mine") / "pytorch_model.bin").is_file()


def test_a_checkpoint_in_a_single_file_is_that_file(hub: HubServer) -> None:
    hub.models["me/mine"] = {"README.md": b"# Mine", "mobile_sam.pt": WEIGHTS}
    found = fetch("hf:me/mine")
    assert found.name == "mobile_sam.pt"
    record = origin_of(found)
    assert (record["model"], record["commit"]) == ("hf:me/mine", COMMIT)
    assert "licence" not in record


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "model/../x.safetensors", "a\\b"]
)
def test_names_that_lead_elsewhere_are_never_asked_for(hub: HubServer, name: str) -> None:
    hub.models["me/mine"][name] = b"x"
    _, files = list_model(MINE)
    assert name not in {file.name for file in files}


def test_a_model_without_weights_is_refused(hub: HubServer) -> None:
    hub.models["me/mine"] = {"README.md": b"# Mine"}
    with pytest.raises(HubError, match="has no files that can be exported"):
        list_model(MINE)


def test_all_models_are_asked_for_before_the_first_is_fetched(hub: HubServer) -> None:
    models = [MINE, HubRepository("hf", "me", "other")]
    with pytest.raises(HubError, match="the hub has no hf:me/other"):
        fetch_missing(models, quiet, show_bars=False)
    assert not hub.asked("/cdn/")


def test_the_record_names_model_commit_licence_and_hashes(hub: HubServer) -> None:
    record = origin_of(fetch("hf:me/mine"))
    assert (record["model"], record["commit"]) == ("hf:me/mine", COMMIT)
    assert record["licence"] == "tongyi-qianwen"
    hashes = {entry["file"]: entry["sha256"] for entry in record["files"]}
    assert hashes["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_a_download_of_another_program_is_used_if_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        assert not is_complete(tmp_path)
        (tmp_path / name).touch()
    assert not is_complete(tmp_path)
    (tmp_path / "model-2.safetensors").touch()
    assert is_complete(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert not is_complete(tmp_path)


def test_a_folder_of_ones_own_is_taken_first(hub: HubServer, tmp_path: Path) -> None:
    """A folder that does not say that it holds the pinned revision is not taken for it."""
    pinned = f"hf:me/mine@{COMMIT}"
    folder = tmp_path / "checkpoints" / "me" / "mine"
    folder.mkdir(parents=True)
    assert locate("hf:me/mine", tmp_path) == Path("checkpoints/me/mine")
    with pytest.raises(SourceMissing, match="does not say that it holds that revision"):
        locate(pinned, tmp_path)
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{COMMIT}\n0123abcd\n1700000000.0\n")
    assert locate(pinned, tmp_path) == Path("checkpoints/me/mine")
    (notes / "model.safetensors.metadata").write_text(f"{COMMIT[::-1]}\n0123abcd\n1700000000.0\n")
    with pytest.raises(SourceMissing):
        locate(pinned, tmp_path)
