"""What a hub holds: repositories, their files, and the protocol of a client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from segagent_rt.errors import InputError
from segagent_rt.types import ProgressReporter

_NAME = re.compile(
    r"(hf|ms):([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository of a hub.

    Attributes:
        hub: `hf` for Hugging Face, `ms` for ModelScope.
        revision: a commit, tag or branch; the newest commit if None.
    """

    hub: Literal["hf", "ms"]
    owner: str
    name: str
    revision: str | None = None

    @property
    def id(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    @property
    def page(self) -> str:
        """Where people read about it and accept its licence."""
        site = "https://huggingface.co" if self.hub == "hf" else "https://modelscope.cn/models"
        return f"{site}/{self.id}"

    def __str__(self) -> str:
        return f"{self.hub}:{self.id}" + (f"@{self.revision}" if self.revision else "")


def parse_repository(text: str) -> HubRepository:
    """Read `hf:owner/name[@revision]` or `ms:owner/name[@revision]`.

    Raises:
        InputError: the text names no repository.
    """
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise InputError(
            f"`{text[:80]}` names no repository of a hub", hint="write hf:owner/name[@revision]"
        )
    return HubRepository("hf" if match[1] == "hf" else "ms", match[2], match[3], match[4])


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        size: in bytes.
        sha256: of the content; empty if the hub does not say it.
    """

    name: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        commit: names the content.
        licence: as the repository's page names it; empty if it names none.
        gated: whether a licence must be accepted on the page first.
    """

    repository: HubRepository
    commit: str
    files: tuple[RemoteFile, ...]
    licence: str = ""
    gated: bool = False

    def only(self, names: Sequence[str]) -> Listing:
        """Files of these names, in their order; the repository holds them all."""
        files = {file.name: file for file in self.files}
        return replace(self, files=tuple(files[name] for name in names))


class Hub(Protocol):
    """A hub's client."""

    def list_files(self, repository: HubRepository) -> Listing:
        """Ask what a repository holds.

        Raises:
            HubError: the hub cannot be reached or refuses.
        """

    def fetch(
        self, listing: Listing, report_progress: ProgressReporter, *, show_bars: bool
    ) -> Path:
        """Download files of a repository, except those that are in the client's cache.

        Args:
            listing: the files, in the order in which they are fetched.
            report_progress: is told which file is fetched.
            show_bars: whether the client may draw its progress bars on stderr.

        Returns:
            The folder that holds them.

        Raises:
            HubError: the hub refuses, breaks off, or sends something else than it listed.
            TooLittleRoom: the disk does not hold them.
        """

    def find_cached(self, repository: HubRepository) -> Path | None:
        """The folder of the repository in the client's cache, whatever it holds of it."""
