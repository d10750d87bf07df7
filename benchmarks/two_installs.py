"""How long a command takes in two installs of segagent-rt, such as of two commits, in turn.

python benchmarks/two_installs.py [--pairs N] OLD NEW COMMAND...    prints JSON

OLD and NEW are the programs (`.venv/bin/segagent-rt`) of two environments. Each has a cache of its
own: with a common one, each would verify again what the other has verified. Files that the command
writes go to an empty folder.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from in_turn import in_turn

from segagent_rt.bench.machine import describe_machine
from segagent_rt.io import dump_json

RESAMPLES = 4000
"""Of the bootstrap."""


def main() -> None:
    """Measure, and print the median of the ratios with its 95 % range."""
    parser = argparse.ArgumentParser(description="Compare two installs.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="such as run IMAGE EXPRESSION")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as caches:
        programs = {"old": given.old.absolute(), "new": given.new.absolute()}
        ways = {
            name: lambda _, name=name: _seconds(programs[name], given.command, Path(caches) / name)
            for name in programs
        }
        in_turn(ways, 2)  # each verifies the bundle once, and warms the file cache
        taken = in_turn(ways, given.pairs)
    ratios = [new / old for old, new in zip(taken["old"], taken["new"], strict=True)]
    low, high = _range_of_median(ratios)
    document = {
        "machine": describe_machine(),
        "command": given.command,
        "pairs": given.pairs,
        "ms": {name: round(1000 * statistics.median(times), 1) for name, times in taken.items()},
        "ratio": round(statistics.median(ratios), 4),
        "range_95": [round(low, 4), round(high, 4)],
    }
    print(dump_json(document, indent=1))


def _seconds(program: Path, command: list[str], cache: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [program, *command],
            cwd=folder,
            env={**os.environ, "SEGAGENT_CACHE": str(cache)},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - start


def _range_of_median(values: list[float]) -> tuple[float, float]:
    """The 95 % range of the median, by bootstrap."""
    drawn = random.Random(0)
    medians = sorted(
        statistics.median(drawn.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


if __name__ == "__main__":
    main()
