"""SAM-HQ."""
