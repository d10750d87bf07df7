"""Every help ends with examples, and every command that is printed anywhere can be typed."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from segagent_rt.cli import COMMANDS, build_app
from segagent_rt.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "engines/README.md", "benchmarks/README.md")
DOCUMENTED = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]


def documented(page: Path) -> list[str]:
    """The lines in blocks of code that call the program, without what only describes it."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(\.venv/bin/)?segagent-rt ", line)]


def refusal(line: str) -> str | None:
    """Why the program does not take a command line; nothing is run."""
    _, name, *arguments = shlex.split(line, comments=True)
    program = typer.main.get_command(build_app([name]))
    assert name in program.commands, line
    try:
        program.commands[name].make_context(name, arguments)
    except SystemExit as error:
        return f"{line}: {error}"
    except Exception as error:  # what a parser raises is its library's own
        return f"{line}: {error}"
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_summary_of_its_module(name):
    module = importlib.import_module(f"segagent_rt.cli.{name}")
    assert module.__doc__ == COMMANDS[name]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_lists_commands_imports_none_of_them(option):
    code = (
        f"import sys; sys.argv = ['segagent-rt', '{option}']\n"
        "from segagent_rt.cli import COMMANDS, main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'numpy', *(f'segagent_rt.cli.{name}' for name in COMMANDS)} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


def test_a_shell_completes_names_and_options():
    def completed(words: str, at: int) -> list[str]:
        asked = {"_SEGAGENT_RT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": at}
        env = {**os.environ, **{name: str(value) for name, value in asked.items()}}
        program = [sys.executable, "-m", "segagent_rt"]
        return subprocess.run(program, env=env, capture_output=True, text=True).stdout.split()

    assert completed("segagent-rt exp", 1) == ["export"]
    assert "--click" in completed("segagent-rt run --cl", 2)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_examples(terminal, name):
    text = terminal(name, "--help").out
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        assert example in text


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_fit_on_a_line_and_can_be_typed(name):
    for example in EXAMPLES[name]:
        assert len(example) <= 76, example
        assert refusal(example) is None


@pytest.mark.parametrize("page", DOCUMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_commands_can_be_typed(page):
    assert [why for why in map(refusal, documented(page)) if why] == []


def test_a_command_that_cannot_be_typed_is_seen():
    assert "--nonsense" in str(refusal("segagent-rt run photo.jpg --nonsense"))
