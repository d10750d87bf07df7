"""The tracker of SAM 3, which segments by clicks, boxes and masks."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="sam3",
        export="segagent_rt_export.families.sam3.export:export_sam3",
        preprocessing="segagent_rt_export.families.sam3.processing:processing",
        tensors=r"(.*\.)?vision_encoder\.backbone\.embeddings\..*",
    ),
)
