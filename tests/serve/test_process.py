"""What a server's process asks of the system: packets at once, and memory given back."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from segagent_rt.serve import process_memory
from segagent_rt.serve.connection import JoinedWrites
from segagent_rt.serve.server import listen
from segagent_rt.serve.server_settings import ServerSettings


def test_answers_are_sent_at_once():
    """asyncio switches Nagle's algorithm off only for sockets that say that they are TCP. With it,
    every answer came 40 ms late."""
    with listen(ServerSettings("127.0.0.1", 0, None)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_head_and_body_leave_together():
    """Sent apart, they wake the client twice, which costs a click a tenth of a millisecond."""
    sent = []
    transport = SimpleNamespace(
        write=sent.append, close=lambda: sent.append("closed"), is_closing=lambda: False
    )

    async def answer():
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        joined.write(b"head ")
        joined.write(b"body")
        assert sent == []
        await asyncio.sleep(0)
        joined.write(b"last")
        joined.close()
        await asyncio.sleep(0)
        assert not joined.is_closing()

    asyncio.run(answer())
    assert sent == [b"head body", b"last", "closed"]


FREED = """
import gc, os, threading
import numpy as np
from segagent_rt.serve.process_memory import return_freed_memory, share_heaps

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def fill():
    held = []
    for size in range(3, 30):  # glibc's own limit rises with each that is freed
        np.ones(size << 20, np.uint8)
        held.append((np.ones(size << 20, np.uint8), bytes(1000)))
    kept.append([small for _, small in held])

share_heaps()
kept, before = [], resident()
for _ in range(4):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
gc.collect()
held = (resident() - before) >> 20
return_freed_memory()
print(held, (resident() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_memory_of_large_arrays_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True, timeout=60
    )
    held, left = map(int, done.stdout.split())
    assert held > 50, "without a return, glibc keeps it: the test shows nothing"
    assert left < 20, "megabytes more than before"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_is_returned_while_there_are_requests(monkeypatch):
    """Returning takes pages away that the next request needs, so an idle server does nothing."""
    served, returns = itertools.chain([0, 1, 1, 2], itertools.repeat(2)), []
    monkeypatch.setattr(process_memory, "return_freed_memory", lambda: returns.append(1))

    async def watch():
        with suppress(TimeoutError):
            keeper = process_memory.return_memory_regularly(lambda: next(served), 0.001)
            await asyncio.wait_for(keeper, 0.3)

    asyncio.run(watch())
    assert len(returns) == 2


COLLECTED = """
import gc, weakref
from segagent_rt import cli
from segagent_rt.serve.process_memory import search_garbage

class Left:
    pass

gc.set_threshold(cli.RARELY)
search_garbage()
first = Left()
first.itself, seen = first, weakref.ref(first)
del first
kept = [[] for _ in range(20_000)]  # what further requests make
print(seen() is None, gc.get_freeze_count() > 1000)
"""


def test_what_requests_leave_behind_is_found_soon():
    """The command line searches for garbage after 200,000 objects. A server kept the images of
    requests that had been stopped for minutes, several hundred megabytes of them."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["True", "True"]
