"""What a reader of data is told, and what it noticed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from segagent_rt.data.images import ImageFolders
from segagent_rt.data.record import Category
from segagent_rt.errors import DataInvalid, InputError, SegagentWarning

SKIP_OPTION = "--skip-bad"

NAMED = 3
"""So many entries that were left out are named in a message; the figures name all."""


@dataclass
class ReadContext:
    """How a file is read.

    Attributes:
        images: where its pictures lie.
        skip_bad: entries that are not as their format says are left out; otherwise the first one is
            an error.
        mask_label: the value that is the object, in masks that are label maps.
        file: the file itself, for formats that can hold a picture.
        skipped: a sentence about each entry that was left out.
        from_names: expressions that were taken from the name of a file.
        categories: every category that the file lists, used or not.
    """

    images: ImageFolders = field(default_factory=lambda: ImageFolders((Path(),)))
    skip_bad: bool = False
    mask_label: int | None = None
    file: Path | None = None
    skipped: list[str] = field(default_factory=list)
    from_names: list[str] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Read one entry inside.

        Raises:
            DataInvalid: it is bad, and bad entries are not left out.
        """
        try:
            yield
        except InputError as error:
            if not self.skip_bad:
                hint = error.hint or ""
                if SKIP_OPTION not in hint:  # an entry may lie in another
                    hint = f"{hint}, or " if hint else ""
                    hint += f"leave such entries out: {SKIP_OPTION}"
                raise DataInvalid(str(error), hint=hint) from error
            self.skipped.append(str(error))

    def report_progress(self, title: str, read: int, crowds: int = 0) -> None:
        """Warn of everything that a reader of the results should know.

        Args:
            title: of the data, or the name of the file.
            read: how many entries were read.
            crowds: how many of them are crowds.

        Raises:
            DataInvalid: every entry was left out.
        """
        if self.skipped:
            more = f", and {len(self.skipped) - NAMED} more" if len(self.skipped) > NAMED else ""
            listed = f"{'; '.join(self.skipped[:NAMED])}{more}"
            if not read:
                raise DataInvalid(f"{title}: no entry can be read: {listed}")
            left_out = _many(len(self.skipped), "bad entry was", "bad entries were")
            _warn(f"{title}: {left_out} left out: {listed}")
        if self.from_names:
            _warn(
                f"{title}: {_many(len(self.from_names), 'expression is', 'expressions are')} taken "
                f"from the names of files, such as `{self.from_names[0]}`"
            )
        if crowds:
            _warn(f"{title}: {_many(crowds, 'crowd is', 'crowds are')} kept, but not asked about")


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _warn(sentence: str) -> None:
    warnings.warn(sentence, SegagentWarning, stacklevel=3)
