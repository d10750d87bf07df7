"""The graph builder: what goes into the file beside the graph, and what is left after a failure."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")

from segagent_rt.backends.session import SessionOptions, open_session  # noqa: E402
from segagent_rt_export.graphs.builder import GraphBuilder, new_graph, new_weights  # noqa: E402

pytestmark = pytest.mark.export


def test_large_weights_stream_beside_the_graph_and_small_ones_are_stored_once(tmp_path):
    path = tmp_path / "sum.onnx"
    large = np.arange(3000, dtype=np.float32)
    with new_graph(path) as g:
        x = g.input("x", np.float32, [3000])
        first = g.add(x, g.weight(large[:1]))
        again = g.add(first, g.weight(large[:1]))
        g.output(g.add(again, g.add(x, g.weight(large))), "y", np.float32, [3000])
        assert (tmp_path / "sum.onnx.data").exists()
    model = onnx.load(path, load_external_data=False)
    assert len(model.graph.initializer) == 2
    places = {e.key: e.value for t in model.graph.initializer for e in t.external_data}
    assert places["location"] == "sum.onnx.data"
    assert int(places["offset"]) % 64 == 0
    assert (tmp_path / "sum.onnx.data").stat().st_size == 12000
    y = open_session(path, SessionOptions("cpu", 1)).run({"x": large}, ["y"])["y"]
    assert np.array_equal(y, 3 * large)


def test_a_graph_without_large_weights_has_no_second_file(tmp_path):
    with new_graph(tmp_path / "one.onnx") as g:
        g.output(g.input("x", np.float32, [1]), "y", np.float32, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]


def test_nothing_is_left_of_a_graph_that_failed(tmp_path):
    def fail():
        with new_graph(tmp_path / "bad.onnx") as g:
            g.weight(np.zeros(10_000, np.float32))
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_graphs_share_a_file_and_what_both_have_lies_there_once(tmp_path):
    same, other = (np.full(1000, value, np.float32) for value in (1, 2))
    with new_weights(tmp_path / "shared.data") as weights:
        for name, own in (("a", same), ("b", other)):
            with new_graph(tmp_path / f"{name}.onnx", weights=weights) as g:
                x = g.add(g.input("x", np.float32, [1000]), g.weight(same))
                g.output(g.mul(x, g.weight(own)), "y", np.float32, [1000])
    assert (tmp_path / "shared.data").stat().st_size == 4032 + 4000  # the next begins at 64 bytes
    for name, factor in (("a", 1), ("b", 2)):
        session = open_session(tmp_path / f"{name}.onnx", SessionOptions("cpu", 1))
        assert np.array_equal(session.run({"x": same}, ["y"])["y"], 2 * same * factor)


def test_a_shared_file_goes_with_the_graph_that_failed(tmp_path):
    def fail():
        with (
            new_weights(tmp_path / "shared.data") as weights,
            new_graph(tmp_path / "bad.onnx", weights=weights) as g,
        ):
            g.weight(np.zeros(10_000, np.float32))
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_graphs_without_a_file_hold_everything():
    g = GraphBuilder("inside")
    g.output(g.add(g.input("x", np.float32, [500]), g.weight(np.ones(500, np.float32))), "y",
             np.float32, [500])  # fmt: skip
    onnx.checker.check_model(g.model(), full_check=True)
    assert g.model().graph.initializer[0].raw_data
