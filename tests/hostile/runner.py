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


def run_cases(chosen: Sequence[tuple[str, int]], root: Path, workers: int = WORKERS) -> Report:
    """Run cases, each given by its kind and number. A process that hangs or dies is replaced."""
    cases = {kind: cases_of(kind) for kind, _ in chosen}
    waiting: SimpleQueue[tuple[str, int]] = SimpleQueue()
    for each in chosen:
        waiting.put(each)
    report = Report()

    def work() -> None:
        worker = None
        try:
            while True:
                kind, number = waiting.get_nowait()
                case = cases[kind][number]
                worker = worker or _Worker(root)
                problems, peak, seconds = worker.run((kind, number), case.seconds)
                report.problems += [f"{kind}: {case.name}: {each}" for each in problems]
                report.peak = max(report.peak, (peak, case.name))
                report.slowest = max(report.slowest, (seconds, case.name))
                if not worker.alive:
                    worker = None
        except Empty:
            if worker is not None:
                worker.end()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(min(workers, len(chosen)))]:
            done.result()
    return report


class _Worker:
    def __init__(self, root: Path) -> None:
        from tests.hostile.worker import serve

        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, str(root)), daemon=True)
        self._process.start()
        theirs.close()
        assert self._connection.poll(300), "the process does not start"
        self._connection.recv()
        self.alive = True

    def run(self, asked: tuple[str, int], most: float) -> tuple[list[str], int, float]:
        """What is wrong, the peak of memory in bytes, the seconds of processor time."""
        self._connection.send(asked)
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
