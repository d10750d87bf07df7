"""Who chooses the next click."""
