"""`segagent-rt bench report`: a page and plots that are made, not written, and can be checked."""

import json
import re
import sys

import pytest

from tests.bench.test_report import DEADLINE, ONE, race


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    for result in (ONE, DEADLINE, race(parity=True)):
        path = tmp_path / "results" / f"{result.name}.json"
        path.write_text(json.dumps(result.document))
    return tmp_path


def test_the_command_writes_page_and_plots_the_same_each_time(terminal, folder):
    pytest.importorskip("matplotlib")
    assert terminal("bench", "report", folder).code == 0
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    names = {path.name for path in first}
    assert names >= {"README.md", "percentiles.md", "stages.svg", "deadline.svg"}
    assert terminal("bench", "report", folder).code == 0
    assert {path: path.read_bytes() for path in first} == first
    assert terminal("bench", "report", folder, "--check").code == 0


def test_a_page_that_is_not_current_fails_the_check(terminal, folder):
    pytest.importorskip("matplotlib")
    assert terminal("bench", "report", folder, "--check").code == 3
    terminal("bench", "report", folder)
    page_file = folder / "README.md"
    page_file.write_text(page_file.read_text().replace("8.2 (", "80.2 ("))
    done = terminal("bench", "report", folder, "--check")
    assert done.code == 3
    assert "segagent-rt bench report" in done.err


def test_a_missing_extra_is_named(terminal, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "segagent_rt.bench.plots", raising=False)
    done = terminal("bench", "report", folder)
    assert done.code == 1
    assert re.search(r"pip install .*\[bench\]", done.err)
