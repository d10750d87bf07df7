"""How commands end: no mask, Ctrl-C, a reader that goes away, text that would steer a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segagent_rt.errors import SegagentError, install_hint, printable
from segagent_rt.results import why_no_mask
from segagent_rt.scenes import make_scene

TEXT = make_scene(7, 256).expressions[0].text


def result(**changes):
    step = {"reply": "I \x1b[31msee nothing", "problem": None}
    return {"expression": "it", "empty": None, "stop": "malformed", "steps": [step], **changes}


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (result(empty=False), None),
        (result(), 'no mask was found for "it": the model replied `I \x1b[31msee nothing`'),
        (result(stop="deadline"), 'no mask was found for "it": the deadline passed'),
        (result(steps=[]), 'no mask was found for "it"'),
        (result(empty=True, expression="", steps=[]), "the mask for these clicks is empty"),
    ],
)
def test_what_is_said_when_there_is_no_mask(found, sentence):
    assert why_no_mask(found) == sentence


def test_an_empty_mask_is_written_and_ends_with_5(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "--click=-5,5", "-o", tmp_path)
    assert done.code == 5
    assert "the mask for these clicks is empty" in done.err
    assert "\n\nhint: " in done.err
    assert json.loads((tmp_path / "scene.segagent.json").read_text())["results"][0]["empty"]


def test_masks_of_clicks_have_the_segmenters_estimate_or_none(terminal, scene_file, tmp_path):
    done = terminal("run", scene_file, "--click=+120,80", "-o", tmp_path)
    found = json.loads((tmp_path / "scene.segagent.json").read_text())["results"][0]
    shown = done.out.split("\t")[1:3]
    value = found["estimated_iou"]
    assert shown == ["unrated" if value is None else f"{value:.2f} estimated", "1 click"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("the red cup, 狗 \N{DOG FACE}", "the red cup, 狗 \N{DOG FACE}"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jx", "x"),
        ("a\rb\x08c\x00", "a\ufffdb\ufffdc\ufffd"),
        ("left\u202eright", "left\ufffdright"),
        ("\udcff", "\ufffd"),
        ("a\nb\tc", "a\nb\tc"),
    ],
)
def test_text_that_steers_no_terminal(text, safe):
    assert printable(text) == safe
    assert str(SegagentError(text)) == safe


def test_the_hint_names_where_the_package_came_from():
    hint = install_hint("export")
    assert hint.startswith("pip install ")
    assert "[export]" in hint
    assert "/" in hint


def test_ctrl_c_says_that_the_run_can_go_on(terminal, tmp_path, monkeypatch):
    from segagent_rt.data import sources

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "open_all", interrupted)
    done = terminal("trajectories", tmp_path, "-o", tmp_path / "out")
    assert done.code == 130
    assert done.err.endswith("error: interrupted\n\nhint: run the same command again to continue\n")


def ended(command, **streams):
    """The exit code and stderr of a command in a process of its own."""
    program = [sys.executable, "-m", "segagent_rt", *command]
    done = subprocess.run(program, stderr=subprocess.PIPE, timeout=60, **streams)
    return done.returncode, done.stderr.decode()


def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code, said = ended(("scene", "-o", str(tmp_path / "s.png")), stdout=writer)
    os.close(writer)
    assert (code, said) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_standard_output_is_one_sentence(tmp_path):
    with Path("/dev/full").open("wb") as full:
        code, said = ended(("scene", "-o", str(tmp_path / "s.png")), stdout=full)
    assert code == 1
    assert said.startswith("error: the standard output cannot be written: No space left")


def test_an_expression_that_is_not_utf_8_is_one_sentence(tmp_path, scene_file):
    arguments = ("run", str(scene_file), b"\xff", "-o", str(tmp_path))
    code, said = ended(arguments)
    assert code == 1
    assert "is not UTF-8" in said
    assert "Traceback" not in said


def test_without_a_home_the_cache_is_a_private_folder(monkeypatch, tmp_path):
    import pathlib
    import tempfile

    from segagent_rt.bundle import store

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SEGAGENT_CACHE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store._homeless_cache.cache_clear()
    try:
        folder = store.cache_folder()
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
        store._homeless_cache.cache_clear()
        folder.chmod(0o777)
        assert store.cache_folder() != folder, "somebody else may have written there"
    finally:
        store._homeless_cache.cache_clear()
