"""Calibration: what it predicts of the loop is what the loop does."""

import numpy as np
import pytest

from segagent_rt.eval import accept_unrated
from segagent_rt.eval.accept_unrated import RatedTrajectory, calibrate, loss_bound
from segagent_rt.eval.scenes import SceneSuite, evaluate_scenes
from segagent_rt.loop import StoppingRules, UnratedLimits
from segagent_rt.runtime import load
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Click, Step, Turn

CLICK = Click(1, 1, positive=True)
SUITE = SceneSuite(6, 50, side=256)
LIMITS = UnratedLimits(stability=0.8, confidence=0.5, later_stability=0.7)


def step(stability, confidence, rating):
    made = GivenMask(np.ones((2, 2), np.bool_), stability=stability)
    return Step(CLICK, made, rating, Turn("", CLICK, confidence=confidence))


def test_a_walk_ends_at_the_first_mask_that_needs_no_rating():
    trajectory = RatedTrajectory(
        (step(0.7, 0.9, 0.6), step(0.7, 0.1, 0.95)), (0.6, 0.9), looks=3, returned=0.9
    )

    def under(*limits):
        return trajectory.under(StoppingRules(accept_unrated=UnratedLimits(*limits)))

    assert under(0.7, 0.9, 1.0) == (1, 0.6)
    assert under(0.8, 0.9, 0.7) == (2, 0.9)
    assert under(0.8, 0.9, 0.8) == (3, 0.9)


def test_the_bound_of_a_loss_is_wider_for_fewer_expressions():
    assert loss_bound(np.zeros(10)) == 0.0
    few, many = np.array([0.1, 0.0] * 5), np.array([0.1, 0.0] * 500)
    assert loss_bound(few) > loss_bound(many) > 0.05
    assert loss_bound(np.array([0.0])) == np.inf


@pytest.fixture(scope="module")
def runtime():
    with load(threads=1) as runtime:
        yield runtime


def test_scenes_report_the_looks_that_the_loop_takes(runtime):
    """The figures are read off longer trajectories, so they are compared with the loop itself."""
    found, looks = [], 0
    rules = StoppingRules(accept_unrated=LIMITS)
    figures = evaluate_scenes(
        runtime,
        SUITE,
        rules,
        lambda _: None,
        lambda scene, trajectory: found.append((scene, trajectory)),
    ).figures
    for scene, read_off in found:
        run = runtime.open(scene.image).annotate(read_off.expression, rules=rules)
        assert (run.stop, run.clicks) == (read_off.stop, read_off.clicks)
        looks += 1 + sum(bool(step.rating_reply) for step in run.masks)
    assert "accepted unrated" in [read_off.stop for _, read_off in found]
    assert figures.looks_mean == pytest.approx(looks / len(found), abs=1e-4)


def test_calibration_saves_looks_within_its_bounds(runtime, monkeypatch):
    monkeypatch.setattr(accept_unrated, "STABILITIES", (0.0, 0.8))
    monkeypatch.setattr(accept_unrated, "CONFIDENCES", (0.0, 0.5))
    monkeypatch.setattr(accept_unrated, "MAX_LOSS", 1.0)
    monkeypatch.setattr(accept_unrated, "MAX_WRONG", 1.0)
    found = calibrate(runtime, SUITE, lambda _: None)
    assert found is not None
    assert (found.stability, found.confidence, found.looks) == (0.0, 0.0, 1.0)
    assert found.digest == runtime.bundle.digest
    monkeypatch.setattr(accept_unrated, "MAX_LOSS", -1.0)
    assert calibrate(runtime, SUITE, lambda _: None) is None


def test_the_shipped_limits_belong_to_the_shipped_weights(runtime):
    """Other weights need another calibration; without one every mask is rated."""
    measured = runtime.bundle.accept_unrated
    assert measured is not None
    assert measured.looks < measured.looks_rated
    assert measured.miou_rated - measured.miou <= accept_unrated.MAX_LOSS
