from __future__ import annotations

import numpy as np
import pytest

import segagent_rt
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests.serve.fakes import FakeRuntime
from tests.serve.live import LiveServer


@pytest.fixture(scope="session")
def grey() -> bytes:
    """A PNG file, 100 x 60."""
    return png(np.full((60, 100, 3), 128, np.uint8))


@pytest.fixture(scope="session")
def scene():
    return make_scene(7, 256)


@pytest.fixture(scope="session")
def shipped():
    """The bundles of the package, loaded once."""
    with segagent_rt.load() as tiny, segagent_rt.load("photo") as photo:
        yield {"tiny": tiny, "photo": photo}


@pytest.fixture(scope="session")
def shipped_server(shipped):
    with LiveServer(shipped) as server:
        yield server


@pytest.fixture(scope="session")
def server():
    """A server of scripted clicks and discs."""
    with LiveServer({"fake": FakeRuntime()}) as server:
        yield server


@pytest.fixture
def own_server():
    """As `server`, for a test that counts things in it or breaks it."""
    with LiveServer({"fake": FakeRuntime()}) as server:
        yield server
