"""SAM 2 and 2.1: the encoder is a pyramid; the settings say how pictures are resized."""

from dataclasses import replace

from segagent_rt.segmenters import sam

FAMILY = replace(sam.FAMILY, attention_patch=None)
