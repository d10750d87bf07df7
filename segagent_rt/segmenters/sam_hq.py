"""SAM-HQ: its settings name a second map of features; all else is SAM's."""

from segagent_rt.segmenters.sam import FAMILY as FAMILY
