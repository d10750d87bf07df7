"""The benchmarks at real size, in small: numbers come out, and a wrong graph is noticed."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.scenes import make_scene

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from pathlib import Path  # noqa: E402

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODEL = "qwen2.5-vl-small"

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch's own exporter
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),  # random logits are large
]


@pytest.fixture(scope="module")
def real():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module


@pytest.fixture(scope="module")
def place(real, tmp_path_factory):
    bundles = real("real_bundle")
    made = bundles.place_of(tmp_path_factory.mktemp("real"), MODEL)
    bundles.make(made, ("reference", "cpu-w8", "cpu-w8a8-dynamic"))
    return made


def test_a_click_against_torch_and_many_on_one_canvas(real, place):
    found = real("real_loop").measure_clicks(place, 2)
    assert found["parity"] is True
    assert found["logits_apart"]["reference"] < 1e-5
    assert found["logits_apart"]["reference"] < found["logits_apart"]["cpu-w8"] < 0.05
    assert set(found["ways"]) == {"cpu-w8", "cpu-w8a8-dynamic", "torch fp32", "torch bf16"}
    assert all(way["click"].n == 2 for way in found["ways"].values())
    assert all(
        ratio.median > 0 for pair in found["times_as_fast"].values() for ratio in pair.values()
    )
    for variant in ("reference", "cpu-w8"):
        canvas = found["canvas"][variant]
        assert canvas["equal_to_split"]
        assert canvas["apart_from_unsplit"] <= 1e-4
        assert canvas["later"].p50 < canvas["first"].p50


def test_the_plain_loop_generates_as_many_tokens_as_ours_and_the_end(real, place):
    reference = real("real_reference").PlainMllm(place, torch.float32)
    image = make_scene(0, 256).image
    click = real("real_ours").OurMllm(place, "cpu-w8").click(image, "the mug")
    steps = []
    reference.model.register_forward_hook(lambda *_: steps.append(1))
    plain = reference.click(image, None, "the mug", click.tokens)
    assert len(steps) == len(click.tokens) + 1
    assert plain.total > plain.seconds["generate"] > plain.seconds["vision"] > 0


def test_the_vision_encoder_alone_gives_what_torch_gives(real, place):
    """One picture; windows at the edges are smaller than the others."""
    found = real("vision_peers").measure(None, place, 2)
    assert found["apart_from_torch_fp32"]["torch fp32"] == 0
    assert 0 < found["apart_from_torch_fp32"]["cpu-w8a8-dynamic"] < 0.1
    ratio = found["times_as_fast"]["cpu-w8a8-dynamic against torch bf16"]
    assert ratio.n == 2
    assert ratio.median > 0


def test_embeddings_that_differ_have_no_ratio(real, place, monkeypatch):
    peers = real("vision_peers")
    monkeypatch.setattr(peers, "our_picture", lambda ours, image: (np.ones((25, 64)), 1.0))
    found = peers.measure(None, place, 1)
    assert set(found["times_as_fast"].values()) == {None}


def test_wrong_positions_are_noticed_and_no_ratio_is_told(real, place, monkeypatch):
    """Rotary tables of another base: a graph that runs, and computes something else."""
    angles = RopeSettings.angles

    def wrong(self, positions):
        return angles(self, np.asarray(positions) * 2)

    monkeypatch.setattr(RopeSettings, "angles", wrong)
    found = real("real_loop").measure_clicks(place, 1)
    assert found["parity"] is False
    assert found["logits_apart"]["reference"] > 1e-3
    assert all(r is None for pair in found["times_as_fast"].values() for r in pair.values())


@pytest.mark.slow
def test_three_clicks_with_their_masks(real, tmp_path):
    loop, bundles = real("real_loop"), real("real_bundle")
    trajectories = real("real_trajectory")
    place = bundles.place_of(tmp_path, "qwen3-vl-small")
    bundles.make(place, ("reference",))
    trajectories.check_graphs(place)
    bundles.make(place, loop.VARIANTS["walk"])
    found = trajectories.measure_trajectories(place, 2)
    assert found["parity"] is True
    assert found["parity_figures"]["graphs_apart"] < 1e-5
    assert found["parity_figures"]["mask_iou"] > 0.95
    assert found["ours"]["clicks_mean"] == 3
    assert found["times_as_fast"]["with_stop"].median > found["times_as_fast"]["same_clicks"].median
    (place.folder / "graphs.json").write_text(json.dumps({"graphs_apart": 0.5}))
    assert trajectories.measure_trajectories(place, 1)["times_as_fast"] is None


def test_a_walk_that_was_stopped_is_put_together_from_its_turns(real):
    stopped = real("real_trajectory").stopped
    assert stopped([5.0, 3.0, 3.0], 1.0) == 5.0  # each step holds the rating of its mask
    assert stopped([5.0, 3.0, 3.0], 2.0) == 8.0


def test_distances_of_logits_are_shares_of_what_they_differ_in(real):
    apart = real("real_ours").apart
    wanted = np.array([[100.0, 101.0, 102.0]], np.float32)
    assert apart(wanted, wanted) == 0
    assert apart(wanted + 1, wanted) == pytest.approx(1)
    assert apart(wanted[:, ::-1], wanted) > 1
    assert apart(wanted[:, :2], wanted) == float("inf")
