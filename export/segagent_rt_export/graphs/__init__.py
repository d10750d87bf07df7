"""Building blocks of graphs."""
