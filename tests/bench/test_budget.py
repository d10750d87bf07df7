"""What a bundle would take on a board: never less than what was measured here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from segagent_rt.bench.boards import BOARDS, GIB, board
from segagent_rt.bench.budget import budget, chosen
from segagent_rt.bundle.bundle import Bundle, Part, open_bundle
from segagent_rt.errors import InputError
from segagent_rt.memory import BUILD_BASE, BUILD_FACTOR

MEASURE = """
import numpy, cv2, onnxruntime, tokenizers, PIL.Image
import segagent_rt, segagent_rt.runtime
from segagent_rt.bench.machine import peak_bytes
from segagent_rt.scenes import make_scene
scene = make_scene(1, 512)
before = peak_bytes()
with segagent_rt.load(backend="cpu", threads=1) as runtime:
    runtime.open(scene.image).annotate(scene.expressions[0].text)
print(peak_bytes() - before)
"""


def with_sizes(bundle: Bundle, **sizes: int) -> Bundle:
    """The MLLM as if its files were larger."""
    part = bundle.part("mllm")
    files = dict(part.manifest.files)
    for name, size in sizes.items():
        file = name.replace("__", ".")
        files[file] = dataclasses.replace(files[file], size=size)
    manifest = dataclasses.replace(part.manifest, files=files)
    parts = {**bundle.parts, "mllm": Part(part.folder, manifest, part.digest)}
    return Bundle(bundle.folder, bundle.index, parts)


def test_the_shipped_bundle_takes_less_than_its_budget():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    measured = int(done.stdout)
    planned = sum(need.total for need in budget(open_bundle(), board("orin-nano-8")).needs)
    print(f"measured {measured / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB")
    assert measured < planned < 5 * measured


def test_every_byte_of_weights_counts():
    bundle = open_bundle()
    before = budget(bundle, board("thor"))
    larger = with_sizes(bundle, decoder__onnx__data=3_692_800 + 1000, embed__npy=237_696 + 10)
    after = budget(larger, board("thor"))
    assert before.left - after.left == 4 * 1000 + 10  # these weights are unpacked when loaded
    building = [max(need.building for need in found.needs) for found in (before, after)]
    assert building[1] - building[0] in (0, BUILD_FACTOR * 1000)
    assert building[0] > BUILD_BASE


def test_keys_and_values_are_counted_for_both_pictures():
    """Four layers, keys and values, two heads of 64 numbers, for 64 visual tokens and all texts."""
    bundle = open_bundle()
    (need,) = (n for n in budget(bundle, board("thor")).needs if n.part == "mllm")
    row = 4 * 2 * 2 * 64 * 4
    tokens, rest = divmod(need.buffers, 2 * row)
    assert rest == 0
    assert 64 + 32 + 128 < tokens < 64 + 32 + 128 + 40


@pytest.mark.parametrize(("name", "fits"), [("orin-nano-8", False), ("agx-orin-64", True)])
def test_what_does_not_fit_is_said_to(name, fits):
    bundle = with_sizes(open_bundle(), decoder__onnx__data=9 * GIB // 4)
    assert budget(bundle, board(name)).fits is fits


def test_a_variant_for_gpus_is_taken_before_others():
    part = open_bundle().part("segmenter")
    first = next(iter(part.manifest.variants.values()))
    devices = {"slow": "cpu", "plain": "any", "half": "gpu", "other": "gpu"}
    variants = {name: dataclasses.replace(first, device=d) for name, d in devices.items()}
    for names, wanted in (
        (list(devices), "half"), (["slow", "plain"], "plain"), (["slow"], "slow"),
    ):  # fmt: skip
        found = dataclasses.replace(part.manifest, variants={n: variants[n] for n in names})
        assert chosen(Part(part.folder, found, part.digest)) == wanted


def test_a_board_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match="no board `orin`") as caught:
        board("orin")
    assert set(BOARDS) == set(caught.value.hint.removeprefix("choose ").split(", "))
