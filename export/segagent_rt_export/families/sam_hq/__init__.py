"""SAM-HQ."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="sam_hq",
        export="segagent_rt_export.families.sam_hq.export:export_sam_hq",
        preprocessing="segagent_rt_export.families.sam_processing:padded",
        export_for_gpu="segagent_rt_export.families.sam_hq.export:export_sam_hq_for_gpu",
        tensors=r"mask_decoder\.(hf|hq)_token\..*",
    ),
)
