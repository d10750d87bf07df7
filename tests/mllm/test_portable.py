"""The shipped MLLM in its two dialects: one says what the other says, and they are stored once."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from segagent_rt.annotators.mllm import MllmSettings
from segagent_rt.backends.registry import BACKENDS
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bench.parity import ParityGate, same_action
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt.mllm.vision_encoder import VisionEncoder
from segagent_rt.runtime import open_mllm
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Request

FIRST, SCENES = 7000, 20
ROLES = ("vision", "decoder")
SIZE = 15_000_000
"""Bytes of the bundle in the wheel, at most."""


@pytest.fixture(scope="module")
def part():
    return open_bundle().part("mllm")


def opened(part, variant):
    return open_mllm(part, lambda part, role: part.session(role, SessionOptions("cpu", 1), variant))


@pytest.mark.thorough
def test_both_make_the_same_clicks_on_clean_and_painted_pictures(part):
    """But for what the integers of one of them round."""
    gate, same = ParityGate(), []
    ours, portable = (opened(part, name) for name in ("cpu-w8a8-static", "portable"))
    for seed in range(FIRST, FIRST + SCENES):
        scene = make_scene(seed, 256)
        wrong = GivenMask(scene.mask((scene.expressions[0].target + 1) % len(scene.objects)))
        asked = [Request(mask, scene.expressions[0].text) for mask in (None, wrong)]
        wanted, found = (each.look(scene.image).propose(asked) for each in (ours, portable))
        for [ours_turn], [portable_turn] in zip(wanted, found, strict=True):
            same.append(same_action(ours_turn.action, portable_turn.action, gate.near * 256))
            assert portable_turn.rating == pytest.approx(ours_turn.rating, abs=0.05)
    assert np.mean(same) >= gate.clicks


def test_they_share_their_weights_and_the_bundle_stays_small(part):
    for role in ROLES:
        files = [
            part.manifest.variants[name].graphs[role] for name in ("cpu-w8a8-static", "portable")
        ]
        assert [part.weights(file) for file in files] == [[f"{role}.onnx.data"]] * 2
    assert sum(path.stat().st_size for path in open_bundle().folder.rglob("*.*")) <= SIZE


@pytest.mark.parametrize("role", ROLES)
def test_each_backend_gets_the_one_that_it_can_run(part, role):
    assert compatible_graphs(part.graphs(role), "cpu")[0].name == "cpu-w8a8-static"
    for backend in BACKENDS.keys() - {"cpu"}:
        assert [graph.name for graph in compatible_graphs(part.graphs(role), backend)] == [
            "portable"
        ]


@pytest.mark.parametrize(
    "how", [SessionOptions("cpu", 1), SessionOptions("cpu", 1, integer_compute=True)]
)
def test_arithmetic_in_fp32_is_in_fp32_whatever_the_library_fuses(part, how):
    """By default, ONNX Runtime rounds the activations before weights of 8 bits to 8 bits, too."""
    given = {}

    class Kept:
        def run(self, feeds, outputs, **options):
            given.update(feeds)
            raise InterruptedError

    encoder = VisionEncoder(Kept(), part.settings(MllmSettings).vision)
    with pytest.raises(InterruptedError):
        encoder.embed(encoder.resize(make_scene(FIRST, 256).image))
    graph = part.graphs("vision", "portable")[0].path
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(graph), plain, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(["image_embeds"], given)
    found = open_session(graph, how).run(given, ["image_embeds"])["image_embeds"]
    assert np.abs(found - wanted).max() < 1e-4
