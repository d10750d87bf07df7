"""Results become tables and curves; what is not in a result is not in the report."""

from typing import Any

import pytest

from segagent_rt.bench.report import (
    BenchmarkResult,
    page,
    percentiles_page,
    read_results,
    sections,
)
from segagent_rt.errors import InputError


def spread(value):
    return {"p50": value, "p90": value, "p99": value, "max": value, "mean": value, "n": 7}


WALKS = {
    "total": spread(30.0),
    "by_click": {"1": spread(20.0), "2": spread(10.0)},
    "stages": {"vision": spread(12.0), "language": spread(8.0), "annotate": spread(20.5)},
    "miou": 0.91,
}
HEAD = {"schema": 1, "machine": {"processor": "a chip", "cores": 2}, "bundle": {"name": "tiny"}}
ONE = BenchmarkResult(
    "one", HEAD | {"scenarios": {"one": {"kind": "one", "clicks_mean": 2.0} | WALKS}}
)
DEADLINE = BenchmarkResult(
    "late",
    HEAD | {
        "scenarios": {
            "deadline": {
                "whole": WALKS,
                "shares": {
                    "0.5": {"deadline": 15.0, "miou": 0.6, "in_time": 1.0},
                    "0.25": {"deadline": 7.5, "miou": 0.2, "in_time": 1.0},
                },
            }
        }
    },
)  # fmt: skip


def race(parity):
    ratio = {"median": 8.25, "p10": 8.0, "p90": 9.0, "n": 7} if parity else None
    return BenchmarkResult(
        "against",
        HEAD | {
            "clicks": 7, "reference": {"torch": "2"}, "parity": parity,
            "parity_figures": {"states": 49, "same_clicks": 0.98, "mask_iou": 0.99},
            "ratios": {"same_clicks": ratio, "with_stop": ratio},
            "accuracy": {"ours": {"miou": 0.9, "clicks_mean": 1.5}},
            "decoder_calls_after_prefill": 7.5, "tokens_per_reply": 20.0, "token_equality": 1.0,
            "stages": {"ours": WALKS, "ours_with_stop": WALKS, "reference": WALKS},
        },
    )  # fmt: skip


def test_a_page_has_one_section_for_each_question_that_results_answer():
    assert [found.slug for found in sections([ONE])] == ["stages"]
    assert [found.slug for found in sections([DEADLINE])] == ["deadline"]
    text = page([ONE, DEADLINE])
    assert "## Where does the time go?" in text
    assert "The vision encoder takes 40% of the time of one object" in text
    assert "a chip, 2 cores" in text
    assert "medians of 7 generated scenes" in text
    assert "| 8 ms | 0.200 | 100% |\n| 15 ms | 0.600 | 100% |\n| none (30 ms) | 0.910 |" in text
    assert text.count("](plots/") == 2


def test_a_busy_machine_is_told():
    busy = BenchmarkResult("busy", ONE.document | {"machine": HEAD["machine"] | {"load": [6.2]}})
    assert "busy with other programs, load 6" in " ".join(page([busy]).split())


def test_lines_of_the_page_end_at_100_columns():
    lines = page([ONE, DEADLINE, race(parity=True)]).splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith(("|", "!"))] == []


def test_the_appendix_shows_machine_percentiles_and_accuracy():
    text = percentiles_page([ONE])
    assert "processor a chip" in text
    assert "| total | 30.0 | 30.0 | 30.0 | 30.0 | 7 |" in text
    assert "| miou | 0.91 |" in text


def test_graphs_are_shown_beside_their_floor():
    graph = {
        "bytes": 4_000_000,
        "gflop": 0.5,
        "floor_ms": 2.0,
        "call_ms": 8.123456,
        "percent": 24.62,
    }
    text = percentiles_page(
        [BenchmarkResult("one", ONE.document | {"roofline": {"one": {"mllm vision": graph}}})]
    )
    assert "| mllm vision | 4.0 | 0.5 | 2.0 | 8.12 | 24.62 % |" in text


def test_ratios_are_shown_with_their_spread():
    assert "8.2 (8.0 to 9.0)" in page([race(parity=True)])
    text = percentiles_page([race(parity=True)])
    assert "| same_clicks | 8.25 | 8.0 | 9.0 | 7 |" in text
    assert "Parity holds over 49 states" in text


def test_a_race_without_parity_shows_no_ratio():
    assert "No speed-up is" in page([race(parity=False)])
    text = percentiles_page([race(parity=False)])
    assert "| same_clicks | not reported |" in text
    assert "Parity FAILS" in text


def test_other_documents_with_percentiles_are_tables_too():
    """As `benchmarks/cold.py` writes them."""
    text = percentiles_page([BenchmarkResult("cold", {"run": {"wall_ms": spread(900.0)}})])
    assert "| run.wall_ms | 900.0 |" in text


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(InputError, match=r"broken\.json"):
        read_results(tmp_path)


def test_a_folder_without_results_says_how_to_get_some(tmp_path):
    with pytest.raises(InputError) as caught:
        read_results(tmp_path)
    assert "bench --output" in caught.value.hint


def test_runtimes_that_took_turns_stand_in_one_table_and_wrong_ones_nowhere():
    """A peer with other logits than ours has no ratio."""
    ratio = {"median": 0.75, "p10": 0.7, "p90": 0.8, "n": 5}

    def stages(whole: float) -> dict[str, Any]:
        return {"whole": spread(whole), "prompt": spread(whole / 2), "token": spread(8.0)}

    language = {
        "machine": {"processor": "a chip", "cores": 2, "vector_units": ["AVX2", "AVX-512"]},
        "ways": {
            "cpu-w8": stages(900.0),
            "cpu-w8a8-dynamic": stages(950.0),
            "llama.cpp Q8_0": stages(675.0),
            "openvino int4": stages(100.0),
        },
        "times_as_fast": {
            "cpu-w8 against llama.cpp Q8_0": {"whole": ratio, "prompt": ratio, "token": ratio},
            "cpu-w8 against openvino int4": None,
            "cpu-w8a8-dynamic against llama.cpp Q8_0": {"whole": ratio},
            "cpu-w8a8-dynamic against openvino int4": None,
        },
    }
    (found,) = sections([BenchmarkResult("peers", {"language": language})])
    assert found.rows == (
        ("segagent-rt", "8-bit weights", "900 ms", "450 ms", "8 ms", ""),
        ("segagent-rt", "8-bit weights and activations", "950 ms", "475 ms", "8 ms", ""),
        ("llama.cpp", "Q8_0", "675 ms", "338 ms", "8 ms", "0.8 (0.7 to 0.8)"),
    )
    assert found.finding == "segagent-rt is 0.8 times as fast as llama.cpp"
    wrong = language | {"times_as_fast": {"cpu-w8 against openvino int4": None}}
    assert sections([BenchmarkResult("peers", {"language": wrong})]) == []
    assert "a chip with AVX-512, 2 cores" in found.measured


def test_vision_encoders_are_compared_where_they_compute_the_same():
    ratio = {"median": 2.5, "p10": 2.0, "p90": 3.0, "n": 5}
    vision = {
        "model": "some-vl", "patches": 1024,
        "apart_from_torch_fp32": {
            "cpu-w8a8-dynamic": 0.02, "torch fp32": 0.0, "openvino int8": 0.01,
        },
        "ways": {
            "cpu-w8a8-dynamic": spread(2000.0), "torch fp32": spread(5000.0),
            "openvino int8": spread(9000.0),
        },
        "times_as_fast": {
            "cpu-w8a8-dynamic against torch fp32": ratio,
            "cpu-w8a8-dynamic against openvino int8": None,
        },
    }  # fmt: skip
    (found,) = sections([BenchmarkResult("vision-peers", HEAD | vision)])
    assert found.finding == "segagent-rt is 2.5 times as fast as PyTorch"
    assert found.rows == (
        ("segagent-rt", "8-bit weights and activations", "2.0 s", "2.0%", ""),
        ("PyTorch", "32-bit floats", "5.0 s", "0.0%", "2.5 (2.0 to 3.0)"),
    )
    none = {pair: None for pair in vision["times_as_fast"]}
    assert sections([BenchmarkResult("wrong", HEAD | vision | {"times_as_fast": none})]) == []
