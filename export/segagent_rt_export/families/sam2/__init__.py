"""SAM 2 and 2.1."""
