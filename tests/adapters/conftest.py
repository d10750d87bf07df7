from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from segagent_rt.draw import png
from segagent_rt.serve.app import create_app
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.server_settings import ServerSettings
from segagent_rt.serve.service import SegmentationService
from tests import squares
from tests.adapters.local_client import LocalClient

PLACE = (10, 8)
"""The first column and row of the bright square, which is 12 pixels wide, in 64 x 48."""


@pytest.fixture
def picture() -> bytes:
    return png(squares.square(*PLACE))


@pytest.fixture
def mask():
    return squares.bright(squares.square(*PLACE))


@pytest.fixture
def service(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(squares.square(*PLACE)))
    runtime = squares.square_runtime()
    return SegmentationService({"tiny": runtime}, ServeLimits(), roots=[tmp_path / "images"])


@pytest.fixture
def client(service):
    """Calls the application with an adapter; without a network."""

    def with_adapter(make, **settings):
        return LocalClient(create_app(service, ServerSettings(**settings), adapters=[make]))

    return with_adapter


def area(points, shape):
    """The pixels inside a polygon whose points are centres of pixels, bool [H, W]."""
    import cv2

    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(np.asarray(points)).astype(np.int32)], 1)
    return canvas > 0
