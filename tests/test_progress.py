"""Progress of long work: how far it is, how long the rest takes, and one place that shows it."""

from __future__ import annotations

from typing import Any

import pytest

from segagent_rt.bench import progress
from segagent_rt.bench.progress import Progress, duration
from segagent_rt.cli import export
from segagent_rt_export.progress import Counted


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


def test_steps_of_equal_size_say_how_long_the_others_take(clock: Any) -> None:
    told: list[str] = []
    progress = Progress(told.append, "one", 4)
    for _ in range(4):
        clock.now += 60
        progress.step()
    assert told == [
        "one, 20%",
        "one, 50%, about 2 min left",
        "one, 70%, about 60 s left",
        "one, 100%",
    ]
