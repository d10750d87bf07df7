"""Results are whole or not there."""

import errno
from pathlib import Path

import pytest

from segagent_rt.errors import OutputError
from segagent_rt.files import check_writable, write_whole


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "full"), (errno.EACCES, "cannot be written"), (errno.ENAMETOOLONG, "too long")],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, number, said):
    path = tmp_path / "x.txt"
    write_whole(path, b"old")

    def fails(self, content):
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OutputError, match=said):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_writable(tmp_path / "f" / "below")
    check_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()
