"""Bundles on a hub: pulled, verified before they are seen, listed, and prepared for upload."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.store import bundles_folder
from segagent_rt.hub import bundles
from tests.cli.terminal import Terminal
from tests.hub.server import HubServer


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture
def published(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the demo bundle, prepared for upload, in the repository `me/tiny-copy`."""
    monkeypatch.setenv("SEGAGENT_DATA", str(tmp_path / "data"))
    bundles.prepare_upload(open_bundle("tiny"), tmp_path / "upload")
    paths = [path for path in (tmp_path / "upload").rglob("*") if path.is_file()]
    files = {p.relative_to(tmp_path / "upload").as_posix(): p.read_bytes() for p in paths}
    hub.models["me/tiny-copy"] = files
    return files


def test_a_bundle_comes_back_as_it_was_pushed(published: Any, terminal: Terminal) -> None:
    done = terminal("pull", "hf:me/tiny-copy")
    assert done.code == 0, done.err
    pulled, original = open_bundle("tiny-copy"), open_bundle("tiny")
    assert pulled.folder == bundles_folder() / "tiny-copy"
    assert pulled.digest == original.digest
    assert not (pulled.folder / "README.md").exists()
    again = terminal("pull", "hf:me/tiny-copy")
    assert again.code == 1
    assert "is there already" in again.err
    listed = json.loads(terminal("bundles", "--json").out)
    names = {entry["name"]: entry for entry in listed}
    assert list(names) == ["tiny-copy", "tiny", "photo"]
    assert names["tiny-copy"]["gate"] == "passed"
    assert "tiny-copy\tclick_net + " in terminal("bundles").out


def altered(files: dict[str, bytes]) -> None:
    files["segmenter/encoder.onnx"] = files["segmenter/encoder.onnx"][:-1] + b"x"


def longer(files: dict[str, bytes]) -> None:
    files["segmenter/encoder.onnx"] += b"x"


def missing(files: dict[str, bytes]) -> None:
    del files["mllm/embed.npy"]


def leading_out(files: dict[str, bytes]) -> None:
    files["bundle.json"] = files["bundle.json"].replace(b'"segmenter"', b'"segmenter"', 1)
    index = json.loads(files["bundle.json"])
    index["parts"]["segmenter"] = "../outside"
    files["bundle.json"] = json.dumps(index).encode()


def no_bundle(files: dict[str, bytes]) -> None:
    del files["bundle.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (altered, "is not the file that was exported"),
        (longer, "has no `segmenter/encoder.onnx` of the size that its manifest names"),
        (missing, "has no `mllm/embed.npy` of the size that its manifest names"),
        (leading_out, "leads out of the bundle"),
        (no_bundle, "has no `bundle.json`, so it holds no bundle"),
    ],
)
def test_what_does_not_fit_its_manifest_never_becomes_visible(
    published: Any, terminal: Terminal, change: Callable[[Any], None], said: str
) -> None:
    change(published)
    done = terminal("pull", "hf:me/tiny-copy")
    assert done.code == 1
    assert said in done.err
    assert not bundles_folder().exists() or list(bundles_folder().iterdir()) == []


def test_the_card_names_licences_and_verdicts(terminal: Terminal, tmp_path: Path) -> None:
    done = terminal("push", "photo", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: ")
    assert "| segmenter | photo_net |" in card
    copied = open_bundle(tmp_path / "out")
    assert copied.digest == open_bundle("photo").digest
    assert "is there already" in terminal("push", "photo", "-o", tmp_path / "out").err


def test_an_upload_happens_only_on_request(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(bundles, "upload", lambda folder, to: sent.append(str(to)) or "commit")
    terminal("push", "tiny", "-o", tmp_path / "one")
    assert sent == []
    done = terminal("push", "tiny", "-o", tmp_path / "two", "--upload", "hf:me/mine")
    assert sent == ["hf:me/mine"]
    assert "uploaded\tcommit" in done.out


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_names_of_bundles_stay_in_the_folder(hub: HubServer, terminal: Terminal, name: str) -> None:
    done = terminal("pull", "hf:me/mine", "--name", name)
    assert done.code == 2
    assert hub.requests == []
