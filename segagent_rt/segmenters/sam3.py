"""SAM 3's tracker: SAM 2's decoder on a vision transformer with patches of 14 pixels."""

from dataclasses import replace

from segagent_rt.segmenters import sam

FAMILY = replace(sam.FAMILY, attention_patch=14)
