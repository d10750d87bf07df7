"""Side by side: a ratio is told only behind the parity of the same run."""

import pytest

from segagent_rt.bench.compare_reference import Comparison, SceneComparison, compare_runs
from segagent_rt.bench.figures import RatioPercentiles
from segagent_rt.bench.loop_runs import LoopRun
from segagent_rt.bench.parity import ParityGate, ParityState, parity_figures, same_action
from segagent_rt.bench.profiling import GraphProfiler
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bundle.manifest import to_json
from segagent_rt.runtime import load
from segagent_rt.types import Click, Malformed, Trajectory
from tests.bench.twins import Twin

SCENARIO = Scenario("small", "one", scenes=2, side=96, clicks=2, warm_up=1)
LENIENT = ParityGate(accuracy=1.0)


@pytest.fixture(scope="module")
def race():
    meter = GraphProfiler()
    with load(threads=1, wrap=meter.wrap) as runtime:
        yield lambda **twin: Comparison(runtime, meter, Twin(runtime, **twin), SCENARIO)


def test_a_twin_passes_and_its_ratio_is_told(race):
    found = to_json(race().run(lambda _: None, LENIENT).to_json())
    assert found["parity"] is True
    assert found["parity_figures"]["same_clicks"] == 1.0
    assert found["parity_figures"]["mask_iou"] == 1.0
    assert found["parity_figures"]["states"] == 4
    for ratio in found["ratios"].values():
        assert set(ratio) == {"median", "p10", "p90", "n"}
        assert ratio["n"] == 2
    assert set(found["accuracy"]) == {"ours", "ours_same_clicks", "reference"}
    assert found["accuracy"]["reference"]["clicks_mean"] == 2.0
    assert found["accuracy"]["ours_same_clicks"]["clicks_mean"] == 2.0
    assert set(found["stages"]) == {"ours", "ours_with_stop", "reference"}


def test_replies_are_those_of_masked_greedy_decoding_in_fewer_calls(race):
    found = to_json(race().run(lambda _: None, LENIENT).to_json())
    assert found["token_equality"] == 1.0
    assert found["decoder_calls_after_prefill"] <= found["most_decoder_calls_after_prefill"] <= 8
    assert found["tokens_per_reply"] > found["decoder_calls_after_prefill"]


def test_no_ratio_is_told_of_one_that_clicks_otherwise(race):
    found = to_json(race(flipped=True).run(lambda _: None, LENIENT).to_json())
    assert found["parity"] is False
    assert found["parity_figures"]["same_clicks"] == 0.0
    assert found["ratios"] == {"same_clicks": None, "with_stop": None}


def test_no_ratio_is_told_where_accuracy_was_paid_for_it(race):
    impossible = ParityGate(accuracy=-2.0)
    found = to_json(race().run(lambda _: None, impossible).to_json())
    assert found["parity"] is True
    assert found["ratios"] == {"same_clicks": None, "with_stop": None}


def record(seconds, iou=0.9):
    return LoopRun(Trajectory("it", ()), seconds, iou, {}, {}, 0.0)


def test_a_ratio_is_their_time_over_ours_scene_by_scene():
    """With given times: the clock of a busy machine would decide otherwise."""
    times = [(8.0, 1.0, 0.5), (12.0, 2.0, 1.0), (30.0, 3.0, 1.0)]
    laps = [SceneComparison(None, *(record(seconds) for seconds in lap)) for lap in times]
    told = compare_runs(laps, {"passed": True}, ParityGate()).ratios
    assert told["same_clicks"] == RatioPercentiles(8.0, 6.4, 9.6, n=3)
    assert told["with_stop"].median == 16.0
    assert compare_runs(laps, {"passed": False}, ParityGate()).ratios == {
        "same_clicks": None, "with_stop": None,
    }  # fmt: skip


def test_only_the_walk_that_lost_accuracy_loses_its_ratio():
    laps = [SceneComparison(None, record(8.0, 0.9), record(1.0, 0.896), record(0.5, 0.894))]
    told = compare_runs(laps, {"passed": True}, ParityGate(accuracy=0.005)).ratios
    assert told["same_clicks"].median == 8.0
    assert told["with_stop"] is None


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (Click(10, 10, True), Click(13, 14, True), True),
        (Click(10, 10, True), Click(14, 14, True), False),
        (Click(10, 10, True), Click(10, 10, False), False),
        (Click(10, 10, True), Malformed("mumble"), False),
        (Malformed("mumble"), Malformed("no point"), True),
    ],
)
def test_clicks_are_the_same_with_one_sign_and_a_small_distance(ours, theirs, same):
    assert same_action(ours, theirs, near=5.0) is same


def test_the_gate_holds_clicks_and_masks_to_its_limits():
    gate = ParityGate(clicks=0.75, masks=0.9)
    good, bad = ParityState(True, 0.95), ParityState(False, 0.95)
    assert parity_figures([good, good, good, bad], gate)["passed"]
    assert not parity_figures([good, good, bad, bad], gate)["passed"]
    assert not parity_figures([good, ParityState(True, 0.5)], gate)["passed"]
    assert not parity_figures([ParityState(True, None)], gate)["passed"], "there was never a mask"
    assert not parity_figures([], gate)["passed"]
