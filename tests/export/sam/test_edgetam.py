"""EdgeTAM: our RepViT under transformers' EdgeTAM, and its branches merged at export."""

from __future__ import annotations

import hashlib
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from safetensors.torch import save_file  # noqa: E402
from transformers import EdgeTamConfig, EdgeTamModel  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.edgetam.export import export_edgetam, load_edgetam  # noqa: E402
from segagent_rt_export.families.edgetam.repvit import RepVit, merged_branches  # noqa: E402

from .torchvision_stub import import_or_skip  # noqa: E402

pytestmark = pytest.mark.export

SIDE = 128
CLOSE = 1e-4
WIDTHS, DEPTHS = (16, 24, 32, 48), (2, 2, 3, 1)
REPVIT_M1 = "480fc028c49dfee923ddaa85e7179a88453a2ebc2502039b9674cd036f86ea2a"
"""SHA-256 of the sorted lines `name [shape]` of timm 1.0.31's `repvit_m1` as feature maps."""


class Trunk(torch.nn.Module):
    """Stands where transformers has its wrapper of timm, and answers as it does."""

    def __init__(self) -> None:
        super().__init__()
        self.timm_model = RepVit(WIDTHS, DEPTHS)

    def forward(self, pixel_values: Any, **others: Any) -> Any:
        maps = self.timm_model(pixel_values)
        return types.SimpleNamespace(last_hidden_state=maps, hidden_states=None)


@pytest.fixture(scope="module")
def model(awake: Any) -> Any:
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model"},
        "backbone_channel_list": list(WIDTHS[::-1]),
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    config = EdgeTamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    model = EdgeTamModel(config)
    model.vision_encoder.backbone = Trunk()
    model.mask_decoder.dynamic_multimask_via_stability = False
    return awake(model)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: Any) -> Path:
    """As published: the video model, its trunk from timm."""
    path = tmp_path_factory.mktemp("edgetam")
    extra = {"spatial_perceiver.latents_1d": torch.zeros(2), "memory_encoder.x": torch.zeros(2)}
    save_file(model.state_dict() | extra, path / "model.safetensors")
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["model_type"] = "edgetam_video"
    config["vision_config"]["backbone_config"] = {
        "model_type": "timm_wrapper",
        "architecture": "repvit_m1.dist_in1k",
        "model_args": {"features_only": True, "out_indices": [0, 1, 2, 3]},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: Any) -> Any:
    return export_edgetam(folder, tmp_path_factory.mktemp("graphs"))


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    lint(exported)
    assert exported.family == "edgetam"
    assert worst_check(exported) <= CLOSE


def test_masks_equal_transformers(
    model: Any, exported: Any, session: Any, prompt: Any, error: Any
) -> None:
    """From the image to the masks; transformers runs every branch and batch norm apart."""
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    asked = prompt(SIDE)
    parts = [
        model(pixel_values=image, multimask_output=several, **asked.for_transformers())
        for several in (False, True)
    ]
    masks = torch.cat([part.pred_masks for part in parts], 2)[:, 0]
    names = ["embedding", "hi0", "hi1"]
    features = session(exported.graphs["encoder"]).run({"image": image.numpy()}, names)
    feeds = asked.for_graph(pads_with_box=True) | features
    feeds["mask_input"] = np.broadcast_to(feeds["mask_input"], (1, 1, SIDE // 4, SIDE // 4))
    found = session(exported.graphs["decoder"]).run(feeds, ["masks"])
    assert error(found["masks"], masks) <= CLOSE


def test_merging_branches_changes_nothing_but_their_number(awake: Any, error: Any) -> None:
    net = awake(RepVit(WIDTHS, DEPTHS))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    merged = merged_branches(net)
    for found, expected in zip(merged(image), net(image), strict=True):
        assert error(found, expected) <= 1e-5
    mixers = sum(DEPTHS) + len(DEPTHS) - 1
    assert convolutions(net) - convolutions(merged) == mixers
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in merged.modules())


def convolutions(net: Any) -> int:
    return sum(isinstance(module, torch.nn.Conv2d) for module in net.modules())


def test_names_and_shapes_are_those_of_timm() -> None:
    net = RepVit((48, 96, 192, 384), (2, 2, 14, 2))
    lines = sorted(f"{name} {list(t.shape)}" for name, t in net.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == REPVIT_M1


def test_maps_are_those_of_timm(awake: Any, error: Any) -> None:
    """In double precision: random weights let the maps grow to a million, and rounding with it."""
    timm = import_or_skip("timm")
    theirs = awake(timm.create_model("repvit_m1", features_only=True, out_indices=[0, 1, 2, 3]))
    net = RepVit((48, 96, 192, 384), (2, 2, 14, 2))
    net.load_state_dict(theirs.state_dict())
    net = merged_branches(net.requires_grad_(False).double())
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)).double()
    worst = max(
        error(found, expected)
        for found, expected in zip(net(image), theirs.double()(image), strict=True)
    )
    print(f"timm: relative error of the maps {worst:.1e}")
    assert worst <= 1e-12


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam2_video"}')
    with pytest.raises(CheckpointInvalid, match="of type sam2_video, not edgetam"):
        load_edgetam(tmp_path)
