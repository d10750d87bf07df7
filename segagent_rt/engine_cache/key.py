"""What an engine depends on: its graph, how it is built, and the machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from segagent_rt.backends.engine_library import BATCH, POINTS, Machine
from segagent_rt.bundle.manifest import PartName, Profile, Variant, to_json


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of a part, as one of its variants has it; `digest` covers it and its weights."""

    path: Path
    digest: str
    part: PartName
    role: str
    name: str
    variant: Variant

    def __str__(self) -> str:
        return f"{self.part} {self.role} ({self.name})"

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Shapes that an engine is built for."""
        return self.variant.profiles.get(self.role, ())


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
