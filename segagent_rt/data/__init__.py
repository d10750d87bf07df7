"""Data sets: one small file for each format, one record type for all."""
