"""`segagent-rt bench`: one document with stable keys; no speed-up without parity."""

import json
import re
import sys

import pytest

from segagent_rt.cli import bench
from segagent_rt.runtime import load
from tests.bench.twins import Twin

HEAD = {
    "schema", "load_ms", "machine", "ceilings", "bundle", "backend", "threads", "peak_megabytes",
}  # fmt: skip


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('kind = "one"\nscenes = 2\nside = 96\nclicks = 1\nwarm_up = 1\n')
    return path


@pytest.fixture
def twin(monkeypatch):
    """The reference is replaced by our own runtime."""
    runtime = load(threads=1)

    def take_the_place(**behaviour):
        there = Twin(runtime, **behaviour)
        monkeypatch.setattr(bench, "open_reference_loop", lambda *_: there)

    yield take_the_place
    runtime.close()


@pytest.mark.thorough
def test_the_document_is_printed_and_written(terminal, scenario, tmp_path):
    path = tmp_path / "deep" / "result.json"
    done = terminal("bench", "-s", scenario, "--threads", 1, "-o", path, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    written = json.loads(path.read_text())
    assert written.pop("segagent_rt").startswith("sha256:")
    assert document == written
    assert set(document) == HEAD | {"scenarios", "roofline"}
    assert document["threads"] == 1
    assert document["scenarios"]["small"]["total"]["n"] == 2


@pytest.mark.thorough
def test_the_text_shows_percentiles_and_accuracy(terminal, scenario):
    done = terminal("bench", "-s", scenario, "--threads", 1)
    assert done.code == 0, done.err
    total = next(line for line in done.out.splitlines() if "total" in line)
    assert all(word in total for word in ("p50", "p90", "p99", "max", "n 2"))
    assert "miou" in done.out


def test_scenarios_are_listed(terminal):
    assert {"one", "many", "deadline"} <= set(terminal("bench", "--list").out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-s", "swift"], 1, "there is no scenario `swift`"),
        (["nowhere"], 1, "there is no bundle `nowhere`"),
        (["--against", "nobody"], 2, "reference"),
        (["--against", "reference", "-s", "one", "-s", "many"], 2, "one --scenario"),
        (["-s", "one", "-o", "/dev/null/result.json"], 1, "error: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(terminal, arguments, code, said):
    done = terminal("bench", *arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err + done.out


@pytest.mark.thorough
def test_against_prints_ratios_behind_parity(terminal, scenario, twin):
    twin()
    done = terminal("bench", "-s", scenario, "--against", "reference", "--threads", 1, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert {
        "ratios", "accuracy", "decoder_calls_after_prefill", "tokens_per_reply", "token_equality",
        "parity", "stages",
    } <= set(document)  # fmt: skip
    assert set(document) >= HEAD
    for ratio in document["ratios"].values():
        assert set(ratio) == {"median", "p10", "p90", "n"}
    assert document["accuracy"]["ours"]["miou"] >= 0
    assert document["accuracy"]["reference"]["miou"] >= 0


@pytest.mark.thorough
def test_a_speed_up_is_printed_in_words(terminal, scenario, twin):
    twin()
    done = terminal("bench", "-s", scenario, "--against", "reference", "--threads", 1)
    assert "times as fast" in done.out


@pytest.mark.thorough
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_speed_up_is_printed_when_the_clicks_differ(terminal, scenario, twin, tmp_path, form):
    twin(flipped=True)
    path = tmp_path / "result.json"
    arguments = ["-s", scenario, "--against", "reference", "--threads", 1, "-o", path]
    done = terminal("bench", *arguments, *form)
    assert done.code == 3
    assert "there is no speed-up" in done.err
    assert "times as fast" not in done.out
    assert json.loads(path.read_text())["ratios"] == {"same_clicks": None, "with_stop": None}


def test_a_missing_extra_is_named(terminal, scenario, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = terminal("bench", "-s", scenario, "--against", "reference", "--threads", 1)
    assert done.code == 1
    assert re.search(r"pip install .*\[export\]", done.err)
