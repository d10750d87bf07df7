"""SAM-HQ: its sharper mask is added to every mask, and its encoder's share of that is cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.segmenters.sam import Sam, SamSettings
from segagent_rt.types import Click

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from transformers import SamHQConfig, SamHQModel  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.sam_hq.export import export_sam_hq, export_sam_hq_for_gpu  # noqa: E402

pytestmark = pytest.mark.export

SIDE = 96
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model(awake: Any, sizes: Any) -> Any:
    decoder = sizes["mask_decoder_config"] | {"vit_dim": 32}
    return awake(SamHQModel(SamHQConfig(**sizes | {"mask_decoder_config": decoder})))


@pytest.fixture
def mended(model: Any) -> Any:
    """transformers' model, its masks drawn on the image as the two-way transformer leaves it.

    It draws them on the image as it was before (5.23); SAM-HQ's authors do as they should.
    """
    seen = {}
    decoder = model.mask_decoder

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen["image"] = output[1]

    def replace(module: Any, inputs: Any) -> Any:
        return (seen["image"][:, 0].transpose(1, 2).reshape(inputs[0].shape),)

    hooks = [
        decoder.transformer.register_forward_hook(keep),
        decoder.upscale_conv1.register_forward_pre_hook(replace),
    ]
    yield model
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("sam_hq")
    model.save_pretrained(folder)
    made = export_sam_hq(folder, tmp_path_factory.mktemp("graphs"))
    form = export_sam_hq_for_gpu(folder, tmp_path_factory.mktemp("gpu"))
    return replace(made, graphs={**made.graphs, **form})


@pytest.fixture(scope="module")
def graphs(exported: Any, session: Any) -> dict[str, Any]:
    return {role: session(path) for role, path in exported.graphs.items()}


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    """The encoder in its form for GPUs, checked against the published one."""
    lint(exported)
    assert worst_check(exported) <= CLOSE


def test_transformers_still_draws_on_the_wrong_image(model: Any, mended: Any) -> None:
    """When this fails, transformers has been mended and `mended` can go."""
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    asked = {"pixel_values": image, "input_points": torch.tensor([[[[50.0, 20.0]]]])}
    right = mended(**asked)
    hooks = model.mask_decoder.upscale_conv1._forward_pre_hooks
    kept = dict(hooks)
    hooks.clear()
    wrong = model(**asked)
    hooks.update(kept)
    assert torch.equal(wrong.iou_scores, right.iou_scores)
    assert not torch.allclose(wrong.pred_masks, right.pred_masks, atol=0.1)


def test_masks_equal_transformers(mended: Any, graphs: Any, prompt: Any, error: Any) -> None:
    """Which sorts three masks by score and gives the first apart; ours keep their places."""
    rng = torch.Generator().manual_seed(5)
    image = torch.randn(1, 3, SIDE, SIDE, generator=rng)
    asked = prompt(SIDE)
    first, three = (
        mended(pixel_values=image, multimask_output=several, **asked.for_transformers())
        for several in (False, True)
    )
    features = graphs["encoder"].run({"image": image.numpy()}, ["embedding", "hq"])
    feeds = asked.for_graph(pads_with_box=False) | features
    feeds["mask_input"] = np.broadcast_to(feeds["mask_input"], (1, 1, SIDE // 4, SIDE // 4))
    found = graphs["decoder"].run(feeds, ["masks", "scores"])
    order = 1 + np.argsort(-found["scores"][0, 1:])
    assert error(found["masks"][0, :1], first.pred_masks[0, 0]) <= CLOSE
    assert error(found["masks"][0, order], three.pred_masks[0, 0]) <= CLOSE
    assert error(found["scores"][0, order], three.iou_scores[0, 0]) <= CLOSE


def test_the_runtime_takes_the_best_scored_mask(
    mended: Any, exported: Any, graphs: Any, error: Any
) -> None:
    assert exported.settings == SamSettings(side=SIDE, features=("embedding", "hq"))
    sam = Sam(graphs["encoder"], graphs["decoder"], exported.settings)
    image = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    prediction = sam.decode(sam.encode(image), [Click(50, 20, True)])
    settings = exported.settings
    pixels = (image - np.array(settings.mean)) / np.array(settings.std)
    out = mended(
        pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None],
        input_points=torch.tensor([[[[50.0, 20.0]]]]),
        input_labels=torch.tensor([[[1]]]),
    )
    assert error(prediction.logits, out.pred_masks[0, 0, 0]) <= CLOSE


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(CheckpointInvalid, match="of type sam, not sam_hq"):
        export_sam_hq(tmp_path, tmp_path)


def test_a_light_hq_sam_is_refused_with_what_to_take_instead(tmp_path):
    """Its encoder is TinyViT, of which SAM-HQ's authors take other maps than of SAM's."""
    tensors = {
        "image_encoder.layers.1.blocks.0.attn.qkv.weight": torch.zeros(1),
        "mask_decoder.hf_token.weight": torch.zeros(1),
    }
    torch.save(tensors, tmp_path / "sam_hq_vit_tiny.pth")
    with pytest.raises(CheckpointInvalid, match="Light HQ-SAM") as caught:
        export_sam_hq(tmp_path / "sam_hq_vit_tiny.pth", tmp_path)
    assert "sam_hq_vit_b" in caught.value.hint
