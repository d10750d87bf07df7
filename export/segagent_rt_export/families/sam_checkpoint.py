"""Models of SAM and SAM-HQ from either format of their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources import sam_layout
from segagent_rt_export.sources.segmenter import (
    build,
    configuration,
    read_config,
    read_original,
    read_weights,
)


def load_sam_model(
    source: Path,
    model: Any,
    config: Any,
    complete: Callable[[dict[str, Any]], None] = lambda sizes: None,
) -> Any:
    """A model with its weights.

    Args:
        source: a folder that transformers saved, or the authors' `.pth` file.
        model: its class in transformers.
        config: the class of its configuration.
        complete: adds to the sizes that are read off the tensors of a `.pth` file.

    Raises:
        CheckpointInvalid: the source is no such model.
    """
    if source.is_dir():
        described = configuration(config, read_config(source, config.model_type))
        return build(model, described, sam_layout.tied(read_weights(source)))
    original = read_original(source)
    if any(name.startswith("image_encoder.layers.") for name in original):
        raise CheckpointInvalid(
            f"{source} has TinyViT for an encoder, as MobileSAM and Light HQ-SAM have",
            hint='write family = "mobile_sam" for MobileSAM; for Light HQ-SAM take MobileSAM, or '
            "sam_hq_vit_b, _l or _h",
        )
    tensors = sam_layout.tied(sam_layout.renamed(original))
    sizes = sam_layout.original_sizes(tensors)
    complete(sizes)
    return build(model, configuration(config, sizes), tensors)
