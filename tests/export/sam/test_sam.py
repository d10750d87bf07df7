"""SAM and SlimSAM: graphs against transformers, from the prompt to the mask in the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.bundle import manifest
from segagent_rt.segmenters.sam import Sam, SamSettings
from segagent_rt.types import Box, Click

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import SamConfig, SamModel  # noqa: E402
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.sam.export import export_sam, export_sam_for_gpu, load_sam  # noqa: E402
from segagent_rt_export.graphs import sam_export  # noqa: E402
from segagent_rt_export.graphs.sam_encoder import (  # noqa: E402
    BiasAttention,
    FoldedAttention,
    SamEncoder,
    with_attention,
)

pytestmark = pytest.mark.export

SIDE = 96
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model(awake: Any, sizes: Any) -> Any:
    return awake(SamModel(SamConfig(**sizes)))


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("sam")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: Any) -> Any:
    return export_sam(folder, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def embedding(model: Any) -> Any:
    rng = torch.Generator().manual_seed(5)
    return model.get_image_embeddings(torch.randn(1, 3, SIDE, SIDE, generator=rng))


def published(model: Any, embedding: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """All four masks and scores: the model gives either the first or the other three."""
    parts = [
        model(image_embeddings=embedding, multimask_output=several, **inputs)
        for several in (False, True)
    ]
    masks = torch.cat([part.pred_masks for part in parts], 2)[:, 0]
    return masks, torch.cat([part.iou_scores for part in parts], 2)[:, 0]


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    lint(exported)
    assert worst_check(exported) <= CLOSE


def test_the_encoder_equals_transformers(
    model: Any, exported: Any, session: Any, error: Any
) -> None:
    rng = torch.Generator().manual_seed(8)
    image = torch.randn(1, 3, SIDE, SIDE, generator=rng)
    found = session(exported.graphs["encoder"]).run({"image": image.numpy()}, ["embedding"])
    assert error(found["embedding"], model.get_image_embeddings(image)) <= CLOSE


def test_the_decoder_equals_transformers(
    model: Any, exported: Any, embedding: Any, prompt: Any, session: Any, error: Any
) -> None:
    """Points, boxes and masks reach the decoder as in the published model."""
    asked = prompt(SIDE)
    masks, scores = published(model, embedding, asked.for_transformers())
    feeds = asked.for_graph(pads_with_box=False) | {"embedding": embedding.numpy()}
    feeds["mask_input"] = np.broadcast_to(feeds["mask_input"], (1, 1, SIDE // 4, SIDE // 4))
    found = session(exported.graphs["decoder"]).run(feeds, ["masks", "scores"])
    assert error(found["masks"], masks) <= CLOSE
    assert error(found["scores"], scores) <= CLOSE


FAULTS = {
    "no padding point": lambda f: f | {
        "point_coords": f["point_coords"][:, :-1], "point_labels": f["point_labels"][:, :-1]
    },
    "labels swapped": lambda f: f | {"point_labels": np.where(
        f["point_labels"] < 0, f["point_labels"], 1 - f["point_labels"]
    )},
    "row before column": lambda f: f | {"point_coords": f["point_coords"][..., ::-1].copy()},
    "half a pixel off": lambda f: f | {"point_coords": f["point_coords"] + 0.5},
    "mask forgotten": lambda f: f | {"has_mask": np.zeros(1, np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_seen(
    fault: Any, model: Any, exported: Any, embedding: Any, session: Any, error: Any
) -> None:
    """The comparison with transformers notices each rule of the host that is broken."""
    from .conftest import Prompt

    asked = Prompt(2, box=False, mask=True, side=SIDE)
    masks, _ = published(model, embedding, asked.for_transformers())
    feeds = fault(asked.for_graph(pads_with_box=False)) | {"embedding": embedding.numpy()}
    found = session(exported.graphs["decoder"]).run(feeds, ["masks"])
    assert error(found["masks"], masks) > 20 * CLOSE


def test_a_picture_is_segmented_as_with_transformers(
    model: Any, exported: Any, session: Any
) -> None:
    """Preprocessing, frames, feedback and the drawing of the mask, over three clicks and a box."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 13, 3), np.uint8)
    image = np.kron(coarse, np.ones((17, 21, 1), np.uint8))[:150, :260]
    clicks = [Click(30, 100, True), Click(250, 149, False), Click(120, 20, True)]
    box = Box(11, 20, 200, 140)
    processor = SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    inputs = processor(image, return_tensors="pt")
    theirs = model.get_image_embeddings(inputs["pixel_values"])
    scale = SIDE / 260
    frame = torch.tensor([scale, round(150 * scale) / 150])
    sam = Sam(*(session(exported.graphs[r]) for r in ("encoder", "decoder")), exported.settings)
    ours, prior, low = sam.encode(image), None, None
    for count in (1, 2, 3):
        corners = box if count > 1 else None
        prior = sam.decode(ours, clicks[:count], prior=prior, box=corners)
        out = model(
            image_embeddings=theirs,
            input_points=torch.tensor([[[(c.x, c.y) for c in clicks[:count]]]]) * frame,
            input_labels=torch.tensor([[[int(c.positive) for c in clicks[:count]]]]),
            input_boxes=torch.tensor([[[11, 20, 200, 140]]]) * frame.repeat(2) if corners else None,
            input_masks=low,
        )
        best = int(out.iou_scores[0, 0].argmax())
        low = out.pred_masks[:, 0, best : best + 1]
        drawn = processor.post_process_masks(
            [low], inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0][0, 0].numpy()
        assert 0.02 < drawn.mean() < 0.98
        assert np.mean(prior.mask() != drawn) < 2e-4
        assert prior.score == pytest.approx(float(out.iou_scores.max().clip(0, 1)), abs=1e-4)


def test_the_gpu_form_is_the_plain_form(model: Any, error: Any) -> None:
    """Folding relative positions into queries and keys changes nothing; without them, much."""
    rng = torch.Generator().manual_seed(2)
    image = torch.randn(1, 3, SIDE, SIDE, generator=rng)
    published = SamEncoder(model.vision_encoder)(image)
    plain = SamEncoder(with_attention(model.vision_encoder, BiasAttention))(image)
    folded = with_attention(model.vision_encoder, FoldedAttention)
    assert error(plain, published) <= 2e-6
    assert error(SamEncoder(folded)(image), plain) <= 2e-6
    for layer in folded.layers:
        layer.attn.where.zero_()
    assert error(SamEncoder(folded)(image), plain) > 0.05
    weights = {id(weight) for weight in model.parameters()}
    assert {id(weight) for weight in folded.parameters()} <= weights


def test_each_form_is_traced_when_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAM-HQ's test runs such a graph."""
    traced = []
    monkeypatch.setattr(sam_export, "trace", lambda graph, *rest: traced.append(graph))
    export_sam(folder, tmp_path)
    export_sam_for_gpu(folder, tmp_path)
    kinds = [any(isinstance(m, FoldedAttention) for m in g.modules()) for g in traced]
    assert kinds == [False, False, True]


def test_settings_survive_the_manifest(exported: Any) -> None:
    content = json.loads(json.dumps(manifest.to_json(exported.settings)))
    assert manifest.parse(content, SamSettings, "settings") == exported.settings
    assert exported.settings == SamSettings(side=SIDE)
    assert exported.family == "sam"


def test_provenance_names_every_file(exported: Any, folder: Path) -> None:
    names = [record["file"] for record in exported.provenance["files"]]
    assert sorted(names) == ["config.json", "model.safetensors"]
    assert exported.provenance["source"] == folder.name


def test_shards_are_read(folder: Path, tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    whole, parts = load_sam(folder).state_dict(), load_sam(tmp_path).state_dict()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def damaged(folder: Path, target: Path, change: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


NECK = "vision_encoder.neck.conv1.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(NECK), f"lacks the tensor {NECK}"),
        (lambda t: t.update(more=torch.zeros(1)), "unknown tensor more"),
        (lambda t: t.update({NECK: torch.zeros(3, 3)}), r"conv1.weight is \[3, 3\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: Any, sentence: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointInvalid, match=sentence):
        load_sam(damaged(folder, tmp_path, change))


def test_code_that_a_configuration_names_is_not_run(folder: Path, tmp_path: Path) -> None:
    path = damaged(folder, tmp_path, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (path / "modeling.py").write_text("raise SystemExit('this ran')")
    config["auto_map"] = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}
    (path / "config.json").write_text(json.dumps(config))
    assert type(load_sam(path)) is SamModel


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointInvalid, match="of type clip, not sam"):
        load_sam(tmp_path)
    with pytest.raises(CheckpointInvalid, match="there is no file"):
        load_sam(tmp_path / "sam_vit_b.pth")


@pytest.mark.parametrize(
    "field", [{"vision_config": "tiny"}, {"vision_config": {"hidden_size": "x"}}]
)
def test_a_configuration_of_the_wrong_types_is_refused(field: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam"} | field))
    with pytest.raises(CheckpointInvalid, match="configuration cannot be used"):
        load_sam(tmp_path)


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    index = {"weight_map": {"x": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match="no shard beside it"):
        load_sam(tmp_path)
