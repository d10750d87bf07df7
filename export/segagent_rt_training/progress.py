"""What every training stage shares: a schedule over samples, a resumable state on disk, a log a
machine can read."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SAVE_EVERY = 120.0
"""Seconds between checkpoints."""


def one_cycle(seen: int, total: int, *, warm_up: int, floor: float = 0.02) -> float:
    """Learning-rate factor as a function of samples seen: linear warm-up, then half a cosine."""
    rise = min(1.0, (seen + 1) / warm_up)
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, seen / total)))
    return rise * (floor + (1 - floor) * fall)


def trapezoid(
    seen: int, total: int, *, warm_up: int, decay: float = 0.4, floor: float = 0.03
) -> float:
    """Learning-rate factor: linear warm-up, flat, linear decay over the last `decay` of the
    samples."""
    left = max(0.0, 1 - seen / total)
    return min(1.0, (seen + 1) / warm_up) * (floor + (1 - floor) * min(1.0, left / decay))


class StageProgress:
    """The state of one stage: samples seen, its checkpoint and its log, in `folder`.

    A stage that is killed continues from its last checkpoint; one that finished loads its result.
    """

    def __init__(self, folder: Path, stage: str, total: int, *, quiet: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stage, self.total, self.seen, self._quiet = stage, total, 0, quiet
        self._checkpoint = folder / f"{stage}.pt"
        self._log = folder / f"{stage}.jsonl"
        self._means: dict[str, float] = {}
        self._saved = self._logged = time.monotonic()
        self._cpu = 0.0

    @property
    def done(self) -> bool:
        return self.seen >= self.total

    def resume(self, **parts: Any) -> bool:
        """Load every part's state from the checkpoint, if there is one."""
        if not self._checkpoint.exists():
            return False
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        self.seen, self._cpu = state["seen"], state["cpu"] - time.process_time()
        return True

    def save(self, **parts: Any) -> None:
        """Write a checkpoint; the old one stays until the new one is whole."""
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"seen": self.seen, "cpu": self._cpu + time.process_time()}
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)
        self._saved = time.monotonic()

    def save_now_and_then(self, **parts: Any) -> None:
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save(**parts)

    def advance(self, samples: int, losses: Mapping[str, torch.Tensor | float]) -> None:
        """Count samples, smooth the losses, and report every ten seconds."""
        self.seen += samples
        for name, value in losses.items():
            value = float(value)
            if math.isfinite(value):
                self._means[name] = self._means.get(name, value) * 0.97 + 0.03 * value
        if not self._quiet and (time.monotonic() - self._logged > 10 or self.done):
            self._logged = time.monotonic()
            self.record(self._means)

    def record(self, values: Mapping[str, float]) -> None:
        """Append one line to the log and show it."""
        cpu = (self._cpu + time.process_time()) / 60
        row = {"stage": self.stage, "seen": self.seen, "cpu_minutes": round(cpu, 2)}
        row |= {name: round(value, 4) for name, value in values.items()}
        with self._log.open("a") as log:
            log.write(json.dumps(row) + "\n")
        shown = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        share = f"{self.seen / self.total:4.0%}"
        print(
            f"{self.stage} {share} {self.seen:7d} {cpu:6.1f} cpu-min  {shown}",
            file=sys.stderr,
            flush=True,
        )
