"""How far a graph is from the time that reading its weights takes."""

from __future__ import annotations

from collections.abc import Mapping

from segagent_rt.contracts import PARTS
from segagent_rt.runtime import Runtime


def weight_bytes(runtime: Runtime) -> dict[str, int]:
    """Bytes on disk of every graph that was loaded, its weights included, by part and role."""
    sizes = {}
    for name, placement in runtime.placements.items():
        kind, _, role = name.partition(" ")
        part = next(runtime.bundle.part(each) for each in PARTS if each == kind)
        graph = part.graphs(role, placement.variant)[0]
        files = [graph.path, *(part.file(n) for n in part.weights(graph.path.name))]
        sizes[name] = sum(path.stat().st_size for path in files)
    return sizes


def roofline(
    sizes: Mapping[str, int], gbytes_per_second: float, per_call: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """For each graph, what a call takes and what reading its weights once would.

    Args:
        sizes: bytes of weights by graph.
        gbytes_per_second: the machine's measured ceiling.
        per_call: mean milliseconds of a call by graph.

    Returns:
        By graph: `bytes`, `floor_ms`, `call_ms`, and `percent`, the floor's share of the call.
        Weights that stay in the processor's cache may be read faster than the ceiling.
    """
    floors = {name: size / gbytes_per_second / 1e6 for name, size in sizes.items()}
    return {
        name: {
            "bytes": sizes[name],
            "floor_ms": round(floors[name], 4),
            "call_ms": taken,
            "percent": round(100 * floors[name] / taken, 2),
        }
        for name, taken in per_call.items()
        if name in sizes
    }
