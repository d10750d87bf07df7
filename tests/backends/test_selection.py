"""Which backend runs: the one named or none; `auto` says which; none gives way in silence."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest

from segagent_rt.backends import onnxruntime
from segagent_rt.backends.registry import AUTO, BACKENDS, kind_of
from segagent_rt.backends.session import (
    SessionOptions,
    first_working,
    open_session,
    probe_backends,
    report_backend,
)
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import Variant
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt.errors import BackendMissing, BackendUnavailable, EngineRefused


@pytest.fixture
def decoder():
    return open_bundle().part("segmenter").graphs("decoder")[0].path


@pytest.fixture
def compiled_in(monkeypatch, machine):
    """An ONNX Runtime with CUDA compiled in, which falls back to the CPU in silence."""
    real = ort.InferenceSession

    def fall_back(source, options, providers, **said):
        assert said == {"enable_fallback": 0}, "the library would print, and run on the CPU"
        return real(source, options, providers=["CPUExecutionProvider"])

    everything = [row.provider for row in BACKENDS.values() if row.provider]
    monkeypatch.setattr(ort, "get_available_providers", lambda: everything)
    monkeypatch.setattr(ort, "InferenceSession", fall_back)


def test_every_row_names_a_provider_or_a_library_and_auto_ends_on_the_cpu():
    for name, row in BACKENDS.items():
        assert row.builds != bool(row.provider), name
        assert row.install
        assert row.takes
    assert set(AUTO) < set(BACKENDS)
    assert AUTO[-1] == "cpu"


def test_a_backend_that_is_not_in_the_table_lists_those_that_are(decoder):
    with pytest.raises(BackendUnavailable, match="no backend `gpu`") as caught:
        open_session(decoder, SessionOptions("gpu"))
    assert all(name in caught.value.hint for name in BACKENDS)


def test_a_provider_that_gives_way_to_the_cpu_is_an_error(decoder, compiled_in):
    for name in ("cuda", "tensorrt-ep"):
        with pytest.raises(BackendUnavailable, match=BACKENDS[name].provider):
            open_session(decoder, SessionOptions(name))


def test_what_is_compiled_in_does_not_count_without_a_driver(decoder, compiled_in, machine):
    machine(None)
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        open_session(decoder, SessionOptions("cuda"))


def test_two_builds_of_onnx_runtime_are_the_reason_given(decoder, machine, monkeypatch):
    monkeypatch.setattr(onnxruntime.importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(BackendMissing, match="both installed") as caught:
        open_session(decoder, SessionOptions("cuda"))
    assert "pip uninstall" in caught.value.hint


def test_a_plug_in_provider_without_a_device_is_an_error(decoder, machine, monkeypatch):
    class Plugin:
        @staticmethod
        def get_library_path():
            return "libnone.so"

    monkeypatch.setitem(sys.modules, BACKENDS["nv-tensorrt-rtx"].plugin, Plugin)
    with pytest.raises(BackendUnavailable, match="finds no device"):
        open_session(decoder, SessionOptions("nv-tensorrt-rtx"))


def test_auto_takes_the_first_that_works_and_says_so_once(decoder, compiled_in, caplog):
    caplog.set_level(logging.INFO, "segagent_rt")
    for _ in range(3):
        session = open_session(decoder, SessionOptions("auto", 1))
    assert session.provider == "CPUExecutionProvider"
    [said] = caplog.records
    assert said.levelno == logging.WARNING
    assert said.message.startswith("auto takes cpu; not cuda: ONNX Runtime cannot use CUDA")


def test_what_is_not_installed_is_not_worth_a_warning(machine, caplog):
    caplog.set_level(logging.INFO, "segagent_rt")
    report_backend("cpu", {"cuda": BackendMissing("not installed")})
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_if_nothing_works_the_last_reason_is_given():
    def refuse(name):
        raise EngineRefused(f"not {name}")

    with pytest.raises(EngineRefused, match="not cpu"):
        first_working(AUTO, refuse)


def test_backends_are_probed_by_running_something():
    found = probe_backends()
    assert set(found) == set(BACKENDS)
    assert found["cpu"] is None
    assert all(why is None or why for why in found.values())


def test_nodes_are_counted_by_the_provider_that_ran_them(decoder):
    feeds = {
        "keys": np.zeros((1, 24, 64, 64), np.float32),
        "coarse": np.zeros((1, 64, 64, 40), np.float32),
        "fine": np.zeros((1, 128, 128, 24), np.float32),
        "points": np.zeros((1, 1, 3), np.float32),
        "prior_logits": np.zeros((1, 1, 256, 256), np.float32),
    }
    found = onnxruntime.nodes_by_provider(decoder, SessionOptions("cpu", 1), feeds)
    assert set(found) == {"CPUExecutionProvider"}
    assert found["CPUExecutionProvider"] > 50


@pytest.mark.parametrize(
    ("device", "dialect", "backend", "taken"),
    [
        ("cpu", "ort", "cpu", True), ("any", "ort", "cpu", True), ("gpu", "ort", "cpu", True),
        ("cpu", "ort", "cuda", False), ("any", "ort", "cuda", True), ("gpu", "ort", "cuda", True),
        ("cpu", "portable", "tensorrt", False), ("any", "ort", "tensorrt", True),
        ("gpu", "ort", "tensorrt", False), ("gpu", "portable", "tensorrt", True),
        ("gpu", "ort", "tensorrt-ep", False), ("gpu", "portable", "rtx", True),
    ],
)  # fmt: skip
def test_a_variant_runs_where_its_device_and_dialect_allow(device, dialect, backend, taken):
    variant = Variant(device, "fp32", {}, dialect)
    assert (kind_of(variant) in BACKENDS[backend].takes) == taken


def test_the_same_bundle_gives_each_backend_its_own_variant(tmp_path):
    from segagent_rt.bundle.graph import Graph

    def graph(name, device, dialect="ort"):
        return Graph(tmp_path, "", "mllm", "decoder", name, Variant(device, "", {}, dialect))

    graphs = [
        graph("gpu-fp16", "gpu", "portable"), graph("cpu-w8", "cpu"), graph("gpu-int4", "gpu"),
        graph("gpu-safe", "gpu", "portable"), graph("plain", "any"),
    ]  # fmt: skip
    chosen = {
        name: [g.name for g in compatible_graphs(graphs, name)]
        for name in ("cpu", "cuda", "tensorrt")
    }
    assert chosen == {
        "cpu": ["cpu-w8", "plain", "gpu-fp16", "gpu-safe", "gpu-int4"],
        "cuda": ["gpu-int4", "gpu-fp16", "gpu-safe", "plain"],
        "tensorrt": ["gpu-fp16", "gpu-safe", "plain"],
    }


def test_vendor_libraries_are_imported_only_when_their_backend_is_asked_for():
    program = (
        "import sys; from segagent_rt.bundle.bundle import open_bundle;"
        "from segagent_rt.backends.session import SessionOptions;"
        "from segagent_rt.backends import tensorrt, cuda, engine;"
        "open_bundle().part('segmenter').session('decoder', SessionOptions('cpu'));"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorrt', 'tensorrt_rtx', 'cuda')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
