"""The machine on which the pages' commands run: a folder, a server, a hub, and a GPU that is not
there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.bench import growth, scenario
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.hub import bundles
from segagent_rt.reply import BoxListProtocol
from segagent_rt.types import Box
from tests.annotators import stub, test_same_clicks
from tests.backends import fake_tensorrt
from tests.backends.fake_driver import FakeDriver
from tests.backends.machine import forget, plug_in
from tests.cli.conftest import kept_open, terminal
from tests.documented.workspace import make_workspace
from tests.hub.conftest import hub
from tests.hub.server import HubServer

__all__ = ["hub", "kept_open", "terminal"]

url = test_same_clicks.url
"""The address of a server that runs the MLLM of the demo bundle."""

SMALL = 'kind = "{}"\nscenes = 1\nside = 96\nwarm_up = 0\nexpressions = [1, 2]\n'


@pytest.fixture(scope="module")
def opened() -> dict[str, Any]:
    """Loaded bundles that `kept_open` uses again. Other tests have bundles of the same names with
    other content, so these are not shared with them."""
    return {}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages speak of."""
    folder = tmp_path_factory.mktemp("template")
    make_workspace(folder)
    return folder


@pytest.fixture
def workspace(
    hub: HubServer, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, with a data folder and a cache of its own; the hub has a bundle."""
    folder = tmp_path / "workspace"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SEGAGENT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    upload = tmp_path / "upload"
    bundles.prepare_upload(open_bundle("tiny"), upload)
    files = {p.relative_to(upload).as_posix(): p for p in upload.rglob("*") if p.is_file()}
    hub.models["owner/name"] = {name: path.read_bytes() for name, path in files.items()}
    monkeypatch.setattr(bundles, "upload", lambda folder, to: f"commit of {folder} to {to}")
    return folder


@pytest.fixture(autouse=True)
def small_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scenario with one small scene."""
    folder = tmp_path / "scenarios"
    folder.mkdir()
    for name, path in scenario.packaged_scenarios().items():
        kind = scenario.read_scenario(path).kind
        (folder / f"{name}.toml").write_text(SMALL.format(kind))
    found = {path.stem: path for path in folder.iterdir()}
    monkeypatch.setattr(scenario, "packaged_scenarios", lambda: found)
    monkeypatch.setattr(growth, "SIDES", (96, 128))
    monkeypatch.setattr(growth, "EXPRESSIONS", (1, 2))


@pytest.fixture(scope="session")
def stock_model() -> Iterator[str]:
    """The address of a server whose model answers with a box, as stock models do."""
    with stub.running() as server:
        box = BoxListProtocol("relative").write((Box(60, 40, 200, 180),), (512, 512))
        server.will(stub.replies(box))
        yield server.url


@pytest.fixture
def gpu() -> Callable[[], Any]:
    """A context in which there is a GPU, TensorRT and TensorRT-RTX, all of them fakes."""

    class Gpu:
        def __enter__(self) -> None:
            self.patch = pytest.MonkeyPatch()
            self.patch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt)
            plug_in(self.patch, FakeDriver())

        def __exit__(self, *_: object) -> None:
            self.patch.undo()
            forget()

    return Gpu
