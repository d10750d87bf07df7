"""Runs cases in processes that may hang or crash, and collects what is wrong."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from tests.hostile.case import Case

PATIENCE = 15
"""So many times its processor time a case may take, as a busy machine runs others meanwhile."""

WORKERS = 2
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Report:
    """Attributes:
    problems: a line for each case that failed.
    peak: bytes of memory that the hungriest case took.
    slowest: processor seconds of the longest case, and its name.
    """

    problems: list[str] = field(default_factory=list)
    peak: tuple[int, str] = (0, "")
    slowest: tuple[float, str] = (0.0, "")


def cases_of(kind: str) -> list[Case]:
    cases: list[Case] = import_module(f"tests.hostile.{kind}").cases()
    return cases


def run_cases(kind: str, numbers: Sequence[int], root: Path, workers: int = WORKERS) -> Report:
    """Run some cases of a kind. A process that hangs or dies is replaced."""
    cases = cases_of(kind)
    names = [case.name for case in cases]
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in numbers:
        waiting.put(number)
    report = Report()

    def work() -> None:
        worker = None
        try:
            while True:
                number = waiting.get_nowait()
                worker = worker or _Worker(kind, root)
                problems, peak, seconds = worker.run(number, cases[number].seconds)
                report.problems += [f"{kind}: {names[number]}: {each}" for each in problems]
                report.peak = max(report.peak, (peak, names[number]))
                report.slowest = max(report.slowest, (seconds, names[number]))
                if not worker.alive:
                    worker = None
        except Empty:
            if worker is not None:
                worker.end()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(min(workers, len(numbers)))]:
            done.result()
    return report


class _Worker:
    def __init__(self, kind: str, root: Path) -> None:
        from tests.hostile.worker import serve

        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, kind, str(root)), daemon=True)
        self._process.start()
        theirs.close()
        assert self._connection.poll(300), f"the process for {kind} does not start"
        self._connection.recv()
        self.alive = True

    def run(self, number: int, most: float) -> tuple[list[str], int, float]:
        """What is wrong, the peak of memory in bytes, the seconds of processor time."""
        self._connection.send(number)
        start, began = time.monotonic(), self._seconds()
        while not self._connection.poll(0.1):
            used = self._seconds() - began
            if used > most or time.monotonic() - start > PATIENCE * most:
                self._kill()
                return [f"it hangs: {used:.1f} s of processor time"], 0, used
        used = self._seconds() - began
        try:
            problems, peak = self._connection.recv()
        except EOFError:
            self._kill()
            return [f"the process ends with {self._process.exitcode}"], 0, used
        return problems, peak, used

    def end(self) -> None:
        self._connection.send(None)
        self._process.join(10)
        self._kill()

    def _kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()

    def _seconds(self) -> float:
        """Processor time of the process so far."""
        try:
            fields: Any = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2]
        except OSError:
            return 0.0
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / _TICKS
