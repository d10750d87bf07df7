"""Latency by stage, next to accuracy, on this machine."""
