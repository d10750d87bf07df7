"""Every command that a page prints runs as it is printed, on a machine without network and GPU.

Only names are filled in (`workspace.py`). The demo bundle stands for exported ones; exports
themselves run in `test_exports.py`, and `NOT_RUN` in `pages.py` lists what no test runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.documented.pages import (
    NOT_RUN,
    PAGES,
    ROOT,
    PrintedCommand,
    commands,
    kind_of,
    printed,
    without_comment,
    words_of,
)
from tests.documented.workspace import filled_in, make_room, stand_in

HERE = ("terminal", "gpu", "torch")
SNIPPETS = [page for page in PAGES if "```python\n" in page.read_text("utf-8")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_commands(kinds: Iterable[str]) -> list[Path]:
    return [page for page in PAGES if {c.kind for c in commands(page)} & set(kinds)]


MEASURED = set[tuple[str, ...]]()
"""Benchmarks that have run: several pages print the same."""


def is_benchmark(words: list[str]) -> bool:
    """Whether a command only measures, so that it does not depend on the folder."""
    return words[0] == "bench" and not {"-o", "--output", "report"} & set(words)


def run_all(lines: list[PrintedCommand], terminal: Any, gpu: Any, urls: dict[bool, str]) -> None:
    """Run commands one after the other, and fail at the first that does."""
    for command in lines:  # a page of reference may print an export after its use
        if command.kind == "torch":
            stand_in(filled_in(command.line, ""))
    for command in lines:
        words = filled_in(command.line, urls["vllm" in command.line or "edge-llm" in command.line])
        if command.kind == "torch":
            continue
        if is_benchmark(words):
            if tuple(words) in MEASURED:
                continue
            MEASURED.add(tuple(words))
        make_room(words)
        if command.kind == "gpu":
            with gpu():
                done = terminal(*words)
        else:
            done = terminal(*words)
        assert done.code == 0, f"{command.line}: {done.err}"


@pytest.mark.thorough
@pytest.mark.usefixtures("workspace", "kept_open")
@pytest.mark.parametrize("page", with_commands(HERE), ids=name_of)
def test_printed_commands_work(
    terminal: Any, gpu: Any, stock_model: str, url: str, page: Path
) -> None:
    lines = [command for command in commands(page) if command.kind in HERE]
    run_all(lines, terminal, gpu, {False: stock_model, True: url})


@pytest.mark.thorough
@pytest.mark.usefixtures("workspace", "kept_open")
@pytest.mark.parametrize("page", SNIPPETS, ids=name_of)
def test_printed_python_works(page: Path) -> None:
    for snippet in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        exec(compile(snippet, page.name, "exec"), {})


@pytest.mark.parametrize("page", with_commands(["python"]), ids=name_of)
def test_python_programs_of_the_standard_library_work(page: Path) -> None:
    for command in commands(page):
        if command.kind == "python":
            done = subprocess.run([sys.executable, *words_of(command.line)], capture_output=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.export
@pytest.mark.parametrize("page", with_commands(["training"]), ids=name_of)
def test_options_of_trainings_exist(page: Path) -> None:
    from segagent_rt_training.__main__ import command as training

    program = typer.Typer()
    program.command()(training)
    for printed_command in commands(page):
        if printed_command.kind == "training":
            words = words_of(printed_command.line)[2:]
            typer.main.get_command(program).make_context("training", words)


def test_every_printed_command_is_run_or_listed_with_a_reason() -> None:
    lines = {command.line: command.kind for page in PAGES for command in commands(page)}
    assert len(lines) > 100
    used = {p for p in NOT_RUN for line in lines if re.match(p, line)}
    assert used == set(NOT_RUN), "these patterns describe no printed command"


def test_an_unknown_command_needs_a_test_or_a_reason() -> None:
    with pytest.raises(ValueError, match="no test runs"):
        kind_of("wget photo.jpg")
    page = "```\nsegagent-rt run photo.jpg \\\n    --box 1,2,3,4  # a box\n```\n`segagent-rt run`\n"
    assert [without_comment(line) for line in printed(page)] == [
        "segagent-rt run photo.jpg --box 1,2,3,4"
    ]


@pytest.mark.usefixtures("workspace")
def test_a_misspelt_option_on_a_page_is_seen(
    terminal: Any, gpu: Any, stock_model: str, tmp_path: Path
) -> None:
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text("utf-8")
    page.write_text(text.replace("--box 40,30", "--boxx 40,30"), "utf-8")
    lines = [command for command in commands(page) if " --boxx" in command.line]
    assert lines
    with pytest.raises(AssertionError, match="No such option: --boxx"):
        run_all(lines, terminal, gpu, {False: stock_model})
