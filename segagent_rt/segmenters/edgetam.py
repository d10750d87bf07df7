"""EdgeTAM: SAM 2 with an encoder of convolutions."""

from dataclasses import replace

from segagent_rt.segmenters import sam

FAMILY = replace(sam.FAMILY, attention_patch=None)
