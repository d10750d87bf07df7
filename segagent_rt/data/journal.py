"""A journal of finished work, one JSON line for each piece: a killed run goes on where it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from segagent_rt.errors import DataInvalid, OutputError
from segagent_rt.io import check_writable, dump_json, parse_json

CountReporter: TypeAlias = Callable[[int, int], None]
"""Called with the number of pieces done and to do, those of earlier runs not counted."""


class Journal:
    """Use in a `with` block; `done` maps the key of each finished piece to its content.

    The first line is a heading that says what the run is about. A line that was cut off by a kill
    is dropped, its piece is done again; a damaged one in the middle is an error. A file that does
    not begin with this heading is never changed, unless it is to be overwritten.

    Args:
        path: the file.
        heading: plain data.
        check: called with what the file holds of each piece; raises `DataInvalid` if it is not
            what this run would have noted.
        overwrite: start anew, whatever is there.
    """

    def __init__(
        self,
        path: Path,
        heading: dict[str, Any],
        *,
        check: Callable[[Any], object] = lambda content: content,
        overwrite: bool = False,
    ) -> None:
        self._path, self._overwrite, self._check = path, overwrite, check
        self._heading = parse_json(dump_json(heading))
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._stream: int | None = None
        self.done: dict[str, Any] = {}

    def __enter__(self) -> Journal:
        """Read what is there.

        Raises:
            OutputError: another run is writing it, it belongs to another run, or it cannot be
                written.
            DataInvalid: it is damaged.
        """
        check_writable(self._path.parent)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._check_lock()
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"another run is writing {self._path}", hint="wait for it, or choose another -o"
            ) from None
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            os.close(self._stream)
            self._stream = None
        self._lock.release()

    def append(self, key: str, content: Any) -> None:
        """Note a finished piece. Once this returns, killing the process does not lose it.

        Raises:
            OutputError: it cannot be written.
        """
        self._write({"key": key, "content": content})
        self.done[key] = content

    def _open(self) -> None:
        try:
            if self._overwrite:
                self._path.unlink(missing_ok=True)
            content = self._content()
            whole = content.rfind(b"\n") + 1
            if not whole and not _line(self._heading).startswith(content):
                raise self._foreign("it has no heading")
            self._read(content[:whole])
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._stream = os.open(self._path, flags, 0o644)
            os.ftruncate(self._stream, whole)
        except OSError as error:
            raise self._refused(error) from error
        if not whole:
            self._write(self._heading)

    def _content(self) -> bytes:
        """What the file holds; nothing if there is none."""
        if not os.path.lexists(self._path):
            return b""
        if not stat.S_ISREG(self._path.lstat().st_mode):
            raise self._foreign("it is not a regular file")
        return self._path.read_bytes()

    def _check_lock(self) -> None:
        """The lock is an empty file of our own; opening it would empty another one."""
        path = Path(self._lock.lock_file)
        found = path.lstat() if os.path.lexists(path) else None
        if found is not None and (not stat.S_ISREG(found.st_mode) or found.st_size):
            raise OutputError(f"{path} is not a lock of segagent-rt", hint="choose another -o")

    def _read(self, content: bytes) -> None:
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = parse_json(line)
            except ValueError as error:
                if number == 1:
                    raise self._foreign("it has no heading") from None
                raise self._damaged(number) from error
            if number == 1:
                if entry != self._heading:
                    raise self._foreign(self._difference(entry))
                continue
            if not (isinstance(entry, dict) and isinstance(entry.get("key"), str)):
                raise self._damaged(number)
            try:
                self._check(entry.get("content"))
            except DataInvalid as error:
                raise self._damaged(number) from error
            self.done[entry["key"]] = entry["content"]

    def _damaged(self, number: int) -> DataInvalid:
        return DataInvalid(
            f"{self._path}, line {number} is damaged",
            hint="remove that line to do its part again, or start again with --overwrite",
        )

    def _foreign(self, why: str) -> OutputError:
        return OutputError(
            f"{self._path} belongs to another run: {why}",
            hint="choose another -o, or start again with --overwrite",
        )

    def _difference(self, other: Any) -> str:
        if not isinstance(other, dict):
            return "it has no heading"
        names = [*self._heading, *(name for name in other if name not in self._heading)]
        at = next(n for n in names if self._heading.get(n) != other.get(n))
        return f"its `{at}` is {other.get(at)}, not {self._heading.get(at)}"

    def _write(self, entry: dict[str, Any]) -> None:
        line = _line(entry)
        try:
            while line:  # one call as a rule; the disk may fill up in the middle of it
                line = line[os.write(self._stream, line) :] if self._stream is not None else b""
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written: {error.strerror}",
            hint="its content stays; run the same command again to continue",
        )


def _line(entry: dict[str, Any]) -> bytes:
    return (dump_json(entry) + "\n").encode()
