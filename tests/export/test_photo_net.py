"""Export of the photo segmenter with random weights: the graphs compute what torch does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from segagent_rt.metrics import max_error  # noqa: E402
from segagent_rt.runtime import open_segmenter  # noqa: E402
from segagent_rt.segmenters.photo_net import MAPS  # noqa: E402
from segagent_rt.types import Box, Click  # noqa: E402
from segagent_rt_export.families.photo_net.export import (  # noqa: E402
    export_photo_net,
    export_segmenter,
    torch_checks,
)
from segagent_rt_export.families.photo_net.net import PhotoSegmenterNet  # noqa: E402
from segagent_rt_export.gate.inputs import SceneInputs  # noqa: E402
from segagent_rt_export.passes.calibration import CPU  # noqa: E402

pytestmark = pytest.mark.export

SIDE = 64


class FewScenes(SceneInputs):
    """Two images to measure ranges on."""

    def measured(self):
        return (image for image, _ in zip(super().measured(), range(2), strict=False))


@pytest.fixture(scope="module")
def net():
    """Norms behind sums have statistics of their own, so folding them has something to do."""
    torch.manual_seed(4)
    net = PhotoSegmenterNet().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return net


@pytest.fixture(scope="module")
def graphs(net, tmp_path_factory):
    return export_photo_net(net, SIDE, tmp_path_factory.mktemp("graphs"))


def test_graphs_compute_what_the_unfolded_net_computes(net, graphs):
    import onnxruntime

    for check in torch_checks(net, SIDE):
        session = onnxruntime.InferenceSession(graphs[check.role])
        found = session.run(list(check.expected), dict(check.feeds))
        for ours, theirs in zip(found, check.expected.values(), strict=True):
            assert max_error(ours, theirs) < 1e-4


def test_padding_is_part_of_the_convolutions(graphs):
    """A padding node between two convolutions would be computed in fp32."""
    model = onnx.load(graphs["encoder"])
    assert not [node for node in model.graph.node if node.op_type == "Pad"]


def test_a_prompt_computes_nothing_that_the_image_alone_decides(graphs):
    model = onnx.load(graphs["decoder"])
    assert [i.name for i in model.graph.input] == [*MAPS, "points", "box", "prior_logits"]
    still, moved, worked = set(MAPS), {"points", "box", "prior_logits"}, set()
    for node in model.graph.node:
        if moved.intersection(node.input):
            moved.update(node.output)
        elif still.intersection(node.input):
            still.update(node.output)
            worked.add(node.op_type)
    assert worked <= {"Shape", "Reshape", "Unsqueeze", "Transpose", "Flatten"}


def test_the_part_runs_in_integers_and_takes_clicks_and_boxes(net, tmp_path):
    part = export_segmenter(net, SIDE, tmp_path / "part", FewScenes(2))
    assert part.manifest.family == "photo_net"
    assert part.manifest.variants["cpu-w8a8-static"].integers == ("encoder", "decoder")
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    masks = []
    for variant in ("cpu-w8a8-static", "cpu-w8"):
        sessions = []

        def opened(part, role, variant=variant, sessions=sessions):
            sessions.append(part.session(role, CPU, variant))
            return sessions[-1]

        segmenter = open_segmenter(part, opened)
        embedding = segmenter.encode(image)
        first = segmenter.decode(embedding, [], box=Box(10, 5, 60, 30))
        second = segmenter.decode(embedding, [Click(20, 10, True)], prior=first)
        assert np.isfinite(first.logits).all()
        assert 0 <= second.score <= 1
        masks.append(second.logits)
        for session in sessions:
            session.close()
    assert np.corrcoef(masks[0].ravel(), masks[1].ravel())[0, 1] > 0.8
    nodes = onnx.load(part.graphs("encoder", "cpu-w8a8-static")[0].path, load_external_data=False)
    exact = [n for n in nodes.graph.node if n.op_type == "Conv" and "Dequant" not in n.input[0]]
    assert len(exact) > 0
