"""What README and quickstart print is run as it is printed, offline.

Only names are filled in: the demo bundle stands for an exported one, the expression is one that it
knows, and a stub stands for the server. Exports and downloads have tests of their own
(`tests/hub`, `tests/export/command`).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import pytest

from segagent_rt.draw import png
from segagent_rt.reply import BoxListProtocol
from segagent_rt.scenes import make_scene
from segagent_rt.types import Box
from tests.annotators.stub import replies, running
from tests.cli.test_help import documented

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
NOT_HERE = ("export", "serve", "bundles", "pull", "push")
SCENE = make_scene(7)
SNIPPETS = (*PAGES, ROOT / "docs" / "results.md")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the pages speak of."""
    pixels = SCENE.image
    for name in ("photo.jpg", "photos/one.png", "photos/two.png", "a.png", "b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pixels))
    (tmp_path / "mask.png").write_bytes(png(SCENE.mask(SCENE.expressions[0].target)))
    entry = {"image": "photo.jpg", "expression": SCENE.expressions[0].text}
    (tmp_path / "list.jsonl").write_text(json.dumps(entry) + "\n")
    size = pixels.shape[1], pixels.shape[0]
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, size)
    for _ in range(2):
        video.write(pixels[..., ::-1])
    video.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled_in(line: str, url: str) -> list[str]:
    words = shlex.split(line, comments=True)[1:]
    bundle = {"qwen3-vl-2b-edgetam": "tiny", "BUNDLE": "tiny"}
    other = {"the mug": SCENE.expressions[0].text, "http://127.0.0.1:8000": url}
    return [(bundle | other).get(word, word) for word in words]


@pytest.mark.thorough
@pytest.mark.usefixtures("kept_open")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_work(terminal, folder, page):
    lines = [line for line in documented(page) if shlex.split(line)[1] not in NOT_HERE]
    assert len(lines) >= 5
    with running() as server:
        server.will(
            replies(BoxListProtocol("relative").write((Box(60, 40, 200, 180),), (512, 512)))
        )
        for line in lines:
            done = terminal(*filled_in(line, server.url))
            assert done.code == 0, f"{line}: {done.err}"
    assert (folder / "photo.segagent.mask.png").is_file()


@pytest.mark.thorough
@pytest.mark.usefixtures("folder", "kept_open")
@pytest.mark.parametrize("page", SNIPPETS, ids=lambda page: page.stem)
def test_printed_python_works(page):
    snippets = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, page.name, "exec"), {})
