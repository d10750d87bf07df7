"""Qwen-VL, the first, which SegAgent's released checkpoints are."""

from segagent_rt.families import MllmFamily

FAMILY = MllmFamily(preset="segagent")
