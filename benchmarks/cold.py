"""What a first `segagent-rt run` costs: a fresh process each time, wall clock and memory.

python benchmarks/cold.py [RUNS]    writes benchmarks/results/cold.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from segagent_rt.bench.machine import describe_machine
from segagent_rt.bench.stats import percentiles
from segagent_rt.io import dump_json

RESULT = Path(__file__).parent / "results" / "cold.json"
COMMAND = [sys.executable, "-m", "segagent_rt"]
IMPORTS = "import segagent_rt.cli.run, segagent_rt.runtime, segagent_rt.image, segagent_rt.draw"
LIBRARIES = "import numpy, cv2, tokenizers, onnxruntime"


def main(runs: int) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, text = _scene(folder)
        run = [*COMMAND, "run", str(scene), text, "-o", str(folder)]
        kinds = {
            "run": run,
            "imports": [sys.executable, "-c", IMPORTS],
            "libraries": [sys.executable, "-c", LIBRARIES],
            "python": [sys.executable, "-c", ""],
        }
        for command in kinds.values():
            _measure(command)  # warms the file cache, as any second run finds it
        taken = [{kind: _measure(command) for kind, command in kinds.items()} for _ in range(runs)]
        result = json.loads((folder / "scene.segagent.json").read_text("utf-8"))
    seconds = result["results"][0]["seconds"]
    document = {
        "machine": describe_machine(),
        "scene": "seed 7, 512 x 512",
        "bundle": result["digest"],
        "clicks": len(result["results"][0]["clicks"]),
        "loop_seconds": round(seconds["annotate"] + seconds.get("segment", 0.0), 4),
        **{kind: _summary([row[kind] for row in taken]) for kind in kinds},
    }
    RESULT.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def _scene(folder: Path) -> tuple[Path, str]:
    path = folder / "scene.png"
    asked = [*COMMAND, "scene", "--seed", "7", "-o", str(path)]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    return path, json.loads(said)["expressions"][0]["text"]


def _measure(command: list[str]) -> tuple[float, float]:
    """Wall-clock seconds and peak resident megabytes of a process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def _summary(rows: list[tuple[float, float]]) -> dict[str, Any]:
    wall, memory = zip(*rows, strict=True)
    return {"wall_ms": percentiles(wall), "peak_megabytes": round(max(memory), 1)}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
