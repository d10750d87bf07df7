"""Errors of the exporter."""

from __future__ import annotations

from segagent_rt.errors import InputError, SegagentError


class CheckpointInvalid(SegagentError):
    """A checkpoint cannot be read, is refused, or is not of the family it is said to be."""


class RecipeInvalid(InputError):
    """A recipe is not what its format says."""


class SourceMissing(InputError):
    """A checkpoint that a recipe names is not on this machine."""


class ToolFailed(SegagentError):
    """A program of others, in an environment of its own, did not do its work."""
