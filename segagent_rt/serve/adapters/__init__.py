"""Annotation tools over the same service: X-AnyLabeling, Label Studio and CVAT."""
