"""How many numbers should share a scale: how long products in 8 bits take, and how far they err.

python benchmarks/blocks.py             all of it; prints one JSON document
python benchmarks/blocks.py --errors    without the times, which a busy machine changes

Times are those of one layer of Qwen2.5-VL's vision encoder at 1,024 patches, and of one of a
language model of half a billion weights that reads a prompt, or one token. An error is how far a
row of a product is away from that of unrounded numbers, over its own length; the median of the
rows counts. Products with blocks round what comes in, too, in blocks as long; those of integers
round each row by itself, or all with one scale. And it is seen whether a row comes out the same, to
the bit, alone and among others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from in_turn import in_turn

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bench.machine import describe_machine
from segagent_rt.bench.stats import percentiles
from segagent_rt.io import dump_json
from segagent_rt.types import Session
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.integer_product import MOST
from segagent_rt_export.graphs.precision import Precision, Scheme, per_channel_int8
from segagent_rt_export.sources.weights import Blocks

Floats = npt.NDArray[np.float32]

BLOCKS = (32, 64, 128, 256)
WAYS: dict[str, tuple[Scheme, int]] = {
    **{f"8 bits in blocks of {block}": ("8bit", block) for block in BLOCKS},
    "integers, a scale for each row": ("int8", 0),
    "integers, one scale for all rows": ("rounded", 0),
}
TOWER = ((1280, 3840), (1280, 1280), (1280, 3420), (1280, 3420), (3420, 1280))
LANGUAGE = ((896, 1152), (896, 896), (896, 4864), (896, 4864), (4864, 896))
LAYERS = {"tower": (1024, TOWER), "prompt": (358, LANGUAGE), "one token": (1, LANGUAGE)}
"""Rows, and inputs and outputs of a layer's matrices."""

LAPS = 10
ROWS, INPUTS, OUTPUTS = 256, 3420, 512
OUTLIERS, STRETCH, HUGE = 6, 30, 300


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--errors", action="store_true", help="no times")
    given = parser.parse_args()
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "errors": errors(),
        "same_rows_alone": {name: same_alone(*way) for name, way in WAYS.items()},
    }
    if not given.errors:
        document["milliseconds"] = {name: times(*layer) for name, layer in LAYERS.items()}
    print(dump_json(document, indent=1))


def times(rows: int, shapes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Milliseconds of a layer's products, by way."""
    random = np.random.default_rng(0)
    weights = [random.normal(size=(outputs, inputs)) for inputs, outputs in shapes]
    given = [random.normal(size=(rows, inputs)).astype(np.float32) for inputs, _ in shapes]
    opened = {name: [product(w, *way) for w in weights] for name, way in WAYS.items()}

    def layer(sessions: list[Session]) -> float:
        start = time.perf_counter()
        for session, x in zip(sessions, given, strict=True):
            session.run({"x": x}, ["y"])
        return time.perf_counter() - start

    ways = {name: lambda _, s=s: layer(s) for name, s in opened.items()}
    in_turn(ways, 2)
    return {name: percentiles(seconds) for name, seconds in in_turn(ways, LAPS).items()}


def errors() -> dict[str, Any]:
    """Errors of products, by kind of numbers and by way."""
    random = np.random.default_rng(0)
    kinds = {"normal": normal(random), "heavy tails": heavy(random), "outliers": outliers(random)}
    kinds["one huge row"] = huge(random)
    return {
        kind: {name: apart(x, weight, *way) for name, way in WAYS.items()}
        for kind, (x, weight) in kinds.items()
    }


def normal(random: np.random.Generator) -> tuple[Floats, Floats]:
    """What comes in, [rows, inputs], and a weight, [outputs, inputs]."""
    x, weight = random.normal(size=(ROWS, INPUTS)), random.normal(size=(OUTPUTS, INPUTS))
    return x.astype(np.float32), weight.astype(np.float32)


def heavy(random: np.random.Generator) -> tuple[Floats, Floats]:
    """Student's t with four degrees of freedom, both."""
    x = random.standard_t(4, size=(ROWS, INPUTS))
    weight = random.standard_t(4, size=(OUTPUTS, INPUTS))
    return x.astype(np.float32), weight.astype(np.float32)


def outliers(random: np.random.Generator) -> tuple[Floats, Floats]:
    """Heavy tails, with a few channels that come in many times as large and weigh as little."""
    x, weight = heavy(random)
    channels = random.choice(INPUTS, OUTLIERS, replace=False)
    x[:, channels] *= STRETCH
    weight[:, channels] /= STRETCH
    return x, weight


def huge(random: np.random.Generator) -> tuple[Floats, Floats]:
    """Normal numbers, but for one row that is many times as large: large language models have such
    tokens."""
    x, weight = normal(random)
    x[0] *= HUGE
    return x, weight


def apart(x: Floats, weight: Floats, scheme: Scheme, block: int) -> float:
    """Error of one product's rows."""
    found = product(weight, scheme, block).run({"x": x}, ["y"])["y"]
    wanted = x.astype(np.float64) @ weight.T
    away = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return round(float(np.median(away)), 5)


def same_alone(scheme: Scheme, block: int) -> bool:
    """Whether a row of a product does not depend on how many others there are."""
    x, weight = normal(np.random.default_rng(0))
    session = product(weight, scheme, block)
    together = session.run({"x": x}, ["y"])["y"]
    return all(
        np.array_equal(session.run({"x": x[:rows]}, ["y"])["y"], together[:rows])
        for rows in (1, 2, 3, 17, 64)
    )


def product(weight: npt.NDArray[Any], scheme: Scheme, block: int) -> Session:
    """A graph that multiplies with the weight, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        with new_graph(path, "ort") as graph:
            x, own = graph.input("x", np.float32, ["N", weight.shape[1]]), None
            if scheme == "rounded":
                own = by_output(weight.astype(np.float32))
            y = Precision(scheme, block).linear(graph, x, weight.astype(np.float32), blocks=own)
            graph.output(y, "y", np.float32, ["N", len(weight)])
        return open_session(path, SessionOptions("cpu", len(os.sched_getaffinity(0))))


def by_output(weight: Floats) -> Blocks:
    """Integers of 7 bits with one scale for each output."""
    codes, scales = per_channel_int8(weight, MOST)
    zeros = np.full((len(weight), 1), MOST + 1, np.uint8)
    return Blocks(7, (codes + zeros.astype(np.int16)).astype(np.uint8), zeros, scales[:, None])


if __name__ == "__main__":
    main()
