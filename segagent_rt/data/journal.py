"""A journal of finished work, one JSON line for each piece: a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from segagent_rt.errors import DataInvalid, OutputError
from segagent_rt.files import check_writable

Tell: TypeAlias = Callable[[int, int], None]
"""Called with the number of pieces done and to do, those of earlier runs not counted."""


class Journal:
    """Use in a `with` block; `done` maps the key of each finished piece to its content.

    The first line is a heading that says what the run is about. A line that was cut off by a kill
    is dropped, its piece is done again; a damaged one in the middle is an error.
    """

    def __init__(self, path: Path, heading: dict[str, Any], *, overwrite: bool = False) -> None:
        self._path, self._overwrite = path, overwrite
        self._heading = json.loads(json.dumps(heading))
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
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            content = self._path.read_bytes() if self._path.exists() else b""
            whole = content.rfind(b"\n") + 1
            if content:
                self._read(content[:whole])
                os.truncate(self._path, whole)
            self._stream = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._refused(error) from error
        if not whole:
            self._write(self._heading)

    def _read(self, content: bytes) -> None:
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = json.loads(line)
                if number > 1:
                    self.done[entry["key"]] = entry["content"]
            except (ValueError, TypeError, KeyError):
                raise DataInvalid(
                    f"{self._path}, line {number} is damaged",
                    hint="remove that line to do its part again, or start anew with --overwrite",
                ) from None
            if number == 1 and entry != self._heading:
                raise OutputError(
                    f"{self._path} belongs to another run: {self._difference(entry)}",
                    hint="choose another -o, or start anew with --overwrite",
                )

    def _difference(self, other: Any) -> str:
        if not isinstance(other, dict):
            return "it has no heading"
        names = [*self._heading, *(name for name in other if name not in self._heading)]
        at = next(n for n in names if self._heading.get(n) != other.get(n))
        return f"its `{at}` is {other.get(at)}, not {self._heading.get(at)}"

    def _write(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        try:
            while line:  # one call as a rule; the disk may fill up in the middle of it
                line = line[os.write(self._stream, line) :] if self._stream is not None else b""
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written: {error.strerror}",
            hint="what is in it stays; run the same command again to go on",
        )
