"""Processes that train together end together."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `export`")

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to signal the workers"),
]

PROGRAM = """
import os, sys, time
from pathlib import Path
from segagent_rt_training.distributed import run_workers

def work(team):
    Path(sys.argv[1], f"{team.rank}").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)

if __name__ == "__main__":
    run_workers(work, 2)
"""


def test_workers_end_with_a_first_process_that_is_killed_in_the_background(tmp_path):
    """A shell lets its background jobs ignore SIGINT, with which torch ends the workers."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = tmp_path / "workers"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, program, folder],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        stderr=subprocess.DEVNULL,
    ) as first:
        until(lambda: len(numbers(folder)) == 2)
        workers = numbers(folder)
        first.kill()
    until(lambda: not any(runs(worker) for worker in workers))


def numbers(folder: Path) -> list[int]:
    return [int(text) for path in folder.iterdir() if (text := path.read_text())]


def runs(process: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.1)
