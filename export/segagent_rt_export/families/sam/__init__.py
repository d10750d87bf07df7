"""SAM ViT-B, L and H, and SlimSAM."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="sam",
        export="segagent_rt_export.families.sam.export:export_sam",
        preprocessing="segagent_rt_export.families.sam_processing:padded",
        export_for_gpu="segagent_rt_export.families.sam.export:export_sam_for_gpu",
        tensors=r"(image|vision)_encoder\.(blocks|layers)\.\d+\.attn\..*",
        no_tensors=r"mask_decoder\.(hf|hq)_token\..*",
    ),
)
