"""A number in the docs names the file or the command that it is from; named paths exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from segagent_rt.annotators.server_profiles import SERVERS
from segagent_rt.bench.boards import BOARDS, GIB
from segagent_rt.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = ("jetson", "rtx", "servers")
PLACE = re.compile(r"`((?:tests|benchmarks|export|\.ci)/?[\w./-]*)`")
MEASURED = re.compile(r"\d\s*(?:ms|µs|fps|FPS|tok/s|tokens/s|GB/s|W|J|x faster|%)(?!\w)")
UNSHOWN = ("not run", "not measured")
SOURCE = re.compile(r"benchmarks/results/[\w.*-]+\.json|`([^`\n]+)`")
ALL = sorted(
    path.relative_to(ROOT / "docs").with_suffix("").as_posix()
    for path in (ROOT / "docs").rglob("*.md")
)
OURS = ("segagent_rt/", "export/", "tests/", "benchmarks/", "engines/", "docs/", ".ci/")
"""Folders of the checkout: whatever is named below them exists."""
GONE = re.compile(r"no command repeats|is not kept")


def sources(paragraph: str) -> list[str]:
    """Files of results, code and commands that a paragraph names, and that there are."""
    found = []
    for match in SOURCE.finditer(paragraph):
        name = (match[1] or match[0]).strip()
        words = name.split()
        if words[0] == "taskset":
            words = words[words.index("python") :]
        if words[:1] == ["segagent-rt"]:
            there = len(words) > 1 and (ROOT / f"segagent_rt/cli/{words[1]}.py").is_file()
        elif words[:3] == ["python", "-m", "segagent_rt_training"]:
            there = True
        elif words[:1] == ["python"]:
            there = len(words) > 1 and (ROOT / words[1]).is_file()
        else:
            place = name.startswith(OURS) or "benchmarks/results/" in name
            there = place and any(ROOT.glob(name.rstrip("/")))
        if there:
            found.append(name)
    return found


def paragraphs(page: str) -> list[str]:
    """Paragraphs of a page; a table goes with the text before and after it."""
    blocks = [block for block in re.split(r"\n\s*\n", text(page)) if block.strip()]
    joined = []
    for at, block in enumerate(blocks):
        near = blocks[max(at - 1, 0) : at + 2] if block.startswith("|") else [block]
        joined.append("\n\n".join(near))
    return joined


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
def test_a_number_names_its_source(page):
    for paragraph in paragraphs(page):
        assert not MEASURED.search(paragraph) or sources(paragraph), paragraph


@pytest.mark.parametrize("page", ALL)
def test_no_number_is_given_without_a_way_to_repeat_it(page):
    assert not GONE.search(text(page))


@pytest.mark.parametrize("page", ALL)
def test_lines_end_at_100_columns(page):
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 100] == []
    assert [line for line in text(page).splitlines() if len(line) > 110] == []


@pytest.mark.parametrize("page", ALL)
def test_paths_and_links_exist(page):
    for name in re.findall(r"`([\w.*/-]+)`", text(page)):
        if name.startswith(OURS) and not name.startswith("engines/"):
            assert any(ROOT.glob(name.rstrip("/"))), name
    folder = (ROOT / "docs" / page).parent
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text(page)):
        assert (folder / link).exists(), link


LINK = re.compile(r"\]\(([^)#:\s]+)(?:#([^)\s]*))?\)")


def sections(page: Path) -> dict[str, str]:
    """Text below each title of a page, without its subsections, by the name that links use."""
    parts = re.split(r"^(#+ .*)$", page.read_text("utf-8"), flags=re.M)
    titles = [re.sub(r"[^\w -]", "", part.lstrip("# ").lower()) for part in parts[1::2]]
    return {title.replace(" ", "-"): body for title, body in zip(titles, parts[2::2], strict=True)}


@pytest.mark.parametrize(
    "page",
    ["README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "benchmarks/README", "engines/README"],
)
def test_lines_of_other_pages_end_at_100_columns(page):
    lines = (ROOT / f"{page}.md").read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "!["))] == []


@pytest.mark.parametrize("page", ["README", "CONTRIBUTING", "SECURITY"])
def test_links_of_the_first_pages_lead_to_files_and_sections(page):
    for link, section in LINK.findall((ROOT / f"{page}.md").read_text("utf-8")):
        assert (ROOT / link).exists(), link
        assert not section or section in sections(ROOT / link), (link, section)


def linked(pages: set[Path]) -> set[Path]:
    """Pages that are one click away from any of these."""
    links = [(page, link) for page in pages for link, _ in LINK.findall(page.read_text("utf-8"))]
    found = {(page.parent / link).resolve() for page, link in links}
    return {path / "README.md" if path.is_dir() else path for path in found}


def test_ten_tasks_are_two_clicks_from_the_readme():
    first = {page for page in linked({ROOT / "README.md"}) if page.suffix == ".md"}
    within_two = first | linked(first)
    listed = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Ten tasks of a newcomer")[1]
    tasks = re.findall(r"^\d+\. (.*?)shows\s+`(.*?)`", listed, re.M | re.S)
    assert len(tasks) == 10
    for task, shown in tasks:
        link, section = LINK.findall(task)[0]
        page = ROOT / link
        assert page in within_two, task
        there = sections(page)[section] if section else page.read_text("utf-8")
        assert shown in there, task


def test_every_command_is_in_the_reference():
    listed = re.findall(r"^### `([\w ]+)`$", text("cli"), re.M)
    assert sorted(name for name in listed if " " not in name) == sorted(COMMANDS)


def test_the_architecture_page_lists_every_package():
    listed = [row[0].strip("`") for row in rows("architecture", "Packages")]
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("segagent_rt", "export/segagent_rt_export", "export/segagent_rt_training")
        for path in (ROOT / top).rglob("__init__.py")
    }
    families = {name for name in packages if "/families/" in name}
    assert sorted(listed) == sorted(packages - families)


def test_every_where_is_question_is_answered_by_a_definition():
    found = rows("architecture", "Where is ...?")
    assert len(found) == 12
    for question, file, name in found:
        code = (ROOT / file.strip("`")).read_text("utf-8")
        assert re.search(rf"^\s*(?:def|class) {name.strip('`')}\b", code, re.M), question


def test_the_training_page_is_what_its_command_writes():
    """From the figures in the manifest; only the table of costs needs the logs of the training."""
    report = pytest.importorskip("segagent_rt_training.report")
    costs = {
        stage: [{"seen": int(pictures), "cpu_minutes": float(minutes)}]
        for stage, pictures, minutes in rows("training", "Cost")
    }
    manifest = json.loads((ROOT / "engines/tiny/mllm/manifest.json").read_text("utf-8"))
    assert report.training_page(costs, manifest["verified"]) == text("training")


def test_decisions_are_few_and_short():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    assert len(pages) <= 15
    for page in pages:
        assert len(page.read_text("utf-8").splitlines()) <= 50, page.name
        assert page.name in index or page.name == "README.md"


def test_every_section_of_the_benchmark_page_names_a_result_file():
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for section in re.split(r"\n(?=## )", page)[1:]:
        named = re.findall(r"`results/([\w.-]+\.json)`", section)
        assert named, section
        if "| not measured |" in section:
            continue  # the file is that which its command will write
        assert all((ROOT / "benchmarks" / "results" / name).is_file() for name in named), section


def test_a_number_without_a_source_is_seen():
    assert not sources("A click takes 54 ms on two cores (`fast`).")
    assert not sources("A click takes 54 ms (`benchmarks/results/missing.json`).")
    assert not sources("A click takes 54 ms (`segagent-rt unknown`).")
    assert sources("A click takes 54 ms (`segagent-rt bench -s one-full`).")


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
    named = [row[0].strip("`") for row in rows("servers", "Kinds of servers")]
    assert named == list(SERVERS)
