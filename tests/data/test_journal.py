"""The journal: what is in it stays, whatever happens to the process that writes it."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.data.journal import Journal
from segagent_rt.errors import DataInvalid, OutputError

HEADING = {"data": "abc", "max_clicks": 7}


def write(path, count, heading=HEADING):
    with Journal(path, heading) as journal:
        for number in range(count):
            journal.append(str(number), {"value": number})


def test_what_was_noted_is_there_the_next_time(tmp_path):
    write(tmp_path / "j", 3)
    with Journal(tmp_path / "j", HEADING) as journal:
        assert journal.done == {str(n): {"value": n} for n in range(3)}


@given(cut=st.integers(0, 200))
def test_a_cut_loses_no_whole_line_and_the_rest_is_done_again(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("j") / "journal"
    write(path, 3)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    whole = max(content.count(b"\n") - 1, 0)
    with Journal(path, HEADING) as journal:
        assert list(journal.done) == [str(n) for n in range(whole)]
        for number in range(whole, 3):
            journal.append(str(number), {"value": number})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == HEADING
    assert [line["key"] for line in lines[1:]] == ["0", "1", "2"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write(tmp_path / "j", 3)
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join([lines[0], lines[1][:-4], *lines[2:]]) + "\n")
    with pytest.raises(DataInvalid, match="line 2 is damaged"), Journal(tmp_path / "j", HEADING):
        pass
    assert (tmp_path / "j").read_text().count("\n") == 4, "nothing is lost"


def test_another_run_is_refused_and_its_journal_kept(tmp_path):
    write(tmp_path / "j", 1)
    before = (tmp_path / "j").read_bytes()
    other = Journal(tmp_path / "j", HEADING | {"max_clicks": 3})
    with pytest.raises(OutputError, match="its `max_clicks` is 7, not 3"), other:
        pass
    assert (tmp_path / "j").read_bytes() == before
    with Journal(tmp_path / "j", HEADING | {"max_clicks": 3}, overwrite=True) as journal:
        assert journal.done == {}


def test_two_at_once_are_refused(tmp_path):
    second = Journal(tmp_path / "j", HEADING)
    with Journal(tmp_path / "j", HEADING), pytest.raises(OutputError, match="another run"), second:
        pass


def test_a_full_disk_is_said_and_the_lines_before_it_stay(tmp_path, monkeypatch):
    write(tmp_path / "j", 2)
    with Journal(tmp_path / "j", HEADING) as journal:

        def full(stream, content):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OutputError, match="No space left"):
                journal.append("2", {})
    with Journal(tmp_path / "j", HEADING) as journal:
        assert list(journal.done) == ["0", "1"]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError), Journal(tmp_path / "file" / "j", HEADING):
        pass


FOREIGN = (
    b"precious, without a line break",
    b"precious\n",
    b"{}\n",
    b"[1]\n[2]\n",
    b"\xff\n",
    b"NaN\n",
)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_file_that_is_no_journal_of_ours_is_not_touched(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    journal = Journal(tmp_path / "j", HEADING)
    with pytest.raises(OutputError, match="belongs to another run"), journal:
        pass
    assert (tmp_path / "j").read_bytes() == content
    with Journal(tmp_path / "j", HEADING, overwrite=True) as journal:
        assert journal.done == {}


def test_a_link_or_a_pipe_is_no_journal(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        journal = Journal(tmp_path / name, HEADING)
        with pytest.raises(OutputError, match="not a regular file"), journal:
            pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_at_the_place_of_the_lock_is_kept(tmp_path):
    (tmp_path / ".j.lock").write_text("precious")
    with pytest.raises(OutputError, match="not a lock"), Journal(tmp_path / "j", HEADING):
        pass
    assert (tmp_path / ".j.lock").read_text() == "precious"


@pytest.mark.parametrize(
    "line", ['{"key": 1, "content": 3}', '{"key": "1"}', "3", "[]", '{"key": "1", "content": "x"}']
)
def test_content_that_this_run_would_not_have_noted_is_damage(tmp_path, line):
    def check(content):
        if not isinstance(content, dict):
            raise DataInvalid("not an object")

    write(tmp_path / "j", 1)
    with (tmp_path / "j").open("a") as stream:
        stream.write(line + "\n")
    before = (tmp_path / "j").read_bytes()
    journal = Journal(tmp_path / "j", HEADING, check=check)
    with pytest.raises(DataInvalid, match="line 3 is damaged"), journal:
        pass
    assert (tmp_path / "j").read_bytes() == before


def test_numbers_that_are_not_finite_are_not_noted(tmp_path):
    with Journal(tmp_path / "j", HEADING) as journal, pytest.raises(OutputError, match="finite"):
        journal.append("1", {"rating": float("nan")})
