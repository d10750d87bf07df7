"""The photo segmenter as torch, with the weights of a bundle's graphs."""

from __future__ import annotations

from segagent_rt.bundle.bundle import Part
from segagent_rt.segmenters.photo_net import PhotoNetSettings
from segagent_rt_export.families.photo_net.export import fold_norms
from segagent_rt_export.families.photo_net.net import PhotoSegmenterNet
from segagent_rt_export.graphs.stored_weights import fill, read_graph, read_settings
from segagent_rt_export.sources.weights import Weight


def photo_net_from_part(part: Part) -> PhotoSegmenterNet:
    """The net with the weights of a part that `export_segmenter` wrote, its norms folded in.

    Raises:
        CheckpointInvalid: the part is not such a one.
        BundleError: a file of it is missing or was altered.
    """
    read_settings(part, "photo_net", PhotoNetSettings)
    weights: dict[str, Weight] = {}
    for role in ("encoder", "decoder"):
        weights |= read_graph(part, role).layers()
    net = fold_norms(PhotoSegmenterNet())
    fill(net, {name.removeprefix("net."): value for name, value in weights.items()}, part)
    return net
