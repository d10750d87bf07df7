"""Where checkpoints are: a local file or folder, or a model of a hub that was downloaded.

`hf:owner/name[@revision]` and `ms:owner/name[@revision]` name models of Hugging Face and of
ModelScope; they are looked for in `checkpoints/owner/name[@revision]` of the working directory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid, SourceMissing
from segagent_rt_export.files import open_regular, read_bounded
from segagent_rt_export.sources.hub import HubModel, download, is_read, read_origin

DOWNLOADED = Path("checkpoints")
"""Where downloaded models are looked for."""

_HUB = re.compile(r"(hf|ms):([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LONGEST_PAGE = 2_000_000
"""Bytes of a model's README.md."""

_COMMANDS = {
    "hf": "hf download {model}{revision} --local-dir {folder}",
    "ms": "modelscope download --model {model}{revision} --local_dir {folder}",
}


def folder_of(model: HubModel) -> Path:
    """Where a hub's model is expected; a revision has a folder of its own."""
    revision = f"@{model.revision.replace('/', '_')}" if model.revision else ""
    return DOWNLOADED / model.owner / f"{model.name}{revision}"


def downloaded(model: HubModel) -> Path | None:
    """The folder that holds a hub's model, if it is here.

    The folder without a revision serves one that is pinned if it says that it holds that revision.
    """
    folder = folder_of(model)
    if folder.is_dir():
        return folder
    shared = folder_of(replace(model, revision=None))
    origin = read_origin(shared)
    known = (origin.get("revision"), origin.get("commit"))
    return shared if model.revision and model.revision in known else None


def command_for(model: HubModel) -> str:
    """The hub's own command that downloads a model to that place."""
    revision = f" --revision {model.revision}" if model.revision else ""
    named = {"model": f"{model.owner}/{model.name}", "folder": folder_of(model).as_posix()}
    return _COMMANDS[model.hub].format(revision=revision, **named)


def fetch_missing(sources: Iterable[str], report_progress: Callable[[str], None]) -> None:
    """Download the hubs' models among these that are not here yet.

    Raises:
        SourceMissing: one cannot be had.
        TooLittleRoom: the disk does not hold one.
    """
    for text in sources:
        model = parse_source(text)
        if isinstance(model, HubModel) and downloaded(model) is None:
            download(model, folder_of(model), report_progress)


def parse_source(text: str) -> HubModel | Path:
    """A recipe's source, understood; `~` stands for the user's folder.

    Raises:
        RecipeInvalid: it begins like a hub's, but names no model.
    """
    if not text.strip():
        raise RecipeInvalid("a source is blank", hint="name a folder, a file or a hub's model")
    if not text.startswith(("hf:", "ms:")):
        if "\0" in text:
            raise RecipeInvalid("a source holds a character that no path has")
        return _home(Path(text))
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise RecipeInvalid(
            f"the source `{text[:80]}` names no model", hint="write hf:owner/name[@revision]"
        )
    return HubModel("hf" if match[1] == "hf" else "ms", match[2], match[3], match[4])


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user, or nobody knows the folder
        raise RecipeInvalid(
            f"the folder that `{path}` begins with is not known", hint="write the whole path"
        ) from None


def locate(text: str, beside: Path, origin: str = "") -> Path:
    """The file or folder of a source.

    Args:
        text: a recipe's source.
        beside: the recipe's folder, where relative paths are tried first.
        origin: where people get the checkpoint, for the error.

    Raises:
        RecipeInvalid: the text names no source.
        SourceMissing: it is not on this machine; says what to download and where it goes.
    """
    source = parse_source(text)
    if isinstance(source, HubModel):
        if found := downloaded(source):
            return found
        other = folder_of(replace(source, revision=None))
        note = f"; {other} does not say that it holds that revision" if other.is_dir() else ""
        raise SourceMissing(
            f"the model {text} is not in {folder_of(source)}{note}",
            hint=f"--download fetches it, and so does: {command_for(source)}",
        )
    tried = [source] if source.is_absolute() else [beside / source, source]
    for path in tried:
        if path.exists():
            return path
    place = tried[-1]
    hint = f"get it from {origin} and put it there" if origin else f"put it at {place.resolve()}"
    if not origin and _MODEL.fullmatch(text):
        hint = f"for the model of Hugging Face write hf:{text}, and use --download"
    raise SourceMissing(f"there is no checkpoint {place}", hint=hint)


def origin_of(source: Path) -> dict[str, Any]:
    """Where a checkpoint comes from and what is in it, for the manifest.

    Args:
        source: a checkpoint's file or folder.

    Returns:
        `files`: name, size and SHA-256 of each that an export reads; and where it is known `model`,
        `commit`, and `licence` as the model's page names it.
    """
    if not source.is_dir():
        return {"files": [source_record(source)]}
    names = (path for path in sorted(source.iterdir()) if is_read(path.name))
    found: dict[str, Any] = {"files": [source_record(path) for path in names if path.is_file()]}
    origin = read_origin(source)
    found |= {key: origin[key] for key in ("model", "commit") if isinstance(origin.get(key), str)}
    return found | _licence(source / "README.md")


def _licence(page: Path) -> dict[str, str]:
    """The licence that a model's page names in its header."""
    try:
        head = read_bounded(page, LONGEST_PAGE).decode("utf-8", "replace").split("---", 2)[1]
    except (CheckpointInvalid, IndexError):
        return {}
    found = dict(re.findall(r"(?m)^(license(?:_name)?): *['\"]?([\w.+ -]{1,80}?)['\"]? *$", head))
    name = found.get("license_name") or found.get("license")
    return {"licence": name} if name else {}


def source_record(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, for the provenance of what is made from it."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"file": path.name, "size": size, "sha256": digest.hexdigest()}
