"""Packed bundles: carried anywhere, compared byte by byte, and refused if they are hostile."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import struct
import zipfile
from contextlib import suppress

import pytest

from segagent_rt.bundle.archive import INDEX_FILE, _read_index, unpack
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import BUNDLE_FILE
from segagent_rt.bundle.packing import pack
from segagent_rt.errors import (
    ArchiveInvalid,
    BundleError,
    BundleMissing,
    FileChanged,
    OutputError,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / "tiny.segagent"
    pack(open_bundle(), target)
    return target


def archive_of(target, files, *, index=None, change=None, method=zipfile.ZIP_STORED):
    """An archive of these files, by name; `change` alters each entry before it is written."""
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    about = json.dumps({"schema": 1, "name": "x", "files": listed, **(index or {})}).encode()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in [(INDEX_FILE, about), *files.items()]:
            info = zipfile.ZipInfo(name)
            if change is not None:
                change(info)
            archive.writestr(info, data, method)
    return target


BUNDLE = json.dumps({"schema": 1, "name": "x", "parts": {}}).encode()


def test_a_packed_bundle_is_the_same_bundle_elsewhere(packed, tmp_path, monkeypatch):
    carried = shutil.copy(packed, tmp_path / "carried.segagent")
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "another user's cache"))
    unpack(carried, tmp_path / "out")
    opened = open_bundle(tmp_path / "out")
    assert opened.digest == open_bundle().digest
    for part in opened.parts.values():
        part.verify()
        assert not list(part.unlisted_files())


def test_a_packed_bundle_is_opened_as_it_is_and_unpacked_once(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    opened = open_bundle(packed)
    assert opened.digest == open_bundle().digest
    before = (opened.folder / BUNDLE_FILE).stat().st_mtime_ns
    assert open_bundle(packed).folder == opened.folder
    assert (opened.folder / BUNDLE_FILE).stat().st_mtime_ns == before


def test_the_same_bundle_becomes_the_same_bytes(packed, tmp_path):
    pack(open_bundle(), tmp_path / "again.segagent")
    assert (tmp_path / "again.segagent").read_bytes() == packed.read_bytes()


def test_a_flipped_byte_is_named(packed, tmp_path):
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        entries = [info for info in archive.infolist() if info.file_size > 1000][1:]
    for info in entries:
        damaged = bytearray(content)
        damaged[info.header_offset + 500] ^= 1
        (tmp_path / "x.segagent").write_bytes(damaged)
        with pytest.raises(FileChanged, match=info.filename):
            unpack(tmp_path / "x.segagent", tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["x.segagent"]


def test_no_flipped_byte_gives_other_files(tmp_path):
    """Headers hold a few bytes that say nothing, such as dates; no other passes unseen."""
    files = {BUNDLE_FILE: BUNDLE, "segmenter/a.bin": b"weights"}
    sound = archive_of(tmp_path / "sound.segagent", files)
    content, seen = sound.read_bytes(), 0
    for place in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "x.segagent").write_bytes(damaged)
        with suppress(BundleError):
            unpack(tmp_path / "x.segagent", tmp_path / "out")
            assert {n: (tmp_path / "out" / n).read_bytes() for n in files} == files
            shutil.rmtree(tmp_path / "out")
            seen -= 1
        seen += 1
    assert seen > len(content) // 10


def test_an_archive_that_changes_after_it_was_used_is_read_again(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    carried = shutil.copy(packed, tmp_path / "carried.segagent")
    open_bundle(carried)
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("mllm/embed.npy")
    content = bytearray(carried.read_bytes())
    content[info.header_offset + 500] ^= 1
    carried.write_bytes(content)
    with pytest.raises(FileChanged, match=r"embed\.npy"):
        open_bundle(carried)


def test_a_large_directory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """Also where only the record of zip64 says how large it is."""
    sound = archive_of(tmp_path / "x.segagent", {BUNDLE_FILE: BUNDLE}).read_bytes()
    place = len(sound) - 22
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    (tmp_path / "x.segagent").write_bytes(sound[:-22] + record + locator + sound[-22:])
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ArchiveInvalid, match="directory is too large"):
        unpack(tmp_path / "x.segagent", tmp_path / "out")


def test_a_cut_archive_is_refused(packed, tmp_path):
    content = packed.read_bytes()
    for size in (0, 3, 21, 22, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "x.segagent").write_bytes(content[:size])
        with pytest.raises(ArchiveInvalid):
            unpack(tmp_path / "x.segagent", tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "C:x", "a\\x", "a//x", "./x", "segmenter", "Bundle.json", "a/"],
)
def test_names_that_lead_elsewhere_or_twice_to_one_place_are_refused(name, tmp_path):
    files = {BUNDLE_FILE: BUNDLE, "segmenter/a": b"1", name: b"2"}
    archive = archive_of(tmp_path / "x.segagent", files)
    with pytest.raises(ArchiveInvalid):
        unpack(archive, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path):
    archive_of(tmp_path / "x.segagent", {BUNDLE_FILE: BUNDLE})
    with zipfile.ZipFile(tmp_path / "x.segagent", "a") as archive:
        archive.writestr(BUNDLE_FILE, BUNDLE)
    with pytest.raises(ArchiveInvalid):
        unpack(tmp_path / "x.segagent", tmp_path / "out")


def symlink(info):
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def device(info):
    info.external_attr = (stat.S_IFCHR | 0o666) << 16


@pytest.mark.parametrize("change", [symlink, device])
def test_links_and_devices_are_refused(change, tmp_path):
    archive = archive_of(tmp_path / "x.segagent", {BUNDLE_FILE: BUNDLE}, change=change)
    with pytest.raises(ArchiveInvalid, match="folder or a link"):
        unpack(archive, tmp_path / "out")


def test_bombs_are_refused_before_anything_is_unpacked(tmp_path):
    files = {BUNDLE_FILE: BUNDLE, "zeros": bytes(1 << 20)}
    archive = archive_of(tmp_path / "x.segagent", files, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveInvalid, match="compressed"):
        unpack(archive, tmp_path / "out")


def test_sizes_that_lie_are_refused(tmp_path):
    index = {"files": {BUNDLE_FILE: {"size": 1 << 40, "sha256": "0" * 64}}}
    archive = archive_of(tmp_path / "x.segagent", {BUNDLE_FILE: BUNDLE}, index=index)
    with pytest.raises(ArchiveInvalid, match="lists"):
        unpack(archive, tmp_path / "out")


def test_entries_that_overlap_are_refused(tmp_path):
    """Both entries of the directory point to one file's bytes."""
    files = {BUNDLE_FILE: BUNDLE, "a": b"1", "b": b"1"}
    archive = archive_of(tmp_path / "x.segagent", files)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        places = {info.filename: info.header_offset for info in opened.infolist()}
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = places["a"].to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(ArchiveInvalid):
        unpack(archive, tmp_path / "out")


def test_hidden_bytes_are_refused(tmp_path):
    sound = archive_of(tmp_path / "x.segagent", {BUNDLE_FILE: BUNDLE}).read_bytes()
    (tmp_path / "x.segagent").write_bytes(b"#!/bin/sh\n" + sound)
    with pytest.raises(ArchiveInvalid):
        unpack(tmp_path / "x.segagent", tmp_path / "out")


def test_what_is_no_bundle_is_not_unpacked(tmp_path):
    archive_of(tmp_path / "x.segagent", {"a": b"1"})
    with pytest.raises(ArchiveInvalid, match=r"bundle\.json"):
        unpack(tmp_path / "x.segagent", tmp_path / "out")


def test_some_variants_are_taken_with_the_files_that_they_need(tmp_path):
    target = tmp_path / "x.segagent"
    index = pack(open_bundle(), target, variants=["cpu-w8", "portable"])
    assert "segmenter/encoder.onnx.data" in index.files
    assert "segmenter/encoder.int8.onnx" not in index.files
    assert "mllm/tokenizer.json" in index.files
    assert "mllm/decoder.onnx.data" in index.files  # of the decoder in both variants
    unpack(target, tmp_path / "out")
    parts = open_bundle(tmp_path / "out").parts
    assert [list(part.manifest.variants) for part in parts.values()] == [["cpu-w8"], ["portable"]]
    for part in parts.values():
        part.verify()


def test_a_variant_that_is_not_there_is_named(tmp_path):
    for variants in (["cpu-w4"], ["portable"]):
        with pytest.raises(BundleMissing):
            pack(open_bundle(), tmp_path / "x.segagent", variants=variants)
    assert not list(tmp_path.iterdir())


def test_parts_of_other_bundles_are_packed_too(tmp_path):
    shutil.copytree(open_bundle().folder, tmp_path / "first")
    (tmp_path / "second").mkdir()
    parts = {"segmenter": "../first/segmenter", "mllm": "../first/mllm"}
    about = {"schema": 1, "name": "second", "parts": parts}
    (tmp_path / "second" / BUNDLE_FILE).write_text(json.dumps(about))
    pack(open_bundle(tmp_path / "second"), tmp_path / "x.segagent")
    unpack(tmp_path / "x.segagent", tmp_path / "out")
    shutil.rmtree(tmp_path / "first")
    assert open_bundle(tmp_path / "out").digest == open_bundle().digest


def test_nothing_is_replaced_and_a_damaged_bundle_is_not_packed(tmp_path):
    (tmp_path / "x.segagent").write_bytes(b"mine")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="already"):
        pack(open_bundle(), tmp_path / "x.segagent")
    with pytest.raises(OutputError, match="already"):
        unpack(tmp_path / "x.segagent", tmp_path / "mine")
    folder = shutil.copytree(open_bundle().folder, tmp_path / "copy")
    content = bytearray((folder / "mllm" / "embed.npy").read_bytes())
    content[-1] ^= 1
    (folder / "mllm" / "embed.npy").write_bytes(content)
    with pytest.raises(FileChanged, match=r"embed\.npy"):
        pack(open_bundle(folder), tmp_path / "y.segagent")
    assert (tmp_path / "x.segagent").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine", "x.segagent"]


def test_a_large_file_needs_no_more_room_than_there_is(packed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="are free"):
        unpack(packed, tmp_path / "out")


def test_files_beyond_4_gib_are_read(tmp_path):
    """With zip64: sizes and places that 32 bits do not hold. The file has a hole, not the bytes."""
    size = (4 << 30) + 5
    target = tmp_path / "x.segagent"
    listed = {
        BUNDLE_FILE: {"size": len(BUNDLE), "sha256": hashlib.sha256(BUNDLE).hexdigest()},
        "mllm/large": {"size": size, "sha256": "0" * 64},
        "mllm/last": {"size": 4, "sha256": hashlib.sha256(b"last").hexdigest()},
    }
    about = json.dumps({"schema": 1, "name": "x", "files": listed}).encode()
    with target.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo(INDEX_FILE), about)
        archive.writestr(zipfile.ZipInfo(BUNDLE_FILE), BUNDLE)
        info = zipfile.ZipInfo("mllm/large")
        info.file_size = size
        with archive.open(info, "w") as entry:
            stream.seek(size - 1, 1)
            stream.write(b"\0")
            entry._file_size = size
        archive.writestr(zipfile.ZipInfo("mllm/last"), b"last")
    with target.open("rb") as stream:
        index, _ = _read_index(stream, target)
    assert index.files["mllm/large"].size == size
