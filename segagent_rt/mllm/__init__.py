"""What an in-process MLLM needs besides its graphs: patches, positions, the KV buffer, constrained
decoding."""
