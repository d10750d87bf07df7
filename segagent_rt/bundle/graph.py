"""One graph of a part: what a backend loads, or builds an engine from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segagent_rt.bundle.manifest import PartName, Profile, Variant


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of a part, as one of its variants has it.

    `digest` covers it and its weights; `golden` is the file of what it must compute, if the export
    recorded that.
    """

    path: Path
    digest: str
    part: PartName
    role: str
    name: str
    variant: Variant
    golden: Path | None = None

    def __str__(self) -> str:
        return f"{self.part} {self.role} ({self.name})"

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Shapes that an engine is built for."""
        return self.variant.profiles.get(self.role, ())
