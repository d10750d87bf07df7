"""LLaVA-1.5."""

from segagent_rt.families import MllmFamily

FAMILY = MllmFamily(preset="segagent-llava")
