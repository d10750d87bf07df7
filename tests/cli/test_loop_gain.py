"""What clicks were measured to add: written by `eval --record`, obeyed by the loop, shown."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.loop_gain import record_accept_unrated, record_loop_gain
from segagent_rt.bundle.manifest import LoopGain, UnratedAcceptance
from segagent_rt.loop import StoppingRules, UnratedLimits
from segagent_rt.search import SearchConfig
from segagent_rt.testing import DiscSegmenter, ScriptedAnnotator
from segagent_rt.types import Box, Click
from tests import squares
from tests.data.datasets import segagent

pytestmark = pytest.mark.usefixtures("kept_open")


@pytest.fixture
def folder(tmp_path):
    """A bundle with the parts of the shipped one, whose own `bundle.json` may be written."""
    made = tmp_path / "bundle"
    made.mkdir()
    parts = {name: os.path.relpath(part.folder, made) for name, part in open_bundle().parts.items()}
    content = {"name": "copy", "parts": parts, "about": "", "schema": 1}
    (made / "bundle.json").write_text(json.dumps(content))
    return made


def measured(samples, gain, digest):
    return LoopGain(samples, 0.5, 0.5 + gain, 7, digest)


def test_the_gain_is_the_mean_over_all_expressions(folder):
    bundle = open_bundle(folder)
    assert bundle.loop_gain is None
    gains = {"a": measured(30, 0.1, bundle.digest), "b": measured(10, -0.2, bundle.digest)}
    record_loop_gain(bundle, gains)
    assert open_bundle(folder).loop_gain == pytest.approx((30 * 0.1 - 10 * 0.2) / 40)
    record_loop_gain(bundle, {"b": measured(10, 0.0, bundle.digest)})
    again = open_bundle(folder)
    assert again.loop_gain == pytest.approx(0.075)
    assert again.digest == bundle.digest, "engines and results of this content are still good"


def test_a_gain_of_another_content_does_not_count(folder):
    bundle = open_bundle(folder)
    record_loop_gain(bundle, {"a": measured(30, 0.1, "0" * 12)})
    assert open_bundle(folder).loop_gain is None


@dataclass(frozen=True)
class Unrated:
    """A box at the first look, then clicks; no mask is rated, as by a stock model."""

    def check(self, expression):
        return expression

    def look(self, image):
        script = [Box(10, 10, 30, 30), Click(40, 20, True), Click(5, 5, False)]
        return ScriptedAnnotator(script, [None] * 3).look(image)


def looks_of(folder, rules, **changes):
    """How a canvas ends, and after how many clicks."""
    runtime = squares.square_runtime()
    runtime._segmenter, runtime._annotator = DiscSegmenter(), Unrated()
    runtime.bundle = open_bundle(folder)
    for name, value in changes.items():
        setattr(runtime, name, value)
    image = squares.square(10, 10)
    config = SearchConfig(rules, candidates=1)
    searched = list(runtime.open(image).search_steps("it", config=config))
    stepped = runtime.open(image).annotate("it", rules=rules)
    assert [step.stop for step in searched] == [step.stop for step in stepped.steps]
    return stepped.stop, len(stepped.clicks)


@pytest.mark.parametrize(
    ("gain", "rules", "ended"),
    [
        (None, StoppingRules(2), ("one-shot", 0)),
        (-0.01, StoppingRules(2), ("one-shot", 0)),
        (0.0, StoppingRules(2), ("one-shot", 0)),
        (0.01, StoppingRules(2), ("budget", 2)),
        (None, StoppingRules(2, stop_after_box=False), ("budget", 2)),
        (0.01, StoppingRules(2, stop_after_box=True), ("one-shot", 0)),
    ],
)
def test_clicks_follow_an_unrated_box_only_where_they_were_measured_to_help(
    folder, gain, rules, ended
):
    if gain is not None:
        bundle = open_bundle(folder)
        record_loop_gain(bundle, {"a": measured(9, gain, bundle.digest)})
    assert looks_of(folder, rules) == ended


def test_a_model_behind_a_server_is_not_the_one_that_was_measured(folder):
    bundle = open_bundle(folder)
    record_loop_gain(bundle, {"a": measured(9, 0.2, bundle.digest)})
    from segagent_rt.annotators.endpoint import Endpoint

    elsewhere = Endpoint("http://127.0.0.1:1", "m", preset="qwen3-vl")
    assert looks_of(folder, StoppingRules(2), endpoint=elsewhere) == ("one-shot", 0)
    same = replace(elsewhere, preset=None)
    assert looks_of(folder, StoppingRules(2), endpoint=same) == ("budget", 2)


def test_eval_writes_the_gain_and_inspect_shows_it(terminal, folder, tmp_path):
    before = open_bundle(folder).digest
    done = terminal(
        "eval", segagent(tmp_path), "-b", folder, "-o", tmp_path / "out", "--max-clicks", 2,
        "--threads", 1, "--record", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["results"]
    gain = json.loads((folder / "bundle.json").read_text())["loop_gain"][found["data"]]
    assert gain == {
        "samples": found["samples"], "one_shot": found["one_shot"]["giou"],
        "returned": found["giou"], "max_clicks": 2, "digest": before,
    }  # fmt: skip
    assert found["loop_gain"] == pytest.approx(gain["returned"] - gain["one_shot"], abs=2e-6)
    shown = terminal("inspect", folder)
    assert f"loop_gain on {found['data']}: {found['loop_gain']:+.4f}" in shown.out
    printed = terminal("eval", tmp_path / "out" / f"{found['data']}.predictions.json", "-o",
                       tmp_path / "again")  # fmt: skip
    assert f"the loop added {found['loop_gain']:+.4f} gIoU to the one-shot masks" in printed.out


@pytest.mark.parametrize(
    "options",
    [("--annotator", "oracle"), ("--start", "degraded"), ("--select", "last"), ("--click-id", 0)],
)
def test_only_what_run_does_is_recorded(terminal, folder, tmp_path, options):
    done = terminal("eval", segagent(tmp_path), "-b", folder, "-o", tmp_path / "out",
                    "--record", *options)  # fmt: skip
    assert done.code == 2
    assert "what `run` does" in " ".join(done.err.split())
    assert "loop_gain" not in (folder / "bundle.json").read_text()


def calibrated(digest):
    return UnratedAcceptance(0.9, 0.6, 0.8, 0.5, 9, 1.3, 2.9, 0.91, 0.92, digest)


def limits_of(folder, rules, **changes):
    """What a runtime makes of rules that leave it to the bundle which masks are rated."""
    runtime = squares.square_runtime()
    runtime.bundle = open_bundle(folder)
    for name, value in ({"endpoint": None} | changes).items():
        setattr(runtime, name, value)
    return runtime.completed_rules(rules).accept_unrated


def test_masks_are_accepted_unrated_by_the_limits_of_the_bundle(folder):
    assert limits_of(folder, StoppingRules()) is False
    bundle = open_bundle(folder)
    record_accept_unrated(bundle, calibrated(bundle.digest))
    assert open_bundle(folder).digest == bundle.digest
    assert limits_of(folder, StoppingRules()) == UnratedLimits(0.9, 0.6, 0.8, 0.5)
    own = UnratedLimits(0.5, 0.5, 0.5)
    assert limits_of(folder, StoppingRules(accept_unrated=own)) is own
    record_accept_unrated(bundle, None)
    assert limits_of(folder, StoppingRules()) is False


@pytest.mark.parametrize(
    "rules",
    [
        StoppingRules(accept_unrated=False),
        StoppingRules(accept_above=None),
        StoppingRules(accept_above=0.95),
        StoppingRules.fixed(2),
    ],
)
def test_rules_that_ask_for_ratings_get_them(folder, rules):
    bundle = open_bundle(folder)
    record_accept_unrated(bundle, calibrated(bundle.digest))
    assert limits_of(folder, rules) is False


def test_limits_of_another_content_or_of_a_model_behind_a_server_do_not_count(folder):
    from segagent_rt.annotators.endpoint import Endpoint

    bundle = open_bundle(folder)
    record_accept_unrated(bundle, calibrated("0" * 12))
    assert limits_of(folder, StoppingRules()) is False
    record_accept_unrated(bundle, calibrated(bundle.digest))
    elsewhere = Endpoint("http://127.0.0.1:1", "m")
    assert limits_of(folder, StoppingRules(), endpoint=elsewhere) is False


def test_inspect_shows_what_the_limits_save(terminal, folder):
    bundle = open_bundle(folder)
    record_accept_unrated(bundle, calibrated(bundle.digest))
    shown = terminal("inspect", folder)
    assert "accept_unrated: 1.30 looks instead of 2.90 (9 expressions)" in shown.out
