"""Graphs in pieces compute what they compute whole, and several tasks share each piece."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
torch = pytest.importorskip("torch", reason="needs the extra `export`")

from segagent_rt.backends.session import open_session  # noqa: E402
from segagent_rt_export.gate import streaming  # noqa: E402
from segagent_rt_export.gate.streaming import CPU, LockstepRunner, LockstepSession, cut  # noqa: E402
from segagent_rt_export.graphs.builder import new_graph  # noqa: E402
from segagent_rt_export.sources.lazy_weights import unloaded  # noqa: E402

pytestmark = pytest.mark.export

LAYERS, WIDTH = 5, 32
LAYER = 4 * WIDTH * WIDTH
"""Bytes of a layer's weight."""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """x @ W five times, each with a buffer that grows by the sum; the first value is used last."""
    rng, path = np.random.default_rng(0), tmp_path / "chain.onnx"
    with new_graph(path) as g:
        x = first = g.input("x", np.float32, ["N", WIDTH])
        for number in range(LAYERS):
            weight = rng.standard_normal((WIDTH, WIDTH), np.float32) / 6
            x = g.node("MatMul", [x, g.weight(weight)])
            past = g.input(f"past.{number}", np.float32, ["N", WIDTH])
            x = g.node("Add", [x, past], g.output_of(f"present.{number}", np.float32, ["N", WIDTH]))
        g.output(g.add(x, first), "y", np.float32, ["N", WIDTH])
        g.output(g.mul(x, first), "unasked", np.float32, ["N", WIDTH])
    return path


def quiet(text: str) -> None: ...


def ask(session: Any, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Two calls, the second on what the first left in the buffers. Sums may go in another order."""
    rng = np.random.default_rng(seed)
    buffers = [session.allocate((seed + 1, WIDTH), np.float32) for _ in range(LAYERS)]
    for _ in range(2):
        feeds = {f"past.{n}": buffer for n, buffer in enumerate(buffers)}
        feeds["x"] = rng.standard_normal((seed + 1, WIDTH), np.float32)
        into = {f"present.{n}": buffer for n, buffer in enumerate(buffers)}
        y = session.run(feeds, ["y"], into=into)["y"]
    return y, [buffer.numpy().copy() for buffer in buffers]


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
def test_pieces_compute_what_the_graph_computes(chain, monkeypatch, layers):
    monkeypatch.setattr(streaming, "PARTITION_BYTES", layers * LAYER)
    whole, runner = open_session(chain, CPU), LockstepRunner(quiet)
    streamed = LockstepSession(chain, runner)
    found = runner.run_all([partial(ask, streamed, seed) for seed in range(4)])
    for seed, (y, buffers) in enumerate(found):
        wanted, kept = ask(whole, seed)
        np.testing.assert_allclose(y, wanted, atol=1e-5)
        np.testing.assert_allclose(buffers, kept, atol=1e-5)
    assert sorted(path.name for path in chain.parent.iterdir()) == ["chain.onnx", "chain.onnx.data"]


def test_no_piece_is_larger_than_it_may_be(chain):
    graph = onnx.load(chain, load_external_data=False).graph
    for layers in (1, 2, 3):
        pieces = cut(graph, layers * LAYER)
        sizes = [sum(map(streaming.size_of, piece.weights)) for piece in pieces]
        assert max(sizes) == layers * LAYER
        assert len(pieces) == -(-LAYERS // layers)
        assert [node for piece in pieces for node in piece.nodes] == list(graph.node)


def test_a_piece_is_loaded_once_for_everybody(chain, monkeypatch):
    monkeypatch.setattr(streaming, "PARTITION_BYTES", LAYER)
    loaded, runner = [], LockstepRunner(quiet)
    original = streaming.open_session
    monkeypatch.setattr(
        streaming, "open_session", lambda *given: loaded.append(1) or original(*given)
    )
    runner.run_all([partial(ask, LockstepSession(chain, runner), seed) for seed in range(1)])
    alone = len(loaded)
    shared = LockstepSession(chain, runner)
    runner.run_all([partial(ask, shared, seed) for seed in range(6)])
    assert alone == len(loaded) - alone == 2 * LAYERS


def test_a_task_that_fails_holds_nobody_up(chain):
    runner, ended = LockstepRunner(quiet), []
    session = LockstepSession(chain, runner)

    def stumble() -> None:
        raise ValueError("stumbled")

    def arrive() -> None:
        ask(session, 2)
        ended.append(True)

    with pytest.raises(ValueError, match="stumbled"):
        runner.run_all([arrive, stumble, arrive])
    assert ended == [True, True]


def test_a_graph_that_cannot_be_loaded_ends_every_task(chain):
    chain.with_name("chain.onnx.data").unlink()
    runner = LockstepRunner(quiet)
    session = LockstepSession(chain, runner)
    with pytest.raises(Exception, match="chain"):
        runner.run_all([partial(ask, session, seed) for seed in range(3)])


def test_a_model_without_weights_answers_as_with_them():
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4), Scaled())

    whole = build().eval()
    state = {f"at.{name}": tensor for name, tensor in whole.state_dict().items()}
    asked: list[str] = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return state[f"at.{name}"].clone()

    hollow = unloaded(build, read)
    x = torch.arange(9)
    for _ in range(2):
        assert torch.equal(hollow(x), whole(x))
    assert asked == [*whole.state_dict()] * 2
    assert all(held.is_meta for held in hollow.parameters())


class Scaled(torch.nn.Module):
    """A parameter of its own beside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(4))
        self.inner = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x * self.scale)
        return result
