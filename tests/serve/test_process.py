"""What a server's process asks of the system: packets at once, and memory given back."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from segagent_rt.serve.server import listen
from segagent_rt.serve.server_settings import ServerSettings


def test_answers_are_sent_at_once():
    """asyncio switches Nagle's algorithm off only for sockets that say that they are TCP. With it,
    every answer came 40 ms late."""
    with listen(ServerSettings("127.0.0.1", 0, None)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


FREED = """
import gc, os, threading
import numpy as np
from segagent_rt.serve.malloc import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def fill():
    held = []
    for size in range(3, 30):  # glibc's own limit rises with each that is freed
        np.ones(size << 20, np.uint8)
        held.append((np.ones(size << 20, np.uint8), bytes(1000)))
    kept.append([small for _, small in held])

return_freed_memory()
kept, before = [], resident()
for _ in range(4):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
gc.collect()
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_memory_of_large_arrays_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 20, "megabytes more than before"
