"""Segmenters in int8 beside fp32: how long they take, and what becomes of the masks.

taskset -c 0 python benchmarks/int8.py          the segmenter that ships; prints one JSON document
taskset -c 0 python benchmarks/int8.py FOLDER   and EdgeTAM of real size with random weights
taskset -c 0,1 python benchmarks/int8.py photo  the shipped segmenter for photos alone, two threads

Each is exported with the gate on and forgiving, then both encoders run in turn on generated scenes.
Random weights say how long it takes, and nothing about masks. FOLDER is removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from clock import Clock

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bench.machine import describe_machine
from segagent_rt.bundle.bundle import Part, open_bundle, open_part
from segagent_rt.io import dump_json
from segagent_rt.runtime import open_segmenter
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click, Session
from segagent_rt_export.families.integer_part import STORED, quantise_part
from segagent_rt_export.gate.inputs import SceneInputs
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.gate.verify import verify_masks
from segagent_rt_export.variants import REFERENCE

SCENES, ROUNDS, FAST = 100, 20, "cpu-w8a8-static"


def main(folder: Path | None) -> None:
    """Measure and print."""
    document: dict[str, Any] = {"machine": describe_machine(), "cores": _cores()}
    with tempfile.TemporaryDirectory() as scratch:
        part = quantise_part(open_bundle().part("segmenter"), Path(scratch) / "part")
        verdict = verify_masks(part, Gate(), lambda text: None, SceneInputs(SCENES))
        document["click_net"] = {"verified": verdict.record({})} | times(part, side=448)
    if folder is not None:
        document["edgetam"] = times(edgetam(folder), side=1024, rounds=5)
        shutil.rmtree(folder)
    print(dump_json(document, indent=1))


def photo() -> None:
    """Measure and print the segmenter for photos; its variant in fp32 has the same weights."""
    part = open_bundle("photo").part("segmenter")
    document: dict[str, Any] = {"machine": describe_machine(), "cores": _cores()}
    document["photo_net"] = times(part, side=512, slow=STORED)
    print(dump_json(document, indent=1))


def _session(part: Part, role: str, *, where: SessionOptions, name: str) -> Session:
    return part.session(role, where, name)


def times(part: Part, side: int, rounds: int = ROUNDS, slow: str = REFERENCE) -> dict[str, Any]:
    """Milliseconds of an image's encoding and of a click, in turn; the first round does not
    count."""
    where = SessionOptions("cpu", _cores())
    names = (slow, FAST)
    segmenters = {
        name: open_segmenter(part, partial(_session, where=where, name=name)) for name in names
    }
    clocks = {work: {name: Clock() for name in names} for work in ("encode", "click")}
    for seed in range(rounds + 1):
        image = make_scene(seed, side).image
        for name, segmenter in segmenters.items():
            encode, click = (clocks[work][name] if seed else Clock() for work in clocks)
            with encode():
                embedding = segmenter.encode(image)
            with click():
                segmenter.decode(embedding, [Click(side // 2, side // 2, True)])
    return {
        work: {
            "ms": {name: clock.milliseconds() for name, clock in each.items()},
            "times_as_fast_cpu": round(median(each[slow].cpu) / median(each[FAST].cpu), 2),
        }
        for work, each in clocks.items()
    }


def edgetam(folder: Path) -> Part:
    """At real size, its weights random."""
    from segmenters import save_edgetam

    from segagent_rt_export.pipeline import GatePolicy, run_export
    from segagent_rt_export.plan import make_plan
    from segagent_rt_export.recipe import read_recipe

    checkpoint, recipe = folder / "checkpoint", folder / "recipe.toml"
    checkpoint.mkdir(parents=True)
    save_edgetam(checkpoint)
    recipe.write_text(
        f'[segmenter]\nfamily = "edgetam"\nsource = "{checkpoint.resolve()}"\n'
        'variants = ["cpu-w8a8-static", "reference"]\n'
    )
    plan = make_plan(read_recipe(recipe), folder / "bundle", resume=False, below_gate=True)
    judge = GatePolicy(Gate(scenes=1), forgiving=True)
    run_export(plan, judge, lambda text: print(text, file=sys.stderr))
    return open_part(folder / "bundle" / "segmenter", "segmenter")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    if sys.argv[1:] == ["photo"]:
        photo()
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
