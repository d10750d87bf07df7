"""Hugging Face, through `huggingface_hub`: its cache, tokens, mirrors, Xet and progress bars.

`HF_ENDPOINT` names a mirror, `HF_HOME` moves the cache, `HF_TOKEN` or `hf auth login` give a token.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from segagent_rt.errors import HubError
from segagent_rt.hub.refusals import explain, explained, is_passing
from segagent_rt.hub.repository import HubRepository, Listing, RemoteFile
from segagent_rt.memory import check_disk_space
from segagent_rt.types import ProgressReporter

TRIES = 3
"""For each file. Newer clients resume a broken connection by themselves, older ones do not."""


class HuggingFace:
    """huggingface.co, or what the environment names as `HF_ENDPOINT`."""

    def list_files(self, repository: HubRepository) -> Listing:
        from huggingface_hub import HfApi

        with explained(repository, with_token=_has_token()):
            found = HfApi(endpoint=_endpoint()).model_info(
                repository.id, revision=repository.revision, files_metadata=True
            )
        files = [_file(sibling) for sibling in found.siblings or ()]
        commit = found.sha or ""
        if not commit:
            raise HubError(f"the hub's answer about {repository} cannot be understood")
        known = tuple(file for file in files if file is not None)
        return Listing(repository, commit, known, _licence(found), bool(found.gated))

    def fetch(
        self, listing: Listing, report_progress: ProgressReporter, *, show_bars: bool
    ) -> Path:
        repository = listing.repository
        missing = [file for file in listing.files if not self._is_cached(listing, file.name)]
        needed = sum(file.size for file in missing)
        hint = "free some space, or set HF_HOME to a folder on a larger disk"
        check_disk_space(needed, _cache(), f"{repository} takes", hint)
        _set_bars(shown=show_bars)
        for file in missing:
            report_progress(f"downloading {file.name} of {repository}, {file.size / 1e6:.0f} MB")
            _check_content(repository, self._fetch_file(repository, listing.commit, file), file)
        if repository.revision != listing.commit:  # the client notes what the revision stands for
            self._fetch_file(repository, repository.revision or "main", listing.files[0])
        return self._folder(repository) / "snapshots" / listing.commit

    def find_cached(self, repository: HubRepository) -> Path | None:
        folder = self._folder(repository)
        revision = repository.revision or "main"
        for commit in (revision, _read_commit(folder / "refs" / revision)):
            if commit and (snapshot := folder / "snapshots" / commit).is_dir():
                return snapshot
        return None

    def _folder(self, repository: HubRepository) -> Path:
        return _cache() / f"models--{repository.owner}--{repository.name}"

    def _is_cached(self, listing: Listing, name: str) -> bool:
        return (self._folder(listing.repository) / "snapshots" / listing.commit / name).is_file()

    def _fetch_file(self, repository: HubRepository, revision: str, file: RemoteFile) -> Path:
        """Every file is asked for at the listed commit, so that all belong together."""
        from huggingface_hub import hf_hub_download

        for tried in range(1, TRIES + 1):
            try:
                path = hf_hub_download(
                    repository.id,
                    file.name,
                    revision=revision,
                    endpoint=_endpoint(),
                    cache_dir=_cache(),
                )
                return Path(path)
            except Exception as error:  # of three HTTP libraries, see `refusals`
                if tried == TRIES or not is_passing(error):
                    raise explain(repository, error, with_token=_has_token()) from error
        raise AssertionError


def _file(sibling: Any) -> RemoteFile | None:
    """A file of a listing; None if the hub does not say its size."""
    size, lfs = sibling.size, sibling.lfs
    if not isinstance(size, int) or size < 0:
        return None
    return RemoteFile(str(sibling.rfilename), size, str(lfs.sha256) if lfs else "")


def _licence(found: Any) -> str:
    """`other` says nothing; then the licence has a name of its own."""
    card = found.card_data.to_dict() if found.card_data else {}
    name = card.get("license_name") or card.get("license") or ""
    return str(name)[:80] if isinstance(name, str) else ""


def _check_content(repository: HubRepository, path: Path, file: RemoteFile) -> None:
    """A file that is not what was listed leaves the cache again."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if path.stat().st_size == file.size and file.sha256 in ("", digest.hexdigest()):
        return
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise HubError(
        f"{file.name} of {repository} does not match what the hub announced",
        hint="run the command again; if it happens twice, tell the model's owner",
    )


def _read_commit(path: Path) -> str:
    try:
        return path.read_text("ascii")[:40].strip()
    except (OSError, ValueError):
        return ""


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _endpoint() -> str | None:
    """Read at each call: the client itself reads it only when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def _set_bars(*, shown: bool) -> None:
    """Without bars the client's warnings about each try stay silent, too."""
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if shown else disable_progress_bars)()
    if not shown:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
