"""SimpleClick from checkpoint to mask, against results of the reference on real pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.image import load_image
from segagent_rt.metrics import iou
from segagent_rt.segmenters.resampling import corners, resample
from segagent_rt.segmenters.simple_click import SimpleClick, SimpleClickSettings
from segagent_rt.segmenters.window import WindowPrediction
from segagent_rt.types import Click

pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

from segagent_rt_export.families.simple_click.export import export_simple_click
from segagent_rt_export.sources.checkpoints import read_checkpoint

from .made_up import Sizes, shapes
from .plain import error

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "segagent" / "simpleclick"


@pytest.fixture(scope="module")
def segmenter(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleClick:
    exported = export_simple_click(golden / "xtiny.pth", tmp_path_factory.mktemp("xtiny"))
    assert exported.settings == SimpleClickSettings()
    return SimpleClick(
        open_session(exported.graphs["net"], SessionOptions("cpu", 2)), exported.settings
    )


def full_map(prediction: WindowPrediction) -> Any:
    side, rows, columns = len(prediction.probability), prediction.roi.rows, prediction.roi.columns
    full = np.zeros(prediction.size, np.float32)
    full[rows.first : rows.last + 1, columns.first : columns.last + 1] = resample(
        prediction.probability, corners(side, rows.length), corners(side, columns.length)
    )
    return full


@pytest.mark.parametrize("number", range(4))
def test_every_click_ends_as_in_the_reference(
    segmenter: SimpleClick, golden: Path, number: int
) -> None:
    """The whole chain, each click on our own result of the click before it."""
    case = np.load(golden / f"case_{number}.npz")
    image = load_image(golden / str(case["image"]))
    assert hashlib.sha256(image.tobytes()).hexdigest() == str(case["rgb_sha256"])
    embedding, clicks, prediction = segmenter.encode(image), [], None
    for step, (row, column, positive) in enumerate(case["clicks"]):
        clicks.append(Click(int(column), int(row), bool(positive)))
        prediction = segmenter.decode(embedding, clicks, prior=prediction)
        roi = prediction.roi
        found = [roi.rows.first, roi.rows.last, roi.columns.first, roi.columns.last]
        assert found == case["rois"][step].tolist()
        full, mask = full_map(prediction), prediction.mask()
        assert np.abs(full[::16, ::16] - case["prob_f32_grid"][step]).max() < 5e-5
        assert np.abs(full - case["prob_u16"][step] / 65535).max() < 1e-4
        bits = np.unpackbits(case["mask_bits"][step], count=mask.size).astype(bool)
        assert iou(mask, bits.reshape(mask.shape)) >= 0.9999


def test_the_head_answers_as_in_the_reference(segmenter: SimpleClick, golden: Path) -> None:
    """Logits of both views, before anything is averaged: neither is the mirror of the other."""
    case = np.load(golden / "case_0.npz")
    asked: list[Any] = []
    net = segmenter._net

    class Listening:
        def run(self, feeds: Any, outputs: Any, **_: Any) -> Any:
            asked.append(net.run(feeds, outputs)["logits"])
            return {"logits": asked[-1]}

    listening = SimpleClick(Listening(), SimpleClickSettings())  # type: ignore[arg-type]
    image = load_image(golden / str(case["image"]))
    row, column, _ = case["clicks"][0].tolist()
    listening.decode(listening.encode(image), [Click(column, row, positive=True)])
    assert error(asked[0], case["head_logits"][0]) < 1e-5


@pytest.mark.parametrize("fault", ["probabilities", "no flip", "threshold", "edges"])
def test_the_golden_gate_would_notice(
    segmenter: SimpleClick, golden: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each planted fault moves the first or second mask further than the gate allows."""
    settings = SimpleClickSettings(flip=fault != "no flip")
    net = segmenter._net.session  # each segmenter checks the shapes that its own settings say
    faulty = SimpleClick(net, settings)
    if fault == "probabilities":
        sigmoid = SimpleClick._probability
        monkeypatch.setattr(faulty, "_probability", lambda logits: mean_of_two(sigmoid, logits))
    if fault == "edges":
        where = "segagent_rt.segmenters.simple_click._points"
        monkeypatch.setattr(where, pixel_on_pixel)
    if fault == "threshold":
        faulty = SimpleClick(net, SimpleClickSettings(threshold=0.5))
    case = np.load(golden / "case_1.npz")
    image = load_image(golden / str(case["image"]))
    clicks = [Click(c, r, bool(sign)) for r, c, sign in case["clicks"][:2].tolist()]
    embedding = faulty.encode(image)
    prediction = faulty.decode(embedding, clicks[:1])
    prediction = faulty.decode(embedding, clicks, prior=prediction)
    bits = np.unpackbits(case["mask_bits"][1], count=image[..., 0].size).astype(bool)
    assert iou(prediction.mask(), bits.reshape(image.shape[:2])) < 0.9999


def mean_of_two(sigmoid: Any, logits: Any) -> Any:
    """The two views averaged after the sigmoid instead of before."""
    plain = SimpleClick(None, SimpleClickSettings(flip=False))  # type: ignore[arg-type]
    return (sigmoid(plain, logits[:1]) + sigmoid(plain, logits[1:, :, ::-1])) / 2


def pixel_on_pixel(clicks: Any, roi: Any, side: int) -> Any:
    """Clicks mapped as the pixels are."""
    return [
        (
            (side - 1) * (c.y - roi.rows.first) / (roi.rows.length - 1),
            (side - 1) * (c.x - roi.columns.first) / (roi.columns.length - 1),
            c.positive,
        )
        for c in clicks
    ]


def test_the_golden_checkpoint_is_the_released_layout(golden: Path) -> None:
    """Its names and shapes are what the made-up checkpoints here are made of."""
    tensors = read_checkpoint(golden / "xtiny.pth")["state_dict"]
    sizes = Sizes(width=160, pyramid=(96, 192, 288, 384), head=128)
    made_up = {
        name: shape
        for name, shape in shapes(sizes).items()
        if not name.startswith(("backbone.head.", "head.up_conv"))
    }
    assert made_up == {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.startswith(("backbone.head.", "head.up_conv"))
    }
