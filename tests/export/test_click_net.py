"""The net that ships, parted for export: what a picture needs once, and what each click needs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from segagent_rt.segmenters.click_net import MAPS  # noqa: E402
from segagent_rt_export.families.click_net.export import (  # noqa: E402
    ClickDecoderGraph,
    ClickEncoderGraph,
    export_click_net,
    fuse,
    part,
)
from segagent_rt_export.families.click_net.net import SIDE, Begun, SegmenterNet  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return SegmenterNet().eval()


def test_parted_and_whole_draw_the_same_mask(net):
    image = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    points = torch.tensor([[[0.3, 0.6, 1.0], [0.8, 0.2, 0.0]]])
    prior = torch.randn(1, 1, SIDE, SIDE)
    parted = part(fuse(net))
    assert sum(isinstance(module, Begun) for module in parted.modules()) == 2
    with torch.no_grad():
        whole = net.decoder(
            *net.encoder(image.permute(0, 3, 1, 2).float()), points, torch.sigmoid(prior)
        )
        apart = ClickDecoderGraph(parted)(*ClickEncoderGraph(parted)(image), points, prior)
    for ours, theirs in zip(apart, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_click_computes_nothing_that_the_picture_alone_decides(net, tmp_path):
    """Every value of the decoder's graph that is not a constant depends on the clicks or the mask
    before them, but for the maps themselves and their shapes."""
    model = onnx.load(export_click_net(net, tmp_path)["decoder"], load_external_data=False)
    assert [given.name for given in model.graph.input] == [*MAPS, "points", "prior_logits"]
    still, moved = set(MAPS), {"points", "prior_logits"}
    worked = []
    for node in model.graph.node:
        if moved.intersection(node.input):
            moved.update(node.output)
        elif still.intersection(node.input):
            still.update(node.output)
            worked.append(node.op_type)
    assert set(worked) <= {"Shape", "Reshape", "Unsqueeze", "Transpose"}


def test_keys_have_length_one(net):
    image = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        keys = ClickEncoderGraph(part(fuse(net)))(image)[MAPS.index("keys")]
    np.testing.assert_allclose(np.linalg.norm(keys.numpy(), axis=1), 1, atol=1e-4)
