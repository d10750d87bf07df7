"""OpenVINO on the CPU: sessions compute what ONNX Runtime does, and engines are kept only if they
are right and faster."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra `openvino`")

from segagent_rt.backends.engine_library import load_library
from segagent_rt.backends.openvino import OpenVino
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.placement import open_role
from segagent_rt.engine_cache import selection
from segagent_rt.engine_cache.golden_io import record_golden
from segagent_rt.engine_cache.selection import EngineSelector, check_engine
from segagent_rt.engine_cache.store import EngineCache
from segagent_rt.errors import EngineRefused, Interrupted, RuntimeClosed
from segagent_rt.timing import Deadline
from tests.backends.bundles import segmenter, write_bundle
from tests.cli.terminal import Terminal

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _loaded_anew():
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "b", ["whole"], device="any")


@pytest.fixture
def part(folder):
    return segmenter(folder)


@pytest.fixture
def exact():
    """The library in fp32, whatever the processor prefers."""
    return load_library("openvino", 1).forms()[-1]


@pytest.fixture
def session(part, exact):
    graph = part.graphs("decoder")[0]
    opened = exact.open(exact.build(graph.path, (), b"", lambda phase: None).plan, "the decoder")
    yield opened
    opened.close()


@pytest.fixture
def examples(part):
    return record_golden(part, "openvino")["decoder"]


SILENT = """
import sys
calls = []
sys.addaudithook(lambda name, _: calls.append(name) if name.startswith("socket.") else None)
from segagent_rt.backends.engine_library import load_library
load_library("openvino").machine()
import atexit
atexit.register(lambda: print(calls))
"""


def test_its_library_does_not_call_its_maker(monkeypatch):
    """Elsewhere than on a build server, `import openvino` asks for Google Analytics' address."""
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", SILENT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_it_computes_what_onnx_runtime_does(session, examples):
    check = check_engine(session, examples)
    assert check.why is None
    assert all(figure < 1e-3 for name, figure in check.figures.items() if "error" in name)


def test_outputs_go_into_buffers_stay_and_come_back(session, examples):
    feeds, expected = examples[0]
    name = next(iter(expected))
    target = session.allocate(expected[name].shape, np.float32)
    session.run(feeds, [], into={name: target})
    kept = session.run(feeds, [name], keep=[name])[name]
    np.testing.assert_allclose(target.numpy(), expected[name], atol=1e-3)
    assert np.array_equal(kept.numpy(), target.numpy())
    before = kept.numpy().copy()
    session.run({n: np.zeros_like(array) for n, array in feeds.items()}, [name])
    assert np.array_equal(kept.numpy(), before), "what was kept is not written again"


def test_threads_share_a_session(session, examples):
    feeds, expected = examples[0]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: session.run(feeds, list(expected)), range(12)))
    for results in found:
        for name, array in expected.items():
            np.testing.assert_allclose(results[name], array, atol=1e-3)


def test_a_closed_session_says_so(session, examples):
    session.close()
    session.close()
    with pytest.raises(RuntimeClosed):
        session.run(examples[0][0], list(examples[0][1]))


def test_no_call_begins_after_the_deadline(session, examples):
    deadline = Deadline(1e-9)
    time.sleep(0.01)
    with deadline.active(), pytest.raises(Interrupted):
        session.run(examples[0][0], list(examples[0][1]))


def test_wrong_shapes_and_damaged_engines_are_refused(session, exact, examples):
    feeds, expected = examples[0]
    wrong = {name: array[..., :1] for name, array in feeds.items()}
    with pytest.raises(EngineRefused, match="failed in a run"):
        session.run(wrong, list(expected))
    with pytest.raises(EngineRefused, match="does not load the decoder"):
        exact.open(b"no engine", "the decoder")


def test_an_engine_that_is_faster_is_what_auto_takes(part, tmp_path, monkeypatch, examples):
    monkeypatch.setattr(selection, "LARGEST_SHARE", 1e9)
    build(part, tmp_path, examples)
    found = open_role(part.graphs("decoder"), SessionOptions("auto"), tmp_path)
    assert found.placement.backend == "openvino"
    assert " in " in found.placement.precision, "it says what it computes in"
    assert check_engine(found.session, examples).why is None


def test_one_that_is_not_is_never_loaded_nor_is_its_library(
    part, tmp_path, monkeypatch, examples, caplog
):
    monkeypatch.setattr(selection, "LARGEST_SHARE", 0.0)
    with pytest.raises(EngineRefused, match=r"ms, ONNX Runtime .* ms"):
        build(part, tmp_path, examples)
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING):
        found = open_role(part.graphs("decoder"), SessionOptions("auto"), tmp_path)
    assert found.placement.backend == "cpu"
    assert "openvino" not in found.placement.refused
    assert not caplog.records


def test_a_format_that_errs_too_much_gives_way_to_the_next(part, tmp_path, monkeypatch, examples):
    monkeypatch.setattr(selection, "LARGEST_SHARE", 1e9)
    monkeypatch.setattr(OpenVino, "_formats", lambda self: ["bf16", "fp32"])
    real = OpenVino.open

    def open_wrong(self, plan, name, kernels=None):
        opened = real(self, plan, name, kernels)
        return Doubled(opened) if self.form == "bf16" else opened

    monkeypatch.setattr(OpenVino, "open", open_wrong)
    record, failed = build(part, tmp_path, examples)
    assert record.key.capability == "fp32"
    assert list(failed) == ["whole in bf16"]
    found = open_role(part.graphs("decoder"), SessionOptions("openvino"), tmp_path)
    assert found.placement.precision.endswith(" in fp32")


class Doubled:
    """A session whose numbers are twice what they should be."""

    def __init__(self, session):
        self._session = session

    def run(self, feeds, outputs, **more):
        return {n: 2 * array for n, array in self._session.run(feeds, outputs, **more).items()}

    def close(self):
        self._session.close()


def build(part, folder, examples):
    rival = open_session(part.graphs("decoder")[0].path, SessionOptions("cpu", 1))
    selector = EngineSelector(load_library("openvino"), EngineCache(folder))
    return selector.build(part.graphs("decoder"), examples, lambda phase: None, rival)


def test_the_command_says_what_each_engine_takes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "LARGEST_SHARE", 1e9)
    terminal = Terminal(monkeypatch, capsys)
    done = terminal("build", folder, "--backend", "openvino")
    assert done.code == 0
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["segmenter encoder (whole)", "ready"],
        ["segmenter decoder (whole)", "ready"],
    ]
    assert all("ms, ONNX Runtime" in line[3] for line in lines)
    monkeypatch.setattr(selection, "LARGEST_SHARE", 0.0)
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "other"))
    done = terminal("build", folder, "--backend", "openvino")
    assert done.code == 0, "ONNX Runtime runs what it is faster with"
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["not used", "not used"]
