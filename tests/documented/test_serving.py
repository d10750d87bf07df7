"""Every printed server starts, is healthy and ends, and the printed requests are answered."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import copytree, which

import pytest

from segagent_rt.bundle.store import bundles_folder
from tests.documented.pages import PAGES, ROOT, commands, words_of
from tests.documented.workspace import filled_in

pytest.importorskip("fastapi", reason="needs the extra `serve`")

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("workspace")]

TOKEN = "a token of 16 or more"
LINES = sorted({c.line for page in PAGES for c in commands(page) if c.kind == "serve"})
REQUESTS = [c.line for c in commands(ROOT / "docs" / "serve.md") if c.kind == "curl"]


@contextmanager
def serving(words: list[str], token: str = "") -> Iterator[str]:
    """A server in a process of its own, on a free port: gives its address, and ends it."""
    command = [sys.executable, "-m", "segagent_rt", *words, "--port", "0"]  # the last port counts
    environment = {**os.environ, "SEGAGENT_SERVE_TOKEN": token}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        said = list[str]()
        for line in server.stderr:
            said.append(line)
            if "serving on" in line:
                break
        try:
            found = re.search(r"serving on http://[^:]+:(\d+)", "".join(said))
            assert found, said
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
    assert server.returncode == 0


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("line", LINES)
def test_a_printed_server_is_healthy(stock_model: str, line: str) -> None:
    copytree("mine", bundles_folder() / "qwen3-vl-2b-edgetam")
    with serving(filled_in(line, stock_model), TOKEN if "--host" in line else "") as url:
        assert get(url + "/health")
        assert get(url + "/ready")
        assert json.loads(get(url + "/v1/bundles"))


@pytest.mark.skipif(which("curl") is None, reason="needs curl")
def test_printed_requests_are_answered() -> None:
    assert len(REQUESTS) == 3
    image = "IMAGE"
    with serving(["serve"]) as url:
        for line in REQUESTS:
            filled = line.replace("http://127.0.0.1:8000", url).replace("IMAGE", image)
            command = ["curl", "-sS", "--fail-with-body", *words_of(filled)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            image = json.loads(done.stdout).get("image", image)
