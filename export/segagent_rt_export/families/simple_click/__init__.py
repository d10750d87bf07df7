"""SimpleClick."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="simple_click",
        export="segagent_rt_export.families.simple_click.export:export_simple_click",
        preprocessing="segagent_rt_export.families.simple_click.processing:processing",
        options=("side", "flip"),
        tensors=r"patch_embed_coords\..*",
    ),
)
