"""The tracker of SAM 3, which segments by clicks, boxes and masks."""
