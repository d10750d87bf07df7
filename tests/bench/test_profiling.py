"""Time inside graphs: what runs side by side counts once."""

import numpy as np

from segagent_rt.bench.figures import Percentiles, RatioPercentiles
from segagent_rt.bench.profiling import (
    GraphProfiler,
    TimedCall,
    count_by_graph,
    covered_seconds,
    seconds_by_graph,
)
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene


def test_overlapping_calls_count_once_and_gaps_do_not_count():
    calls = [
        TimedCall("a", 0.0, 2.0),
        TimedCall("b", 1.0, 1.5),
        TimedCall("b", 1.5, 3.0),
        TimedCall("a", 5.0, 6.0),
    ]
    assert covered_seconds(calls) == 4.0
    assert seconds_by_graph(calls) == {"a": 3.0, "b": 2.0}
    assert count_by_graph(calls) == {"a": 2, "b": 2}
    assert covered_seconds([]) == 0.0


def test_every_graph_of_a_runtime_is_met_and_answers_are_the_same():
    scene, meter = make_scene(3, 96), GraphProfiler()
    text = scene.expressions[0].text
    with load(threads=1) as plain:
        wanted = plain.open(scene.image).annotate(text)
    with load(threads=1, wrap=meter.wrap) as runtime:
        found = runtime.open(scene.image).annotate(text)
    assert found.clicks == wanted.clicks
    assert np.array_equal(found.prediction.mask(), wanted.prediction.mask())
    counts = count_by_graph(meter.take())
    assert set(counts) == {"mllm vision", "mllm decoder", "segmenter encoder", "segmenter decoder"}
    assert counts["segmenter encoder"] == 1
    assert counts["segmenter decoder"] == len(found.clicks)
    assert meter.take() == []


def test_spreads_are_milliseconds_and_say_of_how_many():
    assert percentiles([0.001, 0.002, 0.003]) == Percentiles(2.0, 2.8, 2.98, 3.0, mean=2.0, n=3)


def test_ratios_are_made_pair_by_pair():
    assert ratio_percentiles([2.0, 8.0, 3.0], [1.0, 2.0, 1.0]) == RatioPercentiles(3.0, 2.2, 3.8, 3)
