"""`segagent-rt serve` as a command: how it starts, how it refuses to, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from segagent_rt.draw import png
from segagent_rt.serve.server_settings import TOKEN

COMMAND = [sys.executable, "-m", "segagent_rt", "serve"]


def run(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, TOKEN: "", **environment},
    )


def test_the_network_needs_a_token():
    done = run("--host", "0.0.0.0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: on 0.0.0.0 others can reach the server")
    assert TOKEN in done.stderr


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server cannot listen on 127.0.0.1")
    assert "Traceback" not in done.stderr


def test_without_the_extra_it_says_how_to_install_it():
    program = (
        "import sys; sys.modules['fastapi'] = None; sys.argv = ['segagent-rt', 'serve'];"
        "from segagent_rt.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs packages that are not installed" in done.stderr
    assert "[serve]" in done.stderr


def test_other_commands_do_not_import_it():
    program = (
        "import sys, segagent_rt.cli.run, segagent_rt.cli.serve;"
        "print([m for m in ('fastapi', 'uvicorn', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(scene, by):
    server = subprocess.Popen(
        [*COMMAND, "--port", "0"], stderr=subprocess.PIPE, text=True, env={**os.environ, TOKEN: ""}
    )
    open_connections = ExitStack()
    try:
        lines = iter(server.stderr.readline, "")
        said = next(line for line in lines if "serving on" in line)
        port = int(re.search(r":(\d+)/", said)[1])

        def ask(method, path, body, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            open_connections.callback(connection.close)
            connection.request(method, path, body, headers)
            return connection.getresponse()

        image = json.loads(ask("POST", "/v1/images", png(scene.image)).read())["image"]
        body = json.dumps({"expression": scene.expressions[0].text, "run": {"candidates": 8}})
        answer = ask(
            "POST", f"/v1/images/{image}/objects", body, Accept="text/event-stream",
            **{"Content-Type": "application/json"},
        )  # fmt: skip
        first = answer.readline()  # it has begun
        server.send_signal(by)
        rest = answer.read()
        assert first == b"event: step\n"
        assert b"event: done" in rest
        left = []
        reader = threading.Thread(target=lambda: left.extend(server.stderr))
        reader.start()
        assert server.wait(60) == 0
        reader.join()
        assert left == []
    finally:
        open_connections.close()
        server.kill()
        server.stderr.close()
