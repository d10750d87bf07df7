"""A bundle for a board has golden outputs in place of the fp32 reference. `build` compares engines
with them, and loads no graph on the board's CPU."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from segagent_rt.backends import onnxruntime
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.engine_cache.selection import check_engine, golden_examples
from segagent_rt.errors import BundleError, EngineRefused
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.pipeline import GatePolicy, run_export
from segagent_rt_export.plan import make_plan
from tests.backends import fake_tensorrt
from tests.backends.fake_driver import FakeDriver
from tests.backends.machine import forget, plug_in

pytestmark = pytest.mark.export

FAMILIES = {"segmenter": "edgetam", "mllm": "qwen3_vl"}
SMALL = 8 << 20
"""Bytes; these models are small, but the calls that are kept have their usual shapes."""


@pytest.fixture
def exported(recipe, tmp_path):
    plan = make_plan(
        recipe("gpu-w8", **FAMILIES), tmp_path / "whole", resume=False, below_gate=False
    )
    run_export(plan, GatePolicy(Gate(scenes=2), forgiving=True), lambda text: None)
    return open_bundle(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_bundle_without_a_reference_is_packed_and_its_engines_are_compared(
    exported, terminal, tmp_path, monkeypatch
):
    # 1. Every graph has examples, in listed files, which its own graph passes on the CPU.
    for part in exported.parts.values():
        assert list(part.manifest.variants) == ["gpu-w8"]
        for role in part.roles:
            (graph,) = part.graphs(role)
            size = graph.golden.stat().st_size
            print(f"{graph}: {size / 1e6:.2f} MB")
            assert size < SMALL
            name = graph.golden.relative_to(part.folder).as_posix()
            assert part.manifest.files[name].size == size
            session = open_session(graph.path, SessionOptions("cpu"))
            check = check_engine(session, golden_examples(graph))
            assert check.why is None
            assert max(check.figures.values()) < 1e-3
    # 2. Packed, and built where no graph may be loaded on the CPU.
    archive = tmp_path / "mine.segagent"
    assert terminal("pack", exported.folder, "--variant", "gpu-w8", "-o", archive).code == 0
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    plug_in(monkeypatch, FakeDriver(integrated=True))

    def refuse(*arguments):
        raise AssertionError("a graph is loaded on the CPU of the board")

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "open_session", refuse)
        done = terminal("build", archive, "--backend", "tensorrt")
    print(done.out)
    assert done.code == 0, done.err
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["ready"] * 4
    # 3. It runs on them, and the check at load reads the same examples.
    photo = tmp_path / "photo.png"
    assert terminal("scene", "-o", photo).code == 0
    done = terminal("run", photo, "--click", "+100,100", "-b", archive, "--backend", "tensorrt",
                    "-o", tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    # 4. An engine that computes wrong is refused.
    fake_tensorrt.trouble.overflows.add("decoder.onnx")
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "other"))
    done = terminal("build", archive, "--backend", "tensorrt")
    assert done.code == 3
    assert "not finite" in done.out
    monkeypatch.undo()
    forget()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_examples_of_strangers_are_refused_in_a_sentence(exported):
    (graph, *_) = exported.part("segmenter").graphs("encoder")
    session = open_session(graph.path, SessionOptions("cpu"))

    def check(content: bytes) -> None:
        graph.golden.write_bytes(content)
        check_engine(session, golden_examples(graph))

    for content in (b"", b"PK", bomb(), renamed(graph.golden.read_bytes())):
        with pytest.raises((BundleError, EngineRefused)) as caught:
            check(content)
        print(caught.value)
        assert "\n" not in str(caught.value)


def bomb() -> bytes:
    """A file that unpacks to a GiB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/in/image.npy", bytes(1 << 30))
    return stream.getvalue()


def renamed(content: bytes) -> bytes:
    """Examples whose input is another one of the same graph's, which there is not."""
    with np.load(io.BytesIO(content)) as found:
        arrays = {name: found[name] for name in found.files}
    stream = io.BytesIO()
    np.savez(stream, **{name.replace("image", "picture"): a for name, a in arrays.items()})
    return stream.getvalue()
