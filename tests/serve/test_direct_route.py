"""Routes of images go past FastAPI's middleware: they check and answer as its own do."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from segagent_rt.serve.job_runner import JobRunner
from segagent_rt.serve.service import SegmentationService
from segagent_rt.types import Click
from tests.serve.fakes import FakeRuntime, HeldSegmenter

CLICK = json.dumps({"clicks": [{"x": 80, "y": 30}]}).encode()


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_said_to_be_json_is_refused(server, grey, kind):
    """Forms of foreign pages can send the others without asking first."""
    headers = {} if kind is None else {"Content-Type": kind}
    answer = server("POST", f"/v1/images/{server.open(grey)}/objects", CLICK, **headers)
    assert answer.status == 422
    assert answer.json() == {"error": "the body is not JSON", "hint": "send it as application/json"}


def test_json_may_name_its_characters(server, grey):
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    one = f"/v1/images/{server.open(grey)}/objects"
    assert server("POST", one, CLICK, **kind).status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "problem"),
    [
        ("POST", "/objects?mask=bmp", CLICK, 422, "mask: Input should be 'png', 'rle'"),
        ("POST", "/objects", b"", 422, "Invalid JSON"),
        ("POST", "/objects", b'{"clicks": [{"x": 1}]}', 422, "clicks.0.y: Field required"),
        ("POST", "/objects", b'{"click": []}', 422, "click: Extra inputs"),
        ("POST", "/objects/0/clicks", CLICK, 422, "number: Input should be greater"),
        ("POST", "/objects/one/clicks", CLICK, 422, "number: Input should be a valid integer"),
        ("POST", "/objects/9/clicks", CLICK, 404, "the image has no object 9"),
        ("PUT", "/objects", CLICK, 405, "Method Not Allowed"),
        ("GET", "/nothing", None, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_named(server, grey, method, path, body, status, problem):
    one = f"/v1/images/{server.open(grey)}"
    answer = server(method, one + path, body, Content_Type="application/json")
    assert answer.status == status
    assert problem in answer.json()["error"]


def test_the_work_of_a_request_that_the_server_gives_up_is_stopped():
    """When the time to drain is over, uvicorn cancels the tasks of requests; the process waits for
    their threads."""
    segmenter = HeldSegmenter()
    service = SegmentationService({"fake": FakeRuntime(segmenter)})

    async def receive():
        await asyncio.sleep(60)

    async def give_up():
        runner = JobRunner(service)
        request = SimpleNamespace(receive=receive)
        work = asyncio.create_task(
            runner.run(request, lambda job: job.run(lambda: segmenter.decode(*grey_click())))
        )
        await asyncio.to_thread(segmenter.begun.wait, 5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        runner.close()

    asyncio.run(give_up())
    assert segmenter.interrupted.wait(5)
    assert service.queue.load == 0


def grey_click():
    segmenter = FakeRuntime().segmenter
    return segmenter.encode(np.full((60, 100, 3), 128, np.uint8)), [Click(1, 1, True)]
