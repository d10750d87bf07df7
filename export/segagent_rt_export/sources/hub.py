"""Download models from Hugging Face and ModelScope: resumable, checked, and whole or not there.

Of a model only the files are taken that an export reads: configurations, tokenizers, weights. A
hub is foreign: names are checked, sizes and hashes compared, and nothing of it is run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from huggingface_hub import get_token

from segagent_rt.types import ProgressReporter
from segagent_rt_export.errors import CheckpointInvalid, SourceMissing, TooLittleRoom
from segagent_rt_export.files import read_bounded
from segagent_rt_export.progress import Progress

TIMEOUT, BLOCK, LONGEST_LISTING = 30.0, 1 << 20, 50_000_000
"""Seconds without an answer, bytes read at once, bytes of a list of files."""

SLOWEST, PATIENCE = 1000, 60.0
"""Bytes a second that a connection must bring, and seconds until that is first asked."""

ORIGIN = ".segagent-origin.json"
"""The file in a downloaded folder that says which model and commit it holds."""

NAMES = re.compile(
    r"(config|preprocessor_config|processor_config|generation_config|tokenizer|adapter_config)\.json"
    r"|(tokenizer_config|chat_template)\.json|chat_template\.jinja"
    r"|(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|qwen\.tiktoken"
    r"|README\.md|LICENSE(\.txt|\.md)?"
)
PICKLED = re.compile(r"(pytorch_model|adapter_model)[\w.-]*\.bin(\.index\.json)?|[\w.-]+\.(pt|pth)")
"""Files that an export reads, and those that it reads if there are no safetensors."""

WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth)$")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of a hub."""

    hub: Literal["hf", "ms"]
    owner: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.hub}:{self.owner}/{self.name}" + (
            f"@{self.revision}" if self.revision else ""
        )


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of a model: `digest` is of the kind `sha256`, or `git` (SHA-1 with git's header)."""

    name: str
    url: str
    size: int
    kind: Literal["sha256", "git"]
    digest: str


class Hub(Protocol):
    """Where models are."""

    def files(self, model: HubModel) -> tuple[str, list[Remote]]:
        """What names the content of the revision, and its files."""


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """huggingface.co, or what the environment names as `HF_ENDPOINT`."""

    def files(self, model: HubModel) -> tuple[str, list[Remote]]:
        base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        path = f"{model.owner}/{model.name}"
        revision = urllib.parse.quote(model.revision or "main", safe="")
        listing = _listing(f"{base}/api/models/{path}/revision/{revision}?blobs=true", model)
        commit, found = listing.get("sha"), listing.get("siblings")
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise _strange(model)
        where = f"{base}/{path}/resolve/{commit}"
        files = []
        for entry in found if isinstance(found, list) else []:
            match entry:
                case {"rfilename": str(name), "size": int(size), "lfs": {"sha256": str(digest)}}:
                    files.append(Remote(name, f"{where}/{name}", size, "sha256", digest))
                case {"rfilename": str(name), "size": int(size), "blobId": str(digest)}:
                    files.append(Remote(name, f"{where}/{name}", size, "git", digest))
        return commit, files


@dataclass(frozen=True, slots=True)
class ModelScope:
    """modelscope.cn, or what the environment names as `MODELSCOPE_ENDPOINT`."""

    def files(self, model: HubModel) -> tuple[str, list[Remote]]:
        base = os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn").rstrip("/")
        repo = f"{base}/api/v1/models/{model.owner}/{model.name}/repo"
        revision = urllib.parse.quote(model.revision or "master", safe="")
        listing = _listing(f"{repo}/files?Revision={revision}", model)
        data = listing.get("Data")
        found = data.get("Files") if isinstance(data, dict) else None
        files = []
        for entry in found if isinstance(found, list) else []:
            match entry:
                case {"Path": str(name), "Size": int(size), "Sha256": str(digest), "Type": "blob"}:
                    where = urllib.parse.quote(name, safe="")
                    url = f"{repo}?Revision={revision}&FilePath={where}"
                    files.append(Remote(name, url, size, "sha256", digest))
        told = json.dumps(sorted((f.name, f.digest) for f in files))
        return hashlib.sha256(told.encode()).hexdigest(), files


HUBS: Mapping[str, Hub] = {"hf": HuggingFace(), "ms": ModelScope()}


def download(model: HubModel, folder: Path, report_progress: ProgressReporter) -> None:
    """Put a model's files into a folder, which appears when all of them are there.

    What an interrupted download left is used, if the revision still has the same content.

    Args:
        model: what to download; the newest revision if it names none.
        folder: must not exist yet.
        report_progress: is told the progress.

    Raises:
        SourceMissing: the hub cannot be reached, refuses, or sent something else than it said.
        TooLittleRoom: the disk does not hold the files.
    """
    commit, listed = HUBS[model.hub].files(model)
    files = wanted(listed)
    if not any(WEIGHTS.search(f.name) for f in files):
        raise SourceMissing(f"the model {model} has no files that can be exported")
    origin = {"model": str(model), "revision": model.revision, "commit": commit}
    partial = folder.with_name(f".{folder.name}.partial")
    with _on_disk(folder):
        if partial.exists() and read_origin(partial).get("commit") != commit:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        (partial / ORIGIN).write_text(json.dumps(origin) + "\n", "utf-8")
        left = sum(f.size for f in files) - sum(p.stat().st_size for p in partial.iterdir())
        free = shutil.disk_usage(partial).free
    if left > free:
        raise TooLittleRoom(
            f"{model} takes {left / 1e9:.1f} GB of the disk that holds {folder}, {free / 1e9:.1f} "
            "GB are free"
        )
    progress = Progress(report_progress, f"downloading {model}", sum(f.size for f in files))
    for file in files:
        if not (partial / file.name).exists():
            _fetch(model, file, partial, progress)
        progress.done += file.size
    with _on_disk(folder):
        partial.replace(folder)


def read_origin(folder: Path) -> dict[str, Any]:
    """Which model, revision and commit a folder was downloaded from; empty if nothing says so.

    `hf download --local-dir` leaves the commit beside the files, too.
    """
    try:
        found = json.loads(read_bounded(folder / ORIGIN, 10_000))
        return found if isinstance(found, dict) else {}
    except (CheckpointInvalid, ValueError, RecursionError):
        pass
    commits = set()
    for path in sorted(folder.glob(".cache/huggingface/download/*.metadata"))[:1000]:
        with suppress(CheckpointInvalid):
            commits.add(read_bounded(path, 10_000).split(b"\n")[0].decode("ascii", "replace"))
    commit = commits.pop() if len(commits) == 1 else ""
    return {"commit": commit} if COMMIT.fullmatch(commit) else {}


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    """What goes wrong with the disk, in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TooLittleRoom(
                f"the disk that holds {folder} is full",
                hint="free some space and run the command again; it goes on where it stopped",
            ) from error
        raise SourceMissing(
            f"{folder} cannot be written: {error.strerror or error}",
            hint="run the command in a folder that can be written",
        ) from error


def is_read(name: str) -> bool:
    """Whether an export reads a file of that name."""
    return bool(NAMES.fullmatch(name) or PICKLED.fullmatch(name))


def wanted(files: list[Remote]) -> list[Remote]:
    """The files that an export reads, from the model's top folder."""
    plain = [f for f in files if NAMES.fullmatch(f.name) and f.size >= 0]
    if not any(f.name.endswith(".safetensors") for f in plain):
        plain += [f for f in files if PICKLED.fullmatch(f.name) and f.size >= 0]
    return plain


def _fetch(model: HubModel, file: Remote, folder: Path, progress: Progress) -> None:
    """One file, from where an earlier attempt stopped."""
    path = folder / f"{file.name}.part"
    start = path.stat().st_size if path.exists() else 0
    if start < file.size or file.size == 0:
        with _explained(model), _open(model, file.url, start) as answer:
            whole = getattr(answer, "status", 200) != 206
            done = 0 if whole else start
            with _on_disk(path):
                stream = path.open("wb" if whole else "ab")
            with stream:
                for block in _blocks(answer):
                    with _on_disk(path):
                        stream.write(block)
                        stream.flush()
                    done += len(block)
                    progress.show(done)
                    if done > file.size:
                        break
        if done < file.size:
            raise SourceMissing(
                f"the download of {file.name} of {model} broke off", hint="run the command again"
            )
    with _on_disk(path):
        right = path.stat().st_size == file.size and _digest(path, file) == file.digest
        if right:
            path.replace(folder / file.name)
        else:
            path.unlink()
    if not right:
        raise SourceMissing(
            f"{file.name} of {model} was not what the hub said it would be",
            hint="run the command again; if it happens twice, tell the model's owner",
        )


def _blocks(answer: Any) -> Iterator[bytes]:
    """What an answer brings, as it comes; one that only trickles is given up."""
    start, total = time.monotonic(), 0
    while block := answer.read1(BLOCK):
        total += len(block)
        took = time.monotonic() - start
        if took > PATIENCE and total < SLOWEST * took:
            raise TimeoutError(f"it sends fewer than {SLOWEST} bytes a second")
        yield block


def _digest(path: Path, file: Remote) -> str:
    digest = hashlib.sha256() if file.kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if file.kind == "git":
        digest.update(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _listing(url: str, model: HubModel) -> dict[str, Any]:
    text = bytearray()
    with _explained(model), _open(model, url, 0) as answer:
        for block in _blocks(answer):
            text += block
            if len(text) > LONGEST_LISTING:
                raise _strange(model)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _strange(model)
    return content


def _strange(model: HubModel) -> SourceMissing:
    return SourceMissing(f"the hub's answer about {model} cannot be understood")


class _Careful(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes no token to another host and does not give up encryption."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise urllib.error.URLError("it redirects to a connection without encryption")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and old.netloc != new.netloc:
            following.remove_header("Authorization")
        return following


@contextmanager
def _open(model: HubModel, url: str, start: int) -> Iterator[Any]:
    """An answer, from a byte on; a token goes to Hugging Face alone."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise SourceMissing(
            f"`{url[:60]}` is no address of a hub", hint="HF_ENDPOINT begins with https://"
        )
    request = urllib.request.Request(url, headers={"User-Agent": "segagent-rt"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if model.hub == "hf" and (token := get_token()):
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(_Careful)
    with _in_time(lambda: opener.open(request, timeout=TIMEOUT)) as answer:
        yield answer


def _in_time(call: Callable[[], Any]) -> Any:
    """The result of a call; one that takes longer than `PATIENCE` is left to itself.

    A timeout of the socket does not do: a hub may send its headers byte by byte.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(PATIENCE)
    except FutureTimeoutError:
        if result.done():
            raise  # it is the call's own
        result.add_done_callback(lambda late: late.exception() or late.result().close())
        raise TimeoutError("it does not answer") from None


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """What goes wrong with a connection, in one sentence."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(model, error) from error
    except (OSError, HTTPException, ValueError) as error:
        why = str(getattr(error, "reason", error))[:120]
        raise SourceMissing(
            f"the hub that has {model} cannot be reached: {why}",
            hint="run the command again when it can; it goes on where it stopped",
        ) from error


def _refused(model: HubModel, error: urllib.error.HTTPError) -> SourceMissing:
    """Hugging Face says in a header why; it answers 401 about what does not exist, too."""
    why = str(error.headers.get("X-Error-Code", "")) if error.headers else ""
    if error.code == 404 or why in ("RepoNotFound", "RevisionNotFound"):
        hint = "check owner, name and revision in the recipe"
        if model.hub == "hf" and not get_token():
            hint += "; a private model needs HF_TOKEN"
        return SourceMissing(f"the hub has no {model}", hint=hint)
    page = f"https://huggingface.co/{model.owner}/{model.name}"
    if error.code == 401 and model.hub == "hf" and get_token():
        return SourceMissing(
            f"the hub refuses the token that it was given for {model}",
            hint="set HF_TOKEN to a valid one, or log in again: hf auth login",
        )
    if error.code in (401, 403):
        where = f"on {page}" if model.hub == "hf" else "on its page"
        return SourceMissing(
            f"the hub refuses access to {model}",
            hint=f"accept the model's licence {where} and set HF_TOKEN, or download it by hand",
        )
    return SourceMissing(
        f"the hub answers {error.code} about {model}", hint="run the command again"
    )
