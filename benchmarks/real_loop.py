"""The click loop at real size against plain PyTorch, with random weights, on this machine's cores.

python benchmarks/real_loop.py make click FOLDER     once: checkpoints and bundles, several GB
python benchmarks/real_loop.py click FOLDER          writes benchmarks/results/real-click.json
python benchmarks/real_loop.py make walk FOLDER; python benchmarks/real_loop.py walk FOLDER

`click`: one click of Qwen2.5-VL's vision encoder at 1,024 patches in front of a language model of
half a billion weights, each variant against torch in fp32 and bf16; then many expressions on one
canvas. `walk`: three clicks of Qwen3-VL-2B's shape with EdgeTAM's. `--dry` takes small shapes.
Which numbers a weight holds does not change what the work takes.

Both sides run in one process and in turn, beginning with another one in each lap. A ratio is told
only if the graphs in full precision give torch's logits, those that were timed are away from them
by less than half of what another picture changes, and the masks after the same clicks are alike.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_turn import in_turn
from real_bundle import BundlePlace, make, place_of
from real_ours import Floats, OurMllm, apart
from real_reference import PlainMllm
from real_trajectory import EXACT, EXPRESSION, SIDE, check_graphs, measure_trajectories

from segagent_rt.bench.machine import describe_machine, measure_ceilings, peak_bytes
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.io import dump_json
from segagent_rt.scenes import make_scene
from segagent_rt.types import RgbImage

RESULTS = Path(__file__).parent / "results"
MODELS = {"click": "qwen2.5-vl-0.5b", "walk": "qwen3-vl-2b"}
SMALL = {"click": "qwen2.5-vl-small", "walk": "qwen3-vl-small"}
VARIANTS: dict[str, tuple[Any, ...]] = {
    "click": ("reference", "cpu-w8", "cpu-w8a8-dynamic"), "walk": ("cpu-w8",),
}  # fmt: skip
EXPRESSIONS = (
    EXPRESSION, "the second chair from the left", "a dog that is lying down",
    "the person in the red coat",
)  # fmt: skip


def main() -> None:
    """Make what is to be measured, or measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="+", choices=["make", *MODELS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="small shapes: that all of it runs")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    what, cores = given.what[-1], len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    place = place_of(given.folder, (SMALL if given.dry else MODELS)[what])
    if given.what[0] == "make":
        if what == "walk":
            make(place, ("reference",))
            check_graphs(place)
        make(place, VARIANTS[what])
        return
    document = {
        "machine": describe_machine(),
        "cores": cores,
        "ceilings": measure_ceilings(),
        "model": place.model,
        "weights": "random",
        "torch": torch.__version__,
        **{"click": measure_clicks, "walk": measure_trajectories}[what](place, given.laps),
    }
    document["peak_megabytes"] = round((peak_bytes() or 0) / 1e6)
    text = dump_json(document, indent=1) + "\n"
    (given.output or RESULTS / f"real-{what}.json").write_text(text, "utf-8")
    print(text)


def measure_clicks(place: BundlePlace, laps: int) -> dict[str, Any]:
    """One click, and many expressions on one canvas."""
    images = [make_scene(seed, SIDE).image for seed in range(laps)]
    expression = EXPRESSIONS[0]
    whole = OurMllm(place, "reference")
    exact = whole.click(images[0], expression)
    canvases = {"reference": canvas_figures(whole, images[0], EXPRESSIONS[:2], 1)}
    whole.close()
    plain = {"fp32": PlainMllm(place, torch.float32)}
    expected = plain["fp32"].choices(images[0], expression, exact.tokens)
    errors = {"reference": apart(exact.logits, expected)}
    other = plain["fp32"].choices(make_scene(laps, SIDE).image, expression, exact.tokens)
    limit = apart(other, expected) / 2
    plain["bf16"] = PlainMllm(place, torch.bfloat16)
    ours = {name: OurMllm(place, name) for name in VARIANTS["click"] if name != "reference"}
    replies = [ours["cpu-w8"].click(image, expression).tokens for image in images]
    for name, mllm in ours.items():
        found = mllm.click(images[0], expression)
        wanted = plain["fp32"].choices(images[0], expression, found.tokens)
        errors[name] = apart(found.logits, wanted)
    canvases["cpu-w8"] = canvas_figures(ours["cpu-w8"], images[0], EXPRESSIONS, laps)
    for theirs in plain.values():
        theirs.click(images[0], None, expression, replies[0])
    ways: dict[str, Callable[..., Any]] = {
        **{n: lambda lap, m=m: m.click(images[lap], expression) for n, m in ours.items()},
        **{
            f"torch {n}": lambda lap, m=m: m.click(images[lap], None, expression, replies[lap])
            for n, m in plain.items()
        },
    }
    done = in_turn(ways, laps)
    passed = errors["reference"] <= EXACT and max(errors.values()) <= limit
    return {
        "patches": place.pixels // 14**2,
        "reply_tokens": float(np.mean([len(tokens) for tokens in replies])),
        "decoder_calls": float(np.mean([c.calls for c in done["cpu-w8"]])),
        "logits_apart": errors | {"allowed when rounded": limit},
        "parity": passed,
        "ways": {
            name: {
                "click": percentiles([c.total for c in clicks]),
                "language": percentiles([c.language for c in clicks]),
            }
            for name, clicks in done.items()
        },
        "times_as_fast": {
            f"{name} against {other}": {
                part: ratio_percentiles([getattr(c, kind) for c in done[other]],
                                   [getattr(c, kind) for c in done[name]]) if passed else None
                for part, kind in (("whole click", "total"), ("language part", "language"))
            }
            for name in ours for other in done if other.startswith("torch")
        },
        "canvas": canvases,
    }  # fmt: skip


def canvas_figures(
    ours: OurMllm, image: RgbImage, expressions: Sequence[str], laps: int
) -> dict[str, Any]:
    """First clicks for several expressions on one canvas: what the second and later ones take, and
    whether they are those of the prompt read in two calls, or in one."""
    first, later = list[float](), list[float]()
    asked: dict[str, Floats] = {}
    for _ in range(laps):
        start = time.perf_counter()
        view = ours.annotator.look(image)
        first.append(ours.ask(view, expressions[0], start).total)
        for expression in expressions[1:]:
            click = ours.ask(view, expression)
            later.append(click.total)
            asked[expression] = click.logits
    split = {e: ours.split(image, e) for e in expressions[1:]}
    unsplit = {e: ours.click(image, e).logits for e in expressions[1:]}
    return {
        "first": percentiles(first),
        "later": percentiles(later),
        "later_share": round(float(np.median(later) / np.median(first)), 4),
        "equal_to_split": all(np.array_equal(asked[e], split[e]) for e in asked),
        "apart_from_split": max(apart(asked[e], split[e]) for e in asked),
        "apart_from_unsplit": max(apart(asked[e], unsplit[e]) for e in asked),
    }


if __name__ == "__main__":
    main()
