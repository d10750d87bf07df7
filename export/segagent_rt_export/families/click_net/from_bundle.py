"""The demo bundle's segmenter as torch, with the weights of a bundle's graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np

from segagent_rt.bundle.bundle import Part
from segagent_rt.segmenters.click_net import ClickNetSettings
from segagent_rt_export.families.click_net.net import SIDE, SegmenterNet
from segagent_rt_export.graphs.conv_norm import fuse
from segagent_rt_export.graphs.stored_weights import fill, read_graph, read_settings, refused
from segagent_rt_export.sources.weights import Weight


def click_net_from_part(part: Part) -> SegmenterNet:
    """The net with the weights of a part that `export_segmenter` wrote, its norms folded in.

    Raises:
        CheckpointInvalid: the part is not such a one.
        BundleError: a file of it is missing or was altered.
    """
    if read_settings(part, "click_net", ClickNetSettings).side != SIDE:
        raise refused(part, f"its pictures are not {SIDE} x {SIDE}")
    folded = cast(SegmenterNet, fuse(SegmenterNet()))
    weights: dict[str, Weight] = {}
    for role in ("encoder", "decoder"):
        weights |= read_graph(part, role).layers()
    try:
        whole = dict(_joined(weights))
    except (ValueError, IndexError):
        raise refused(part, "the halves of a layer do not fit together") from None
    fill(folded, whole, part)
    return folded


def _joined(layers: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
    """Layers that were parted, in one piece again."""
    for name, values in layers.items():
        if ".still." not in name and ".moving." not in name:
            yield name, values
        elif name.endswith(".still.bias"):
            yield name.replace(".still.", ".layers.0."), values
        elif name.endswith(".still.weight"):
            rest = layers.get(name.replace(".still.", ".moving."), values[:, :0])
            yield name.replace(".still.", ".layers.0."), np.concatenate([values, rest], 1)
