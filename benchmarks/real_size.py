"""Export models of real size with random weights, then load them and let them answer.

python benchmarks/real_size.py qwen2.5-vl-3b FOLDER --variant cpu-w8 --variant cpu-w4
python benchmarks/real_size.py qwen-vl FOLDER --variant cpu-w4

Writes a checkpoint into FOLDER, exports it with the gate on, and measures each variant in a fresh
process; one JSON into benchmarks/results/. What was written into FOLDER is removed at the end
unless --keep is given; a checkpoint that is there already is used. Limit cores with `taskset`.

The weights mean nothing, so a variant may well fall short of the gate: that is recorded and does
not end the run. A graph that is not what torch computes does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from clock import Clock

from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.io import dump_json

RESULTS = Path(__file__).parent / "results"
FAMILIES = {"qwen2.5-vl-3b": "qwen2_5_vl", "qwen-vl": "qwen_vl"}
MOST_PIXELS = 262_144
"""As the tracked recipes have it."""

DECODED, ANSWERS = 16, 3
"""Tokens that are decoded one by one, and answers to whole questions."""


def main() -> None:
    """Do what the first argument says: the whole run, or in a child one of its steps."""
    steps: dict[str, Callable[..., Any]] = {"export": _export, "answer": _answer}
    if sys.argv[1] in steps:
        print(dump_json(steps[sys.argv[1]](*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", action="append", required=True)
    parser.add_argument("--scenes", type=int, default=2, help="the gate has three states of each")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    place = given.folder / given.model
    try:
        document = measure(given.model, place, given.variant, given.scenes)
    finally:
        if not given.keep:
            shutil.rmtree(place, ignore_errors=True)
    path = RESULTS / f"real-size-{given.model}.json"
    path.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def measure(model: str, place: Path, variants: Sequence[str], scenes: int) -> dict[str, Any]:
    """Everything, step by step."""
    from random_checkpoint import write_checkpoint

    checkpoint, bundle = place / "checkpoint", place / "bundle"
    if not checkpoint.exists():
        start = time.perf_counter()
        print(f"{write_checkpoint(model, checkpoint):,} weights", file=sys.stderr)
        print(f"written in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ceilings": measure_ceilings(),
        "model": model,
        "weights": "random",
        "checkpoint_gigabytes": _gigabytes(checkpoint),
    }
    names = ", ".join(f'"{name}"' for name in variants)
    recipe = place / "recipe.toml"
    recipe.write_text(
        f'[mllm]\nfamily = "{FAMILIES[model]}"\nsource = "{checkpoint.resolve()}"\n'
        f"variants = [{names}]\nmost_pixels = {MOST_PIXELS}\n"
    )
    document["export"] = _child(place, "export", recipe, bundle, scenes)
    document["verified"] = json.loads((bundle / "mllm/manifest.json").read_text())["verified"]
    document["bundle_gigabytes"] = _gigabytes(bundle)
    for name in variants:
        document[name] = _child(place, "answer", bundle, name)
    return document


def _child(place: Path, step: str, *arguments: object) -> dict[str, Any]:
    """A step in a process of its own; its memory and the disk are watched from outside."""
    command = [sys.executable, __file__, step, *map(str, arguments)]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with _watched(child.pid, place) as peaks:
        said = child.stdout.read()
    if child.wait():
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return {"wall_s": round(time.perf_counter() - start, 1), **peaks, **json.loads(said)}


@contextmanager
def _watched(pid: int, place: Path) -> Iterator[dict[str, float]]:
    """Peaks while the block runs: memory of a process, what the folder holds."""
    peaks, ended = dict[str, float](), threading.Event()
    before = _gigabytes(place)

    def watch() -> None:
        while not ended.wait(0.2):
            found = {f"peak_{name}_gb": size for name, size in memory_of(pid).items()}
            found["peak_scratch_gb"] = round(_gigabytes(place) - before, 2)
            for name, size in found.items():
                peaks[name] = max(peaks.get(name, 0.0), size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield peaks
    ended.set()
    watcher.join()


def memory_of(pid: int) -> dict[str, float]:
    """Gigabytes of a process in RAM: its own (anonymous), and pages of files that it maps."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    names = {"anonymous": "RssAnon", "mapped": "RssFile"}
    sizes = {name: fields.get(field, "0 kB").split()[0] for name, field in names.items()}
    return {name: round(int(size) * 1024 / 1e9, 2) for name, size in sizes.items()}


def _gigabytes(folder: Path) -> float:
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size
        except OSError:  # it was moved meanwhile
            continue
    return round(sizes / 1e9, 2)


def _export(recipe: str, bundle: str, scenes: str) -> dict[str, Any]:
    """Export as the command does, with fewer scenes."""
    from segagent_rt_export.gate.verdict import Gate
    from segagent_rt_export.pipeline import GatePolicy, run_export
    from segagent_rt_export.plan import check_room, describe, make_plan
    from segagent_rt_export.recipe import read_recipe

    start, seconds = time.perf_counter(), dict[str, float]()

    def report_progress(text: str) -> None:
        seconds[text] = round(time.perf_counter() - start, 1)
        print(f"{seconds[text]:8.1f} s  {text}", file=sys.stderr)

    plan = make_plan(read_recipe(Path(recipe)), Path(bundle), resume=False, below_gate=True)
    for line in describe(plan):
        print(line, file=sys.stderr)
    check_room(plan)
    run_export(plan, GatePolicy(Gate(scenes=int(scenes)), forgiving=True), report_progress)
    verified = json.loads((Path(bundle) / "mllm/manifest.json").read_text())["verified"]
    worst = max(verified["graphs"].values())
    if not worst <= Gate().graph_error:
        sys.exit(f"the graphs are {worst} deviations away from torch")
    begun = {text: at for text, at in seconds.items() if "pass " not in text}
    return {"begun_at_s": begun, "passes": len(seconds) - len(begun)}


def _answer(bundle: str, variant: str) -> dict[str, Any]:
    """Load a variant as the runtime does, and let it answer questions about scenes."""
    from segagent_rt.backends.session import SessionOptions
    from segagent_rt.bundle.bundle import open_bundle
    from segagent_rt.runtime import open_mllm
    from segagent_rt.scenes import make_scene
    from segagent_rt.types import Request

    cpu, load, answer = SessionOptions("cpu"), Clock(), Clock()
    with load():
        part = open_bundle(Path(bundle)).part("mllm")
        annotator = open_mllm(part, lambda part, role: part.session(role, cpu, variant))
    loaded = {f"loaded_{name}_gb": size for name, size in memory_of(os.getpid()).items()}
    paces = _paces(annotator, make_scene(7, 512).image)
    replies = []
    for seed in range(ANSWERS):
        scene = make_scene(seed, 512)
        with answer():
            turn = annotator.look(scene.image).propose([Request(None, scene.expressions[0].text)])
        replies.append(turn[0][0].reply)
    return {
        "load_ms": load.milliseconds(), **loaded, **paces,
        "answer_ms": answer.milliseconds(), "replies": replies,
    }  # fmt: skip


def _paces(annotator: Any, image: np.ndarray) -> dict[str, Any]:
    """The vision encoder, the prompt, and tokens one by one; each ran before it is timed."""
    model, rope = annotator.model, annotator.settings.language.rope
    vision, prefill, decode = Clock(), Clock(), Clock()
    lead, tail = annotator.prompt("the mug behind the 2nd laptop")
    picture = annotator.vision_encoder.resize(image)
    annotator.vision_encoder.embed(picture)
    with vision():
        seen = annotator.vision_encoder.embed(picture)
    x = np.concatenate([model.embed(lead), seen.embeddings, model.embed(tail)], axis=1)
    before = rope.before_text(len(lead), seen.grid)
    count = x.shape[1]
    cache = model.new_cache(count + DECODED)
    model.forward(cache, x, before)
    cache.rewind(0)
    with prefill():
        model.forward(cache, x, before)
    model.forward(cache, model.embed([0]))
    for _ in range(DECODED - 1):
        with decode():
            model.forward(cache, model.embed([1]))
    return {
        "picture_tokens": seen.embeddings.shape[1],
        "prompt_tokens": count,
        "vision_ms": vision.milliseconds(),
        "prefill_ms": prefill.milliseconds(),
        "prefill_tokens_per_cpu_s": round(count / prefill.cpu[0], 1),
        "decode_ms": decode.milliseconds(),
        "decode_tokens_per_cpu_s": round(1 / float(np.median(decode.cpu)), 2),
    }


if __name__ == "__main__":
    main()
