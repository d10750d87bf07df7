"""Small models of the SAM family with weights that make every part of them matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.types import Session

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from benchmarks.random_weights import awaken  # noqa: E402


@pytest.fixture(scope="session")
def sizes() -> dict[str, dict[str, Any]]:
    """A configuration of SAM. Six positions a side: windows of four need padding."""
    return {
        "vision_config": {
            "image_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "global_attn_indexes": [1],
            "window_size": 4,
            "output_channels": 32,
            "num_pos_feats": 16,
            "mlp_dim": 64,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 96},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    }


@pytest.fixture(scope="session")
def awake() -> Callable[[Any], Any]:
    """Gives a model weights that matter."""
    return awaken


@pytest.fixture(scope="session")
def session() -> Callable[[Path], Session]:
    return lambda path: open_session(path, SessionOptions("cpu", threads=2))


@pytest.fixture(scope="module")
def graphs(exported: Any, session: Any) -> dict[str, Any]:
    """Sessions by role, of what the module's `exported` gives."""
    return {role: session(path) for role, path in exported.graphs.items()}


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> Any:
    """Noise of the module's `SIDE`."""
    side = request.module.SIDE
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def features(model: Any, image: Any) -> Any:
    """In transformers' order: hi0, hi1, embedding."""
    return model.get_image_embeddings(image)


@pytest.fixture(scope="session")
def error() -> Callable[[Any, Any], float]:
    """Largest difference as a share of the largest expected magnitude."""

    def measure(found: Any, expected: Any) -> float:
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    return measure


@pytest.fixture(scope="session")
def worst_check(session: Any, error: Any) -> Callable[[Any], float]:
    """The largest error over an export's own checks."""

    def measure(exported: Any) -> float:
        graphs = {role: session(path) for role, path in exported.graphs.items()}
        assert {check.role for check in exported.checks} == set(graphs)
        return max(
            error(graphs[check.role].run(check.feeds, [name])[name], expected)
            for check in exported.checks
            for name, expected in check.expected.items()
        )

    return measure


REFUSED = {"If", "Loop", "Scan", "NonZero", "GridSample", "ScatterND", "GatherND", "TopK"}
NEEDLESS = {"Einsum", "Tile", "OneHot", "ArgMax", "Shape", "Range", "Mod"}


@pytest.fixture(scope="session")
def lint() -> Callable[[Any], None]:
    """No node that engines refuse or that a fixed shape makes needless, for ONNX Runtime 1.20."""

    def check(exported: Any) -> None:
        import onnx

        for path in exported.graphs.values():
            model = onnx.load(path)
            kinds = {node.op_type for node in model.graph.node}
            assert not kinds & (REFUSED | NEEDLESS)
            assert model.ir_version <= 10
            assert [opset.version for opset in model.opset_import if not opset.domain] == [18]

    return check


class Prompt:
    """Clicks, perhaps a box and a mask so far, in the model's square, as both sides take them."""

    def __init__(
        self, clicks: int, box: bool, mask: bool, side: int, mask_side: int | None = None
    ) -> None:
        rng = torch.Generator().manual_seed(clicks)
        self.points = torch.rand(1, clicks, 2, generator=rng) * side
        self.labels = torch.arange(clicks)[None] % 2
        corners = torch.tensor([[[0.1, 0.2], [0.7, 0.9]]]) * side
        self.corners = corners if box else None
        square = mask_side or side // 4
        low = torch.randn(1, 1, square, square, generator=rng) * 4
        self.mask = low if mask else None

    def for_transformers(self) -> dict[str, Any]:
        boxes = None if self.corners is None else self.corners.reshape(1, 1, 4)
        return {
            "input_points": self.points[:, None],
            "input_labels": self.labels[:, None],
            "input_boxes": boxes,
            "input_masks": self.mask,
        }

    def for_graph(self, pads_with_box: bool) -> dict[str, Any]:
        coords, labels = [self.points], [self.labels.float()]
        if self.corners is not None:
            coords.append(self.corners)
            labels.append(torch.tensor([[2.0, 3.0]]))
        if self.corners is None or pads_with_box:
            coords.append(torch.zeros(1, 1, 2))
            labels.append(torch.tensor([[-1.0]]))
        low = 1 if self.mask is None else self.mask.shape[-1]
        mask = torch.zeros(1, 1, low, low) if self.mask is None else self.mask
        return {
            "point_coords": torch.cat(coords, 1).numpy(),
            "point_labels": torch.cat(labels, 1).numpy(),
            "mask_input": mask.numpy(),
            "has_mask": np.array([self.mask is not None], np.float32),
        }


PROMPTS = [
    (1, False, False),
    (2, False, True),
    (9, False, False),
    (2, True, False),
    (9, True, True),
]


@pytest.fixture(params=PROMPTS, ids=lambda p: f"{p[0]}-clicks{'-box' * p[1]}{'-mask' * p[2]}")
def prompt(request: pytest.FixtureRequest) -> Callable[..., Prompt]:
    """A prompt for a model of a given side, and of a side of masks other than a quarter."""
    return lambda side, mask_side=None: Prompt(*request.param, side, mask_side)
