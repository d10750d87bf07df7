"""Bundles as one file, `NAME.segagent`: the layout, and how it is unpacked.

A packed bundle is a zip archive whose entries are stored, not compressed: weights do not shrink,
and stored entries are copied out as fast as the disk reads. Its first entry, `segagent.json`, has
the size and the SHA-256 of every other entry.

An archive may come from a stranger. So the reader takes only the layout that `packing` writes:
entries follow each other without gaps from the first byte on, and none is a link, a folder,
encrypted or compressed. Nothing unpacks to more bytes than the archive has.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeAlias

from filelock import FileLock

from segagent_rt.bundle.integrity import LARGEST, make_private, read_regular, stamp_of
from segagent_rt.bundle.manifest import (
    BUNDLE_FILE,
    SCHEMA,
    BundleIndex,
    FileRecord,
    decode_json,
    inside,
    read_json,
    to_json,
)
from segagent_rt.errors import ArchiveInvalid, FileChanged, ManifestInvalid, OutputError
from segagent_rt.io import atomic_write, json_bytes, open_regular, parse_json
from segagent_rt.memory import check_disk_space

SUFFIX = ".segagent"
INDEX_FILE = "segagent.json"
"""The first entry."""

MOST_FILES = 4096
"""Entries of an archive; a bundle has dozens."""

BLOCK = 1 << 20
"""Bytes that are copied at a time."""

_HINT = "free some space, or choose another place with -o"

_LOCAL = struct.Struct("<4s2xHH16xHH")
"""Of an entry's header: signature, flags, method, lengths of name and extra field (APPNOTE.TXT,
section 4.3.7)."""

_END64 = struct.Struct("<4s36xQ8x4s4xQ4x")
"""Of an archive with zip64: signature, the directory's size; signature, place of the former (4.3.14
and 4.3.15)."""

_END = struct.Struct("<4s8xL6x")
"""Of the archive's end: signature, the directory's size (4.3.16)."""

_UTF8 = 0x800
"""The only flag of an entry that is taken: its name is UTF-8."""

CopyReporter: TypeAlias = Callable[[int, int], None]
"""Called with the number of bytes that are done and of all."""


@dataclass(frozen=True, slots=True)
class ArchiveIndex:
    """`segagent.json`: the bundle's name, and every file but this one, by path."""

    name: str
    files: Mapping[str, FileRecord]
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a file's bytes begin in the archive, and what they must be."""

    name: str
    start: int
    record: FileRecord


def unpack(
    archive: Path, folder: Path, report_progress: CopyReporter | None = None
) -> ArchiveIndex:
    """Unpack a bundle into a new folder, which appears whole or not at all.

    Args:
        archive: the packed bundle.
        folder: must not be there yet.
        report_progress: is told how much is copied.

    Raises:
        ArchiveInvalid: the archive is damaged, or not in the layout.
        FileChanged: a file in it is not the one that was packed.
        OutputError: the folder exists already, or the disk does not hold it.
    """
    if os.path.lexists(folder):
        raise OutputError(f"{folder} exists already", hint="choose another folder with -o")
    with open_regular(archive, ArchiveInvalid) as stream, written_whole(folder) as partial:
        index, entries = _read_index(stream, archive)
        partial.mkdir(parents=True)
        needed = sum(entry.record.size for entry in entries)
        check_disk_space(needed, folder, "the bundle takes", _HINT)
        _copy(stream, archive, entries, partial, report_progress)
        read_json(partial / BUNDLE_FILE, BundleIndex)
        partial.rename(folder)
    return index


def unpack_to_cache(archive: Path, cache: Path) -> Path:
    """The folder in a cache that holds a packed bundle; it is unpacked when it is asked for first.

    An archive that changed since is read and compared again.

    Raises:
        ArchiveInvalid, FileChanged, OutputError: as `unpack`.
    """
    with open_regular(archive, ArchiveInvalid) as stream:
        index, entries = _read_index(stream, archive)
        stamp = [*stamp_of(os.fstat(stream.fileno()))]
        digest = hashlib.sha256(json_bytes(to_json(index))).hexdigest()[:16]
        folder, checked = cache / digest, cache / f"{digest}.json"
        make_private(cache)
        with FileLock(cache / f"{digest}.lock"):
            if not (folder / BUNDLE_FILE).is_file():
                unpack(archive, folder)
            elif _recall(checked) != stamp:
                _copy(stream, archive, entries, None, None)
            atomic_write(checked, json_bytes(stamp))
    return folder


def _recall(checked: Path) -> object:
    """The stamp of the archive that was compared last; None if there is none."""
    try:
        return parse_json(read_regular(checked, LARGEST))
    except (FileChanged, ValueError):
        return None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A name beside a file or folder to be made; what is left under it in the end is removed.

    Raises:
        OutputError: in place of an error of the operating system.
    """
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        yield partial
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}",
            hint=_HINT,
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if os.path.lexists(partial):
            partial.unlink()


def _copy(
    stream: BinaryIO,
    archive: Path,
    entries: Sequence[_Entry],
    folder: Path | None,
    report_progress: CopyReporter | None,
) -> None:
    """Compare every file with the index, and write it into the folder if there is one.

    Raises:
        FileChanged: a file is another one.
    """
    total, done = sum(entry.record.size for entry in entries), 0
    for entry in entries:
        stream.seek(entry.start)
        digest, left = hashlib.sha256(), entry.record.size
        place = Path(os.devnull) if folder is None else inside(folder, entry.name)
        if folder is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("wb" if folder is None else "xb") as copy:
            while left and (block := stream.read(min(BLOCK, left))):
                digest.update(block)
                copy.write(block)
                left, done = left - len(block), done + len(block)
                if report_progress is not None:
                    report_progress(done, total)
        if left or digest.hexdigest() != entry.record.sha256:
            raise FileChanged(
                f"{archive}: `{entry.name}` in it is not the file that was packed",
                hint="copy the archive again, or pack the bundle again",
            )


def _read_index(stream: BinaryIO, archive: Path) -> tuple[ArchiveIndex, list[_Entry]]:
    """The index of an archive, and where its files are.

    Raises:
        ArchiveInvalid: the archive is damaged, or not in the layout.
    """
    infos, end = _directory(stream, archive)
    # 1. Entries touch each other, so none overlaps another and nothing is hidden between them.
    at, starts = 0, list[int]()
    for info in infos:
        if info.header_offset != at:
            raise _refused(archive, f"`{_shown(info)}` does not begin where the one before it ends")
        starts.append(_data_start(stream, archive, info))
        at = starts[-1] + info.file_size
    if at != end:
        raise _refused(archive, "its last file does not end where the directory begins")
    # 2. The index names exactly the files that are there, with their sizes.
    if infos[0].filename != INDEX_FILE or infos[0].file_size > LARGEST:
        raise _refused(archive, f"it does not begin with `{INDEX_FILE}`")
    stream.seek(starts[0])
    content = stream.read(infos[0].file_size)
    try:
        index: ArchiveIndex = decode_json(content, ArchiveIndex, archive / INDEX_FILE)
        for info in infos:
            inside(archive, info.filename)
    except ManifestInvalid as error:
        raise ArchiveInvalid(str(error), hint=error.hint) from error
    sizes = {info.filename: info.file_size for info in infos[1:]}
    if sizes != {name: record.size for name, record in index.files.items()}:
        raise _refused(archive, f"its files are not those that `{INDEX_FILE}` lists")
    if BUNDLE_FILE not in sizes:
        raise _refused(archive, f"it has no `{BUNDLE_FILE}`")
    _expect_apart(archive, [info.filename for info in infos])
    entries = [
        _Entry(info.filename, start, index.files[info.filename])
        for info, start in zip(infos[1:], starts[1:], strict=True)
    ]
    return index, entries


def _directory(stream: BinaryIO, archive: Path) -> tuple[list[zipfile.ZipInfo], int]:
    """The entries of an archive in their order, and the place of the directory behind them."""
    if _directory_size(stream, archive) > LARGEST:  # before it is read into memory
        raise _refused(archive, "its directory is too large")
    try:
        with zipfile.ZipFile(stream) as content:
            infos, end, said = content.infolist(), content.start_dir, content.comment
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError) as error:
        raise _refused(archive, f"its directory cannot be read: {str(error)[:80]!a}") from error
    if said or not 0 < len(infos) <= MOST_FILES:
        raise _refused(archive, f"it has a comment, no files, or more than {MOST_FILES}")
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer did not say
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise _refused(archive, f"`{_shown(info)}` is a folder or a link")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _refused(archive, f"`{_shown(info)}` is compressed")
    return infos, end


def _directory_size(stream: BinaryIO, archive: Path) -> int:
    """Bytes of the directory, as the end of the archive says, which must be in the layout."""
    end = stream.seek(0, os.SEEK_END) - _END.size
    stream.seek(max(end - _END64.size, 0))
    tail = stream.read()
    signature, size = _END.unpack(tail[-_END.size :].rjust(_END.size))
    if signature != b"PK\5\6":
        raise _refused(archive, "it is no packed bundle, or its end is missing")
    if tail[-_END.size - 20 :].startswith(b"PK\6\7"):
        first, large, _, place = _END64.unpack(tail[: -_END.size].rjust(_END64.size))
        if first != b"PK\6\6" or place != end - _END64.size:
            raise _refused(archive, "its end is not in the layout")
        size = max(size, large)
    return int(size)


def _data_start(stream: BinaryIO, archive: Path, info: zipfile.ZipInfo) -> int:
    """The place of an entry's first byte, from the header before it, which must fit the directory.

    Raises:
        ArchiveInvalid: it does not.
    """
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL.size)
    if len(header) == _LOCAL.size:
        signature, flags, method, name, extra = _LOCAL.unpack(header)
        behind: int = info.header_offset + _LOCAL.size + name + extra
        plain = signature == b"PK\3\4" and flags == info.flag_bits and method == zipfile.ZIP_STORED
        encoded = info.filename.encode("utf-8" if flags & _UTF8 else "ascii", "replace")
        if plain and not flags & ~_UTF8 and stream.read(name) == encoded:
            return behind
    raise _refused(archive, f"the header of `{_shown(info)}` is damaged")


def _expect_apart(archive: Path, names: Sequence[str]) -> None:
    """Refuse names that are one file on some file system, or a file and a folder.

    Raises:
        ArchiveInvalid: there are some.
    """
    seen = {name.casefold() for name in names}
    folders = {str(p).casefold() for name in names for p in PurePosixPath(name).parents}
    plain = all(PurePosixPath(name).as_posix() == name for name in names)
    if len(seen) < len(names) or seen & folders or not plain:
        raise _refused(archive, "two of its files have the same name")


def _shown(info: zipfile.ZipInfo) -> str:
    return info.filename[:60]


def _refused(archive: Path, why: str) -> ArchiveInvalid:
    return ArchiveInvalid(
        f"{archive}: {why}", hint="copy the archive again, or make one with `segagent-rt pack`"
    )
