"""The client of each hub."""

from __future__ import annotations

from segagent_rt.hub.huggingface import HuggingFace
from segagent_rt.hub.modelscope import ModelScope
from segagent_rt.hub.repository import Hub, HubRepository

HUBS: dict[str, Hub] = {"hf": HuggingFace(), "ms": ModelScope()}


def hub_of(repository: HubRepository) -> Hub:
    """The client of the hub that has a repository."""
    return HUBS[repository.hub]
