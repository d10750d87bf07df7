"""The commands that the pages print, and what runs each of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "engines/README.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in OUTSIDE), *sorted((ROOT / "docs").rglob("*.md"))]

NOT_RUN = {
    r"python3? -m venv |(\S*/)?pip |mkdocs |codespell": "installs or checks; .ci/run does it",
    r"python -m pytest |python \.ci/": "the tests themselves, and the parts of .ci/run",
    r"python benchmarks/": "measures for minutes to hours, some with gigabytes of weights",
    r"llamafactory-cli ": "trains on a GPU; .ci/full reads the data with LLaMA-Factory's code",
    r"segagent-rt eval .* --ray |serve run ": "needs Ray: tests/deployment, tests/data in .ci/full",
    r"cvat-cli ": "needs a CVAT server; tests/adapters loads both functions",
    r"docker |tritonserver ": "needs a container engine; tests/deployment checks the files",
    r"colcon |\. install/setup\.sh|python3 deploy/ros2/": "needs ROS 2; tests/deployment",
    r"sudo |nvidia-smi |scp ": "needs a board, a GPU or root",
    r"tensorrt-edgellm-serve ": "needs a GPU; tests/export/command/test_edge_llm_chain.py",
    r"export SEGAGENT_SERVE_TOKEN=": "a variable of the shell; the server's test sets it",
}
"""Commands that the tests do not run, and why. Their options are not checked, either."""

TRAINING = "python -m segagent_rt_training "
"""Trainings take hours: only their options are checked. `tests/export/test_train.py` and
`tests/export/test_photo_training.py` train for seconds."""

GPU = re.compile(r"segagent-rt (build |.*--backend (tensorrt|rtx))")
"""Commands for GPUs, which run with fakes of CUDA and TensorRT (`tests/backends`)."""

NEEDS_TORCH = re.compile(r"segagent-rt (export (?!--list|\S+ --target triton)|bench .*--against)")
SERVES = re.compile(r"segagent-rt serve\b")


@dataclass(frozen=True)
class PrintedCommand:
    """A command as a page prints it.

    Attributes:
        line: without comments, continuation lines joined.
        kind: terminal, gpu, torch, serve, curl, python, training, or "not run".
    """

    line: str
    kind: str


def commands(page: Path) -> list[PrintedCommand]:
    """The commands of a page, in order; a line that it prints twice comes once."""
    lines = dict.fromkeys(without_comment(line) for line in printed(page.read_text("utf-8")))
    return [PrintedCommand(line, kind_of(line)) for line in lines if line]


def printed(text: str) -> list[str]:
    """Lines of blocks of code, and commands with an argument in the text."""
    lines = list[str]()
    for language, block, inline in CODE.findall(text):
        if inline:
            lines += [inline.replace("\n", " ")] if is_command(inline) else []
        if language not in ("", "bash", "sh"):
            continue
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            words = line.strip().split(" && ")
            lines += [word for word in words if STARTS.match(word)]
    return lines


CODE = re.compile(r"^```(\w*)\n(.*?)^```|`([^`]+)`", re.M | re.S)
STARTS = re.compile(
    r"(\.venv/bin/|\S*/bin/)?(segagent-rt|python3?|pip|curl|serve|cvat-cli|docker|sudo|tritonserver"
    r"|colcon|llamafactory-cli|tensorrt-edgellm-serve|scp|nvidia-smi|mkdocs|codespell|hf|export"
    r"|\.) "
)
FRAGMENT = re.compile(r"COMMAND --help|\.\.\.|-b$|photos/$|eval refcoco$")
"""Inline code that shows a part of a command."""


def is_command(inline: str) -> bool:
    """Whether inline code is a command with an argument: `segagent-rt run` only names one."""
    words = inline.split()
    named = inline.startswith(("segagent-rt ", "python ", "serve run ")) and len(words) > 2
    return named and not FRAGMENT.search(inline)


def without_comment(line: str) -> str:
    return re.sub(r"\s+#.*", "", line).strip().removeprefix(".venv/bin/")


def kind_of(line: str) -> str:
    """How a command is run; unknown ones are an error.

    Raises:
        ValueError: nobody said how to run it.
    """
    if any(re.match(pattern, line) for pattern in NOT_RUN):
        return "not run"
    if line.startswith(TRAINING):
        return "training"
    if line.startswith(("curl ", "python ")):
        return line.split()[0]
    if not line.startswith("segagent-rt "):
        raise ValueError(f"no test runs `{line}`, and NOT_RUN does not say why")
    for kind, pattern in (("serve", SERVES), ("gpu", GPU), ("torch", NEEDS_TORCH)):
        if pattern.match(line):
            return kind
    return "terminal"


def words_of(line: str) -> list[str]:
    return shlex.split(line)[1:]
