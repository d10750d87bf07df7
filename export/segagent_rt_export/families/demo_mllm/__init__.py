"""The demo bundle's MLLM: Qwen3-VL in a tiny configuration."""
