"""Errors of the exporter."""

from __future__ import annotations

from segagent_rt.errors import SegagentError


class CheckpointInvalid(SegagentError):
    """A checkpoint cannot be read, is refused, or is not of the family it is said to be."""


class TrainingMissing(SegagentError):
    """A folder does not hold the checkpoints that are asked for."""
