"""Downloads with ModelScope's own client, which an extra installs."""

from __future__ import annotations

import json

import pytest

from segagent_rt.errors import ExtraMissing, HubError
from segagent_rt.hub import modelscope
from segagent_rt.hub.client import hub_of
from segagent_rt.hub.repository import HubRepository
from tests.hub.conftest import FILES, WEIGHTS
from tests.hub.server import HubServer

MINE = HubRepository("ms", "me", "mine")
NAMES = ("config.json", "model.safetensors")


def quiet(text: str) -> None: ...


def test_a_missing_client_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing) as caught:
        hub_of(MINE).list_files(MINE)
    assert "[modelscope]" in str(caught.value.hint)
    assert hub_of(MINE).find_cached(MINE) is None


def test_files_arrive_and_the_folder_says_what_it_holds(hub: HubServer) -> None:
    pytest.importorskip("modelscope")
    client = hub_of(MINE)
    assert client.find_cached(MINE) is None
    listing = client.list_files(MINE)
    assert {file.name: file.size for file in listing.files} == {n: len(c) for n, c in FILES.items()}
    folder = client.fetch(listing.only(NAMES), quiet, show_bars=False)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not (folder / "modeling_evil.py").exists()
    origin = json.loads((folder / modelscope.ORIGIN).read_text())
    assert (origin["model"], origin["commit"]) == ("ms:me/mine", listing.commit)
    assert client.find_cached(MINE) == folder


def test_what_does_not_exist(hub: HubServer) -> None:
    pytest.importorskip("modelscope")
    other = HubRepository("ms", "me", "other")
    with pytest.raises(HubError, match="the hub has no ms:me/other"):
        hub_of(other).list_files(other)
