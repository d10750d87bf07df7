"""Progress of long work: how far it is, how long the rest takes, and one place that shows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from segagent_rt.bench import progress as runs
from segagent_rt.bench.progress import RunProgress, duration
from segagent_rt.cli import export
from segagent_rt_export import progress
from segagent_rt_export.progress import Counted, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_the_rest_is_estimated_from_what_this_run_has_done(clock: Any) -> None:
    """What an earlier run had downloaded took no time now."""
    told: list[str] = []
    work = Progress(told.append, "downloading", 1000)
    work.done = 500
    work.show(0)
    clock.now = 100
    work.show(250)
    clock.now = 101
    work.show(251)
    clock.now = 200
    work.show(500)
    assert told == ["downloading, 50%", "downloading, 70%, about 2 min left", "downloading, 100%"]


def test_weights_count_by_their_size(clock: Any) -> None:
    told: list[str] = []
    sizes = {"norm": 1, "table": 97, "head": 2}
    counted = Counted(sizes, lambda size: size, Progress(told.append, "writing", 100))
    for name in ("norm", "norm", "table", "head"):
        clock.now += 30
        assert counted[name] == sizes[name]
    assert told == ["writing, 0%", "writing, 90%, about 2 s left"]
    assert list(counted) == list(sizes)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (40, "40 s"), (200, "3 min"), (5500, "1.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_picture_is_no_bundle(tmp_path: Any) -> None:
    import typer

    with pytest.raises(typer.BadParameter, match=r"out\.png looks like a file"):
        export._expect_folder(tmp_path / "out.png")
    assert export._expect_folder(tmp_path / "qwen2.5-vl") == tmp_path / "qwen2.5-vl"


def test_a_benchmark_says_how_many_runs_are_left_and_how_long_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 60.0, 120.0, 180.0])
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(now)))
    told: list[str] = []
    progress = RunProgress(told.append, "one", 3)
    for _ in range(3):
        progress.step()
    assert told == ["one: 1 of 3, about 2 min left", "one: 2 of 3, about 60 s left", "one: 3 of 3"]
