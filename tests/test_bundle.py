"""Bundles: found, checked once, never trusted after a change."""

import json
import os
import shutil

import pytest

from segagent_rt.bundle.bundle import open_bundle, open_part
from segagent_rt.bundle.integrity import hash_regular
from segagent_rt.bundle.store import cache_folder
from segagent_rt.errors import BundleMissing, FileChanged, ManifestInvalid


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(open_bundle().folder, tmp_path / "copy")


def test_the_shipped_bundle_is_the_default_and_has_a_name():
    assert open_bundle().folder == open_bundle("tiny").folder.resolve()
    assert set(open_bundle().parts) == {"segmenter", "mllm"}


def test_a_bundle_is_found_by_path_and_in_engines(copied, monkeypatch, tmp_path):
    assert open_bundle(copied).digest == open_bundle().digest
    (tmp_path / "engines").mkdir()
    shutil.copytree(copied, tmp_path / "engines" / "mine")
    monkeypatch.chdir(tmp_path)
    assert open_bundle("mine").folder.resolve() == tmp_path / "engines" / "mine"


def test_a_bundle_that_is_not_there_says_what_to_do():
    with pytest.raises(BundleMissing, match="no bundle `none`") as caught:
        open_bundle("none")
    assert "export" in caught.value.hint


def test_a_changed_byte_is_found_though_the_size_is_the_same(copied):
    part = open_part(copied / "segmenter", "segmenter")
    part.verify()
    path = copied / "segmenter" / "decoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileChanged, match=r"decoder\.onnx"):
        part.verify()


def test_hashes_are_read_once_and_again_after_a_change(copied, monkeypatch):
    part = open_part(copied / "segmenter", "segmenter")
    read = []

    def hashed(path, size):
        read.append(path)
        return hash_regular(path, size)

    monkeypatch.setattr("segagent_rt.bundle.bundle.hash_regular", hashed)
    part.verify_once()
    first = len(read)
    part.verify_once()
    assert len(read) == first > 0
    os.utime(copied / "segmenter" / "encoder.onnx", (1, 1))
    part.verify_once()
    assert len(read) == 2 * first


def replaced_in_place(path):
    """Other bytes, the same size, and the old time of modification."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_file_replaced_in_place_with_its_old_times_is_found(copied):
    part = open_part(copied / "mllm", "mllm")
    part.verify_once()
    replaced_in_place(copied / "mllm" / "embed.npy")
    with pytest.raises(FileChanged, match=r"embed\.npy is not the file that was exported"):
        open_part(copied / "mllm", "mllm").verify_once()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
@pytest.mark.parametrize("way", ["another owner", "open to others", "a link"])
def test_stamps_that_others_may_have_written_are_not_believed(copied, monkeypatch, tmp_path, way):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "shared"))
    part = open_part(copied / "mllm", "mllm")
    part.verify_once()
    (record,) = (tmp_path / "shared" / "verified").iterdir()
    if way == "another owner":
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
        monkeypatch.setattr("segagent_rt.bundle.integrity.ADMINISTRATOR", 4243)
    elif way == "open to others":
        record.parent.chmod(0o777)
    else:
        record.rename(tmp_path / "theirs")
        record.symlink_to(tmp_path / "theirs")
    read = []

    def hashed(path, size):
        read.append(path)
        return hash_regular(path, size)

    monkeypatch.setattr("segagent_rt.bundle.bundle.hash_regular", hashed)
    open_part(copied / "mllm", "mllm").verify_once()
    assert read


def test_stamps_are_believed_whatever_the_umask_was(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o002)
    try:
        open_part(copied / "mllm", "mllm").verify_once()
    finally:
        os.umask(before)
    monkeypatch.setattr("segagent_rt.bundle.bundle.hash_regular", None)
    open_part(copied / "mllm", "mllm").verify_once()


def test_a_cache_that_cannot_be_written_only_costs_time(copied, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SEGAGENT_CACHE", str(blocked))
    open_part(copied / "segmenter", "segmenter").verify_once()
    assert cache_folder() == blocked


def test_other_files_are_listed_and_never_opened(copied):
    (copied / "mllm" / "extra.onnx").write_bytes(b"x")
    part = open_part(copied / "mllm", "mllm")
    assert [p.name for p in part.unlisted_files()] == ["extra.onnx"]
    with pytest.raises(ManifestInvalid, match="lists no file"):
        part.file("extra.onnx")


def test_parts_may_lie_elsewhere_and_be_shared(copied, tmp_path):
    """Two bundles that use one MLLM name the same folder."""
    second = tmp_path / "second"
    shutil.copytree(copied / "segmenter", second / "segmenter")
    index = json.loads((copied / "bundle.json").read_text())
    index["parts"]["mllm"] = "../copy/mllm"
    (second / "bundle.json").write_text(json.dumps(index))
    assert open_bundle(second).digest == open_bundle(copied).digest


def test_a_variant_that_is_not_there_names_those_that_are(copied):
    part = open_part(copied / "mllm", "mllm")
    with pytest.raises(BundleMissing, match="no variant `gpu`") as caught:
        part.graphs("decoder", "gpu")
    assert "cpu-w8a8-static" in caught.value.hint


def test_the_wrong_kind_of_part_is_refused(copied):
    with pytest.raises(ManifestInvalid, match="describes a mllm, not a segmenter"):
        open_part(copied / "mllm", "segmenter")
