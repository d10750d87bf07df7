"""Segmenters, by family."""
