"""Every command of the walkthroughs for GPUs that needs no GPU runs as it is written, with the demo
bundle in place of an export; exports of checkpoints run in `tests/export/command`."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from segagent_rt.bundle.bundle import open_bundle

ROOT = Path(__file__).parents[2]
NEEDS_MORE = re.compile(r"--backend (tensorrt|rtx)|^segagent-rt (export|bench) ")
"""Commands that need a GPU, TensorRT-RTX or torch."""


def commands(page: str) -> list[str]:
    """The commands of the walkthrough, without their comments."""
    section = (ROOT / "docs" / f"{page}.md").read_text("utf-8").split("## From a checkpoint")[1]
    blocks = re.findall(r"^```\n(.*?)^```", section.split("\n## ")[0], re.S | re.M)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("segagent-rt ")]


@pytest.mark.parametrize("page", ["jetson", "rtx"])
def test_the_commands_that_need_no_gpu(terminal, scene_file, tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(open_bundle().folder, tmp_path / "engines" / "mine")
    shutil.copy(scene_file, "photo.png")
    ran = list[str]()
    for command in commands(page):
        if not NEEDS_MORE.search(command):
            words = shlex.split(command.replace("photo.jpg", "photo.png").replace("mug", "circle"))
            done = terminal(*words[1:])
            assert done.code == 0, (command, done.err)
            ran.append(words[1])
    assert {"inspect", "pack", "doctor"} <= set(ran)


@pytest.mark.parametrize("page", ["jetson", "rtx"])
def test_the_others_are_commands_with_options_that_there_are(terminal, page):
    for command in commands(page):
        words = shlex.split(command)
        help_text = terminal(words[1], "--help").out
        for option in (word for word in words if word.startswith("--")):
            assert option in help_text, command
