"""Which files of a hub's model an export reads, and whether all of them are on this machine."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from segagent_rt.errors import HubError
from segagent_rt.hub.client import hub_of
from segagent_rt.hub.modelscope import ORIGIN
from segagent_rt.hub.repository import HubRepository, Listing, RemoteFile
from segagent_rt.types import ProgressReporter
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.files import read_bounded

NAMES = re.compile(
    r"(config|preprocessor_config|processor_config|generation_config|tokenizer|adapter_config)\.json"
    r"|(tokenizer_config|chat_template)\.json|chat_template\.jinja"
    r"|(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|qwen\.tiktoken"
    r"|README\.md|LICENSE(\.txt|\.md)?"
)
PICKLED = re.compile(r"(pytorch_model|adapter_model)[\w.-]*\.bin(\.index\.json)?|[\w.-]+\.(pt|pth)")
"""Files that an export reads, and those that it reads if there are no safetensors."""

WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth)$")
SINGLE = re.compile(r"[\w.-]+\.(pt|pth)")
"""Files of the authors' own programs, which hold a whole checkpoint."""

DESCRIBED = ("tokenizer.json", "qwen.tiktoken", "preprocessor_config.json", "processor_config.json")
"""At least one of these lies beside a `config.json` and weights, if the download is complete."""

COMMIT = re.compile(r"[0-9a-f]{40}")
LONGEST_INDEX = 50_000_000


def is_read(name: str) -> bool:
    """Whether an export reads a file of that name."""
    return bool(NAMES.fullmatch(name) or PICKLED.fullmatch(name))


def wanted(files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """The files that an export reads, from the model's top folder; weights come last."""
    plain = [f for f in files if NAMES.fullmatch(f.name)]
    if not any(f.name.endswith(".safetensors") for f in plain):
        plain += [f for f in files if PICKLED.fullmatch(f.name)]
    return sorted(plain, key=lambda file: (bool(WEIGHTS.search(file.name)), file.name))


def list_model(model: HubRepository) -> tuple[Listing, list[RemoteFile]]:
    """Ask a hub what a model holds, and which of it an export reads.

    Raises:
        HubError: the hub refuses, or the model has no weights that an export reads.
    """
    listing = hub_of(model).list_files(model)
    files = wanted(listing.files)
    if not any(WEIGHTS.search(file.name) for file in files):
        raise HubError(f"the model {model} has no files that can be exported")
    return listing, files


def fetch_model(
    listing: Listing, files: list[RemoteFile], report_progress: ProgressReporter, *, show_bars: bool
) -> Path:
    """Download a model's files into the cache of the hub's client.

    Raises:
        HubError: the hub refuses, breaks off, or sends something else than it listed.
        TooLittleRoom: the disk does not hold the files.
    """
    chosen = listing.only([file.name for file in files])
    return hub_of(listing.repository).fetch(chosen, report_progress, show_bars=show_bars)


def find_download(model: HubRepository) -> Path | None:
    """The folder of a model in the cache of the hub's client, if all that an export reads is there.

    Whoever downloaded it: other programs may have fetched some of its files only.
    """
    folder = hub_of(model).find_cached(model)
    return folder if folder is not None and is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    """Whether a folder holds weights, every shard that an index names, and what belongs to them."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if not any(WEIGHTS.search(name) and is_read(name) for name in names):
        return False
    if "config.json" in names and not names & set(DESCRIBED):
        return False
    return all(
        set(_shards(folder / name)) <= names for name in names if name.endswith(".index.json")
    )


def _shards(index: Path) -> list[str]:
    try:
        return [*map(str, json.loads(read_bounded(index, LONGEST_INDEX))["weight_map"].values())]
    except (CheckpointInvalid, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [""]  # an index that cannot be read is not complete


def only_file(folder: Path) -> Path:
    """The checkpoint in a model's folder that holds nothing else; otherwise the folder."""
    names = [path for path in sorted(folder.iterdir()) if SINGLE.fullmatch(path.name)]
    described = (folder / "config.json").exists()
    return names[0] if len(names) == 1 and not described else folder


def read_origin(folder: Path) -> dict[str, Any]:
    """Which model, revision and commit a folder was downloaded from; empty if nothing says so.

    The cache of Hugging Face's client says it in its paths, and `hf download --local-dir` in files
    beside the model's.
    """
    snapshot, repository = folder.absolute().parts[-1], folder.absolute().parent.parent.name
    owner, _, name = repository.removeprefix("models--").partition("--")
    if repository.startswith("models--") and COMMIT.fullmatch(snapshot) and name:
        return {"model": f"hf:{owner}/{name}", "commit": snapshot}
    with suppress(CheckpointInvalid, ValueError, RecursionError):
        found = json.loads(read_bounded(folder / ORIGIN, 10_000))
        return found if isinstance(found, dict) else {}
    commits = set()
    for path in sorted(folder.glob(".cache/huggingface/download/*.metadata"))[:1000]:
        with suppress(CheckpointInvalid):
            commits.add(read_bounded(path, 10_000).split(b"\n")[0].decode("ascii", "replace"))
    commit = commits.pop() if len(commits) == 1 else ""
    return {"commit": commit} if COMMIT.fullmatch(commit) else {}
