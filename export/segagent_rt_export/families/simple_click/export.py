"""Export of SimpleClick from its authors' checkpoints: ViT-B, L, H and the smaller ones."""

from __future__ import annotations

from pathlib import Path

import torch

from segagent_rt.segmenters.simple_click import SimpleClickSettings
from segagent_rt_export.families.simple_click.checkpoint_layout import UNUSED, Source
from segagent_rt_export.families.simple_click.net import SimpleClickNet
from segagent_rt_export.graphs.exported_segmenter import Check, ExportedSegmenter
from segagent_rt_export.graphs.tracing import trace
from segagent_rt_export.sources.checkpoints import read_checkpoint
from segagent_rt_export.sources.segmenter import fill, provenance


def export_simple_click(
    source: Path, folder: Path, *, side: int = 448, flip: bool = True
) -> ExportedSegmenter:
    """Write net.onnx, for batches of any size.

    Args:
        source: a checkpoint such as `cocolvis_vit_large.pth`.
        folder: where the graph goes.
        side: of the square that the net sees; the position embedding is resampled if the checkpoint
            was trained on another.
        flip: whether the runtime averages with the mirrored picture.

    Raises:
        CheckpointInvalid: the source is no SimpleClick, or one of a kind that is not known.
        InputError: the side does not fit the windows of the net.
    """
    checkpoint = Source.of(read_checkpoint(source))
    net = load_net(checkpoint, side)
    path = folder / "net.onnx"
    checks = [_check(net, side, batch) for batch in (1, 2)]
    picture = torch.zeros(2, 3, side, side)
    inputs = {"image": picture, "guide": picture.clone()}
    trace(net, inputs, path, ["logits"], {"image": 0, "guide": 0})
    mean, std = checkpoint.colours
    settings = SimpleClickSettings(
        side=side, flip=flip, radius=checkpoint.radius, mean=mean, std=std
    )
    record = {**provenance(source), "model": checkpoint.kind, "unused": checkpoint.unused}
    return ExportedSegmenter("simple_click", settings, {"net": path}, checks, record)


def load_net(checkpoint: Source, side: int) -> SimpleClickNet:
    """The net with its weights, ready for inference."""
    shape = checkpoint.shape(side)
    with torch.device("meta"):
        net = SimpleClickNet(shape)
    return fill(net, checkpoint.arranged(shape), UNUSED)


@torch.no_grad()
def _check(net: SimpleClickNet, side: int, batch: int) -> Check:
    """Noise for an image and for the mask so far, and a click of either kind."""
    rng = torch.Generator().manual_seed(batch)
    image = torch.randn(batch, 3, side, side, generator=rng)
    guide = torch.zeros(batch, 3, side, side)
    guide[:, 0] = torch.rand(batch, side, side, generator=rng)
    guide[:, 1, 100:110, 100:110] = guide[:, 2, 50:60, 150:160] = 1
    feeds = {"image": image.numpy(), "guide": guide.numpy()}
    return Check("net", feeds, {"logits": net(image, guide).numpy()})
