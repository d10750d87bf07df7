"""EdgeTAM."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="edgetam",
        export="segagent_rt_export.families.edgetam.export:export_edgetam",
        preprocessing="segagent_rt_export.families.sam_processing:squashed",
        tensors=r"(image|vision)_encoder\.(trunk\.body|backbone\.timm_model)\..*",
    ),
)
