"""What servers of others load, made from the MLLM of a recipe."""
