"""Bundles: what they look like on disk, where they are, and whether their files are whole."""
