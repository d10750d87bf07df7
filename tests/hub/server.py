"""A hub on this machine that speaks the API of Hugging Face, and misbehaves on request.

It has what the official client asks for: information about a model, files that redirect to a
store of large files (Git LFS) or to content-addressed storage (Xet), ranges, tokens and gates.
Of ModelScope's API it has the list of files, and the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npy", ".data")
"""Endings of files that are not in Git itself."""

CHUNK = 60_000
"""Bytes of a chunk in content-addressed storage, uncompressed."""


@dataclass
class HubServer:
    """What the hub holds, how it misbehaves, and what it was asked.

    Attributes:
        models: the files of each model, by `owner/name`.
        storage: how large files are stored.
        revisions: commits that can be asked for, beside `COMMIT`; all have the same files.
        licence: that every model's page names.
        token: that is needed to read anything; None if everything is public.
        gated: whether the licence of each model would have to be accepted first.
        cut_after: bytes of a large file after which connections end; None for never.
        cuts: how many connections end like that before they work again.
        wrong: content that is sent instead of a large file's.
        status: with which every request is refused; None to answer them.
        requests: method, path and headers of every request, in order.
        url, storage_url: of the hub, and of the host that has large files.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    storage: Literal["lfs", "xet"] = "lfs"
    revisions: tuple[str, ...] = ()
    licence: str = "apache-2.0"
    token: str | None = None
    gated: bool = False
    cut_after: int | None = None
    cuts: int = 0
    wrong: bytes | None = None
    status: int | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    storage_url: str = ""

    def asked(self, part: str) -> list[dict[str, str]]:
        """The headers of the requests whose path contains a text, by lower-case names."""
        return [
            {name.lower(): value for name, value in headers.items()}
            for _, path, headers in self.requests
            if part in path
        ]


@contextlib.contextmanager
def running(hub: HubServer) -> Iterator[HubServer]:
    """Serve a hub until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append((self.command, self.path, dict(self.headers)))
            Answer(self, hub).give()

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None: ...

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    threads = [threading.Thread(target=s.serve_forever, args=(0.01,)) for s in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class Answer:
    """The answer to one request."""

    def __init__(self, handler: BaseHTTPRequestHandler, hub: HubServer) -> None:
        self.handler, self.hub = handler, hub
        self.path = unquote(urlsplit(handler.path).path)

    def give(self) -> None:
        if self.hub.status is not None:
            return self.send(b"", self.hub.status)
        match self.path.strip("/").split("/"):
            case ["api", "models", owner, name]:
                self.model(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", *revision]:
                self.model(f"{owner}/{name}", "/".join(revision))
            case ["api", "models", owner, name, "xet-read-token", _]:
                self.xet_token(f"{owner}/{name}")
            case ["api", "v1", "models", owner, name, "repo", "files"]:
                self.modelscope_files(f"{owner}/{name}")
            case ["api", "v1", "models", owner, name, "repo"]:
                self.modelscope_file(f"{owner}/{name}")
            case ["cdn", digest]:
                self.large(digest)
            case ["cas", "v1", "reconstructions", digest]:
                self.reconstruction(digest)
            case [owner, name, "resolve", revision, *path]:
                self.file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self.send(b"", 404)

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        if self.handler.command != "HEAD":
            self.handler.wfile.write(content)

    def refuses(self, model: str, revision: str) -> bool:
        """Answer as Hugging Face does about what cannot be had."""
        given = self.handler.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            text = "Invalid credentials in Authorization header"
            self.send(b'{"error": "' + text.encode() + b'"}', 401, X_Error_Message=text)
        elif self.hub.token is not None and given is None:
            code = "GatedRepo" if self.hub.gated else "RepoNotFound"
            self.send(b"", 401, X_Error_Code=code)
        elif model not in self.hub.models:
            self.send(b"", 401 if given is None else 404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", COMMIT, *self.hub.revisions):
            self.send(b"", 404, X_Error_Code="RevisionNotFound")
        else:
            return False
        return True

    def commit(self, revision: str) -> str:
        return revision if revision in self.hub.revisions else COMMIT

    def model(self, model: str, revision: str) -> None:
        if self.refuses(model, revision):
            return
        siblings = []
        for name, content in self.hub.models[model].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            entry["blobId"] = git_digest(content)
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        described = {
            "id": model, "modelId": model, "sha": self.commit(revision),
            "siblings": siblings, "tags": [],
            "gated": "manual" if self.hub.gated else False, "private": False, "downloads": 0,
            "cardData": {"license": self.hub.licence}, "likes": 0,
        }  # fmt: skip
        self.send(json.dumps(described).encode(), Content_Type="application/json")

    def file(self, model: str, revision: str, name: str) -> None:
        if self.refuses(model, revision):
            return
        if self.hub.gated and self.hub.token is None:
            return self.send(b"", 403, X_Error_Code="GatedRepo")
        content, commit = self.hub.models[model].get(name), self.commit(revision)
        if content is None:
            return self.send(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if not name.endswith(LARGE):
            return self.send(content, ETag=f'"{git_digest(content)}"', X_Repo_Commit=commit)
        digest = hashlib.sha256(content).hexdigest()
        headers = {
            "Location": f"{self.hub.storage_url}/cdn/{digest}", "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"',
        }  # fmt: skip
        if self.hub.storage == "xet":
            refresh = f"{self.hub.url}/api/models/{model}/xet-read-token/{COMMIT}"
            headers |= {"X-Xet-Hash": digest, "Link": f'<{refresh}>; rel="xet-auth"'}
        self.send(b"", 302, **headers)

    def modelscope_files(self, model: str) -> None:
        if model not in self.hub.models:
            return self.send(b'{"Code": 10010205001, "Message": "not found"}', 404)
        files = [
            {
                "Path": name, "Name": name, "Size": len(content), "Type": "blob",
                "Sha256": hashlib.sha256(content).hexdigest(), "Revision": COMMIT,
            }
            for name, content in self.hub.models[model].items()
        ]  # fmt: skip
        answer = {"Code": 200, "Success": True, "Data": {"Files": files}}
        self.send(json.dumps(answer).encode(), Content_Type="application/json")

    def modelscope_file(self, model: str) -> None:
        query = parse_qs(urlsplit(self.handler.path).query)
        self.part(self.hub.models[model][query["FilePath"][0]])

    def large(self, digest: str) -> None:
        content = self.stored(digest)
        self.part(xorb(content) if self.hub.storage == "xet" else content)

    def part(self, content: bytes) -> None:
        """A file of the store: from a byte on, and cut off if that is asked for."""
        if self.hub.wrong is not None:
            content = self.hub.wrong
        wanted = self.handler.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = wanted.partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        part = content[start : end + 1]
        self.handler.send_response(206 if "Range" in self.handler.headers else 200)
        self.handler.send_header("Content-Length", str(len(part)))
        self.handler.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.handler.end_headers()
        cut = self.hub.cut_after
        if cut is not None and self.hub.cuts > 0 and len(part) > cut:
            self.hub.cuts -= 1
            part = part[:cut]
        with contextlib.suppress(OSError):
            self.handler.wfile.write(part)

    def stored(self, digest: str) -> bytes:
        files = (content for model in self.hub.models.values() for content in model.values())
        return next(c for c in files if hashlib.sha256(c).hexdigest() == digest)

    def xet_token(self, model: str) -> None:
        if self.refuses(model, "main"):
            return
        cas, expires = f"{self.hub.storage_url}/cas", "9999999999"
        body = {"casUrl": cas, "accessToken": "xet", "exp": int(expires)}
        self.send(
            json.dumps(body).encode(), X_Xet_Cas_Url=cas, X_Xet_Access_Token="xet",
            X_Xet_Token_Expiration=expires,
        )  # fmt: skip

    def reconstruction(self, digest: str) -> None:
        """The whole file is one object, whose chunks are not compressed."""
        size, packed = len(self.stored(digest)), len(xorb(self.stored(digest)))
        chunks = {"start": 0, "end": -(-size // CHUNK)}
        url = {"url": f"{self.hub.storage_url}/cdn/{digest}", "range": chunks}
        answer = {
            "offset_into_first_range": 0,
            "terms": [{"hash": digest, "unpacked_length": size, "range": chunks}],
            "fetch_info": {digest: [url | {"url_range": {"start": 0, "end": packed - 1}}]},
        }
        self.send(json.dumps(answer).encode(), Content_Type="application/json")


def git_digest(content: bytes) -> str:
    """The name of a file's content in Git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def xorb(content: bytes) -> bytes:
    """Content as chunks of content-addressed storage: a header of eight bytes before each.

    The header is a version, the stored length in three bytes, how it is compressed (0: not at
    all), and the length of the content in three bytes, little-endian.
    """
    parts = []
    for start in range(0, len(content), CHUNK):
        chunk = content[start : start + CHUNK]
        size = struct.pack("<I", len(chunk))[:3]
        parts.append(b"\0" + size + b"\0" + size + chunk)
    return b"".join(parts)
