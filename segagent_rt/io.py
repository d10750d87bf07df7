"""Files and JSON: written whole or not at all, and never over a file that somebody else wrote.

`atomic_write` replaces what is there; it is for caches and bundles. Results of a command go through
`write_result`, which replaces nothing but our own files. Such a file is recognised by a seal, the
hash of its content: in a text chunk of a PNG, under the first key of a JSON object, and for every
other kind in the list `.segagent-files` beside it. A file that was edited since is no longer ours.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from segagent_rt.errors import InputError, OutputError, SegagentError

OWN_FILES = ".segagent-files"
"""The list of results in a folder that cannot carry a seal; lines are `<sha256>  <name>`."""

_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEAD_SIZE = 33
_PNG_SEAL = b"tEXtSoftware\0segagent-rt sha256:"
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")
_JSON_SEAL = re.compile(rb'\{"segagent_rt": "sha256:([0-9a-f]{64})",')


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of a dataclass by name, as they are.

    Raises:
        TypeError: it is something else.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def dump_json(value: Any, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """The text of a JSON document, which never contains NaN or an infinity.

    Args:
        value: plain data, and dataclasses, whose attributes become the keys of an object.
        indent: spaces for each level; None for one line.
        ascii_only: escape every other character.

    Raises:
        OutputError: a number in it is not finite.
    """
    try:
        return json.dumps(
            value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=attributes
        )
    except ValueError:
        place = next(_not_finite(value, ""), None)
        if place is None:
            raise
        raise OutputError(
            f"the result `{place}` is not a finite number",
            hint="check the bundle: `segagent-rt inspect BUNDLE --verify`",
        ) from None


def json_bytes(value: Any, *, indent: int | None = None, ascii_only: bool = True) -> bytes:
    """As `dump_json`, as the content of a file: UTF-8 with a line break at the end."""
    try:
        return (dump_json(value, indent=indent, ascii_only=ascii_only) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return (dump_json(value, indent=indent) + "\n").encode()


def parse_json(content: str | bytes) -> Any:
    """Read a JSON document.

    Args:
        content: text, or bytes in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or contains NaN, an infinity or a number
            that no double holds, such as 1e999.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file under a random name that nobody can have prepared, then move it into place.

    Args:
        path: a regular file that is replaced, a symbolic link that is replaced itself, or nothing.
        content: all of the file.

    Raises:
        OutputError: the folder cannot be written, the disk is full, or the path is a folder or a
            device. Nothing is left behind.
    """
    partial = path.with_name(f".{_short(path.name)}.{secrets.token_hex(8)}.partial")
    try:
        _check_plain(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(partial, flags, 0o666), "wb") as stream:
                stream.write(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def remove_partials(folder: Path, names: tuple[str, ...]) -> None:
    """Delete what `atomic_write` left half written when its process was killed.

    Args:
        folder: it need not be there.
        names: beginnings of the names of the files that were being written.
    """
    begins = tuple(_short(name) for name in names)
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PARTIAL.fullmatch(path.name)
        if match is not None and match[1].startswith(begins) and not path.is_dir():
            path.unlink(missing_ok=True)


def write_result(path: Path, content: bytes, *, overwrite: bool = False, seal: bool = True) -> None:
    """Write a result of a command, with a seal by which a later run recognises it.

    Args:
        path: where it goes.
        content: all of the file.
        overwrite: also replace a file that we did not write.
        seal: whether the content may carry the seal; otherwise the list beside it has it.

    Raises:
        OutputError: somebody else wrote the file that is there, or it cannot be written.
    """
    sealed = _sealed(content) if seal else None
    final = content if sealed is None else sealed
    if _read(path) == final and (sealed is not None or is_own_file(path)):
        return
    check_replaceable([path], overwrite=overwrite)
    if sealed is None:
        _list_as_own(path, content)
    atomic_write(path, final)


def check_replaceable(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """Find out before the work whether results can be written without losing a file.

    Raises:
        OutputError: somebody else wrote a file at one of the paths.
    """
    for path in paths:
        if not overwrite and os.path.lexists(path) and not is_own_file(path):
            raise OutputError(
                f"{path} exists, and segagent-rt did not write it, or it was edited since",
                hint="choose another folder or name with -o, or replace it with --overwrite",
            )


def is_own_file(path: Path) -> bool:
    """Whether a file is a result that we wrote and that nobody changed since."""
    content = _read(path)
    if content is None:
        return False
    digest, rest = _seal_of(content)
    if digest is not None:
        return hashlib.sha256(rest).hexdigest() == digest
    listed = _read(path.with_name(OWN_FILES)) or b""
    return _own_line(path, content) in listed.splitlines()


def check_writable(folder: Path) -> None:
    """Find out before the work whether results can be written, without leaving a trace.

    Raises:
        OutputError: they cannot.
    """
    existing = folder
    if any(len(os.fsencode(name)) > 255 for name in folder.parts):
        raise OutputError(f"a name in {folder!s:.60}… is too long", hint="name another with -o")
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.F_OK | os.X_OK) and not existing.parent.is_dir():
        raise OutputError(f"{folder} cannot be reached", hint="choose another folder with -o")
    if not os.path.isdir(existing):  # noqa: PTH112 (`Path.is_dir` raises where it may not look)
        raise OutputError(f"{existing} is not a folder", hint="name a folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing} cannot be written", hint="choose another folder with -o")


def _short(name: str) -> str:
    """As much of a name as leaves room for more."""
    return os.fsdecode(os.fsencode(name)[:100]) if len(os.fsencode(name)) > 100 else name


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """The places of numbers that are not finite."""
    if dataclasses.is_dataclass(value):
        value = attributes(value)
    if isinstance(value, float) and not math.isfinite(value):
        yield place or "value"
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _not_finite(item, f"{place}.{key}" if place else str(key))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _check_plain(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _read(path: Path) -> bytes | None:
    """The content of a regular file that is no link; None if there is none."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
    except (OSError, ValueError):  # a ValueError: no file can have such a name
        return None


def _sealed(content: bytes) -> bytes | None:
    """The content with its seal; None for a kind of file that has no room for one."""
    digest = hashlib.sha256(content).hexdigest().encode()
    if content.startswith(_PNG_HEAD):
        chunk = _PNG_SEAL + digest
        chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        return content[:_PNG_HEAD_SIZE] + chunk + content[_PNG_HEAD_SIZE:]
    if content.startswith(b"{") and content[1:].lstrip().startswith(b'"'):
        return b'{"segagent_rt": "sha256:' + digest + b'",' + content[1:]
    return None


def _seal_of(content: bytes) -> tuple[str | None, bytes]:
    """The hash that a file carries, if any, and what it is the hash of."""
    start, end = _PNG_HEAD_SIZE, _PNG_HEAD_SIZE + 12 + len(_PNG_SEAL) - 4 + 64
    if content.startswith(_PNG_HEAD) and content[start + 4 :].startswith(_PNG_SEAL):
        return content[end - 68 : end - 4].decode("latin-1"), content[:start] + content[end:]
    if match := _JSON_SEAL.match(content):
        return match[1].decode(), b"{" + content[match.end() :]
    return None, content


def _own_line(path: Path, content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}".encode(errors="surrogateescape")


def _list_as_own(path: Path, content: bytes) -> None:
    """Note a file before it is written, so that a killed run does not lose track of it."""
    listing = path.with_name(OWN_FILES)
    if _own_line(path, content) in (_read(listing) or b"").splitlines():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        stream = os.open(listing, flags, 0o666)
        try:
            os.write(stream, _own_line(path, content) + b"\n")
        finally:
            os.close(stream)
    except OSError as error:
        raise _refused(listing, error) from error


def _refused(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: {path} was not written", hint="free some space")
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"the name {path.name[:40]}… is too long", hint="rename the image")
    return OutputError(
        f"{path} cannot be written: {error.strerror}", hint="choose another folder with -o"
    )


def open_regular(path: Path, refusal: type[SegagentError] = InputError) -> BinaryIO:
    """Open a file that somebody else made. Pipes, sockets and devices are refused without waiting.

    Args:
        path: of the file; links are followed.
        refusal: class of the error.

    Returns:
        The file, open at its first byte.

    Raises:
        refusal: there is no such file, it is not a regular one, or it cannot be read.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):  # opening a device can already do something
            stream = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
            if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return stream
            stream.close()
        elif path.is_dir():
            raise refusal(f"{path} cannot be read: it is a folder", hint="name a file")
    except FileNotFoundError:
        raise refusal(f"there is no file {path}", hint="check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refusal(f"{path} cannot be read: {reason}", hint="check the path") from None
    raise refusal(f"{path} cannot be read: it is not a regular file", hint="save it to a file")


def read_bounded(
    stream: BinaryIO, most: int, name: str, refusal: type[SegagentError] = InputError
) -> bytes:
    """Read a file to its end, unless that is too far away.

    Args:
        stream: the file, or standard input.
        most: bytes that it may have.
        name: of the file, for the message.
        refusal: class of the error.

    Raises:
        refusal: it has more bytes.
    """
    content = bytearray()
    while block := stream.read(min(1 << 20, most + 1 - len(content))):
        content += block
        if len(content) > most:
            raise refusal(
                f"{name} is too long: more than {most / 1e6:g} MB", hint="is it the right file?"
            )
    return bytes(content)
