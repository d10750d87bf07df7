"""Checkpoints of SAM's and SAM-HQ's authors: the bundle that transformers' give, their masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.segmenters.sam import Sam
from segagent_rt.types import Box, Click

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from transformers import SamConfig, SamHQConfig, SamHQModel, SamModel  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.mobile_sam.export import load_mobile_sam  # noqa: E402
from segagent_rt_export.families.sam.export import export_sam, load_sam  # noqa: E402
from segagent_rt_export.families.sam_hq.export import export_sam_hq, load_sam_hq  # noqa: E402
from segagent_rt_export.graphs import sam_export  # noqa: E402
from segagent_rt_export.sources import sam_layout  # noqa: E402

from .torchvision_stub import import_or_skip  # noqa: E402

pytestmark = pytest.mark.export

SIDE = 96
GOLDEN = Path(__file__).parents[2] / "golden"


def original_names(family: str) -> list[str]:
    """The tensors of a small model, in order, as segment-anything 1.0 and -hq 0.3 name them."""
    return (GOLDEN / f"{family}_original_names.txt").read_text("utf-8").split()


def renamed(names: list[str]) -> list[str]:
    return list(sam_layout.renamed(dict.fromkeys(names, torch.zeros(1))))


@pytest.fixture(scope="module")
def models(awake: Any, sizes: Any) -> dict[str, Any]:
    decoder = sizes["mask_decoder_config"] | {"vit_dim": 32}
    hq = SamHQConfig(**sizes | {"mask_decoder_config": decoder})
    return {"sam": awake(SamModel(SamConfig(**sizes))), "sam_hq": awake(SamHQModel(hq))}


@pytest.fixture(scope="module")
def model(models: Any) -> Any:
    return models["sam"]


@pytest.fixture(scope="module")
def tensors(model: Any) -> dict[str, Any]:
    """The model's weights under the original names."""
    names, state = original_names("sam"), model.state_dict()
    return {old: state[new] for old, new in zip(names, renamed(names), strict=True)}


@pytest.fixture
def checkpoint(tensors: Any, tmp_path: Path) -> Path:
    torch.save(tensors, tmp_path / "sam_vit_xs.pth")
    return tmp_path / "sam_vit_xs.pth"


@pytest.mark.parametrize("family", ["sam", "sam_hq"])
def test_every_original_name_has_its_place(family: str, models: Any) -> None:
    names = renamed(original_names(family))
    assert set(names) == set(models[family].state_dict()) - {sam_layout.TIED}
    assert len(names) == len(original_names(family))


def test_a_sam_hq_file_is_read_like_its_folder(models: Any, tmp_path: Path) -> None:
    names, state = original_names("sam_hq"), models["sam_hq"].state_dict()
    tensors = {old: state[new] for old, new in zip(names, renamed(names), strict=True)}
    torch.save(tensors, tmp_path / "sam_hq_vit_xs.pth")
    found = load_sam_hq(tmp_path / "sam_hq_vit_xs.pth").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_sizes_are_read_off_the_tensors(checkpoint: Path, sizes: Any) -> None:
    config = load_sam(checkpoint).config.to_dict()
    for part, fields in sizes.items():
        assert {name: config[part][name] for name in fields} == fields


def test_both_formats_give_the_same_bundle(
    checkpoint: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal weights, bit for bit, and settings; what is traced is the same code."""
    monkeypatch.setattr(sam_export, "trace", lambda *arguments: None)
    model.save_pretrained(tmp_path / "folder")
    new, old = (export_sam(source, tmp_path) for source in (tmp_path / "folder", checkpoint))
    assert old.settings == new.settings
    for ours, theirs in zip(old.checks, new.checks, strict=True):
        for name, expected in theirs.expected.items():
            np.testing.assert_allclose(ours.expected[name], expected, atol=1e-5)
    weights = model.state_dict()
    found = load_sam(checkpoint).state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_checkpoint_of_something_else_is_refused(tensors: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointInvalid, match="something else than named tensors"):
        load_sam(path)
    torch.save({"backbone.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointInvalid, match="of another family"):
        load_sam(path)
    last = "mask_decoder.iou_prediction_head.layers.2.bias"
    torch.save({name: tensor for name, tensor in tensors.items() if name != last}, path)
    with pytest.raises(CheckpointInvalid, match="lacks the tensor"):
        load_sam(path)


PACKAGES = {
    "segment_anything": ("MaskDecoder", {}, export_sam),
    "segment_anything_hq": ("MaskDecoderHQ", {"vit_dim": 32}, export_sam_hq),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_masks_are_those_of_the_authors(
    package: str, awake: Any, tmp_path: Path, session: Any
) -> None:
    """Against their own predictor: picture, clicks, a box, and the last mask fed back."""
    modeling = import_or_skip(f"{package}.modeling")
    predictor_of = import_or_skip(package).SamPredictor
    decoder, extra, export = PACKAGES[package]
    original = awake(original_model(modeling, getattr(modeling, decoder), extra), seed=1)
    torch.save(original.state_dict(), tmp_path / "sam.pth")
    exported = export(tmp_path / "sam.pth", tmp_path)
    sam = Sam(*(session(exported.graphs[r]) for r in ("encoder", "decoder")), exported.settings)
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (9, 13, 3), np.uint8), np.ones((17, 21, 1), np.uint8))
    clicks = [Click(30, 100, True), Click(200, 149, False), Click(120, 20, True)]
    predictor = predictor_of(original)
    predictor.set_image(image)
    ours, prior, low = sam.encode(image), None, None
    for count in (1, 2, 3):
        box = Box(11, 20, 200, 140) if count > 1 else None
        prior = sam.decode(ours, clicks[:count], prior=prior, box=box)
        masks, scores, logits = predictor.predict(
            np.array([(c.x, c.y) for c in clicks[:count]]),
            np.array([int(c.positive) for c in clicks[:count]]),
            box=np.array([11, 20, 200, 140]) if box else None,
            mask_input=low,
        )
        best = int(scores.argmax())
        low = logits[[best]]
        error = np.abs(prior.logits - low[0]).max() / np.abs(low).max()
        print(f"{package}, {count} clicks: relative error of the logits {error:.1e}")
        assert error <= 1e-4
        assert 0.02 < masks[best].mean() < 0.98
        assert np.mean(prior.mask() != masks[best]) < 2e-4


def original_model(modeling: Any, decoder: Any, extra: dict[str, int]) -> Any:
    """A small SAM of segment-anything."""
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=SIDE,
            depth=3,
            embed_dim=32,
            num_heads=2,
            mlp_ratio=2,
            out_chans=32,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=[1],
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=32, image_embedding_size=(6, 6), input_image_size=(96, 96), mask_in_chans=16
        ),
        mask_decoder=decoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(2, embedding_dim=32, mlp_dim=64, num_heads=8),
            transformer_dim=32,
            iou_head_hidden_dim=32,
            **extra,
        ),
    )


def test_checkpoints_of_training_programs_are_read(
    tensors: Any, model: Any, tmp_path: Path
) -> None:
    """Beside an optimiser's state, and with the prefix of DataParallel."""
    state, path = model.state_dict(), tmp_path / "x.pth"
    prefixed = {f"module.{name}": tensor.half().float() for name, tensor in tensors.items()}
    for content in ({"model": tensors, "optimizer": {"lr": 1e-4}, "epoch": 3}, prefixed):
        torch.save(content, path)
        found = load_sam(path).state_dict()
        for name in state:
            torch.testing.assert_close(found[name], state[name], atol=0.01, rtol=0.01)
    with pytest.raises(CheckpointInvalid, match="is a folder, where a checkpoint's file"):
        load_mobile_sam(tmp_path)


def test_a_wrong_family_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"image_encoder.trunk.blocks.0.norm1.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointInvalid, match="of another family: it has no tensor") as caught:
        load_sam(path)
    assert 'is family = "sam2" in the recipe?' in str(caught.value.hint)
