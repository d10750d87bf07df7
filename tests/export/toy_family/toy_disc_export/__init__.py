"""The exporter folder of the toy family."""

from segagent_rt_export.registry import SegmenterExporter

FAMILIES = (
    SegmenterExporter(
        name="toy_disc",
        export="toy_disc_export.export:export_toy",
        preprocessing="toy_disc_export.export:ToyProcessing",
        tensors="radius|gain",
    ),
)
