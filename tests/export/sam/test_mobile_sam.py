"""MobileSAM: our TinyViT under SAM's decoder, from a checkpoint as it is published."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.segmenters.sam import Sam, SamSettings
from segagent_rt.types import Click

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from transformers import SamConfig, SamModel  # noqa: E402

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.mobile_sam.export import (  # noqa: E402
    encoder_shape,
    export_mobile_sam,
    load_mobile_sam,
)
from segagent_rt_export.families.mobile_sam.tiny_vit import TinyVit, TinyVitShape, WindowAttention  # noqa: E402
from segagent_rt_export.graphs.conv_norm import fuse  # noqa: E402
from segagent_rt_export.sources import sam_layout  # noqa: E402

from .torchvision_stub import import_or_skip  # noqa: E402

pytestmark = pytest.mark.export

CLOSE = 1e-4
SMALL = TinyVitShape((8, 16, 16, 32), (1, 1, 2, 1), (0, 2, 2, 4), (0, 7, 14, 7), outputs=32)
PUBLISHED = TinyVitShape((64, 128, 160, 320), (2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7), 256)
PUBLISHED_NAMES = "36e4abb190a787eb6012d417b52d6309c42a1244fae042bc8d75dfecf91e794a"
"""SHA-256 of the sorted lines `name [shape]` of MobileSAM's encoder without its classifier."""
NAMES = Path(__file__).parents[2] / "golden" / "sam_original_names.txt"


@pytest.fixture(scope="module")
def encoder(awake: Any) -> Any:
    return awake(TinyVit(SMALL))


@pytest.fixture(scope="module")
def decoder(awake: Any, sizes: Any) -> Any:
    """A SAM that lends its decoder and, at MobileSAM's size, checks ours."""
    prompts = sizes["prompt_encoder_config"] | {"image_size": 1024}
    return awake(SamModel(SamConfig(**sizes | {"prompt_encoder_config": prompts})))


@pytest.fixture(scope="module")
def tensors(encoder: Any, decoder: Any) -> dict[str, Any]:
    names = [n for n in NAMES.read_text("utf-8").split() if not n.startswith("image_encoder.")]
    renamed = sam_layout.renamed(dict.fromkeys(names, torch.zeros(1)))
    state = decoder.state_dict()
    rest = {old: state[new] for old, new in zip(names, renamed, strict=True)}
    classifier = {"norm_head.weight": torch.ones(32), "head.weight": torch.zeros(10, 32)}
    own = encoder.state_dict() | classifier
    return {f"image_encoder.{name}": tensor for name, tensor in own.items()} | rest


@pytest.fixture(scope="module")
def exported(tensors: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("mobile_sam")
    torch.save(tensors, folder / "mobile_sam.pt")
    return export_mobile_sam(folder / "mobile_sam.pt", folder)


def test_graphs_compute_what_torch_does(exported: Any, worst_check: Any, lint: Any) -> None:
    lint(exported)
    assert (exported.family, exported.settings) == ("mobile_sam", SamSettings())
    assert worst_check(exported) <= CLOSE


def test_masks_equal_transformers(
    decoder: Any, exported: Any, graphs: Any, prompt: Any, error: Any
) -> None:
    """SAM's decoder on MobileSAM's embedding, at its only size."""
    embedding = next(c for c in exported.checks if c.role == "encoder").expected["embedding"]
    asked = prompt(1024)
    sparse, dense = decoder.prompt_encoder(**asked.for_transformers())
    centres = (torch.arange(64) + 0.5) / 64
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    positions = decoder.shared_image_embedding(torch.stack([columns, rows], -1))
    masks, _ = decoder.mask_decoder(
        image_embeddings=torch.from_numpy(embedding),
        image_positional_embeddings=positions.permute(2, 0, 1)[None],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    feeds = asked.for_graph(pads_with_box=False) | {"embedding": embedding}
    feeds["mask_input"] = np.broadcast_to(feeds["mask_input"], (1, 1, 256, 256))
    found = graphs["decoder"].run(feeds, ["masks"])
    assert error(found["masks"][:, 1:], masks[:, 0]) <= CLOSE


def test_a_picture_is_segmented(exported: Any, graphs: Any) -> None:
    sam = Sam(graphs["encoder"], graphs["decoder"], exported.settings)
    image = np.random.default_rng(1).integers(0, 256, (60, 100, 3), np.uint8)
    prediction = sam.decode(sam.encode(image), [Click(50, 20, True)])
    assert prediction.mask().shape == (60, 100)
    assert prediction.logits.shape == (256, 256)


def test_names_and_shapes_are_the_published_ones() -> None:
    state = TinyVit(PUBLISHED).state_dict()
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED_NAMES


@pytest.mark.parametrize("shape", [SMALL, PUBLISHED])
def test_sizes_are_read_off_the_tensors(shape: TinyVitShape) -> None:
    state = TinyVit(shape).state_dict()
    assert encoder_shape({f"image_encoder.{name}": t for name, t in state.items()}) == shape


def test_a_bias_belongs_to_a_distance() -> None:
    """Rows apart times the window plus columns apart, whichever token comes first."""
    offsets = WindowAttention(4, 1, 3).offsets
    assert offsets.shape == (9, 9)
    assert offsets[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert offsets[4].tolist() == [4, 3, 4, 1, 0, 1, 4, 3, 4]
    assert torch.equal(offsets, offsets.T)


def test_folding_batch_norms_changes_nothing(encoder: Any, error: Any) -> None:
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    folded = fuse(encoder)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert error(folded(image), encoder(image)) <= 2e-5


def test_the_encoder_is_that_of_mobile_sam(awake: Any, error: Any) -> None:
    """At its published size. MobileSAM is no package; SAM-HQ's has its encoder, plus an output."""
    upstream = import_or_skip("segment_anything_hq.modeling").TinyViT(
        img_size=1024,
        embed_dims=PUBLISHED.widths,
        depths=PUBLISHED.depths,
        num_heads=(2, *PUBLISHED.heads[1:]),
        window_sizes=(7, *PUBLISHED.windows[1:]),
        drop_path_rate=0.0,
    )
    theirs = awake(upstream)
    net = TinyVit(PUBLISHED)
    kept = {n: t for n, t in theirs.state_dict().items() if "head." not in n}
    net.load_state_dict(kept)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    theirs.train(False)
    expected, _ = theirs(image)
    worst = error(fuse(net)(image).detach(), expected)
    print(f"MobileSAM: relative error of the embedding {worst:.1e}")
    assert worst <= CLOSE


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, path)
    with pytest.raises(CheckpointInvalid, match="of another family"):
        load_mobile_sam(path)
