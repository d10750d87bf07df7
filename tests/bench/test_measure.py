"""Every kind of scenario on the bundle that ships; figures are whole, not good."""

import numpy as np
import pytest

from segagent_rt.bench import growth, measure
from segagent_rt.bench.figures import Percentiles
from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.bench.measure import run_scenario
from segagent_rt.bench.profiling import GraphProfiler
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bundle.manifest import to_json
from segagent_rt.runtime import load

SPREAD = {"p50", "p90", "p99", "max", "mean", "n"}
WALKS = {
    "total", "per_click", "by_click", "stages", "graphs", "calls_per_click", "per_call",
    "glue_share",
    "clicks_mean", "stops", "miou",
}  # fmt: skip
FRAME = {"kind", "scenes", "seed", "joules"}


@pytest.fixture(scope="module")
def measured():
    meter = GraphProfiler()
    with load(threads=1, wrap=meter.wrap) as runtime:
        yield lambda scenario: to_json(
            run_scenario(runtime, meter, scenario, lambda _: None).to_json()
        )


def small(kind, **more):
    return Scenario("small", kind, scenes=2, side=96, clicks=2, warm_up=1, accept=0.0, **more)


def test_one_tells_the_whole_its_parts_and_accuracy(measured):
    found = measured(small("one"))
    assert set(found) == FRAME | WALKS | {"first"}
    assert set(found["total"]) == SPREAD
    assert found["total"]["n"] == 2, "the warm-up is apart"
    assert {"annotate", "segment", "vision", "language"} <= set(found["stages"])
    assert set(found["graphs"]) == {
        "mllm vision", "mllm decoder", "segmenter encoder", "segmenter decoder",
    }  # fmt: skip
    parts = found["stages"]["annotate"]["mean"] + found["stages"]["segment"]["mean"]
    assert parts <= found["total"]["mean"]
    assert 0 < found["glue_share"] < 1
    assert sum(found["stops"].values()) == 2
    assert 0 <= found["miou"] <= 1


def test_sequence_tells_frames_per_second(measured):
    found = measured(small("sequence"))
    assert set(found) == FRAME | WALKS | {"first", "frames_per_second"}
    assert found["frames_per_second"] == pytest.approx(1000 / found["total"]["p50"], abs=0.01)


def test_endurance_tells_how_memory_grew(measured, monkeypatch):
    monkeypatch.setattr(measure, "SETTLED", 2)
    sizes = iter([90e6, 100e6, 101e6, 110e6])
    monkeypatch.setattr(measure, "resident_bytes", lambda: next(sizes))
    found = measured(Scenario("small", "endurance", scenes=4, side=96, clicks=1, warm_up=1))
    assert set(found) == FRAME | {"total", "resident_megabytes", "memory_growth"}
    assert found["memory_growth"] == 0.1
    assert found["resident_megabytes"] == [90.0, 100.0, 101.0, 110.0]
    assert found["total"]["n"] == 3


def test_many_compares_a_shared_canvas_with_fresh_ones(measured):
    found = measured(small("many", expressions=(1, 2)))
    assert set(found) == FRAME | {"expressions"}
    assert set(found["expressions"]) == {"1", "2"}
    for figures in found["expressions"].values():
        assert set(figures) == {"shared", "fresh", "masks_per_second", "gain"}


def test_deadline_tells_whether_walks_ended_in_time(measured):
    found = measured(small("deadline", shares=(0.5,)))
    assert set(found) == FRAME | {"whole", "shares"}
    assert set(found["whole"]) == WALKS
    share = found["shares"]["0.5"]
    assert set(share) == {"deadline", "tolerance", "in_time", "late", "with_mask", "miou"}
    assert share["deadline"] == pytest.approx(found["whole"]["total"]["p50"] / 2, rel=1e-3)


@pytest.mark.thorough
def test_the_ablation_tells_what_each_optimisation_brings(measured):
    found = measured(small("ablation"))
    assert set(found) == FRAME | {"total", "times_as_long_without"}
    assert set(found["times_as_long_without"]) == {
        "jump_forward", "overlap", "masks_on_demand", "kept_canvas", "stop_rules",
    }  # fmt: skip
    for ratio in found["times_as_long_without"].values():
        assert ratio["n"] == 2
        assert ratio["median"] > 0


@pytest.mark.thorough
def test_growth_measures_each_curve_with_all_else_as_usual(measured, monkeypatch):
    monkeypatch.setattr(growth, "SIDES", (64, 128))
    monkeypatch.setattr(growth, "CLICKS", (1, 2))
    monkeypatch.setattr(growth, "EXPRESSIONS", (1, 2))
    found = measured(small("growth"))
    assert set(found) == FRAME | {"growth", "steepest"}
    assert list(found["growth"]["megapixels"]) == ["0.0041", "0.0164"]
    assert list(found["growth"]["clicks"]) == ["1", "2"]
    assert set(found["steepest"]) == {"megapixels", "clicks", "expressions"}
    assert found["growth"]["threads"]["1"]["n"] == 2


def test_steepest_is_above_one_only_where_time_outgrows_the_figure():
    times = {"1": 10.0, "2": 30.0, "4": 40.0}
    curve = {size: Percentiles(p50, p50, p50, p50, p50, 1) for size, p50 in times.items()}
    assert growth._steepest(curve) == 1.5


@pytest.mark.slow
def test_walks_end_by_their_deadline(measured):
    """99 % within max(10 ms, 5 %), on a machine that has nothing else to do."""
    scenario = Scenario("slow", "deadline", scenes=200, side=256, accept=0.0)
    found = measured(scenario)
    assert {share: figures["in_time"] for share, figures in found["shares"].items()} == {
        "0.25": pytest.approx(1, abs=0.01),
        "0.5": pytest.approx(1, abs=0.01),
        "0.75": pytest.approx(1, abs=0.01),
    }


def test_ceilings_are_those_of_a_machine_and_not_of_a_dream():
    found = measure_ceilings(0.1)
    assert set(found) == {"gflops", "gbytes_per_second"}
    assert all(0.1 < value < 1e6 for value in found.values())


def test_the_machine_is_described_without_naming_a_person_or_a_path():
    found = describe_machine()
    assert {"processor", "vector_units", "cores", "commit", "packages", "load", "python"} <= set(
        found
    )
    assert "/home" not in str(found)
    assert np.isfinite(found["cores"])
