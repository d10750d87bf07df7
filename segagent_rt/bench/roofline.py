"""How far a graph is from the time that its arithmetic and its weights take at best."""

from __future__ import annotations

from collections.abc import Mapping

from segagent_rt.bundle.manifest import PARTS
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
    sizes: Mapping[str, int],
    flops: Mapping[str, float],
    ceilings: Mapping[str, float],
    per_call: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """For each graph, what a call takes and the least that it could take on this machine.

    Args:
        sizes: bytes of weights by graph.
        flops: operations of a call by graph, where they are known.
        ceilings: the machine's measured `gflops` and `gbytes_per_second`.
        per_call: mean milliseconds of a call by graph.

    Returns:
        By graph: `bytes`, `gflop`, `floor_ms` (the longer of reading the weights once and the
        arithmetic), `call_ms`, and `percent`, the floor's share of the call. Weights that stay in
        the processor's cache may be read faster than the ceiling.
    """
    rows = {}
    for name, taken in per_call.items():
        if name in sizes:
            gflop = flops.get(name, 0.0) / 1e9
            reading = sizes[name] / ceilings["gbytes_per_second"] / 1e6
            floor = max(reading, 1000 * gflop / ceilings["gflops"])
            rows[name] = {
                "bytes": sizes[name],
                "gflop": round(gflop, 4),
                "floor_ms": round(floor, 4),
                "call_ms": taken,
                "percent": round(100 * floor / taken, 2),
            }
    return rows
