"""MobileSAM."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="mobile_sam",
        export="segagent_rt_export.families.mobile_sam.export:export_mobile_sam",
        preprocessing="segagent_rt_export.families.sam_processing:padded",
        tensors=r"(image|vision)_encoder\.layers\.\d+\.(blocks|layers)\..*",
        no_tensors=r"mask_decoder\.(hf|hq)_token\..*",
    ),
)
