"""SAM 3's tracker: a trunk with rotary positions, masks of 2/7 of the square, published folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.segmenters.sam import Sam
from segagent_rt.segmenters.sam_frame import Frame, pixels
from segagent_rt.types import Box, Click

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
)

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.sam3.export import LEVELS, export_sam3, load_sam3  # noqa: E402

pytestmark = pytest.mark.export

SIDE, MASK_SIDE = 224, 64
"""16 patches of 14 pixels a side, and four times as many logits."""

CLOSE = 1e-4
FEATURES = ["embedding", "hi0", "hi1"]


def described(side: int, **trunk: Any) -> dict[str, Any]:
    grid, width = side // 14, 32 if trunk else 256
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {"model_type": "sam3_vit_model", "image_size": side, **trunk},
        "backbone_feature_sizes": [[grid * scale] * 2 for scale in (4, 2, 1)],
        "fpn_hidden_size": width,
    }
    decoder = {"mlp_dim": 64, "iou_head_hidden_dim": 32} if trunk else {}
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": width, "image_size": side},
        "mask_decoder_config": {"hidden_size": width, **decoder},
    }


def small() -> dict[str, Any]:
    return described(
        SIDE, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=2,
        pretrain_image_size=84, window_size=8, global_attn_indexes=[1],
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(awake: Any) -> Any:
    """As transformers makes it, with the level that only the detector uses."""
    model = awake(Sam3TrackerModel(Sam3TrackerConfig(**small())))
    assert len(model.vision_encoder.neck.fpn_layers) == 4
    return model


@pytest.fixture(scope="module")
def folder(whole: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("sam3")
    whole.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(whole: Any, folder: Path) -> Any:
    """Without that level: only so does transformers add `no_memory_embedding` where it belongs."""
    assert folder.is_dir(), "saved as a whole"
    whole.vision_encoder.neck.fpn_layers = whole.vision_encoder.neck.fpn_layers[:LEVELS]
    return whole


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: Any) -> Any:
    return export_sam3(folder, tmp_path_factory.mktemp("graphs"))


def answers(model: Any, features: Any, asked: Any) -> dict[str, Any]:
    """All four masks with their scores, and the presence of an object."""
    net = model.mask_decoder
    net.dynamic_multimask_via_stability = False  # our host chooses
    parts = [
        model(image_embeddings=features, multimask_output=several, **asked.for_transformers())
        for several in (False, True)
    ]
    net.dynamic_multimask_via_stability = True
    return {
        "masks": torch.cat([part.pred_masks for part in parts], 2)[:, 0],
        "scores": torch.cat([part.iou_scores for part in parts], 2)[:, 0],
        "obj_score": parts[0].object_score_logits[:, 0],
    }


def feeds(features: Any, asked: Any, mask_side: int) -> dict[str, Any]:
    given = asked.for_graph(pads_with_box=True)
    given |= dict(zip(("hi0", "hi1", "embedding"), (f.numpy() for f in features), strict=True))
    given["mask_input"] = np.broadcast_to(given["mask_input"], (1, 1, mask_side, mask_side))
    return given


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    lint(exported)
    assert worst_check(exported) <= CLOSE
    settings = exported.settings
    assert (settings.side, settings.mask_side, settings.resize) == (SIDE, MASK_SIDE, "squash")
    assert settings.mean == settings.std == (127.5,) * 3


def test_the_encoder_equals_transformers(
    features: Any, graphs: Any, image: Any, error: Any
) -> None:
    found = graphs["encoder"].run({"image": image.numpy()}, FEATURES)
    for name, expected in zip(("hi0", "hi1", "embedding"), features, strict=True):
        assert error(found[name], expected) <= CLOSE


def test_the_first_frame_is_marked_as_in_the_video_model(
    model: Any, features: Any, image: Any, error: Any
) -> None:
    """The image model of transformers loses this embedding if it has the detector's level too."""
    video = Sam3TrackerVideoModel(Sam3TrackerVideoConfig(**small(), image_size=SIDE)).eval()
    rest = video.load_state_dict(model.state_dict(), strict=False)
    assert not rest.unexpected_keys
    for found, expected in zip(video.get_image_embeddings(image), features, strict=True):
        assert error(found, expected) <= CLOSE
    with torch.no_grad():
        kept = model.no_memory_embedding.clone()
        model.no_memory_embedding.zero_()
        unmarked = model.get_image_embeddings(image)[-1]
        model.no_memory_embedding.copy_(kept)
    assert error(unmarked, features[-1]) > 100 * CLOSE


def test_the_decoder_equals_transformers(
    model: Any, features: Any, graphs: Any, error: Any, prompt: Any
) -> None:
    asked = prompt(SIDE, MASK_SIDE)
    wanted = answers(model, features, asked)
    found = graphs["decoder"].run(feeds(features, asked, MASK_SIDE), list(wanted))
    for name, expected in wanted.items():
        assert error(found[name], expected) <= CLOSE, name


def test_a_picture_is_segmented_as_with_transformers(
    model: Any, exported: Any, graphs: Any
) -> None:
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 256, (9, 13, 3), np.uint8), np.ones((17, 21, 1), np.uint8))
    height, width = image.shape[:2]
    settings = exported.settings
    frame = Frame((height, width), SIDE, "squash")
    theirs = model.get_image_embeddings(
        torch.from_numpy(pixels(image, frame, settings.mean, settings.std))
    )
    clicks = [Click(30, 100, True), Click(200, 149, False), Click(120, 20, True)]
    scale = torch.tensor([SIDE / width, SIDE / height])
    corners = torch.tensor([[[11, 20, 200, 140]]]) * scale.repeat(2)
    sam = Sam(graphs["encoder"], graphs["decoder"], settings)
    ours, prior, low = sam.encode(image), None, None
    for count in (1, 2, 3):
        box = Box(11, 20, 200, 140) if count > 1 else None
        prior = sam.decode(ours, clicks[:count], prior=prior, box=box)
        out = model(
            image_embeddings=theirs,
            input_points=torch.tensor([[[(c.x, c.y) for c in clicks[:count]]]]) * scale,
            input_labels=torch.tensor([[[int(c.positive) for c in clicks[:count]]]]),
            input_boxes=corners if box else None,
            input_masks=low,
        )
        best = int(out.iou_scores[0, 0].argmax())
        chosen = out.pred_masks[:, 0, best : best + 1]
        low = chosen.clamp(-32, 32)
        drawn = torch.nn.functional.interpolate(chosen, (height, width), mode="bilinear")
        mask, drawn = prior.mask(), (drawn > 0)[0, 0].numpy()
        assert 0.005 < mask.mean() < 0.995
        assert np.mean(mask != drawn) < 2e-4


def test_the_published_folder_holds_the_detector_too(
    whole: Any, folder: Path, tmp_path: Path
) -> None:
    """Its parts have names of their own, and what the tracker does without is left out."""
    trunk, neck = "vision_encoder.backbone.", "vision_encoder.neck."
    tensors = {}
    for name, tensor in load_sam3(folder).state_dict().items():
        if name.startswith(trunk):
            tensors["detector_model." + name] = tensor
        elif name.startswith(neck):
            tensors["tracker_neck." + name.removeprefix(neck)] = tensor
        else:
            tensors["tracker_model." + name] = tensor
    for part in ("proj1", "proj2"):  # the neck's level for the detector
        for kind in ("weight", "bias"):
            shape = tensors[f"tracker_neck.fpn_layers.2.{part}.{kind}"]
            tensors[f"tracker_neck.fpn_layers.3.{part}.{kind}"] = torch.zeros_like(shape)
    tensors["tracker_model.memory_encoder.x.weight"] = torch.zeros(2)
    tensors["detector_model.text_encoder.x.weight"] = torch.zeros(2)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    tracker = json.loads((folder / "config.json").read_text())
    tracker["model_type"] = "sam3_tracker_video"
    for part in ("prompt_encoder_config", "mask_decoder_config"):
        tracker[part]["model_type"] = f"sam3_tracker_video_{part.removesuffix('_config')}"
    config = {"model_type": "sam3_video", "tracker_config": tracker, "detector_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain, published = load_sam3(folder).state_dict(), load_sam3(tmp_path).state_dict()
    assert plain.keys() == published.keys()
    assert all(torch.equal(published[name], plain[name]) for name in plain)


def test_a_file_and_another_family_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"x")
    with pytest.raises(CheckpointInvalid, match="is a file") as caught:
        load_sam3(tmp_path / "sam3.pt")
    assert "facebook/sam3" in str(caught.value.hint)
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(CheckpointInvalid, match="of type sam2, not sam3_tracker"):
        load_sam3(tmp_path)


@pytest.mark.slow
def test_graphs_of_the_published_size(awake: Any, tmp_path: Path, session: Any, error: Any) -> None:
    """1008 pixels, widths and windows as published, with one layer of each kind instead of 32."""
    from .conftest import Prompt

    side, mask_side = 1008, 288
    config = described(side) | {}
    config["vision_config"]["backbone_config"] |= {
        "num_hidden_layers": 2, "global_attn_indexes": [1],
    }  # fmt: skip
    model = awake(Sam3TrackerModel(Sam3TrackerConfig(**config)))
    assert model.config.vision_config.backbone_config.hidden_size == 1024
    model.save_pretrained(tmp_path / "checkpoint")
    model.vision_encoder.neck.fpn_layers = model.vision_encoder.neck.fpn_layers[:LEVELS]
    (tmp_path / "graphs").mkdir()
    exported = export_sam3(tmp_path / "checkpoint", tmp_path / "graphs")
    assert (exported.settings.side, exported.settings.mask_side) == (side, mask_side)
    graphs = {role: session(path) for role, path in exported.graphs.items()}
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    features = model.get_image_embeddings(image)
    found = graphs["encoder"].run({"image": image.numpy()}, FEATURES)
    shapes = {"hi0": (1, 32, 288, 288), "hi1": (1, 64, 144, 144), "embedding": (1, 256, 72, 72)}
    for (name, shape), expected in zip(shapes.items(), features, strict=True):
        assert found[name].shape == shape
        difference = error(found[name], expected)
        print(f"{name}: {difference:.1e}")
        assert difference <= CLOSE
    for clicks, box, mask in ((1, False, False), (2, False, True), (9, False, False),
                              (2, True, False), (9, True, True)):  # fmt: skip
        asked = Prompt(clicks, box, mask, side, mask_side)
        wanted = answers(model, features, asked)
        made = graphs["decoder"].run(feeds(features, asked, mask_side) | found, list(wanted))
        differences = {name: error(made[name], wanted[name]) for name in wanted}
        ours, theirs = made["masks"] > 0, wanted["masks"].numpy() > 0
        overlap = (ours & theirs).sum() / (ours | theirs).sum()
        print(f"{clicks} clicks, box {box}, mask {mask}: {differences} IoU {overlap:.5f}")
        assert max(differences.values()) <= CLOSE
        assert overlap >= 0.999
