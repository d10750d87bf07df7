"""What several test modules share."""

from __future__ import annotations

import itertools
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

NEEDED = {
    "export": "torch", "documented/test_exports.py": "torch", "serve": "fastapi",
    "adapters": "fastapi",
}  # fmt: skip
collect_ignore = [path for path, package in NEEDED.items() if find_spec(package) is None]
"""The runtime is tested without the extras as well, as most of its users have it."""


settings.register_profile("quick", max_examples=20, deadline=None)  # other work counts in it
settings.register_profile("thorough", max_examples=300, deadline=None)
settings.load_profile("quick")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The exporter's tests import torch, which takes longer than most tests; they are read only if
    the expression behind `-m` lets them in."""
    without = re.search(r"not \(?export\b", config.option.markexpr)
    tests = ROOT / "tests"
    with_torch = (tests / "export", tests / "documented" / "test_exports.py")
    return True if without and collection_path in with_torch else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file run in one process, so that what they share is loaded once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache and bundles."""
    os.environ["SEGAGENT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["SEGAGENT_DATA"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def segagent_golden() -> Path:
    """Numbers that SegAgent's own code produced; see the README there."""
    return Path(__file__).parent / "golden" / "segagent"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data and photos, outside the project."""
    folder = Path(os.environ.get("SEGAGENT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the golden data in {folder} is not there")
    return folder / "data"


@pytest.fixture
def fail_writing(monkeypatch):
    """Called with an exception: files are written half, then it is raised, from the `after`-th."""

    def fail(problem: BaseException, after: int = 0) -> None:
        fdopen, count = os.fdopen, itertools.count()

        def opened(descriptor, *how):
            stream = fdopen(descriptor, *how)
            if "w" not in how[0] or next(count) < after:
                return stream
            with stream:
                stream.write(b"half")
            raise problem

        monkeypatch.setattr(os, "fdopen", opened)

    return fail


@pytest.fixture
def machine(monkeypatch):
    """A machine with an NVIDIA GPU; called with a `FakeDriver` or None it becomes another."""
    from tests.backends.fake_driver import FakeDriver
    from tests.backends.machine import forget, plug_in

    plug_in(monkeypatch, FakeDriver())
    yield lambda found: plug_in(monkeypatch, found)
    monkeypatch.undo()
    forget()
