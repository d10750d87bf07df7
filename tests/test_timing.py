"""The deadline: calls are stopped in time, and only while it is active."""

import contextlib
import gc
import os
import threading
import time
import weakref
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


def test_deadlines_share_one_thread():
    """A server sets one for each request. A timer for each started a thread each."""
    Deadline(60).close()
    before = threading.active_count()
    deadlines = [Deadline(60) for _ in range(20)]
    assert threading.active_count() == before
    for deadline in deadlines:
        deadline.close()


def test_a_closed_deadline_is_freed_without_a_search_for_garbage():
    gc.disable()
    try:
        deadline = Deadline(60)
        deadline.close()
        seen = weakref.ref(deadline)
        del deadline
        assert seen() is None
    finally:
        gc.enable()


def test_deadlines_pass_in_their_order_whatever_order_they_were_set_in():
    passed, set_first = [], [Deadline(seconds) for seconds in (60, 0.12, 0.06, 0.09)]
    with contextlib.ExitStack() as running:
        for number, deadline in enumerate(set_first):
            running.enter_context(deadline.stopping(lambda number=number: passed.append(number)))
        time.sleep(0.25)
    set_first[0].close()
    assert passed == [2, 3, 1]


def test_a_call_that_cannot_be_stopped_keeps_no_other_from_it(caplog):
    first, second, stopped = Deadline(0.03), Deadline(0.06), []
    with (
        first.stopping(lambda: 1 / 0),
        first.stopping(lambda: stopped.append("first")),
        second.stopping(lambda: stopped.append("second")),
    ):
        time.sleep(0.2)
    assert stopped == ["first", "second"]
    assert "could not be stopped" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_deadlines_pass_in_a_forked_process():
    Deadline(60).close()  # the thread runs here, and not in the child
    child = os.fork()
    if child == 0:
        stopped = threading.Event()
        with Deadline(0.03).stopping(stopped.set):
            os._exit(0 if stopped.wait(5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
