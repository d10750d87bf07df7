"""Building and loading: what the library is asked for, and what is said when it refuses."""

from __future__ import annotations

import sys

import pytest

from segagent_rt.backends.driver import gpu
from segagent_rt.backends.engine_library import load_library
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import Range
from segagent_rt.errors import (
    BackendMissing,
    BackendUnavailable,
    EngineRefused,
    install_hint,
)
from tests.backends import fake_cuda, fake_tensorrt
from tests.backends.fake_driver import FakeDriver
from tests.backends.machine import forget


def build(role="decoder", profiles=(), timing=b""):
    graph = open_bundle().part("segmenter").graphs(role, "cpu-w8")[0].path
    return load_library("tensorrt").build(graph, profiles, timing, lambda phase: None)


def profiles_of(built):
    return fake_tensorrt.Runtime(None).deserialize_cuda_engine(built.plan).plan["profiles"]


def test_profiles_come_from_the_manifest_one_after_the_other(machine):
    narrow, wide = Range((1, 1, 3), (1, 1, 3), (1, 1, 3)), Range((1, 2, 3), (1, 4, 3), (1, 9, 3))
    found = profiles_of(build(profiles=({"points": narrow}, {"points": wide})))
    assert found == [
        {"points": [[1, 1, 3]] * 3},
        {"points": [[1, 2, 3], [1, 4, 3], [1, 9, 3]]},
    ]


def test_an_axis_that_no_profile_names_gets_a_usual_range_and_fixed_ones_none(machine):
    assert profiles_of(build()) == [{"points": [[1, 1, 3], [1, 4, 3], [1, 32, 3]]}]
    assert profiles_of(build("encoder")) == []


def test_an_operator_that_the_parser_does_not_know_is_named(machine):
    fake_tensorrt.trouble.refuses.add("decoder.onnx")
    with pytest.raises(EngineRefused, match=r"does not take decoder.onnx: it has no MatMulNBits"):
        build()


def test_what_the_builder_learnt_is_handed_to_the_next_build(machine):
    assert build(timing=build().timing).timing == b"tt"


def test_networks_are_strongly_typed_and_tensorrt_11_is_not_told_so(machine, monkeypatch):
    """The fake refuses other flags, and knows none that asks for a precision."""
    build()
    monkeypatch.setattr(fake_tensorrt, "NetworkDefinitionCreationFlag", object)
    build()


def test_phases_of_a_build_are_reported(machine):
    phases = []
    graph = open_bundle().part("segmenter").graphs("decoder", "cpu-w8")[0].path
    load_library("tensorrt").build(graph, (), b"", phases.append)
    assert phases == ["parse", "Building engine"]


def test_a_plan_that_is_not_loaded_is_refused_with_the_library_s_reason(machine):
    plan = build().plan
    fake_tensorrt.trouble.loads_nothing = True
    with pytest.raises(EngineRefused, match="does not load it: The engine plan file is not"):
        load_library("tensorrt").open(plan, "it")


def test_a_library_that_is_not_there_is_named_with_what_brings_it(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendMissing, match="tensorrt_rtx is not installed") as caught:
        load_library("rtx")
    assert caught.value.hint == install_hint("rtx")


def test_without_cuda_python_engines_are_not_loaded(machine, monkeypatch):
    plan = build().plan
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(BackendMissing, match="cuda-python"):
        load_library("tensorrt").open(plan, "it")


def test_older_cuda_python_is_found_under_its_older_name(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", fake_cuda)
    load_library("tensorrt").open(build("encoder").plan, "it").close()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "no NVIDIA driver"),
        (FakeDriver(count=0), "knows no GPU"),
        (FakeDriver(start=999), "does not start"),
    ],
)
def test_a_machine_without_a_gpu_says_which_part_is_missing(machine, found, why):
    machine(found)
    with pytest.raises(BackendUnavailable, match=why):
        load_library("tensorrt").machine()


def test_a_builder_that_needs_a_gpu_and_finds_none_says_so(machine, monkeypatch):
    def refuse(self, logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake_tensorrt.Builder, "__init__", refuse)
    machine(None)
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        build()
    machine(FakeDriver())
    with pytest.raises(BackendUnavailable, match=r"tensorrt 10\S* does not start"):
        build()


def test_the_gpu_is_described_by_its_driver(machine):
    machine(FakeDriver(integrated=True))
    found = gpu()
    assert (found.name, found.sm, found.cuda) == ("Fake Orin", "sm_87", (12, 6))
    assert (found.integrated, found.memory) == (True, 8 << 30)
    forget()


def test_compiled_kernels_are_kept_for_the_next_load(machine, monkeypatch, tmp_path):
    """TensorRT-RTX compiles when it loads; a file that is not of this machine it refuses itself."""
    kernels, given = tmp_path / "decoder.kernels", []

    class Config:
        def create_runtime_cache(self):
            return self

        def deserialize(self, content):
            given.append(content)

        def serialize(self):
            return b"compiled"

        def set_runtime_cache(self, cache):
            assert cache is self

    engine = fake_tensorrt.ICudaEngine
    monkeypatch.setattr(engine, "create_runtime_config", lambda self: Config(), raising=False)
    monkeypatch.setattr(
        engine, "create_execution_context",
        lambda self, config=None: fake_tensorrt.IExecutionContext(self),
    )  # fmt: skip
    plan = build().plan
    for _ in range(2):
        load_library("tensorrt").open(plan, "it", kernels).close()
    assert given == [b"compiled"]
    assert kernels.read_bytes() == b"compiled"
