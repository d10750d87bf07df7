"""What an engine depends on: its graph, how it is built, and the machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from segagent_rt.backends.engine_library import BATCH, POINTS, Machine
from segagent_rt.bundle.graph import Graph
from segagent_rt.bundle.manifest import to_json


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that an engine depends on; `recipe` is how it is built."""

    graph: str
    recipe: str
    library: str
    platform: str
    gpu: str
    capability: str
    driver: int

    @property
    def digest(self) -> str:
        """Names the engine's files."""
        return hash_of(to_json(self))[:24]


def engine_key(graph: Graph, machine: Machine) -> EngineKey:
    """The key of a graph's engine on a machine."""
    recipe = hash_of([to_json(graph.profiles), BATCH, POINTS])[:12]
    return EngineKey(graph.digest, recipe, **to_json(machine))


def hash_of(value: object) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
