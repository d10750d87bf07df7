"""Timings: the first trajectory, which loads the graphs, is left out; stages are parts of the
whole."""

from segagent_rt.cli.console import in_words
from segagent_rt.eval.latency import latencies


def test_percentiles_by_stage():
    turn = {"annotate": 0.2, "vision": 0.1, "segment": 0.05}
    walks = [{"seconds": [turn] * 2, "cold": False}] * 3
    slow = {"seconds": [{"annotate": 9.0}], "cold": True}
    found = latencies([slow, *walks])
    assert found["walk"] == {"p50": 500.0, "p90": 500.0, "p99": 500.0, "n": 3}
    assert found["vision"]["p50"] == 100.0
    assert found["segment"]["n"] == 6
    assert latencies([slow]) == {}


def test_time_left_in_words():
    assert [in_words(s) for s in (4.4, 90, 3599, 7500)] == [
        "4 s",
        "2 min",
        "1 h 0 min",
        "2 h 5 min",
    ]
