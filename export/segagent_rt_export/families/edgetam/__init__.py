"""EdgeTAM."""
