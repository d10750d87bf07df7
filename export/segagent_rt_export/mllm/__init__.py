"""MLLMs: graphs built directly from the weights."""
