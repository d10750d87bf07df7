"""SAM 2 and 2.1."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="sam2",
        export="segagent_rt_export.families.sam2.export:export_sam2",
        preprocessing="segagent_rt_export.families.sam_processing:squashed",
        tensors=r"(image|vision)_encoder\.(trunk|backbone)\..*",
        no_tensors=r"(image|vision)_encoder\.(trunk\.body|backbone\.(timm_model|embeddings))\..*",
    ),
)
