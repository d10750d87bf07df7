"""A document that grows while it is measured, and the processes that measure.

Each phase runs in a process of its own, forked from one that has imported everything but has not
touched the GPU. What a phase finds reaches the document at once, and the document lies on the disk
at once. A phase may raise, hang or be killed: the others go on, and the document says why.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from segagent_rt.io import atomic_write, json_bytes

DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl."""

LEAST = 2.0
"""Seconds below which no phase is begun."""


class Findings:
    """Where a phase puts what it finds; `left` are the seconds that it has."""

    def __init__(self, channel: Connection, seconds: float) -> None:
        self._channel, self._end = channel, time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def note(self, *path: str, value: Any) -> None:
        """Put a value into the document; JSON has no word for numbers that are not finite."""
        self._channel.send((path, _finite(value)))

    @contextmanager
    def attempt(self, *path: str) -> Iterator[None]:
        """A step that may fail: the document says why, and the phase goes on."""
        try:
            yield
        except Exception as error:
            self.note(*path, "failed", value=sentence(error))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return "not finite" if isinstance(value, float) and not math.isfinite(value) else value


def sentence(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    first = "".join(c if c.isprintable() else "?" for c in lines[0][:300]) if lines else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of the session.

    Attributes:
        name: in the document.
        seconds: the most that it takes.
        work: runs in a process of its own.
        needs: names of phases without which it is not begun.
        alone: whether nothing else may run meanwhile, because it takes times.
    """

    name: str
    seconds: float
    work: Callable[[Findings], None]
    needs: tuple[str, ...] = ()
    alone: bool = False


@dataclass(slots=True)
class _Running:
    phase: Phase
    process: BaseProcess
    channel: Connection
    start: float
    end: float

    def kill(self) -> None:
        """End the process and everything that it started."""
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.join()


@dataclass(slots=True)
class SessionRun:
    """Runs phases, and keeps their document on the disk.

    Attributes:
        path: of the document.
        seconds: of the whole session.
        document: what is known so far.
    """

    path: Path
    seconds: float
    document: dict[str, Any]
    _running: list[_Running] = field(default_factory=list)

    def run(self, phases: Sequence[Phase]) -> None:
        """Every phase, in this order where they wait for each other."""
        start, waiting = time.monotonic(), list(phases)
        self.document["phases"] = {phase.name: {"state": "waiting"} for phase in phases}
        self._save()
        try:
            while waiting or self._running:
                left = start + self.seconds - time.monotonic()
                self._begin(waiting, left)
                self._listen()
            self.document["state"] = "complete"
        except (KeyboardInterrupt, SystemExit):
            self.document["state"] = "stopped"
            raise
        finally:
            for running in self._running:
                running.kill()
            self.document["seconds"] = round(time.monotonic() - start, 1)
            self._save()

    def _begin(self, waiting: list[Phase], left: float) -> None:
        for phase in list(waiting):
            states = {name: self._about(name)["state"] for name in phase.needs}
            lacking = [n for n, state in states.items() if state in ("failed", "not run")]
            if lacking:
                self._end_of(phase, "not run", f"it needs `{lacking[0]}`, which was not done")
            elif left < LEAST:
                self._end_of(phase, "not run", "no time was left")
            elif set(states.values()) - {"done"} or self._is_blocked(phase):
                if phase.alone:
                    return  # phases that take times keep their order
                continue
            else:
                self._running.append(_start(phase, min(phase.seconds, left)))
                self._about(phase.name)["state"] = "running"
                self._save()
            waiting.remove(phase)

    def _is_blocked(self, phase: Phase) -> bool:
        return bool(self._running) and (phase.alone or any(r.phase.alone for r in self._running))

    def _listen(self) -> None:
        """Take in what phases say, until one has ended, or for a moment."""
        ready = wait([running.channel for running in self._running], timeout=0.2)
        for running in list(self._running):
            ended = running.channel in ready and not self._take(running)
            if not ended and time.monotonic() < running.end:
                continue
            self._running.remove(running)
            phase, taken = running.phase, time.monotonic() - running.start
            if ended:
                running.process.join()
                code = running.process.exitcode
                if self._about(phase.name)["state"] == "running":
                    why = f"its process ended with code {code}"
                    self._end_of(phase, "failed" if code else "done", why if code else None)
            else:
                running.kill()
                while running.channel.poll() and self._take(running):
                    pass
                self._end_of(phase, "failed", f"it took longer than {taken:.0f} s")
            self._about(phase.name)["seconds"] = round(taken, 1)
            self._save()

    def _take(self, running: _Running) -> bool:
        """Put one message into the document; False if the phase has closed its end."""
        try:
            path, value = running.channel.recv()
        except (EOFError, OSError):
            return False
        place = self.document
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
        self._save()
        return True

    def _about(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.document["phases"][name]
        return found

    def _end_of(self, phase: Phase, state: str, why: str | None) -> None:
        self._about(phase.name).update({"state": state} | ({"why": why} if why else {}))
        self._save()

    def _save(self) -> None:
        atomic_write(self.path, json_bytes(self.document, indent=1))


def _start(phase: Phase, seconds: float) -> _Running:
    """A process for the phase."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_work, args=(phase, there, seconds, os.getpid()))
    process.start()
    there.close()
    now = time.monotonic()
    return _Running(phase, process, here, now, now + seconds)


def _work(phase: Phase, channel: Connection, seconds: float, parent: int) -> None:
    """In the new process: a group of its own, which ends with the session."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)
    findings = Findings(channel, seconds)
    try:
        phase.work(findings)
    except Exception as error:
        findings.note("phases", phase.name, "state", value="failed")
        findings.note("phases", phase.name, "why", value=sentence(error))
