"""Pages about machines that we do not have say of each claim where it was shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segagent_rt.annotators.server_profiles import SERVERS
from segagent_rt.bench.boards import BOARDS, GIB

ROOT = Path(__file__).parents[1]
PAGES = ("jetson", "rtx", "servers")
PLACE = re.compile(r"`((?:tests|benchmarks|export|\.ci)/?[\w./-]*)`")
MEASURED = re.compile(r"\d\s*(?:ms|µs|fps|FPS|tok/s|tokens/s|GB/s|W|J|x faster|%)(?!\w)")
UNSHOWN = ("not run", "not measured")
SHOWN = re.compile(
    r"benchmarks/results/[\w.*-]+\.json|`(?:segagent-rt|python) [^`]+`"
    r"|`(?:tests|benchmarks|segagent_rt)/[\w./-]+`|no command repeats|not measured"
)
"""What a paragraph with figures names: their file, their command, the code that holds a bar."""
ALL = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text("utf-8")


def rows(page: str, title: str) -> list[list[str]]:
    """Cells of the table below a title."""
    section = text(page).split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_said_to_be_run_names_what_runs_it(page):
    for what, where, result in rows(page, "What was run"):
        assert bool(PLACE.findall(where)) != (result in UNSHOWN), what


@pytest.mark.parametrize("page", PAGES)
def test_every_place_that_is_named_is_there(page):
    for place in PLACE.findall(text(page)):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_stands_without_the_file_that_it_is_from(page):
    for line in text(page).splitlines():
        assert not MEASURED.search(line) or "benchmarks/results/" in line, line


@pytest.mark.parametrize("page", ALL)
def test_every_paragraph_with_figures_says_where_they_are_from(page):
    for paragraph in re.split(r"\n\s*\n", text(page)):
        assert not MEASURED.search(paragraph) or SHOWN.search(paragraph), paragraph


def test_every_section_of_the_benchmark_page_is_a_result_file():
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for section in re.split(r"\n(?=## )", page)[1:]:
        name = section.splitlines()[0].removeprefix("## ")
        if MEASURED.search(section) or "| p50 |" in section:
            assert (ROOT / "benchmarks" / "results" / f"{name}.json").is_file(), name


def test_a_figure_without_a_place_is_seen():
    assert not SHOWN.search("A click takes 54 ms on two cores.")
    assert SHOWN.search("A click takes 54 ms (`segagent-rt bench -s one-full`).")


def test_the_check_sees_figures():
    for figure in ("418 ms", "60.1 tok/s", "3x faster", "98%", "25 W"):
        assert MEASURED.search(f"It takes {figure}.")


@pytest.mark.parametrize("page", ["jetson", "rtx"])
def test_pages_for_gpus_begin_with_what_was_not_run(page):
    assert re.search(
        r"^\*\*Nothing on this page was run on a (Jetson|GPU) by us\.\*\*", text(page), re.M
    )


@pytest.mark.parametrize(("page", "shared"), [("jetson", True), ("rtx", False)])
def test_boards_are_those_of_the_table(page, shared):
    told = {name.strip("`"): (int(size), int(kept)) for name, size, kept in rows(page, "Memory")}
    assert told == {
        name: (found.memory // GIB, found.kept // GIB)
        for name, found in BOARDS.items()
        if found.shared is shared
    }


def test_servers_are_those_of_the_table():
    lines = re.findall(r"^\| `([a-z][\w.-]*)` \| .*", text("servers"), re.M)
    assert lines == list(SERVERS)
