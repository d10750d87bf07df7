from __future__ import annotations

from pathlib import Path

import pytest

from segagent_rt import runtime as runtimes
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests import squares
from tests.cli.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch, capsys):
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="session")
def opened():
    """Runtimes by what they were loaded with."""
    return {}


@pytest.fixture(scope="module")
def kept_open(opened):
    """Graphs are loaded once: hundreds of command lines would take minutes."""
    load = runtimes.load

    def load_once(bundle=None, **options):
        key = f"{bundle} {options}"
        if key not in opened:
            opened[key] = load(bundle, **options)
            opened[key].close = lambda: None
        return opened[key]

    patch = pytest.MonkeyPatch()
    patch.setattr(runtimes, "load", load_once)
    yield
    patch.undo()


@pytest.fixture
def runtime(monkeypatch):
    """Every command gets the same runtime of fakes."""
    made = squares.square_runtime()
    monkeypatch.setattr(runtimes, "load", lambda *arguments, **options: made)
    return made


@pytest.fixture(scope="session")
def scene_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    path.write_bytes(png(make_scene(7, 256).image))
    return path
