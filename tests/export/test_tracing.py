"""The one place where torch modules become ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segagent_rt.backends.session import SessionOptions, open_session

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

from segagent_rt_export.graphs import tracing  # noqa: E402

pytestmark = pytest.mark.export


@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_weights_too_large_for_one_file_lie_beside_it(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either way the graph opens, computes the same, and takes an open axis of any length."""
    monkeypatch.setattr(tracing, "INLINE_LIMIT", limit)
    net = torch.nn.Linear(64, 32)
    path = tmp_path / "net.onnx"
    tracing.trace(net, {"input": torch.zeros(3, 64)}, path, ["y"], {"input": 0})
    assert (tmp_path / "net.onnx.data").exists() is (limit == 1000)
    x = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    found = open_session(path, SessionOptions("cpu", threads=1)).run({"input": x}, ["y"])["y"]
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_graph_does_not_say_where_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    tracing.trace(torch.nn.Linear(4, 4), {"input": torch.zeros(3, 4)}, path, ["y"])
    content = path.read_bytes()
    assert b"stack_trace" not in content
    assert str(Path(torch.__file__).parent).encode() not in content
