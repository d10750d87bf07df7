"""The deadline: calls are stopped in time, and only while it is active."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segagent_rt.errors import InputError, Interrupted
from segagent_rt.timing import Deadline, Stopwatch, current_deadline


def test_a_running_call_is_stopped_when_time_is_up():
    deadline, stopped = Deadline(0.05), []
    with deadline.active(), current_deadline().stopping(lambda: stopped.append(time.monotonic())):
        time.sleep(0.15)
    assert len(stopped) == 1


def test_the_next_call_after_the_deadline_does_not_begin():
    deadline = Deadline(0.0)
    time.sleep(0.01)
    with deadline.active(), pytest.raises(Interrupted), deadline.stopping(lambda: None):
        pytest.fail("began")


def test_without_an_end_nothing_is_watched():
    deadline = Deadline(None)
    with deadline.active():
        assert current_deadline() is None
    assert deadline.remaining is None


def test_a_closed_deadline_stops_nothing():
    deadline, stopped = Deadline(0.03), []
    deadline.close()
    with deadline.active():
        time.sleep(0.06)
    assert stopped == []


def test_other_threads_do_not_see_it():
    with Deadline(5).active(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_deadline).result() is None


def test_the_stopwatch_adds_up():
    watch = Stopwatch()
    for _ in range(2):
        with watch("stage"):
            time.sleep(0.002)
    assert watch.seconds["stage"] >= 0.004


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_seconds_that_no_clock_can_count_are_refused(seconds):
    with pytest.raises(InputError, match="cannot be kept"):
        Deadline(seconds)
