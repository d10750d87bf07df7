"""MobileSAM."""
