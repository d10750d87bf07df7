"""Trajectories made with an exported SimpleClick equal those of the reference's own generator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.data.demonstrate import EncodedImage, Limits, demonstrate, same_masks
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.trajectories import Demonstration, read_trajectories
from segagent_rt.image import load_image
from segagent_rt.metrics import iou
from segagent_rt.segmenters.simple_click import SimpleClick

pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

from segagent_rt_export.families.simple_click.export import export_simple_click

pytestmark = [pytest.mark.export, pytest.mark.slow]

SAME = 0.9995
"""IoU of masks of two runtimes: the suggested gate of the golden data."""


def test_clicks_masks_and_ends_are_those_of_the_reference(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    golden = shared / "segagent"
    folder = golden / "trajectories"
    exported = export_simple_click(
        golden / "simpleclick" / "xtiny.pth", tmp_path_factory.mktemp("xtiny")
    )
    net = open_session(exported.graphs["net"], SessionOptions("cpu", 2))
    segmenter = SimpleClick(net, exported.settings)
    thresholds = json.loads((folder / "meta.json").read_text())["thresholds"]
    for name in ("trace_iou_low.json", "trace_iou098.json"):
        document = json.loads((folder / name).read_text())
        limits = Limits(thresholds["max_clicks"], thresholds[name])
        for recorded in read_trajectories(document, name, ReadContext(ImageFolders((folder,)))):
            sample = recorded.sample
            bench = EncodedImage(segmenter, segmenter.encode(load_image(sample.image)))
            made = demonstrate(sample.mask.mask(), recorded.start, bench, limits)
            assert [m.click for m in made] == [m.click for m in recorded.clicks], sample.name
            for ours, theirs in zip(made, recorded.clicks, strict=True):
                assert iou(ours.mask.mask(), theirs.mask.mask()) >= SAME
            again = Demonstration(sample, recorded.start, tuple(made))
            assert same_masks(again, bench) == len(made), "a replay gives every pixel again"
