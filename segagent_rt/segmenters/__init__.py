"""What turns clicks into masks, by family."""
