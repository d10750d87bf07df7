"""Downloads, against hubs on this machine that redirect, break off, refuse and lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from segagent_rt_export.errors import SourceMissing, TooLittleRoom
from segagent_rt_export.sources import hub
from segagent_rt_export.sources.hub import HubModel, download
from segagent_rt_export.sources.locations import fetch_missing, locate, origin_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4000
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"not taken beside safetensors",
    "modeling_evil.py": b"never taken",
    "onnx/model.onnx": b"never taken",
}
HF, MS = HubModel("hf", "me", "mine"), HubModel("ms", "me", "mine")


@dataclass
class Server:
    """What the hub holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    listed: dict[str, bytes] = field(default_factory=dict)
    refuses: str = ""
    stops_after: int | None = None
    ranges: bool = True
    trickles: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    elsewhere: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, dict(self.headers)))
            if state.refuses:
                code, _, why = state.refuses.partition(" ")
                self.send_response(int(code))
                self.send_header("X-Error-Code", why)
                self.end_headers()
            else:
                answer(self, state)

        def log_message(self, *arguments: Any) -> None: ...

    monkeypatch.setattr(ThreadingHTTPServer, "daemon_threads", False)  # closing waits for them
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    state.url, state.elsewhere = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", state.url)
    monkeypatch.setattr(hub, "get_token", lambda: os.environ.get("HF_TOKEN"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    threads = [threading.Thread(target=s.serve_forever, args=(0.01,)) for s in servers]
    for thread in threads:
        thread.start()
    yield state
    state.stop.set()
    for one, thread in zip(servers, threads, strict=True):
        one.shutdown()
        one.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, state: Server) -> None:
    url = urlsplit(handler.path)
    begin = b"HTTP/1.0 200 OK\r\n"
    if state.trickles == "headers":
        return trickle(handler, state, begin + b"X-Odd: ", b"x")
    if state.trickles and state.trickles in handler.path.replace("blobs", "listing"):
        return trickle(handler, state, begin + b"Content-Length: 9000000\r\n\r\n", b" ")
    query = parse_qs(url.query)
    if url.path.startswith("/api/models/me/mine/revision/"):
        send(handler, json.dumps({"sha": COMMIT, "siblings": hf_listing(state)}).encode())
    elif url.path == "/api/v1/models/me/mine/repo/files":
        send(handler, json.dumps({"Code": 200, "Data": {"Files": ms_listing(state)}}).encode())
    elif url.path.startswith(f"/me/mine/resolve/{COMMIT}/"):
        handler.send_response(302)
        handler.send_header("Location", f"{state.elsewhere}/cdn/{url.path.rsplit('/', 1)[1]}")
        handler.end_headers()
    elif url.path.startswith("/cdn/"):
        send_file(handler, state, url.path.rsplit("/", 1)[1])
    elif url.path == "/api/v1/models/me/mine/repo":
        send_file(handler, state, query["FilePath"][0])
    else:
        handler.send_error(404)


def hf_listing(state: Server) -> list[dict[str, Any]]:
    files = []
    for name, content in (state.listed or state.files).items():
        entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if name.endswith(".safetensors"):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest()}
        files.append(entry)
    return files


def ms_listing(state: Server) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = [{"Path": "onnx", "Size": 0, "Sha256": "", "Type": "tree"}]
    for name, content in (state.listed or state.files).items():
        digest = hashlib.sha256(content).hexdigest()
        files.append({"Path": name, "Size": len(content), "Sha256": digest, "Type": "blob"})
    return files


def trickle(handler: BaseHTTPRequestHandler, state: Server, start: bytes, byte: bytes) -> None:
    """A byte now and then, until the test is over or nobody listens."""
    with contextlib.suppress(OSError):
        handler.wfile.write(start)
        while not state.stop.wait(0.05):
            handler.wfile.write(byte)


def send(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def send_file(handler: BaseHTTPRequestHandler, state: Server, name: str) -> None:
    content, wanted = state.files[name], handler.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:][: state.stops_after])


def quiet(text: str) -> None: ...


@pytest.mark.parametrize("model", [HF, MS], ids=["hf", "ms"])
def test_a_model_arrives_whole_and_only_what_is_read(server, tmp_path, model):
    told: list[str] = []
    download(model, tmp_path / "mine", told.append)
    found = {p.name: p.read_bytes() for p in (tmp_path / "mine").iterdir() if p.name[0] != "."}
    assert found == {name: FILES[name] for name in ("config.json", "model.safetensors")}
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert told[-1] == "downloading hf:me/mine, 100%".replace("hf", model.hub)


def test_pickles_are_taken_where_there_is_nothing_else(server, tmp_path):
    del server.files["model.safetensors"]
    download(HF, tmp_path / "mine", quiet)
    assert (tmp_path / "mine" / "pytorch_model.bin").exists()


@pytest.mark.parametrize("model", [HF, MS], ids=["hf", "ms"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_download_that_broke_off_goes_on(server, tmp_path, model, ranges):
    server.stops_after = 100_000
    with pytest.raises(SourceMissing) as caught:
        download(model, tmp_path / "mine", quiet)
    assert "run the command again" in caught.value.hint
    assert not (tmp_path / "mine").exists()
    server.stops_after, server.ranges = None, ranges
    server.asked.clear()
    download(model, tmp_path / "mine", quiet)
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == WEIGHTS
    asked = [headers.get("Range") for _, headers in server.asked]
    assert "bytes=100000-" in asked
    assert not any("config.json" in path for path, _ in server.asked), "it was there already"


def test_another_revision_begins_afresh(server, tmp_path):
    partial = tmp_path / ".mine.partial"
    partial.mkdir()
    (partial / hub.ORIGIN).write_text('{"commit": "another"}')
    (partial / "model.safetensors.part").write_bytes(b"of another revision")
    download(HF, tmp_path / "mine", quiet)
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (HubModel("hf", "me", "mine", "v1.0"), "/api/models/me/mine/revision/v1.0?blobs=true"),
        (HubModel("hf", "me", "mine", "refs/pr/1"), "/revision/refs%2Fpr%2F1?"),
        (HubModel("ms", "me", "mine", "v1.0"), "Revision=v1.0"),
    ],
)
def test_the_revision_that_is_pinned_is_asked_for(server, tmp_path, model, path):
    download(model, tmp_path / "mine", quiet)
    assert path in server.asked[0][0]


@pytest.mark.parametrize("model", [HF, MS], ids=["hf", "ms"])
def test_other_content_than_was_listed_is_thrown_away(server, tmp_path, model):
    server.listed = server.files | {"model.safetensors": WEIGHTS[::-1]}
    with pytest.raises(SourceMissing, match=r"model\.safetensors of .* was not what the hub said"):
        download(model, tmp_path / "mine", quiet)
    assert not (tmp_path / "mine").exists()
    assert not list((tmp_path / ".mine.partial").glob("model*"))


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [("401", "refuses access", "HF_TOKEN"), ("403", "refuses access", "licence"),
     ("403 GatedRepo", "refuses access", "https://huggingface.co/me/mine"),
     ("401 RepoNotFound", "has no hf:me/mine", "a private model needs HF_TOKEN"),
     ("404", "has no hf:me/mine", "revision"), ("503", "answers 503", "again"),
     ("404 RevisionNotFound", "has no hf:me/mine", "revision"),
     ("416", "answers 416", "again"), ("429", "answers 429", "again")],
)  # fmt: skip
def test_refusals_are_explained(server, tmp_path, code, said, hint):
    server.refuses = code
    with pytest.raises(SourceMissing, match=said) as caught:
        download(HF, tmp_path / "mine", quiet)
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_token_that_is_not_accepted_is_named(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.refuses = "401"
    with pytest.raises(SourceMissing, match="refuses the token") as caught:
        download(HF, tmp_path / "mine", quiet)
    assert "hf auth login" in caught.value.hint
    assert "secret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("slow", ["listing", "cdn/model", "headers"])
def test_a_hub_that_trickles_is_given_up(server, monkeypatch, tmp_path, slow):
    """Each byte comes before the socket's timeout, and the last never."""
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    server.trickles = slow
    start = time.monotonic()
    with pytest.raises(SourceMissing, match="cannot be reached") as caught:
        download(HF, tmp_path / "mine", quiet)
    assert "goes on where it stopped" in caught.value.hint
    assert time.monotonic() - start < 5
    server.stop.set()


@pytest.mark.parametrize("endpoint", ["file:///etc", "huggingface.co", "ftp://x", "https://[x", ""])
def test_an_endpoint_that_is_no_address(monkeypatch, tmp_path, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceMissing, match=r"no address of a hub|cannot be reached"):
        download(HF, tmp_path / "mine", quiet)


def test_a_disk_that_fills_up_meanwhile_is_not_the_hubs_fault(server, monkeypatch, tmp_path):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def write(self, block):
            raise OSError(28, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda p, mode="r", *a, **k: Full() if mode == "wb" else real(p, mode, *a, **k),
    )
    with pytest.raises(TooLittleRoom, match="is full") as caught:
        download(HF, tmp_path / "mine", quiet)
    assert "goes on where it stopped" in caught.value.hint


def test_the_folder_says_what_it_holds(server, tmp_path):
    """Model, commit, licence, and every file with its hash: what the manifest records."""
    server.files["README.md"] = b"---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n# Mine\n"
    download(HubModel("hf", "me", "mine", "v1.0"), tmp_path / "mine", quiet)
    found = origin_of(tmp_path / "mine")
    assert (found["model"], found["commit"]) == ("hf:me/mine@v1.0", COMMIT)
    assert found["licence"] == "tongyi-qianwen"
    hashes = {entry["file"]: entry["sha256"] for entry in found["files"]}
    assert hashes["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert set(hashes) == {"README.md", "config.json", "model.safetensors"}


def test_a_revision_is_honoured_or_refused(server, monkeypatch, tmp_path):
    """A folder that does not say that it holds the pinned revision is not taken for it."""
    monkeypatch.chdir(tmp_path)
    pinned = f"hf:me/mine@{COMMIT}"
    folder = tmp_path / "checkpoints" / "me" / "mine"
    folder.mkdir(parents=True)
    with pytest.raises(SourceMissing, match="does not say that it holds that revision"):
        locate(pinned, tmp_path)
    fetch_missing([pinned], quiet)
    assert locate(pinned, tmp_path) == Path(f"checkpoints/me/mine@{COMMIT}")
    folder.rmdir()
    (tmp_path / "checkpoints" / "me" / f"mine@{COMMIT}").rename(folder)
    assert locate(pinned, tmp_path) == Path("checkpoints/me/mine")
    assert locate("hf:me/mine", tmp_path) == Path("checkpoints/me/mine")
    with pytest.raises(SourceMissing):
        locate("hf:me/mine@v2", tmp_path)


def test_what_the_hubs_own_tool_downloaded_names_its_commit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "checkpoints" / "me" / "mine" / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{COMMIT}\n0123abcd\n1700000000.0\n")
    assert locate(f"hf:me/mine@{COMMIT}", tmp_path) == Path("checkpoints/me/mine")
    (notes / "model.safetensors.metadata").write_text(f"{COMMIT[::-1]}\n0123abcd\n1700000000.0\n")
    with pytest.raises(SourceMissing):
        locate(f"hf:me/mine@{COMMIT}", tmp_path)


def test_no_network_is_said_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceMissing, match="cannot be reached"):
        download(HF, tmp_path / "mine", quiet)


def test_the_token_stays_with_the_hub(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    download(HF, tmp_path / "mine", quiet)
    download(MS, tmp_path / "other", quiet)
    with_token = [path for path, headers in server.asked if "Authorization" in headers]
    assert with_token
    assert not any("/cdn/" in path or "/api/v1/" in path for path in with_token)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "model/../../x.safetensors", "a\\b"]
)
def test_names_that_lead_elsewhere_are_never_asked_for(server, tmp_path, name):
    server.files[name] = b"x"
    download(HF, tmp_path / "deep" / "mine", quiet)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and p.name[0] != ".") == [
        "config.json", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"sha": "../../x", "siblings": []}'])
def test_an_answer_that_is_no_listing(monkeypatch, tmp_path, text):
    import contextlib
    import io

    @contextlib.contextmanager
    def reply(model: HubModel, url: str, start: int) -> Iterator[Any]:
        yield io.BytesIO(text.encode())

    monkeypatch.setattr(hub, "_open", reply)
    with pytest.raises(SourceMissing, match="cannot be understood"):
        download(HF, tmp_path / "mine", quiet)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before(server, monkeypatch, tmp_path):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("", (), {"free": 10})())
    with pytest.raises(TooLittleRoom, match="GB of the disk"):
        download(HF, tmp_path / "mine", quiet)


def test_only_what_is_missing_is_fetched(server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "you" / "yours").mkdir(parents=True)
    fetch_missing(["hf:me/mine", "hf:you/yours", "local.pth"], quiet)
    assert Path("checkpoints/me/mine/model.safetensors").is_file()
    assert not any("yours" in path for path, _ in server.asked)
