"""Options: what cannot apply is refused, what is not finite too; help, version, quiet and JSON."""

from __future__ import annotations

import inspect
import json
import typing
from importlib import import_module

import pytest

from segagent_rt.backends.registry import BACKENDS
from segagent_rt.cli import COMMANDS
from segagent_rt.cli.option_groups import with_all_options
from segagent_rt.cli.parameters import BackendName

pytestmark = pytest.mark.usefixtures("kept_open")

CLICK = ("run", "x.png", "--click", "+1,1")
WITHOUT_EFFECT = [
    (*CLICK, "--endpoint", "http://127.0.0.1:1", "--model", "m"),
    (*CLICK, "--candidates", "2"),
    (*CLICK, "--max-clicks", "3"),
    (*CLICK, "--deadline-ms", "5"),
    (*CLICK, "--temperature", "2"),
    ("run", "x.png", "it", "--model", "m"),
    ("run", "x.png", "it", "--timeout", "3"),
    ("run", "x.png", "it", "--server", "vllm"),
    ("run", "x.png", "it", "--temperature", "2"),
    ("refine", "x.png", "m.png", "it", "--temperature", "2"),
    ("eval", "--limit", "5"),
    ("eval", "-o", "X"),
    ("eval", "--visualize"),
    ("eval", "--select", "ref"),
    ("eval", "--annotator", "oracle"),
    ("eval", "--ray", "local"),
    ("eval", "data.json", "--scenes", "5"),
    ("eval", "data.json", "--ablate", "remove"),
    ("eval", "data.json", "--workers", "2"),
    ("eval", "p.json", "--candidates", "2"),
    ("score", "x.png", "m.png", "it", "--below", "0.5"),
    ("score", "x.png", "m.png", "it", "-o", "kept.json"),
    ("score", "--annotations", "a.json", "--mask-label", "2"),
    ("convert", "a.json", "--to", "coco", "--preset", "segagent"),
    ("trajectories", "t.json", "--check", "--star", "3"),
    ("trajectories", "t.json", "--check", "-o", "X"),
    ("bench", "--list", "--threads", "1"),
    ("bench", "--weights", "w"),
    ("inspect", "--board", "thor", "--verify"),
    ("export", "--list", "--resume"),
    ("export", "x", "--target", "trtllm", "--only", "mllm"),
]


@pytest.mark.parametrize("arguments", WITHOUT_EFFECT, ids=" ".join)
def test_an_option_without_effect_is_a_usage_error(terminal, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "p.json").write_text(
        json.dumps([{
            "img_path": "a.png", "height": 1, "width": 1, "caption": "it", "pred_list": [],
            "gt_mask": {"size": [1, 1], "counts": [1]},
        }])
    )  # fmt: skip
    before = sorted(tmp_path.iterdir())
    done = terminal(*arguments)
    assert done.code == 2, done.err
    words = " ".join(done.err.replace("│", " ").split())
    assert "applies to" in words or "has no effect without" in words
    assert done.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x.png", "it", "--candidates"),
        ("run", "x.png", "it", "--max-clicks"),
        ("refine", "x.png", "m.png", "it", "--max-clicks"),
        ("eval", "--scenes"),
        ("eval", "data.json", "--ray", "local", "--workers"),
        ("scene", "--count"),
        ("trajectories", "data.json", "--max-clicks"),
        ("trajectories", "data.json", "--star"),
    ],
    ids=" ".join,
)
def test_work_without_an_end_is_a_usage_error(terminal, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = terminal(*arguments, "100000000000000000000")
    assert done.code == 2
    words = " ".join(done.err.replace("│", " ").split())
    assert "less than or equal to" in words or "is not in the range" in words  # newer, older Typer
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x.png", "it", "--deadline-ms"),
        ("run", "x.png", "it", "--max-megapixels"),
        ("run", "x.png", "it", "--endpoint", "http://127.0.0.1", "--model", "m", "--timeout"),
        ("run", "x.png", "it", "--candidates", "2", "--temperature"),
        ("score", "--annotations", "a.json", "--below"),
        ("trajectories", "d.json", "--good"),
        ("trajectories", "d.json", "--least-gain"),
    ],
    ids=lambda arguments: arguments[-1],
)
def test_numbers_that_are_not_finite_are_usage_errors(terminal, arguments, value):
    assert terminal(*arguments[:-1], f"{arguments[-1]}={value}").code == 2


def commands():
    """As Typer reads them: with the options of their groups."""
    modules = [import_module(f"segagent_rt.cli.{name}") for name in COMMANDS]
    return [with_all_options(module.command) for module in modules]


def test_every_option_that_is_a_fraction_is_checked():
    """A new one without the check would take `nan`."""
    for command in commands():
        hints = typing.get_type_hints(command, include_extras=True)
        for name, hint in hints.items():
            kind, *extras = typing.get_args(hint) or (hint,)
            if float in (kind, *typing.get_args(kind)):
                assert any(getattr(each, "callback", None) for each in extras), (command, name)


def test_every_command_can_be_quiet():
    for command in commands():
        assert "quiet" in inspect.signature(command).parameters, command


def test_the_backends_are_those_of_the_table():
    assert typing.get_args(BackendName) == ("auto", *BACKENDS)


def test_the_version_alone(terminal):
    done = terminal("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("segagent-rt ")


def test_no_arguments_show_the_help(terminal):
    done = terminal()
    assert (done.code, done.err) == (0, "")
    assert all(name in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(terminal, name):
    done = terminal(name, "--help")
    assert done.code == 0
    assert "--quiet" in done.out or name == "bench"


def test_choices_stand_in_the_help(terminal):
    assert "full|ref|last" in terminal("eval", "--help").out
    assert "end|discard" in terminal("trajectories", "--help").out


def test_quiet_says_nothing_but_errors(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "the largest object", "-o", tmp_path, "-q")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(str(tmp_path / "scene.segagent.mask.png"))
    done = terminal("run", scene_file, "the zebra", "-o", tmp_path, "-q")
    assert done.code == 1
    assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "-o", "d"), ("scene", "-o", "s.png"), ("scene", "--count", "1"), ("inspect",),
        ("inspect", "--board", "thor"), ("doctor",), ("bench", "--list"),
        ("eval", "--scenes", "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_json_is_one_document_everywhere(terminal, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = terminal(*arguments, "--json")
    assert done.code == 0, done.err
    json.loads(done.out)


def test_the_summary_of_a_bundle_is_short(terminal):
    assert len(terminal("inspect").out.splitlines()) < 30
    assert len(terminal("inspect", "--all").out.splitlines()) > 60
