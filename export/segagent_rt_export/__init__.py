"""The exporter: from checkpoints to verified bundles. Needs the extra `export`."""
