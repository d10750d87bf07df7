"""Where the scenarios and the reference loop lie, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path


def packaged(name: str) -> Path:
    """The folder `benchmarks/<name>`."""
    package = Path(__file__).parents[1]
    installed = package / "benchmarks" / name
    return installed if installed.is_dir() else package.parent / "benchmarks" / name
