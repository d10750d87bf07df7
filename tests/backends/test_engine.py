"""Sessions on engines: numbers, memory, captured graphs."""

from __future__ import annotations

import numpy as np
import pytest

from segagent_rt.backends import cuda
from segagent_rt.backends.engine_library import load_library
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import Range
from segagent_rt.errors import BackendUnavailable, EngineRefused, Interrupted, RuntimeClosed
from segagent_rt.segmenters.click_net import MAPS
from segagent_rt.timing import Deadline
from tests.backends import fake_cuda
from tests.backends.fake_driver import FakeDriver

POINTS = ({"points": Range((1, 1, 3), (1, 2, 3), (1, 8, 3))},)


@pytest.fixture
def engine(machine):
    """Opens the engine of a role of the shipped segmenter."""
    opened = []

    def open_engine(role):
        graph = open_bundle().part("segmenter").graphs(role)[0].path
        library = load_library("tensorrt")
        plan = library.build(graph, POINTS, b"", lambda phase: None).plan
        opened.append(library.open(plan, f"the {role}"))
        return opened[-1]

    yield open_engine
    for session in opened:
        session.close()
    assert not fake_cuda.device.host, "pinned memory was not given back"
    assert not fake_cuda.device.graphs, "captured graphs were not given back"


@pytest.fixture
def negation(machine, tmp_path):
    """An engine with one node, y = -x, float32 [1]."""
    from segagent_rt.backends.onnxruntime import _ONE_NODE

    path = tmp_path / "negation.onnx"
    path.write_bytes(_ONE_NODE)
    library = load_library("tensorrt")
    session = library.open(library.build(path, (), b"", lambda phase: None).plan, "the negation")
    yield session
    session.close()


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (1, 256, 256, 3), np.uint8)


def feeds(maps, points=2):
    rng = np.random.default_rng(points)
    return {
        **maps,
        "points": rng.random((1, points, 3), np.float32).round(),
        "prior_logits": np.full((1, 1, 256, 256), -20, np.float32),
    }


def test_an_engine_computes_what_onnx_runtime_computes_with_features_kept_on_the_gpu(engine):
    part, names = open_bundle().part("segmenter"), MAPS
    encoder, decoder = (
        open_session(part.graphs(role)[0].path, SessionOptions("cpu", 1))
        for role in ("encoder", "decoder")
    )
    ours, theirs = engine("encoder"), engine("decoder")
    expected = decoder.run(feeds(encoder.run({"image": picture(0)}, names)), ["logits", "iou"])
    kept = ours.run({"image": picture(0)}, names, keep=names)
    found = theirs.run(feeds(kept), ["logits", "iou"])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-3)
    np.testing.assert_allclose(found["iou"], expected["iou"], atol=1e-5)


def test_what_was_kept_is_not_overwritten_by_the_next_image(engine):
    encoder = engine("encoder")
    first = encoder.run({"image": picture(0)}, ["fine"], keep=["fine"])["fine"]
    before = first.numpy()
    encoder.run({"image": picture(1)}, ["fine"], keep=["fine"])
    np.testing.assert_array_equal(first.numpy(), before)


def test_buffers_of_another_backend_are_taken(engine):
    part, names = open_bundle().part("segmenter"), MAPS
    other = open_session(part.graphs("encoder")[0].path, SessionOptions("cpu", 1))
    foreign = other.run({"image": picture(0)}, names, keep=names)
    plain = other.run({"image": picture(0)}, names)
    decoder = engine("decoder")
    found, expected = (decoder.run(feeds(m), ["logits"])["logits"] for m in (foreign, plain))
    np.testing.assert_array_equal(found, expected)


def test_a_graph_is_captured_after_a_plain_run_and_replayed_with_new_inputs(negation):
    calls = fake_cuda.device.calls
    for value in (1.0, 2.0, 3.0, 4.0):
        x = np.array([value], np.float32)
        assert negation.run({"x": x}, ["y"])["y"] == -value
    assert calls.count("capture") == 1
    assert calls.count("launch") == 3
    assert calls.count("enqueue") == 2, "once plainly, once to record"


def test_each_shape_has_its_own_graph_and_a_change_of_shape_is_run_plainly_first(engine):
    decoder, maps = engine("decoder"), engine("encoder").run(
        {"image": picture(0)}, MAPS)  # fmt: skip
    fake_cuda.device.calls.clear()
    expected = {n: decoder.run(feeds(maps, n), ["logits"])["logits"] for n in (1, 2)}
    assert "capture" not in fake_cuda.device.calls
    for n in (2, 1, 1, 2, 1, 2):
        found = decoder.run(feeds(maps, n), ["logits"])["logits"]
        np.testing.assert_array_equal(found, expected[n])
    assert fake_cuda.device.calls.count("capture") == 2


def test_an_output_may_replace_an_input_and_nothing_is_allocated_in_the_loop(negation):
    """A cache of keys and values is read and written in one call; engines do not work in place."""
    state = negation.allocate((1,), np.float32)
    assert state.numpy() == 0
    negation.run({"x": np.array([5], np.float32)}, [], into={"y": state})
    signs = []
    for _ in range(6):
        negation.run({"x": state}, [], into={"y": state})
        signs.append(float(state.numpy()[0]))
    assert signs == [5, -5, 5, -5, 5, -5]
    before = fake_cuda.device.calls.count("malloc")
    for _ in range(50):
        negation.run({"x": state}, [], into={"y": state})
    assert fake_cuda.device.calls.count("malloc") == before


def test_a_thousand_kept_results_take_no_more_memory_than_five(negation):
    sizes = []
    for number in range(1000):
        if number in (5, 999):
            sizes.append((len(fake_cuda.device.memory), len(fake_cuda.device.graphs)))
        negation.run({"x": np.zeros(1, np.float32)}, ["y"], keep=["y"])
    assert sizes[0] == sizes[1]


def test_what_the_check_at_load_passed_through_the_host_is_given_back(machine, negation):
    """It reads keys and values from a file; a trajectory keeps them on the GPU."""
    negation.run({"x": np.zeros(1, np.float32)}, ["y"])
    assert len(fake_cuda.device.host) == 2
    state = negation.allocate((1,), np.float32)
    negation.run({"x": state}, [], into={"y": state})
    assert len(fake_cuda.device.host) == 0


def test_memory_does_not_grow_with_every_new_size(negation, monkeypatch):
    """As with pictures of all sizes, whose caches have other sizes each."""
    monkeypatch.setattr(cuda, "SPARE", 1000)
    largest = 40_000
    for count in (*range(100, largest // 4, 100), *range(largest // 4, 100, -100)):
        negation.allocate((count,), np.float32)
    assert sum(map(len, fake_cuda.device.memory.values())) < 2 * largest


def test_on_an_integrated_gpu_nothing_is_copied(machine, tmp_path):
    machine(FakeDriver(integrated=True))
    from segagent_rt.backends.onnxruntime import _ONE_NODE

    path = tmp_path / "negation.onnx"
    path.write_bytes(_ONE_NODE)
    library = load_library("tensorrt")
    session = library.open(library.build(path, (), b"", lambda phase: None).plan, "the negation")
    assert session.run({"x": np.array([3], np.float32)}, ["y"])["y"] == -3
    assert "copy" not in fake_cuda.device.calls
    session.close()


def test_shapes_outside_the_profile_are_refused_in_words(engine):
    maps = engine("encoder").run({"image": picture(0)}, MAPS)
    with pytest.raises(EngineRefused, match=r"not built for .*points \[1, 9, 3\]"):
        engine("decoder").run(feeds(maps, 9), ["logits"])


def test_a_full_gpu_is_said_in_words(machine, negation):
    fake_cuda.device.limit = 64
    with pytest.raises(BackendUnavailable, match="memory is full"):
        negation.allocate((1 << 20,), np.float32)


def test_no_call_is_begun_after_the_deadline(negation):
    with Deadline(0.0).active(), pytest.raises(Interrupted):
        negation.run({"x": np.zeros(1, np.float32)}, ["y"])


def test_an_engine_that_is_closed_says_so(negation):
    negation.close()
    negation.close()
    with pytest.raises(RuntimeClosed, match="is closed"):
        negation.run({"x": np.ones(1, np.float32)}, ["y"])


def test_numbers_are_not_made_integers_in_silence(negation, engine):
    with pytest.raises(TypeError):
        engine("encoder").run({"image": picture(0).astype(np.float32)}, ["fine"])
