"""Where checkpoints are: a local file or folder, or a model of a hub that was downloaded.

`hf:owner/name[@revision]` and `ms:owner/name[@revision]` name models of Hugging Face and of
ModelScope. They are looked for in `checkpoints/owner/name[@revision]` of the working directory,
then in the cache of the hub's own client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from segagent_rt.errors import InputError
from segagent_rt.hub.repository import HubRepository, parse_repository
from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid, SourceMissing
from segagent_rt_export.files import open_regular, read_bounded
from segagent_rt_export.recipe import Recipe
from segagent_rt_export.sources.downloads import find_download, is_read, only_file, read_origin

DOWNLOADED = Path("checkpoints")
"""Where models are looked for that people downloaded by hand."""

_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LONGEST_PAGE = 2_000_000
"""Bytes of a model's README.md."""

_COMMANDS = {
    "hf": "hf download {model}{revision}",
    "ms": "modelscope download --model {model}{revision}",
}


def folder_of(model: HubRepository) -> Path:
    """Where a model that was downloaded by hand is expected; a revision has its own folder."""
    revision = f"@{model.revision.replace('/', '_')}" if model.revision else ""
    return DOWNLOADED / model.owner / f"{model.name}{revision}"


def downloaded(model: HubRepository) -> Path | None:
    """The folder that holds a hub's model, if it is here.

    A folder without a revision serves one that is pinned if it says that it holds that revision.
    """
    folder = folder_of(model)
    if folder.is_dir():
        return folder
    shared = folder_of(replace(model, revision=None))
    origin = read_origin(shared)
    known = (origin.get("revision"), origin.get("commit"))
    if model.revision and model.revision in known:
        return shared
    return find_download(model)


def command_for(model: HubRepository) -> str:
    """The hub's own command that downloads a model into its cache."""
    revision = f" --revision {model.revision}" if model.revision else ""
    return _COMMANDS[model.hub].format(revision=revision, model=model.id)


def find_missing(sources: Iterable[str]) -> list[HubRepository]:
    """The hubs' models among these that are not on this machine, each once.

    Raises:
        RecipeInvalid: a text names no source.
    """
    models = [source for source in map(parse_source, sources) if isinstance(source, HubRepository)]
    return [model for model in dict.fromkeys(models) if downloaded(model) is None]


def locate_local(recipe: Recipe) -> None:
    """See that the checkpoints are here that no hub has, before others are downloaded.

    Raises:
        SourceMissing: one is not.
    """
    for part in recipe.parts.values():
        if not isinstance(parse_source(part.source), HubRepository):
            locate(part.source, Path(recipe.folder), part.origin)


def parse_source(text: str) -> HubRepository | Path:
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
    try:
        return parse_repository(text)
    except InputError as error:
        raise RecipeInvalid(f"the source `{text[:80]}` names no model", hint=error.hint) from None


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
    if isinstance(source, HubRepository):
        if found := downloaded(source):
            return only_file(found)
        raise not_here(source)
    tried = [source] if source.is_absolute() else [beside / source, source]
    for path in tried:
        if path.exists():
            return path
    place = tried[-1]
    hint = f"get it from {origin} and put it there" if origin else f"put it at {place.resolve()}"
    if not origin and _MODEL.fullmatch(text):
        hint = f"for the model of Hugging Face write hf:{text}, and use --yes to download it"
    raise SourceMissing(f"there is no checkpoint {place}", hint=hint)


def check_digest(source: Path, sha256: str) -> None:
    """See that a checkpoint is the file that a recipe names by its hash.

    Args:
        source: a checkpoint's file or folder.
        sha256: of the file, in hexadecimal digits; "" if the recipe names none.

    Raises:
        CheckpointInvalid: it is another file, or a folder.
    """
    if sha256 and source.is_dir():
        raise CheckpointInvalid(
            f"{source} is a folder, and the recipe names the SHA-256 of one file",
            hint="name the file as `source`, or leave `sha256` out of the recipe",
        )
    if sha256 and (found := source_record(source)["sha256"]) != sha256:
        raise CheckpointInvalid(
            f"{source} is not the file that the recipe names: its SHA-256 begins with "
            f"{found[:12]}, that of the recipe with {sha256[:12]}",
            hint="download it again, or leave `sha256` out of a recipe of your own",
        )


def not_here(model: HubRepository) -> SourceMissing:
    """The error about a hub's model that is not on this machine."""
    other = folder_of(replace(model, revision=None))
    note = f"; {other} does not say that it holds that revision" if other.is_dir() else ""
    return SourceMissing(
        f"the model {model} is not on this machine{note}",
        hint=f"--yes downloads it, and so does: {command_for(model)}",
    )


def origin_of(source: Path) -> dict[str, Any]:
    """Where a checkpoint comes from and what is in it, for the manifest.

    Args:
        source: a checkpoint's file or folder.

    Returns:
        `files`: name, size and SHA-256 of each that an export reads; and where it is known `model`,
        `commit`, and `licence` as the model's page names it.
    """
    folder = source if source.is_dir() else source.parent
    names = sorted(source.iterdir()) if source.is_dir() else [source]
    read = (path for path in names if path.is_file() and (path == source or is_read(path.name)))
    found: dict[str, Any] = {"files": [source_record(path) for path in read]}
    origin = read_origin(folder)
    found |= {key: origin[key] for key in ("model", "commit") if isinstance(origin.get(key), str)}
    known = source.is_dir() or "model" in found
    return found | (_licence(folder / "README.md") if known else {})


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
