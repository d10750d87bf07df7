"""Phases of a session on a GPU: what one of them does to itself, it does not do to the others, and
the file is whole at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segagent_rt.bench.report import BenchmarkResult, page, percentiles_page, sections

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from gpu_report import Phase, SessionRun

def good(findings):
    with findings.attempt("steps", "second"):
        raise ValueError("two and\\nmore")
    findings.note("numbers", "one", value={"error": float("inf"), "worst": 0.5})

def bad(findings):
    findings.note("numbers", "before", value=1)
    raise RuntimeError("this phase is broken")

def dies(findings):
    os.kill(os.getpid(), 9)

def hangs(findings):
    findings.note("numbers", "child", value=os.getpid())
    time.sleep(60)

PHASES = [
    Phase("good", 20, good), Phase("bad", 20, bad), Phase("dies", 20, dies),
    Phase("hangs", float(sys.argv[2]), hangs), Phase("after bad", 20, good, ("bad",)),
    Phase("after good", 20, good, ("good",), alone=True),
]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a shell's background jobs
SessionRun(Path(sys.argv[1]), float(sys.argv[3]), {"schema": 1}).run(PHASES)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def start(output: Path, hangs: float, seconds: float = 60.0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(output), str(hangs), str(seconds)]
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


def test_phases_that_raise_die_or_hang_leave_the_others_alone(tmp_path):
    output = tmp_path / "gpu.json"
    assert start(output, hangs=1.5).wait(60) == 0
    found = json.loads(output.read_text())
    phases = {name: (about["state"], about.get("why")) for name, about in found["phases"].items()}
    assert phases == {
        "good": ("done", None),
        "bad": ("failed", "RuntimeError: this phase is broken"),
        "dies": ("failed", "its process ended with code -9"),
        "hangs": ("failed", "it took longer than 2 s"),
        "after bad": ("not run", "it needs `bad`, which was not done"),
        "after good": ("done", None),
    }
    assert found["state"] == "complete"
    assert found["numbers"]["one"] == {"error": "not finite", "worst": 0.5}
    assert found["numbers"]["before"] == 1
    assert found["steps"]["second"]["failed"] == "ValueError: two and"


def test_no_phase_is_begun_without_time(tmp_path):
    output = tmp_path / "gpu.json"
    assert start(output, hangs=60, seconds=3).wait(60) == 0
    phases = json.loads(output.read_text())["phases"]
    assert phases["hangs"]["state"] == "failed"
    assert phases["after good"] == {"state": "not run", "why": "no time was left"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_session_that_is_killed_keeps_what_it_had_and_leaves_no_process(tmp_path, how):
    output = tmp_path / "gpu.json"
    session = start(output, hangs=60)
    child = 0
    while not child:
        time.sleep(0.05)
        if output.exists():  # at any moment it is a whole document
            child = json.loads(output.read_text()).get("numbers", {}).get("child", 0)
    session.send_signal(how)
    assert session.wait(20) != 0
    found = json.loads(output.read_text())
    assert found["numbers"]["child"] == child
    assert found.get("state") == ("stopped" if how == signal.SIGINT else None)
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.1)
    pytest.fail("the phase goes on")


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def spread(value: float) -> dict[str, float]:
    return {"p50": value, "p90": value, "p99": value, "max": value, "mean": value, "n": 9}


MEASURED = {
    "schema": 1,
    "gpu": {"name": "NVIDIA H200"},
    "numerics": {
        "sam": {"reference": {"passed": True}, "reference in TF32": {"passed": False}},
        "llava": {"failed": "RuntimeError: no"},
    },
    "models": {
        "qwen3-vl-2b": {
            "reply_tokens": 20,
            "parts": {
                "whole click": {
                    "segagent-rt": {"time": spread(51.5)},
                    "transformers generate": {"time": spread(402.0)},
                },
                "decode step": {
                    "segagent-rt": {"time": spread(1.5), "percent_of_published_bandwidth": 48.2},
                    "segagent-rt, CUDA graph": {"failed": "Fail: it is not captured"},
                    "PyTorch": {"time": spread(12.25)},
                    "read_mb": 3400.0,
                },
            },
        }
    },
}


def test_a_measured_gpu_becomes_one_section():
    result = BenchmarkResult("gpu", MEASURED)
    (section,) = sections([result])
    assert section.finding == ("One click of qwen3-vl-2b takes 51.5 ms, and 402 ms in transformers")
    assert section.rows[1] == (
        "qwen3-vl-2b", "decode step", "1.5 ms", "failed", "12.2 ms", "", "48"
    )  # fmt: skip
    assert "1 of 2 model families" in section.notes
    assert "those of llava do not" in section.notes
    assert [bar.owner for bar in section.chart.bars] == ["ours", "other"]
    text = page([result])
    assert text.count("## How fast is it on a GPU?") == 1
    assert "not measured" not in text
    assert "NVIDIA H200" in text
    assert "decode step.segagent-rt.time | 1.5 |" in percentiles_page([result])


def test_without_a_measurement_the_page_says_so_in_one_row():
    text = page([BenchmarkResult("other", {"schema": 1})])
    assert "## How fast is it on a GPU?" in text
    assert "| any | not measured |" in text
