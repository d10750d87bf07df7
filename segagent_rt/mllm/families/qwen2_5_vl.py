"""Qwen2.5-VL."""

from segagent_rt.families import MllmFamily

FAMILY = MllmFamily(preset="segagent-rated")
