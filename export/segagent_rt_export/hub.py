"""Download models from Hugging Face and ModelScope: resumable, checked, and whole or not there.

Of a model only the files are taken that an export reads: configurations, tokenizers, weights. A
hub is foreign: names are checked, sizes and hashes compared, and nothing of it is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

from segagent_rt_export.errors import SourceMissing, TooLittleRoom

Tell: TypeAlias = Callable[[str], None]

TIMEOUT, BLOCK, LONGEST_LISTING = 30.0, 1 << 20, 50_000_000
"""Seconds without an answer, bytes read at once, bytes of a list of files."""

STEPS = 20
"""How often the progress of a file is told."""

NAMES = re.compile(
    r"(config|preprocessor_config|processor_config|generation_config|tokenizer|adapter_config)\.json"
    r"|(tokenizer_config|chat_template)\.json|chat_template\.jinja"
    r"|(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|qwen\.tiktoken"
)
PICKLED = re.compile(r"(pytorch_model|adapter_model)[\w.-]*\.bin(\.index\.json)?|[\w.-]+\.(pt|pth)")
"""Files that an export reads, and those that it reads if there are no safetensors."""


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
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
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


def download(model: HubModel, folder: Path, tell: Tell) -> None:
    """Put a model's files into a folder, which appears when all of them are there.

    What an interrupted download left is used, if the revision still has the same content.

    Raises:
        SourceMissing: the hub cannot be reached, refuses, or sent something else than it said.
        TooLittleRoom: the disk does not hold the files.
    """
    commit, listed = HUBS[model.hub].files(model)
    files = wanted(listed)
    if not files:
        raise SourceMissing(f"the model {model} has no files that can be exported")
    partial = folder.with_name(f".{folder.name}.partial")
    stamp = partial / ".revision"
    if partial.exists() and (not stamp.is_file() or stamp.read_text("utf-8") != commit):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    stamp.write_text(commit, "utf-8")
    left = sum(f.size for f in files) - sum(p.stat().st_size for p in partial.iterdir())
    if left > (free := shutil.disk_usage(partial).free):
        raise TooLittleRoom(
            f"{model} takes {left / 1e9:.1f} GB of the disk that holds {folder}, {free / 1e9:.1f} "
            "GB are free"
        )
    for file in files:
        if not (partial / file.name).exists():
            _fetch(model, file, partial, tell)
    partial.replace(folder)


def wanted(files: list[Remote]) -> list[Remote]:
    """The files that an export reads, from the model's top folder."""
    plain = [f for f in files if NAMES.fullmatch(f.name) and f.size >= 0]
    if not any(f.name.endswith(".safetensors") for f in plain):
        plain += [f for f in files if PICKLED.fullmatch(f.name) and f.size >= 0]
    return plain


def _fetch(model: HubModel, file: Remote, folder: Path, tell: Tell) -> None:
    """One file, from where an earlier attempt stopped."""
    path = folder / f"{file.name}.part"
    start = path.stat().st_size if path.exists() else 0
    if start < file.size or file.size == 0:
        with _explained(model), _open(model, file.url, start) as answer:
            whole = getattr(answer, "status", 200) != 206
            with path.open("wb" if whole else "ab") as stream:
                done, told = 0 if whole else start, -1
                while done <= file.size and (block := answer.read(BLOCK)):
                    stream.write(block)
                    done += len(block)
                    if (step := min(STEPS * done // max(file.size, 1), STEPS)) > told:
                        told = step
                        tell(f"downloading {file.name}, {step / STEPS:.0%}")
        if done < file.size:
            raise SourceMissing(
                f"the download of {file.name} of {model} broke off", hint="run the command again"
            )
    if path.stat().st_size != file.size or _digest(path, file) != file.digest:
        path.unlink()
        raise SourceMissing(
            f"{file.name} of {model} was not what the hub said it would be",
            hint="run the command again; if it happens twice, tell the model's owner",
        )
    path.replace(folder / file.name)


def _digest(path: Path, file: Remote) -> str:
    digest = hashlib.sha256() if file.kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if file.kind == "git":
        digest.update(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _listing(url: str, model: HubModel) -> dict[str, Any]:
    with _explained(model), _open(model, url, 0) as answer:
        text = answer.read(LONGEST_LISTING + 1)
    try:
        content = json.loads(text) if len(text) <= LONGEST_LISTING else None
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
    request = urllib.request.Request(url, headers={"User-Agent": "segagent-rt"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if model.hub == "hf" and (token := os.environ.get("HF_TOKEN")):
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(_Careful)
    with opener.open(request, timeout=TIMEOUT) as answer:
        yield answer


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """What goes wrong with a connection, in one sentence."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(model, error.code) from error
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the disk's, not the network's
        why = str(getattr(error, "reason", error))[:120]
        raise SourceMissing(
            f"the hub that has {model} cannot be reached: {why}",
            hint="run the command again when it can; it goes on where it stopped",
        ) from error


def _refused(model: HubModel, code: int) -> SourceMissing:
    if code in (401, 403):
        return SourceMissing(
            f"the hub refuses access to {model}",
            hint="accept the model's licence on its page and set HF_TOKEN, or download it by hand",
        )
    if code == 404:
        return SourceMissing(
            f"the hub has no {model}", hint="check owner, name and revision in the recipe"
        )
    return SourceMissing(f"the hub answers {code} about {model}", hint="run the command again")
