"""A fine-tune as an annotator behind TensorRT Edge-LLM, rehearsed without a GPU.

Export, copy, the printed server command, the printed run. `fake_edge.py` and `fake_edge_serve.py`
stand for Edge-LLM's two programs. `EDGE_LLM_PYTHON` may name an interpreter that has the package
`tensorrt-edgellm[server]` and xgrammar: then their code reads options, checkpoint and requests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import scene_file
from tests.export.command import fake_edge_serve
from tests.export.command.test_targets import cache, checkpoint, install

__all__ = ["cache", "checkpoint", "scene_file"]

pytestmark = [pytest.mark.export, pytest.mark.thorough]

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{{ c.get('text', '<|vision_start|><|image_pad|><|vision_end|>') }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
"""As in Qwen3-VL: a template's own last newline would not count."""

PYTHONS = {"stand-in": sys.executable}
if "EDGE_LLM_PYTHON" in os.environ:
    PYTHONS["package"] = os.environ["EDGE_LLM_PYTHON"]
REPLY = " Current IOU: 95  Positive point: (500, 500)"
RECIPE = """
[segmenter]
family = "sam2"
source = "{segmenter}"
variants = ["reference"]
[mllm]
family = "{family}"
source = "{mllm}"
variants = ["reference"]
preset = "segagent-rated"
"""


@contextmanager
def serving(line: str, kind: str, reply: str = REPLY) -> Iterator[str]:
    """The printed server command with a stand-in for its program, on a free port."""
    program, *words = shlex.split(line)
    assert program == "tensorrt-edgellm-serve"
    environment = {**os.environ, "FAKE_REPLY": reply, "EDGE_LLM": kind, "PYTHONPATH": ""}
    words[words.index("--port") + 1] = FREE[kind]
    command = [PYTHONS[kind], fake_edge_serve.__file__, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert port, "the server ended; its last words are above"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


FREE = {"stand-in": "0", "package": "18431"}
"""Ports; the package's own options have no 0."""


@pytest.fixture
def prepared(sources, checkpoint, cache, terminal, tmp_path, monkeypatch, request) -> Any:
    """A bundle and the folder for Edge-LLM of one recipe, on a workstation; the latter is copied
    to a board. Returns the printed commands."""
    workstation, board = tmp_path / "workstation", tmp_path / "board"
    workstation.mkdir()
    board.mkdir()
    monkeypatch.chdir(workstation)
    install(cache)
    family = request.param
    mllm = checkpoint(family)
    (mllm / "chat_template.jinja").write_text(CHAT)
    text = RECIPE.format(family=family, mllm=mllm, segmenter=sources("sam2"))
    Path("mine.toml").write_text(text)
    done = terminal("export", "mine.toml", "-o", "mine", "--allow-below-gate")
    assert done.code == 0, done.err
    done = terminal("export", "mine.toml", "--target", "edge-llm", "-o", "served")
    assert done.code == 0, done.err
    done_pack = terminal("pack", "mine", "-o", "mine.segagent")
    assert done_pack.code == 0, done_pack.err
    shutil.copytree("served", board / "served")
    shutil.copy("mine.segagent", board)
    shutil.rmtree(workstation / "served")
    monkeypatch.chdir(board)
    return dict(line.split("\t") for line in done.out.splitlines())


def ask(terminal: Any, line: str, url: str, photo: Path, out: Path) -> Any:
    """The printed run, with the packed bundle, on a photo that is there."""
    words = shlex.split(re.sub(r"http://127\.0\.0\.1:\d+", url, line))[1:]
    words[words.index("-b") + 1] = "mine.segagent"
    words[words.index("photo.jpg")] = str(photo)
    return terminal(*words, "-o", out, "--json")


OTHER = (
    (400, {"structured_outputs": {"regex": "a"}}),
    (400, {"guided_decoding": {"pattern": "a"}}),
    (400, {"guided_decoding": {"regex": "a", "ebnf": "b"}}),
    (400, {"guided_decoding": {"regex": 7}}),
    (400, {"guided_decoding": {"regex": "a"}, "response_format": {"type": "json_object"}}),
    (400, {"temperature": 3}),
    (400, {"max_tokens": 0}),
    (400, {"messages": []}),
    (404, {"model": "other"}),
)
"""Changes of a request, and how the server refuses them."""


@pytest.mark.parametrize("prepared", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
def test_from_export_to_mask(prepared, terminal, scene_file, tmp_path):
    """Also with what the stand-in refuses, which is what the package refuses: without that, an
    answer would mean nothing."""
    for what in ("language model", "vision encoder"):
        words = shlex.split(next(line for key, line in prepared.items() if what in key))
        assert Path(words[words.index("--onnxDir") + 1], "model.onnx").is_file()
    good = {"model": "mine", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    for kind in PYTHONS:
        with serving(prepared["serve"], kind) as url:
            done = ask(terminal, prepared["ask"], url, scene_file, tmp_path / kind)
            assert done.code == 0, done.err
            result = json.loads(done.out)
            assert result["results"][0]["clicks"], "the server's clicks were not used"
            assert not any(name.startswith("mllm") for name in result["backends"])
            for status, change in OTHER:
                assert post(url, good | change) == status, change
            line = prepared["ask"].replace("--server edge-llm", "--server vllm")
            done = ask(terminal, line, url, scene_file, tmp_path / "none")
            assert (done.code, "Extra inputs are not permitted" in done.err) == (1, True), done.err


def post(url: str, question: object) -> int:
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(question).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code
