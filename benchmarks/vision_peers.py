"""The vision encoder of a Qwen2.5-VL at real size in other runtimes, on the same weights.

python benchmarks/vision_peers.py make FOLDER --openvino PYTHON
python benchmarks/vision_peers.py measure FOLDER --openvino PYTHON
                                             writes benchmarks/results/vision-peers.json

One picture of 1,024 patches. Our variants, PyTorch and OpenVINO take turns; PYTHON is that of an
environment with openvino, optimum-intel, nncf and transformers 4. FOLDER is that of
`real_loop.py make click`. Peers get patches that are cut already, ours cuts them itself. A ratio is
told only if the embeddings are those of PyTorch in fp32, but for rounding. `--dry` takes a small
model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_turn import in_turn
from real_bundle import BundlePlace, place_of
from real_ours import Floats, OurMllm
from real_reference import PlainMllm

from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.io import dump_json
from segagent_rt.scenes import make_scene
from segagent_rt.types import RgbImage

HERE = Path(__file__).parent
RESULT = HERE / "results" / "vision-peers.json"
MODEL, SMALL = "qwen2.5-vl-0.5b", "qwen2.5-vl-small"
CORES = len(os.sched_getaffinity(0))
OURS = ("cpu-w8", "cpu-w8a8-dynamic")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = ("int8", "fp16")
"""Of weights that OpenVINO's export stores."""

MOST_APART = 0.1
"""Most that a token's embedding may be away from PyTorch's, as a share of its length."""


def main() -> None:
    """Make what the peer needs, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--openvino", help="python with openvino, optimum-intel and nncf")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="a small model: that all of it runs")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    place = place_of(given.folder, SMALL if given.dry else MODEL)
    torch.set_num_threads(CORES)
    if given.what == "make":
        write_earlier_layout(place)
        for precision in PRECISIONS:
            subprocess.run(export_command(given.openvino, place, precision), check=True)
        return
    document = {
        "machine": describe_machine(),
        "cores": CORES,
        "ceilings": measure_ceilings(),
        "model": place.model,
        "weights": "random",
        **measure(given.openvino, place, given.laps),
    }
    given.output.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def export_command(python: str, place: BundlePlace, precision: str) -> Sequence[str]:
    """What writes OpenVINO's models of the checkpoint."""
    export = (str(Path(python).parent / "optimum-cli"), "export", "openvino")
    source, target = str(earlier_layout(place)), str(exported(place, precision))
    return (*export, "--model", source, "--task", "image-text-to-text",
            "--weight-format", precision, target)  # fmt: skip


def earlier_layout(place: BundlePlace) -> Path:
    """Where the checkpoint lies for libraries that know transformers 4 only."""
    return place.folder / "checkpoint-transformers-4"


def write_earlier_layout(place: BundlePlace) -> None:
    """The same weights with the configuration that Qwen2.5-VL was published with: optimum-intel 2.2
    exports vision encoders with transformers up to 5.0 only."""
    folder = earlier_layout(place)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in place.checkpoint.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.absolute())
    config = json.loads((place.checkpoint / "config.json").read_text("utf-8"))
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def exported(place: BundlePlace, precision: str) -> Path:
    """Where OpenVINO's models lie."""
    return place.folder / f"openvino-vlm-{precision}"


class OpenVinoEncoder:
    """OpenVINO in a process of its own."""

    def __init__(self, python: str, folder: Path, scratch: Path) -> None:
        command = (python, str(HERE / "peer_openvino.py"), "encode", str(folder), str(CORES))
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._result = scratch / f"{folder.name}.npy"

    def picture(self, patches: Path) -> tuple[Floats, float]:
        """Embeddings [tokens, hidden], and the seconds of the vision encoder."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([str(patches), str(self._result)]) + "\n")
        self._child.stdin.flush()
        said = json.loads(self._child.stdout.readline())
        return np.load(self._result), said["seconds"]

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


def measure(python: str | None, place: BundlePlace, laps: int) -> dict[str, Any]:
    """Seconds of a picture in every runtime, in turn, and how far their embeddings are away."""
    side = math.isqrt(place.pixels)
    image = make_scene(0, side).image
    ways = dict[str, Callable[[], tuple[Floats, float]]]()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for variant in OURS:
            ours = OurMllm(place, variant)
            stack.callback(ours.close)
            ways[variant] = partial(our_picture, ours, image)
        plain = {name: PlainMllm(place, dtype) for name, dtype in TYPES.items()}
        for name, net in plain.items():
            ways[f"torch {name}"] = partial(net.picture, image)
        if python:
            patches = scratch / "picture.npz"
            write_patches(plain["fp32"], image, patches)
            for precision in PRECISIONS:
                peer = OpenVinoEncoder(python, exported(place, precision), scratch)
                stack.callback(peer.close)
                ways[f"openvino {precision}"] = partial(peer.picture, patches)
        wanted = ways["torch fp32"]()[0]
        away = {name: apart(way()[0], wanted) for name, way in ways.items()}
        done = in_turn({name: lambda _, way=way: way()[1] for name, way in ways.items()}, laps)
    return {
        "patches": place.pixels // 14**2,
        "apart_from_torch_fp32": away,
        "ways": {name: percentiles(seconds) for name, seconds in done.items()},
        "times_as_fast": {
            f"{name} against {other}": ratio_percentiles(done[other], done[name])
            if max(away[name], away[other]) <= MOST_APART
            else None
            for name in OURS
            for other in done
            if other not in OURS
        },
    }


def our_picture(ours: OurMllm, image: RgbImage) -> tuple[Floats, float]:
    """Embeddings [tokens, hidden] of a variant, and the seconds that cutting patches and the
    vision encoder take."""
    encoder = ours.annotator.vision_encoder
    picture = encoder.resize(image)
    start = time.perf_counter()
    found = encoder.embed(picture)
    seconds = time.perf_counter() - start
    return np.array(found.embeddings[0]), seconds


def write_patches(plain: PlainMllm, image: RgbImage, path: Path) -> None:
    """What transformers' image processor makes of a picture, for another process."""
    made = plain.inputs(image, "")
    np.savez(path, patches=made["pixel_values"].numpy(), grid=made["image_grid_thw"])


def apart(found: Floats, wanted: Floats) -> float:
    """The median distance of tokens, as a share of their length."""
    away = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    return round(float(np.median(away)), 4)


if __name__ == "__main__":
    main()
