"""MobileSAM: SAM with an encoder whose positions attend to each other in windows."""

from dataclasses import replace

from segagent_rt.segmenters import sam

FAMILY = replace(sam.FAMILY, attention_patch=None)
