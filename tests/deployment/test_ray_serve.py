"""Ray Serve: a front that sends requests again, replicas that answer as the library does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray.serve", reason="the extra `ray` is not installed with Ray Serve")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request

from segagent_rt.errors import InputError
from segagent_rt.serve import ray as ours
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.server_settings import ServerSettings
from tests.conftest import ROOT


class FakeReplicas:
    """Fails as the script says, and then answers."""

    def __init__(self, *script):
        self.script, self.asked = list(script), []
        self.segment = self

    def options(self, multiplexed_model_id):
        self.asked.append(multiplexed_model_id)
        return self

    async def remote(self, content):
        if self.script:
            raise self.script.pop(0)
        return (200, {"object": 1}), "a"


def ask(replicas, body=b"{}", path="/v1/segment", host="127.0.0.1:8000", limits=None):
    settings = ServerSettings(limits=limits or ServeLimits())
    front = ours.SegmentFront(replicas, settings)
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "scheme": "http",
        "server": ("127.0.0.1", 8000), "headers": [(b"host", host.encode())],
    }  # fmt: skip
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return parts.pop()

    answer = asyncio.run(front(Request(scope, receive)))
    return answer.status_code, json.loads(answer.body), answer.headers


def test_a_request_is_sent_again_when_its_replica_dies():
    replicas = FakeReplicas(RayActorError(), RayActorError())
    status, answer, headers = ask(replicas)
    assert (status, answer) == (200, {"object": 1})
    assert headers[ours.TRIED] == "3"
    assert len(set(replicas.asked)) == 1


def test_it_is_not_sent_for_ever():
    assert ask(FakeReplicas(*[RayActorError()] * 9))[0] == 503


def test_full_queues_are_503_with_retry_after():
    status, _, headers = ask(
        FakeReplicas(BackPressureError(num_queued_requests=9, max_queued_requests=9))
    )
    assert status == 503
    assert headers["retry-after"]


def test_the_front_checks_names_routes_and_sizes():
    assert ask(FakeReplicas(), host="evil.example")[0] == 421
    assert ask(FakeReplicas(), path="/v1/other")[0] == 404
    assert ask(FakeReplicas(), b"x" * 100, limits=ServeLimits(upload_bytes=99))[0] == 413


def test_requests_about_one_image_have_one_digest():
    def body(image, **more):
        return json.dumps({"image": image, **more}).encode()

    one = ours.image_digest(body("AAAA", clicks=[{"x": 1, "y": 2}]))
    assert one == ours.image_digest(body("AAAA", expression="the mug"))
    assert one != ours.image_digest(body("BBBB", clicks=[{"x": 1, "y": 2}]))
    for strange in (b"", b"{", b'{"image', b'{"image":', b'{"image": "', b'"image"', b"\xff"):
        assert len(ours.image_digest(strange)) == 64


def test_the_network_needs_a_token(monkeypatch):
    monkeypatch.delenv("SEGAGENT_SERVE_TOKEN", raising=False)
    with pytest.raises(InputError, match="token"):
        ours.app({"open_to_network": True})


@pytest.mark.chaos
def test_a_replica_is_killed_under_load_and_no_request_is_lost(tmp_path):
    command = ("--replicas", "2", "--rounds", "5", "--images", "4", "--clients", "4")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "ray_serve.py", *command],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_replica_answers_with_the_mask_of_the_service(monkeypatch, tmp_path):
    from tests import squares

    monkeypatch.setattr(ours, "load_bundles", lambda *_: {"tiny": squares.square_runtime()})
    from segagent_rt.draw import png

    replica = ours.SegmentReplica(ours.RaySettings())
    picture = base64.b64encode(png(squares.square(10, 8))).decode()
    body = {"image": picture, "clicks": [{"x": 15, "y": 12}], "format": "rle"}
    status, answer = replica._segment(json.dumps(body).encode())
    assert status == 200
    assert answer["pixels"] == 144
    assert replica._segment(b"{}")[0] == 422
    assert replica._segment(json.dumps({"image": picture, "bundle": "x"}).encode())[0] == 404
    assert replica._segment(json.dumps({"image": "AAAA"}).encode())[0] == 422
