"""A hub for each test, and a client that knows nothing of the user's cache and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub.server import HubServer, running

WEIGHTS = bytes(range(256)) * 4000
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: other\nlicense_name: tongyi-qianwen\n---\n# Mine\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"not taken beside safetensors",
    "modeling_evil.py": b"never taken",
    "onnx/model.onnx": b"never taken",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub with the model `me/mine`; the working directory and the cache are empty."""
    folder = tmp_path / "client"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(folder / "modelscope"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(folder / "modelscope-home"))
    monkeypatch.chdir(tmp_path)
    with running(HubServer({"me/mine": dict(FILES)})) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server
