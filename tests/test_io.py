"""Results are whole or not there, and never replace a file that somebody else wrote."""

import errno
import json
import os
import stat

import numpy as np
import pytest
from PIL import Image

from segagent_rt import io
from segagent_rt.draw import png
from segagent_rt.errors import OutputError
from segagent_rt.io import (
    OWN_FILES,
    atomic_write,
    check_replaceable,
    check_writable,
    dump_json,
    is_own_file,
    json_bytes,
    parse_json,
    write_result,
)


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "full"), (errno.EACCES, "cannot be written"), (errno.ENAMETOOLONG, "too long")],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, fail_writing, number, said):
    path = tmp_path / "x.txt"
    atomic_write(path, b"old")
    fail_writing(OSError(number, "no"))
    with pytest.raises(OutputError, match=said):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_link_that_waits_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(io.secrets, "token_hex", lambda count: "guessed")
    (tmp_path / ".x.txt.guessed.partial").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot be written"):
        atomic_write(tmp_path / "x.txt", b"new")
    assert victim.read_text() == "precious"


def test_two_writes_use_two_temporary_names(tmp_path, monkeypatch):
    names, real = [], os.open

    def noted(path, *how):
        names.append(str(path))
        return real(path, *how)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(2):
        atomic_write(tmp_path / "x.txt", b"new")
    assert len(set(names)) == 2


def test_a_link_at_the_path_is_replaced_itself(tmp_path):
    (tmp_path / "other").write_text("precious")
    (tmp_path / "x").symlink_to(tmp_path / "other")
    atomic_write(tmp_path / "x", b"new")
    assert (tmp_path / "other").read_text() == "precious"
    assert not (tmp_path / "x").is_symlink()


def test_a_device_and_a_folder_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_result(tmp_path / name, b"new", overwrite=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_writable(tmp_path / "f" / "below")
    check_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()


def test_a_folder_of_an_overlong_name_is_refused_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="is too long") as caught:
        check_writable(tmp_path / ("a" * 256) / "b")
    assert "-o" in str(caught.value.hint)


def test_a_folder_that_may_not_be_entered_is_one_sentence(tmp_path, monkeypatch):
    """As for a user without rights: `os.access` says no, `stat` below the folder fails."""
    shut, real = tmp_path / "shut", os.lstat
    shut.mkdir()

    def lstat(path, **how):
        if shut in type(shut)(os.fspath(path)).parents:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **how)

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != str(shut))
    with pytest.raises(OutputError, match="shut cannot be written"):
        check_writable(shut / "a" / "b")


CONTENTS = {
    "x.png": png(np.ones((2, 3), np.bool_)),
    "x.json": b'{"a": [1, 2]}\n',
    "list.json": b"[1, 2]\n",
    "empty.json": b"{}",
    "x.csv": b"a,b\n1,2\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_our_own_file_is_replaced_and_no_other(tmp_path, name):
    path, content = tmp_path / name, CONTENTS[name]
    write_result(path, content)
    assert is_own_file(path)
    write_result(path, content + b" ")
    assert path.read_bytes().endswith(b" ")
    assert is_own_file(path)
    edited = path.read_bytes() + b"\n"
    path.write_bytes(edited)
    with pytest.raises(OutputError, match="edited since"):
        write_result(path, content)
    assert path.read_bytes() == edited
    write_result(path, content, overwrite=True)
    assert is_own_file(path)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_the_same_content_that_we_did_not_write_is_not_ours(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    with pytest.raises(OutputError, match="did not write it"):
        write_result(tmp_path / name, CONTENTS[name] + b" ")
    assert (tmp_path / name).read_bytes() == CONTENTS[name]


def test_the_seal_changes_neither_pixels_nor_data(tmp_path):
    for name in ("x.png", "x.json"):
        write_result(tmp_path / name, CONTENTS[name])
    with Image.open(tmp_path / "x.png") as picture:
        picture.load()
        assert np.asarray(picture).tolist() == [[255] * 3] * 2
        assert picture.text["Software"].startswith("segagent-rt sha256:")
    document = json.loads((tmp_path / "x.json").read_text())
    assert document.pop("segagent_rt").startswith("sha256:")
    assert document == {"a": [1, 2]}
    assert not (tmp_path / OWN_FILES).exists()


def test_sealed_files_stay_ours_where_they_are_moved(tmp_path):
    write_result(tmp_path / "a" / "x.png", CONTENTS["x.png"])
    (tmp_path / "a" / "x.png").rename(tmp_path / "y.png")
    assert is_own_file(tmp_path / "y.png")


def test_a_link_to_our_own_file_is_not_our_file(tmp_path):
    write_result(tmp_path / "x.png", CONTENTS["x.png"])
    (tmp_path / "y.png").symlink_to(tmp_path / "x.png")
    with pytest.raises(OutputError, match="did not write it"):
        check_replaceable([tmp_path / "y.png"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_document_contains_a_number_that_is_not_finite(number):
    with pytest.raises(OutputError, match=r"results\.1\.rating` is not a finite number"):
        dump_json({"results": [{"rating": 0.5}, {"rating": number}]})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "NaN is no number"),
        ("[Infinity]", "Infinity is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": [0.5, -1e999]}', "the number -1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
    ],
    ids=lambda value: value[:20],
)
def test_documents_that_are_no_json_are_one_kind_of_error(text, why):
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    content = json_bytes({"a": "\udcff ü"}, ascii_only=False)
    assert json.loads(content) == {"a": "\udcff ü"}
