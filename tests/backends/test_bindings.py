"""Buffers that stay in their places from run to run, and sessions that step aside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import segagent_rt
from segagent_rt.backends.onnxruntime import OrtBuffer, _IoBinding
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.runtime import open_mllm
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click

CPU = SessionOptions("cpu", 1)


def language_model():
    return open_mllm(
        open_bundle().part("mllm"), lambda part, role: part.open(role, CPU).session
    ).model


def fed(model, cache, tokens):
    return model.forward(cache, model.embed(tokens))


def test_two_sequences_in_turn_are_each_what_they_are_alone():
    """Their buffers change places in the session's binding, or do not, from run to run."""
    pieces = ([5, 6, 7], [8], [9, 10], [11], [12])
    alone = []
    for sequence in (pieces, pieces[::-1]):
        model = language_model()
        cache = model.new_cache(64)
        alone.append([fed(model, cache, tokens) for tokens in sequence])
    model = language_model()
    caches = [model.new_cache(64) for _ in range(2)]
    found = [[], []]
    for which in (0, 0, 1, 0, 1, 1, 1, 0, 1, 0):
        tokens = (pieces, pieces[::-1])[which][len(found[which])]
        found[which].append(fed(model, caches[which], tokens))
    for one, other in zip(alone, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_cache_that_is_gone_leaves_its_buffers_to_the_next():
    model = language_model()
    first, second = model.new_cache(64), model.new_cache(64)
    assert first.past["past.0.key"] is not second.past["past.0.key"]
    fed(model, second, [5, 6, 7])
    wanted = fed(model, second, [8])
    left = second.past
    del second
    third, fourth = model.new_cache(50), model.new_cache(64)
    assert third.past == left
    assert fourth.past != left
    assert third.length == 0
    fed(model, third, [5, 6, 7])
    assert np.array_equal(fed(model, third, [8]), wanted)
    del third
    assert model.new_cache(65).past != left, "they would be too short"


def test_angles_that_change_in_their_place_are_read_anew():
    """Arrays are bound once; a picture of another size turns the same tokens otherwise."""
    picture = np.array([[0, 0, 0], [0, 5, 9], [0, 1, 2]])
    model = language_model()
    cache = model.new_cache(64)
    as_text = fed(model, cache, [5, 6, 7])
    cache.rewind(0)
    found = model.forward(cache, model.embed([5, 6, 7]), picture)
    other = language_model()
    wanted = other.forward(other.new_cache(64), other.embed([5, 6, 7]), picture)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, as_text)


class Noting:
    """A binding that writes down what it is given."""

    def __init__(self):
        self.bound = []

    def bind_cpu_input(self, name, array):
        self.bound.append(name)

    def bind_ortvalue_input(self, name, value):
        self.bound.append(name)


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_in_its_place_is_not_bound_again(in_place):
    """A provider that copies arrays when they are bound would not see what changed in them."""
    binding, array, buffer = Noting(), np.zeros(3), OrtBuffer(None)
    bound = _IoBinding(binding, ("y",), {}, in_place)
    bound.take({"x": array, "past": buffer})
    bound.take({"x": array, "past": buffer})
    assert binding.bound == ["x", "past"] + ([] if in_place else ["x"])
    bound.take({"x": buffer, "past": array})
    bound.take({"x": array[::2], "past": buffer})
    bound.take({"x": array[::2], "past": buffer})
    assert binding.bound[-5:] == ["x", "past", "x", "past", "x"]


def test_results_stay_when_the_next_run_writes_its_own():
    model = language_model()
    cache = model.new_cache(64)
    first = fed(model, cache, [5, 6, 7])
    kept = first.copy()
    cache.rewind(0)
    second = fed(model, cache, [8, 9, 10])
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_threads_that_share_a_segmenter_get_the_masks_that_each_would_get_alone():
    with segagent_rt.load(backend="cpu", threads=1) as runtime:
        canvases = [runtime.open(make_scene(seed, 256).image) for seed in (1, 2)]
        clicks = [Click(40 + 12 * at, 200 - 10 * at, positive=True) for at in range(12)]

        def masks(canvas):
            return [canvas.segment([click]).mask() for click in clicks]

        alone = [masks(canvas) for canvas in canvases]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(masks, canvases * 4))
    for at, made in enumerate(found):
        assert np.array_equal(made, alone[at % 2])


def test_the_next_image_leaves_the_embedding_of_the_one_before():
    with segagent_rt.load(backend="cpu") as runtime:
        first = runtime.segmenter.encode(make_scene(1, 256).image)
        kept = first.maps["fine"].numpy().copy()
        second = runtime.segmenter.encode(make_scene(2, 256).image)
        assert np.array_equal(first.maps["fine"].numpy(), kept)
        assert not np.array_equal(second.maps["fine"].numpy(), kept)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_only_the_encoder_steps_aside(role, monkeypatch):
    """It runs while the MLLM reads the picture, if there are cores for both."""
    monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda: 4)
    with segagent_rt.load(backend="cpu") as runtime:
        session = runtime.bundle.part("segmenter").open(role, runtime.where).session
        options = session._session.get_session_options()
        name = "session.intra_op.allow_spinning"
        if role == "encoder":
            assert options.get_session_config_entry(name) == "0"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry(name)
        session.close()
