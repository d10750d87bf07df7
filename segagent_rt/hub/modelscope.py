"""ModelScope, through its own client, which the extra `modelscope` installs.

`MODELSCOPE_ENDPOINT` names a mirror, `MODELSCOPE_CACHE` moves the cache, and
`MODELSCOPE_API_TOKEN` or `modelscope login` give a token.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from pathlib import Path

from segagent_rt.errors import ExtraMissing, HubError
from segagent_rt.hub.refusals import explained
from segagent_rt.hub.repository import HubRepository, Listing, RemoteFile
from segagent_rt.io import atomic_write, json_bytes
from segagent_rt.types import ProgressReporter

ORIGIN = ".segagent-origin.json"
"""The file in a downloaded folder that says what it holds: paths of this hub name no commit."""


class ModelScope:
    """modelscope.cn, or what the environment names as `MODELSCOPE_ENDPOINT`."""

    def list_files(self, repository: HubRepository) -> Listing:
        _check_client()
        from modelscope.hub.api import HubApi

        with explained(repository, with_token=_has_token()):
            found = HubApi(endpoint=_endpoint()).get_model_files(
                repository.id, revision=repository.revision, recursive=True
            )
        files = tuple(
            RemoteFile(str(entry["Path"]), int(entry["Size"]), str(entry.get("Sha256") or ""))
            for entry in found
            if entry.get("Type") != "tree"
        )
        listed = repr(sorted((file.name, file.size, file.sha256) for file in files))
        return Listing(repository, hashlib.sha256(listed.encode()).hexdigest(), files)

    def fetch(
        self, listing: Listing, report_progress: ProgressReporter, *, show_bars: bool
    ) -> Path:
        _check_client()
        from modelscope.hub.snapshot_download import snapshot_download

        repository = listing.repository
        total = sum(file.size for file in listing.files)
        report_progress(f"downloading {repository}, {total / 1e6:.0f} MB")
        with explained(repository, with_token=_has_token()):
            folder = Path(
                snapshot_download(
                    repository.id,
                    revision=repository.revision,
                    allow_patterns=[file.name for file in listing.files],
                    endpoint=_endpoint(),
                )
            )
        for file in listing.files:
            if not _has_size(folder / file.name, file.size):
                raise HubError(
                    f"{file.name} of {repository} does not match what the hub announced",
                    hint="run the command again; if it happens twice, tell the model's owner",
                )
        origin = {"model": str(repository), "revision": repository.revision}
        atomic_write(folder / ORIGIN, json_bytes(origin | {"commit": listing.commit}))
        return folder

    def find_cached(self, repository: HubRepository) -> Path | None:
        if find_spec("modelscope") is None:
            return None
        from modelscope.hub.snapshot_download import snapshot_download

        try:
            return Path(
                snapshot_download(
                    repository.id, revision=repository.revision, local_files_only=True
                )
            )
        except Exception:  # of its own kinds, which change: it is not there
            return None


def _check_client() -> None:
    if find_spec("modelscope") is None:
        raise ExtraMissing("export", "modelscope")


def _endpoint() -> str | None:
    """Read at each call: the client itself keeps what it read first."""
    return os.environ.get("MODELSCOPE_ENDPOINT", "").rstrip("/") or None


def _has_token() -> bool:
    return bool(os.environ.get("MODELSCOPE_API_TOKEN"))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
