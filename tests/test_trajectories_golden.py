"""Trajectories of the demo bundle over synthetic scenes, recorded before the loop was rewritten.

`golden/loop/trajectories.json` holds, for scenes of 128 x 128 pixels: clicks (x, y, positive),
restarts, ratings, mask areas, the index of the returned mask, why the loop stopped, and how often
each model was called. It was recorded on a CPU with AVX-512 VNNI, one thread and ONNX Runtime 1.32.
Ratings of ONNX Runtime 1.23, the lowest version that is promised, lie up to 0.004 away; all else is
equal. Without AVX-512, sums in fp32 have another order, and a click of some scenes is another one;
the scenes of the default run are equal there, too.
"""

import json
from pathlib import Path

import pytest

from segagent_rt.bench.machine import vector_units
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.search import SearchConfig
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Trajectory

GOLDEN = json.loads((Path(__file__).parent / "golden/loop/trajectories.json").read_text("utf-8"))
RULES = {
    "default": StoppingRules(accept_unrated=False),
    "fixed7": StoppingRules.fixed(7),
    "unrated": StoppingRules.fixed(3, rate_last_mask=False),
    "search": StoppingRules(3),
    "patience": StoppingRules(accept_above=None, patience=2),
    "prior": StoppingRules(4, accept_unrated=False),
}
CANDIDATES = {"search": 3}
QUICK = {"default": (0, 16, 21), "fixed7": (0,), "unrated": (1,), "search": (2,), "prior": (3,)}
"""Scenes of the default run; all others take a minute."""


@pytest.fixture(scope="module")
def counted():
    """A runtime, and how often its models were called."""
    calls = {"looks": 0, "language_calls": 0, "decodes": 0}
    with load(backend="cpu", threads=1) as runtime, pytest.MonkeyPatch.context() as patch:

        def count(owner, method, name):
            inner = getattr(owner, method)

            def counting(self, *args, **kwargs):
                calls[name] += 1
                return inner(self, *args, **kwargs)

            patch.setattr(owner, method, counting)

        count(type(runtime.annotator.vision_encoder), "embed", "looks")
        count(type(runtime.annotator.model), "forward", "language_calls")
        count(type(runtime.segmenter), "decode", "decodes")
        yield runtime, calls


def check(counted, setting, golden):
    runtime, calls = counted
    scene = make_scene(golden["seed"], 128)
    said, prior = scene.expressions[0], None
    if setting == "prior":
        prior = GivenMask(scene.mask((said.target + 1) % len(scene.objects)))
    calls.update(dict.fromkeys(calls, 0))
    config = SearchConfig(RULES[setting], CANDIDATES.get(setting, 1))
    steps = runtime.open(scene.image).search_steps(said.text, config=config, prior=prior)
    found = Trajectory(said.text, tuple(steps))
    clicked = [step for step in found.steps if step.click is not None]
    assert [[c.x, c.y, int(c.positive)] for c in found.clicks] == golden["clicks"]
    assert [n for n, step in enumerate(clicked) if step.restarted] == golden["restarted"]
    assert [step.rating for step in found.masks] == [
        None if rating is None else pytest.approx(rating, abs=0.01) for rating in golden["ratings"]
    ]
    areas = [int(step.prediction.mask().sum()) for step in found.masks]
    assert areas == pytest.approx(golden["areas"], rel=0.02)
    assert found.stop == golden["stop"]
    assert found.masks[golden["best"]] is found.best
    assert calls["looks"] == golden["looks"]
    assert calls["decodes"] == golden["decodes"]
    assert calls["language_calls"] <= golden["language_calls"]


@pytest.mark.parametrize(
    ("setting", "seed"), [(name, seed) for name, seeds in QUICK.items() for seed in seeds]
)
def test_a_trajectory_is_as_before(counted, setting, seed):
    check(counted, setting, GOLDEN[setting][seed])


@pytest.mark.slow
@pytest.mark.skipif(
    "AVX-512 VNNI" not in vector_units(), reason="recorded on a CPU with AVX-512 VNNI"
)
@pytest.mark.parametrize("setting", GOLDEN)
def test_all_trajectories_are_as_before(counted, setting):
    for golden in GOLDEN[setting]:
        check(counted, setting, golden)
