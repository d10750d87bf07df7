"""The planned buffers against those that engines' sessions take, counted on a fake GPU."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import segagent_rt
from segagent_rt.backends import cuda, driver
from segagent_rt.backends.engine_library import load_library
from segagent_rt.bench.boards import board
from segagent_rt.bench.budget import budget
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt.bundle.store import cache_folder
from segagent_rt.engine_cache.golden_io import record_golden
from segagent_rt.engine_cache.selection import EngineSelector
from segagent_rt.engine_cache.store import EngineCache
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Request
from tests.backends import fake_cuda
from tests.backends.fake_driver import FakeDriver

SCENE = make_scene(1, 512)
CLOSE = 1.1
"""A plan may be this much above what is measured, and never below."""


@pytest.fixture
def jetson(machine, tmp_path, monkeypatch):
    """A board whose processor and GPU share memory."""
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    machine(FakeDriver(integrated=True))
    return machine


def build(part) -> None:
    """Its engines, which the check at load reads once with arrays of the host."""
    selector = EngineSelector(load_library("tensorrt"), EngineCache(cache_folder() / "engines"))
    for role, examples in record_golden(part, "tensorrt").items():
        graphs = compatible_graphs(part.graphs(role), "tensorrt")
        selector.build(graphs, examples, lambda phase: None)


def forget_memory():
    fake_cuda.reset()
    for function in (driver.gpu, cuda.cuda, load_library):
        function.cache_clear()


def held() -> int:
    """Bytes on the fake GPU, and of arrays that this package holds."""
    blocks = (*fake_cuda.device.memory.values(), *fake_cuda.device.host.values())
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    ours = tracemalloc.Filter(inclusive=True, filename_pattern="*/segagent_rt/*")
    traces = tracemalloc.take_snapshot().filter_traces([arrays]).filter_traces([ours]).traces
    return sum(map(len, blocks)) + sum(trace.size for trace in traces)


def planned(bundle, part: str) -> int:
    (need,) = (n for n in budget(bundle, board("orin-nano-8")).needs if n.part == part)
    return need.buffers


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["segmenter", "mllm"])
def test_the_buffers_of_the_demo_bundle(jetson, part):
    bundle = open_bundle()
    build(bundle.part(part))
    forget_memory()
    with segagent_rt.load(backend="tensorrt", parts=[part]) as runtime:
        given = [None, *(GivenMask(SCENE.mask(number)) for number in range(3))]
        tracemalloc.start()
        if part == "segmenter":
            kept = click(runtime)
        else:
            kept = ask(runtime, given)
        measured = held()
        tracemalloc.stop()
    found = planned(bundle, part)
    print(f"{part}: measured {measured:,}, planned {found:,}, ratio {found / measured:.3f}")
    assert kept is not None
    assert measured <= found <= CLOSE * measured


def click(runtime):
    embedding, prediction = runtime.segmenter.encode(SCENE.image), None
    for count in (1, 2, 4):
        clicks = [Click(40 * number, 100, True) for number in range(count)]
        prediction = runtime.segmenter.decode(embedding, clicks, prior=prediction)
    return embedding, prediction


def ask(runtime, given):
    view = runtime.annotator.look(SCENE.image)
    for prediction in given:
        view.propose([Request(prediction, SCENE.expressions[0].text)])
    return view
