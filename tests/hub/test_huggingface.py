"""Downloads with the official client, from a hub that redirects, breaks off, refuses and lies."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import file_download

from segagent_rt.errors import HubError, SegagentError, TooLittleRoom
from segagent_rt.hub.client import hub_of
from segagent_rt.hub.repository import HubRepository, parse_repository
from tests.hub.conftest import FILES, WEIGHTS
from tests.hub.server import COMMIT, HubServer

MINE = HubRepository("hf", "me", "mine")
NAMES = ("config.json", "model.safetensors")


def quiet(text: str) -> None: ...


def fetch(repository: HubRepository = MINE, names: tuple[str, ...] = NAMES) -> Path:
    client = hub_of(repository)
    return client.fetch(client.list_files(repository).only(names), quiet, show_bars=False)


@pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning")  # of older clients
@pytest.mark.parametrize("storage", ["lfs", "xet"])
def test_files_arrive_from_either_kind_of_storage(hub: HubServer, storage: Any) -> None:
    hub.storage = storage
    folder = fetch()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in NAMES
    }
    assert bool(hub.asked("/reconstructions/")) == (storage == "xet")
    assert hub_of(MINE).find_cached(MINE) == folder


def test_a_listing_says_what_there_is(hub: HubServer) -> None:
    hub.gated = True
    listing = hub_of(MINE).list_files(MINE)
    assert (listing.commit, listing.licence, listing.gated) == (COMMIT, "apache-2.0", True)
    sizes = {file.name: file.size for file in listing.files}
    assert sizes == {name: len(content) for name, content in FILES.items()}


def test_what_is_in_the_cache_is_not_fetched_again(hub: HubServer) -> None:
    fetch()
    hub.requests.clear()
    fetch()
    assert not hub.asked("/cdn/")


def test_a_connection_that_breaks_is_resumed(hub: HubServer) -> None:
    hub.cut_after, hub.cuts = 100_000, 2
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [headers.get("range") for headers in hub.asked("/cdn/")]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_finished_files_are_kept_when_it_breaks_for_good(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", broken)
        with pytest.raises(HubError, match="the download of hf:me/mine was interrupted") as caught:
            fetch()
    assert "finished files are kept" in str(caught.value.hint)
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def broken(*arguments: Any, **options: Any) -> None:
    raise ConnectionResetError("Connection reset by peer")


def test_another_content_than_was_listed_leaves_the_cache(hub: HubServer) -> None:
    hub.wrong = WEIGHTS[::-1]
    with pytest.raises(
        HubError, match=r"model\.safetensors of hf:me/mine does not match what the hub"
    ):
        fetch()
    hub.wrong = None
    assert (fetch() / "model.safetensors").read_bytes() == WEIGHTS


def refusal(hub: HubServer, repository: HubRepository = MINE) -> SegagentError:
    with pytest.raises(HubError) as caught:
        fetch(repository)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_gated_model_asks_to_accept_its_licence(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = True
    found = refusal(hub)
    assert str(found) == "the hub refuses access to hf:me/mine"
    assert "accept the model's licence on https://huggingface.co/me/mine" in str(found.hint)
    hub.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    assert (fetch() / "model.safetensors").is_file()


def test_a_wrong_token_is_named_and_never_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "right"
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = refusal(hub)
    assert str(found) == "the hub refuses the token that it was given for hf:me/mine"
    assert "hf auth login" in str(found.hint)
    assert "secret" not in f"{found}{found.hint}"


def test_the_token_stays_with_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    fetch()
    assert all("authorization" in headers for headers in hub.asked("/me/mine"))
    assert not any("authorization" in headers for headers in hub.asked("/cdn/"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf:me/other", "the hub has no hf:me/other"),
        ("hf:me/mine@v9", "the hub has no hf:me/mine@v9"),
    ],
)
def test_what_does_not_exist(hub: HubServer, text: str, said: str) -> None:
    found = refusal(hub, parse_repository(text))
    assert str(found) == said
    assert "check owner, name and revision" in str(found.hint)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_hub(hub: HubServer, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own pauses
    hub.status = status
    found = refusal(hub)
    assert str(found) == f"the hub answers {status} about hf:me/mine"


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "was interrupted" in str(refusal(hub))


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(TooLittleRoom, match=r"takes 0\.0 GB of the disk that holds .*0\.0 GB are"):
        fetch()
    assert not hub.asked("/resolve/")


def test_a_disk_that_fills_up_meanwhile_is_not_the_hubs_fault(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(TooLittleRoom, match="the disk is full") as caught:
        fetch()
    assert "free some space" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:a", "ms:a/b/c", "hf:../b", "hf:a/..", "hf:a/b@", "hf:a/b@../c", "hf:-x/y"]
)
def test_what_names_no_repository(text: str) -> None:
    with pytest.raises(SegagentError, match="names no repository"):
        parse_repository(text)
