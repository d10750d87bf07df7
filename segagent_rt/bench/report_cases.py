"""The HTML report of a benchmark: its figures, and the slowest runs as cases."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.bench.loop_runs import LoopRun, query_of
from segagent_rt.bench.report import COLUMNS, BenchmarkResult, spreads
from segagent_rt.html_report.builder import ReportBuilder
from segagent_rt.html_report.case import case_of_trajectory
from segagent_rt.html_report.page import Table
from segagent_rt.scenes import Scene

KEPT = 12
"""So many of the slowest runs are kept."""


@dataclass(slots=True)
class BenchReport:
    """Keeps the slowest runs while it is measured; nothing is drawn until the end."""

    _slowest: list[tuple[float, int, Scene, LoopRun]] = field(default_factory=list)
    _count: int = 0

    def add(self, scene: Scene, run: LoopRun) -> None:
        """Take a timed run."""
        self._count += 1
        put = heapq.heappush if len(self._slowest) < KEPT else heapq.heappushpop
        put(self._slowest, (run.seconds, self._count, scene, run))

    def write(self, path: Path, document: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write the file.

        Args:
            path: of the file.
            document: what `bench` writes.
            overwrite: also replace a file that segagent-rt did not write.

        Raises:
            OutputError: it cannot be written, or somebody else wrote the file that is there.
        """
        builder = ReportBuilder(expected=len(self._slowest), slowest_first=True)
        for *_, scene, run in sorted(self._slowest, key=lambda kept: -kept[0]):
            target = query_of(scene).target
            builder.add(case_of_trajectory(f"scene {scene.seed}", scene.image, run.found, target))
        machine, bundle = document["machine"], document["bundle"]
        facts = {
            "bundle": f"{bundle['name']} {bundle['digest']}",
            "processor": machine.get("processor"),
            "cores": machine.get("cores"),
            "threads": document.get("threads"),
            "backend": document.get("backend"),
            "commit": machine.get("commit"),
            "load of the machine": " ".join(map(str, machine.get("load") or ())),
            "loading the bundle": f"{document['load_ms']} ms",
            "peak memory": f"{document['peak_megabytes']} MB",
        }
        builder.write(path, "segagent-rt bench", facts, _tables(document), overwrite=overwrite)


def _tables(document: Mapping[str, Any]) -> list[Table]:
    """A table for each scenario, and one of speed-ups if there was a comparison."""
    found = []
    if ratios := document.get("ratios"):
        heads = ("speed-up over plain PyTorch", "median", "p10", "p90", "n")
        rows = [
            (name, *(ratio[key] for key in ("median", "p10", "p90", "n")))
            for name, ratio in ratios.items()
            if ratio is not None
        ]
        found.append(Table("Comparison", heads, rows))
    for name, figures in BenchmarkResult("figures", document).scenarios().items():
        rows = list(spreads(figures))
        if rows:
            found.append(_spread_table(name, rows))
    return found


def _spread_table(name: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    most = max(spread["p50"] for _, spread in rows) or 1.0
    cells = [(path, *(spread[column] for column in COLUMNS)) for path, spread in rows]
    bars = [spread["p50"] / most for _, spread in rows]
    return Table(name, ("milliseconds", *COLUMNS), cells, bars)
