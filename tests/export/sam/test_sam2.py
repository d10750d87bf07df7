"""SAM 2 and 2.1: finer maps, presence, and the host's rules that differ from SAM's."""

from __future__ import annotations

import dataclasses
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

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import Sam2Config, Sam2Model  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.sam2.export import export_sam2, load_sam2  # noqa: E402
from segagent_rt_export.sources import sam2_layout, sam_layout  # noqa: E402

pytestmark = pytest.mark.export

SIDE = 128
CLOSE = 1e-4
FEATURES = ["embedding", "hi0", "hi1"]


@pytest.fixture(scope="module")
def model(awake: Any) -> Any:
    widths = [16, 32, 48, 64]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 2, 2, 4],
        "window_size_per_stage": [8, 4, 6, 3],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [3, 3],
    }
    vision = {
        "backbone_config": trunk,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    return awake(Sam2Model(config))


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("sam2")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: Any) -> Any:
    return export_sam2(folder, tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def steady(model: Any) -> Any:
    """Without the choice between the first mask and the others, which our host makes."""
    model.mask_decoder.dynamic_multimask_via_stability = False
    yield model
    model.mask_decoder.dynamic_multimask_via_stability = True


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    lint(exported)
    assert worst_check(exported) <= CLOSE


def test_the_encoder_equals_transformers(
    features: Any, graphs: Any, image: Any, error: Any
) -> None:
    found = graphs["encoder"].run({"image": image.numpy()}, FEATURES)
    for name, expected in zip(("hi0", "hi1", "embedding"), features, strict=True):
        assert error(found[name], expected) <= CLOSE


def test_the_decoder_equals_transformers(
    steady: Any, features: Any, graphs: Any, prompt: Any, error: Any
) -> None:
    asked = prompt(SIDE)
    parts = [
        steady(image_embeddings=features, multimask_output=several, **asked.for_transformers())
        for several in (False, True)
    ]
    masks = torch.cat([part.pred_masks for part in parts], 2)[:, 0]
    scores = torch.cat([part.iou_scores for part in parts], 2)[:, 0]
    feeds = asked.for_graph(pads_with_box=True)
    feeds |= dict(zip(("hi0", "hi1", "embedding"), (f.numpy() for f in features), strict=True))
    feeds["mask_input"] = np.broadcast_to(feeds["mask_input"], (1, 1, SIDE // 4, SIDE // 4))
    found = graphs["decoder"].run(feeds, ["masks", "scores", "obj_score"])
    assert error(found["masks"], masks) <= CLOSE
    assert error(found["scores"], scores) <= CLOSE
    assert error(found["obj_score"], parts[0].object_score_logits[:, 0]) <= CLOSE


def test_forgetting_the_padding_after_a_box_is_seen(
    steady: Any, features: Any, graphs: Any, error: Any
) -> None:
    """A planted fault: SAM's rule, no padding point after a box, is not SAM 2's."""
    from .conftest import Prompt

    asked = Prompt(2, box=True, mask=True, side=SIDE)
    out = steady(image_embeddings=features, multimask_output=True, **asked.for_transformers())
    feeds = asked.for_graph(pads_with_box=False)
    feeds |= dict(zip(("hi0", "hi1", "embedding"), (f.numpy() for f in features), strict=True))
    found = graphs["decoder"].run(feeds, ["masks"])
    assert error(found["masks"][:, 1:], out.pred_masks[:, 0]) > 5 * CLOSE


def test_a_picture_is_segmented_as_with_transformers(
    model: Any, exported: Any, graphs: Any
) -> None:
    """Squashed frame, padding after the box, feedback within 32, one resize of the logits."""
    rng = np.random.default_rng(3)
    image = np.kron(rng.integers(0, 256, (9, 13, 3), np.uint8), np.ones((17, 21, 1), np.uint8))
    height, width = image.shape[:2]
    settings = exported.settings
    frame = Frame((height, width), SIDE, "squash")
    theirs = model.get_image_embeddings(
        torch.from_numpy(pixels(image, frame, settings.mean, settings.std))
    )
    clicks = [Click(30, 100, True), Click(200, 149, False), Click(120, 20, True)]
    corners = torch.tensor([[[11, 20, 200, 140]]])
    scale = torch.tensor([SIDE / width, SIDE / height])
    sam = Sam(graphs["encoder"], graphs["decoder"], settings)
    ours, prior, low = sam.encode(image), None, None
    for count in (1, 2, 3):
        box = Box(11, 20, 200, 140) if count > 1 else None
        prior = sam.decode(ours, clicks[:count], prior=prior, box=box)
        out = model(
            image_embeddings=theirs,
            input_points=torch.tensor([[[(c.x, c.y) for c in clicks[:count]]]]) * scale,
            input_labels=torch.tensor([[[int(c.positive) for c in clicks[:count]]]]),
            input_boxes=corners * scale.repeat(2) if box else None,
            input_masks=low,
        )
        best = int(out.iou_scores[0, 0].argmax())
        chosen = out.pred_masks[:, 0, best : best + 1]
        low = chosen.clamp(-32, 32)
        drawn = torch.nn.functional.interpolate(chosen, (height, width), mode="bilinear")
        drawn = (drawn > 0)[0, 0].numpy()
        assert 0.02 < drawn.mean() < 0.98
        assert np.mean(prior.mask() != drawn) < 2e-4


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_the_choice_of_a_single_mask_is_transformers(
    threshold: float, model: Any, exported: Any
) -> None:
    """The first mask if it is stable, else the best-scored of the others."""
    settings = dataclasses.replace(
        exported.settings, choice="stable", stability_delta=0.5, stability_threshold=threshold
    )
    net = model.mask_decoder
    kept = net.dynamic_multimask_stability_delta, net.dynamic_multimask_stability_thresh
    net.dynamic_multimask_stability_delta, net.dynamic_multimask_stability_thresh = 0.5, threshold
    choices = set()
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        spread = 1 + 9 * (seed % 3)
        masks = torch.randn(1, 1, 4, 32, 32, generator=rng) * spread
        scores = torch.rand(1, 1, 4, generator=rng)
        expected, _ = net._dynamic_multimask_via_stability(masks, scores)
        at = Sam(None, None, settings)._choose(masks[0, 0].numpy(), scores[0, 0].numpy())
        assert torch.equal(masks[0, 0, at], expected[0, 0, 0])
        choices.add(at == 0)
    net.dynamic_multimask_stability_delta, net.dynamic_multimask_stability_thresh = kept
    assert choices == {0.0: {True}, 0.9: {True, False}, 1.0: {False}}[threshold]


def test_the_published_folders_hold_the_video_model(folder: Path, tmp_path: Path) -> None:
    """Its tensors for tracking are left out; the configuration's parts have other names."""
    tensors = load_file(folder / "model.safetensors")
    extra = {
        "memory_attention.layers.0.linear1.weight": torch.zeros(2, 2),
        "memory_temporal_positional_encoding": torch.zeros(7, 1, 1, 2),
        "no_object_pointer": torch.zeros(1, 2),
        "occlusion_spatial_embedding_parameter": torch.zeros(1, 2),
    }
    save_file(tensors | extra, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "sam2_video"
    for part in ("prompt_encoder_config", "mask_decoder_config"):
        config[part]["model_type"] = f"sam2_video_{part.removesuffix('_config')}"
    config |= {"num_maskmem": 7, "memory_attention_num_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain, video = load_sam2(folder).state_dict(), load_sam2(tmp_path).state_dict()
    assert all(torch.equal(video[name], plain[name]) for name in plain)


def original_names() -> list[str]:
    """The tensors of `sam2.1_hiera_tiny.pt`, as the package sam2 1.1.0 names them."""
    path = Path(__file__).parents[2] / "golden" / "sam2_original_names.txt"
    return path.read_text("utf-8").split()


def test_every_original_name_has_its_place() -> None:
    with torch.device("meta"):
        wanted = set(Sam2Model(Sam2Config()).state_dict()) - {sam_layout.TIED}
        found = sam2_layout.renamed({name: torch.zeros(1, 256) for name in original_names()})
    assert set(found) == wanted


def test_a_file_of_the_authors_is_read_like_its_folder(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal weights, bit for bit, and equal sizes, from the tensors under their original names."""
    trunk = model.config.vision_config.backbone_config
    known = {(16, (1, 1, 2, 1)): ((8, 4, 6, 3), (3,))}
    monkeypatch.setattr(sam2_layout, "HIERA", known)
    monkeypatch.setattr(sam2_layout, "HEADS", {16: 1})
    monkeypatch.setattr(sam2_layout, "SIDE", SIDE)
    state = model.state_dict()
    names = original_names()
    marked = {name: torch.full((1, 1), at) for at, name in enumerate(names)}
    original: dict[str, Any] = {}
    for new, marks in sam2_layout.renamed(marked).items():
        if new in state:  # one table in transformers may be several in the original
            parts = state[new].split(1) if len(marks) > 1 else [state[new]]
            original |= {names[int(mark)]: p for mark, p in zip(marks, parts, strict=True)}
    for stage in (1, 2, 4):  # where the width changes, other blocks than in the true model
        for part in ("weight", "bias"):
            ours = f"blocks.{stage}.proj.{part}"
            original[f"image_encoder.trunk.{ours}"] = state[f"vision_encoder.backbone.{ours}"]
    original["memory_encoder.out_proj.weight"] = torch.zeros(2)
    path = tmp_path / "sam2.1_hiera_xs.pt"
    torch.save({"model": original}, path)
    loaded = load_sam2(path)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)
    sizes = loaded.config.vision_config.backbone_config.to_dict()
    heads = {"num_attention_heads_per_stage": [1, 2, 4, 8]}  # as all published ones have them
    assert {k: v for k, v in sizes.items() if v != trunk.to_dict()[k]} == heads


def test_an_unpublished_trunk_and_another_family_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": {f"image_encoder.trunk.{at}": torch.zeros(2) for at in range(3)}}, path)
    with pytest.raises(CheckpointInvalid, match="of another family"):
        load_sam2(path)
    torch.save({"mask_decoder.hf_token.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointInvalid, match="of another family") as caught:
        load_sam2(path)
    assert 'is family = "sam_hq" in the recipe?' in str(caught.value.hint)


@pytest.mark.parametrize("part", ["timm_backbone", "timm_wrapper", "resnet"])
def test_parts_of_other_models_are_not_built(folder: Path, tmp_path: Path, part: str) -> None:
    """timm's wrappers download weights when they are built."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["backbone_config"] = {
        "model_type": part, "backbone": "resnet18", "use_pretrained_backbone": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointInvalid, match="which is none of sam2"):
        load_sam2(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("blocks_per_stage", [1, 1, 10**9, 1]), ("image_size", [10**6, 10**6]),
     ("embed_dim_per_stage", [16, 32, 48, 10**12]), ("num_attention_heads_per_stage", [10**5] * 4),
     ("window_size_per_stage", [float("inf")] * 4), ("mlp_ratio", float("nan")),
     ("layer_norm_eps", 10**400), ("num_attention_heads", -(10**9))],
)  # fmt: skip
def test_absurd_dimensions_are_refused_before_anything_is_built(
    folder: Path, tmp_path: Path, field: str, value: Any
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["backbone_config"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointInvalid, match=f"{field} = .* is absurd"):
        load_sam2(tmp_path)


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(CheckpointInvalid, match="of type sam, not sam2 or sam2_video"):
        load_sam2(tmp_path)
