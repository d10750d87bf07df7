"""SimpleClick."""
