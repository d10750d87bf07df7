"""Where cores are few, the segmenter encodes when its embedding is asked for, and not meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import segagent_rt
from segagent_rt import StoppingRules
from segagent_rt.annotators.endpoint import Endpoint
from segagent_rt.backends.cores import oversubscribed
from segagent_rt.errors import Interrupted
from segagent_rt.lazy_future import LazyFuture
from segagent_rt.scenes import make_scene


def test_the_work_is_done_once_and_by_who_asks_first():
    done = []
    later = LazyFuture(lambda: done.append(threading.get_ident()) or len(done))
    assert done == []
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: later.result(), range(8))) == [1] * 8
    assert len(done) == 1
    assert later.result(timeout=0) == 1


def test_work_that_was_interrupted_is_done_by_the_next_who_asks():
    outcomes = [Interrupted("the deadline has passed"), "embedding"]

    def work():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    later = LazyFuture(work)
    with pytest.raises(Interrupted):
        later.result()
    assert later.result() == "embedding"


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        (1, None, True),
        (2, None, True),
        (2, 2, True),
        (2, 1, False),
        (4, None, False),
        (8, 2, False),
    ],
)
def test_few_cores_are_crowded_unless_each_graph_has_its_own(monkeypatch, cores, threads, expected):
    monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda: cores)
    assert oversubscribed(threads) == expected


def test_masks_are_the_same_either_way(monkeypatch):
    scene = make_scene(3, 256)
    found = []
    for cores in (2, 4):
        monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda cores=cores: cores)
        with segagent_rt.load(backend="cpu", threads=2) as runtime:
            canvas = runtime.open(scene.image)
            assert isinstance(canvas.embedding, LazyFuture) == (cores == 2)
            found.append(canvas.annotate(scene.expressions[0].text, rules=StoppingRules(2)))
    few, many = found
    assert few.clicks == many.clicks
    assert (few.prediction.mask() == many.prediction.mask()).all()


def test_an_mllm_that_runs_elsewhere_leaves_the_cores_to_the_segmenter(monkeypatch):
    monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda: 2)
    with segagent_rt.load(endpoint=Endpoint("http://127.0.0.1:9/v1", "tiny")) as runtime:
        embedding = runtime.open(make_scene(3, 256).image).embedding
        assert not isinstance(embedding, LazyFuture)
        embedding.result()


def test_a_walk_that_ran_out_of_time_leaves_the_encoding_to_the_next(monkeypatch):
    monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda: 2)
    scene = make_scene(3, 256)
    said = scene.expressions[0].text
    with segagent_rt.load(backend="cpu") as runtime:
        canvas = runtime.open(scene.image)
        assert canvas.annotate(said, rules=StoppingRules(deadline=0.005)).stop == "deadline"
        assert canvas.annotate(said).prediction is not None
