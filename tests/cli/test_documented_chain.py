"""The chain of commands in docs/data.md works as it is printed, here on two scenes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.thorough
@pytest.mark.usefixtures("kept_open")
def test_the_chain_works(terminal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"<!-- chain -->\n```\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block is not None
    lines = block[1].replace("--count 500", "--count 2 --side 96 --expressions 1").splitlines()
    assert len(lines) >= 10
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "segagent-rt"
        done = terminal(*arguments)
        assert done.code == 0, f"{line}: {done.err}"
