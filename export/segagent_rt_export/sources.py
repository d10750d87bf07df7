"""Where checkpoints are: a local file or folder, or a model of a hub that was downloaded.

`hf:owner/name[@revision]` and `ms:owner/name[@revision]` name models of Hugging Face and of
ModelScope; they are looked for in `checkpoints/owner/name` of the working directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from segagent_rt_export.errors import RecipeInvalid, SourceMissing
from segagent_rt_export.hub import HubModel, download

DOWNLOADED = Path("checkpoints")
"""Where downloaded models are looked for."""

_HUB = re.compile(r"(hf|ms):([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
_COMMANDS = {
    "hf": "hf download {model}{revision} --local-dir {folder}",
    "ms": "modelscope download --model {model}{revision} --local_dir {folder}",
}


def folder_of(model: HubModel) -> Path:
    """Where a hub's model is expected."""
    return DOWNLOADED / model.owner / model.name


def command_for(model: HubModel) -> str:
    """The hub's own command that downloads a model to that place."""
    revision = f" --revision {model.revision}" if model.revision else ""
    named = {"model": f"{model.owner}/{model.name}", "folder": folder_of(model).as_posix()}
    return _COMMANDS[model.hub].format(revision=revision, **named)


def fetch_missing(sources: Iterable[str], tell: Callable[[str], None]) -> None:
    """Download the hubs' models among these that are not here yet.

    Raises:
        SourceMissing: one cannot be had.
        TooLittleRoom: the disk does not hold one.
    """
    for text in sources:
        model = parse_source(text)
        if isinstance(model, HubModel) and not folder_of(model).is_dir():
            download(model, folder_of(model), tell)


def parse_source(text: str) -> HubModel | Path:
    """A recipe's source, understood.

    Raises:
        RecipeInvalid: it begins like a hub's, but names no model.
    """
    if not text.strip():
        raise RecipeInvalid("a source is blank", hint="name a folder, a file or a hub's model")
    if not text.startswith(("hf:", "ms:")):
        return Path(text)
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise RecipeInvalid(
            f"the source `{text[:80]}` names no model", hint="write hf:owner/name[@revision]"
        )
    return HubModel("hf" if match[1] == "hf" else "ms", match[2], match[3], match[4])


def locate(text: str, beside: Path, origin: str = "") -> Path:
    """The file or folder of a source.

    Raises:
        RecipeInvalid: the text names no source.
        SourceMissing: it is not on this machine; says what to download and where it goes.
    """
    source = parse_source(text)
    if isinstance(source, HubModel):
        folder = folder_of(source)
        if folder.is_dir():
            return folder
        raise SourceMissing(
            f"the model {text} is not in {folder}",
            hint=f"--download fetches it, and so does: {command_for(source)}",
        )
    tried = [source] if source.is_absolute() else [beside / source, source]
    for path in tried:
        if path.exists():
            return path
    place = tried[-1]
    raise SourceMissing(
        f"there is no checkpoint {place}",
        hint=f"get it from {origin} and put it there" if origin else f"put it at {place.resolve()}",
    )
