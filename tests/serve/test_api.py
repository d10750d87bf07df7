"""The HTTP API: what comes back, in which form, and what happens to clients that go away."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from segagent_rt.draw import png
from segagent_rt.image import mask_to_rle, rle_to_mask
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.mask_formats import mask_to_polygons
from tests.serve.fakes import FakeRuntime, HeldSegmenter
from tests.serve.live import LiveServer, wait_until


def pixels(content):
    if isinstance(content, str):
        content = base64.b64decode(content.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def test_every_step_is_an_event(server, grey):
    image = server.open(grey)
    path, body = f"/v1/images/{image}/objects?mask=none", {"expression": "discs"}
    answer = server("POST", path, body, Accept="text/event-stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    names, documents = zip(*answer.events(), strict=True)
    assert names == ("step", "step", "step", "step", "done")
    assert [len(each["steps"]) for each in documents] == [1, 2, 3, 4, 4]
    assert documents[-1]["stop"] == "finished"
    whole = server("POST", path.replace(image, server.open(grey)), body).json()
    assert documents[-1] | {"steps": 0} == whole | {"steps": 0}


def test_a_mistake_in_a_stream_is_an_event(own_server, grey, monkeypatch):
    image = own_server.open(grey)
    monkeypatch.setattr(FakeRuntime, "completed_rules", lambda self, rules: 1 / 0)
    path, body = f"/v1/images/{image}/objects", {"expression": "discs"}
    answer = own_server("POST", path, body, Accept="text/event-stream")
    assert [name for name, _ in answer.events()] == ["error"]
    assert own_server("GET", f"/v1/images/{image}").json()["objects"] == []


def test_masks_come_as_png_rle_polygons_or_not(server, grey):
    image = server.open(grey)
    made = server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 30, "y": 30}]}).json()
    mask = pixels(made["mask"]["value"]) > 0
    assert mask.shape == (60, 100)
    assert made["pixels"] == mask.sum() > 0
    one = f"/v1/images/{image}/objects/1"
    rle = server("GET", f"{one}?mask=rle").json()["mask"]["value"]
    assert np.array_equal(rle_to_mask(rle), mask)
    polygons = server("GET", f"{one}?mask=polygons").json()["mask"]["value"]
    assert len(polygons) == 1
    assert server("GET", f"{one}?mask=none").json()["mask"]["value"] is None
    assert np.array_equal(pixels(server("GET", f"{one}/mask").body) > 0, mask)
    cut = pixels(server("GET", f"{one}/cutout").body)
    assert cut.shape == (21, 21, 4)
    assert (cut[..., 3] > 0).sum() == mask.sum()


def test_polygons_are_the_outlines():
    mask = np.zeros((40, 50), np.bool_)
    mask[5:20, 10:30] = True
    mask[30:33, 2:5] = True
    first, second = mask_to_polygons(mask)
    assert sorted(first) == [[10, 5], [10, 19], [29, 5], [29, 19]]
    assert len(second) >= 4


def test_clicks_boxes_undo_and_redo(server, grey):
    image = server.open(grey)
    one = f"/v1/images/{image}/objects/1"
    box = {"x0": 10, "y0": 10, "x1": 19, "y1": 29}
    assert server("POST", f"/v1/images/{image}/objects", {"box": box}).json()["pixels"] == 200
    added = server("POST", f"{one}/clicks", {"clicks": [{"x": 80, "y": 30}]}).json()
    assert added["pixels"] > 200
    assert [step["by"] for step in added["steps"]] == ["person", "person"]
    assert server("POST", f"{one}/undo", {}).json()["pixels"] == 200
    assert server("POST", f"{one}/redo", {}).json()["pixels"] == added["pixels"]
    assert server("POST", f"{one}/box", {**box, "x1": 10 + 4}).json()["pixels"] == 100
    assert server("POST", f"{one}/undo", {"count": 9}).json()["pixels"] is None


def test_refine_and_score(server, grey):
    image = server.open(grey)
    server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 80, "y": 30}]})
    one = f"/v1/images/{image}/objects/1"
    assert server("POST", f"{one}/score", {"expression": "discs"}).json() == {"rating": 0.6}
    refined = server("POST", f"{one}/refine", {"expression": "discs"}).json()
    assert refined["expression"] == "discs"
    assert server("POST", f"{one}/score", {}).status == 200


def test_an_image_has_a_description_coco_and_an_end(server, grey):
    image = server.open(grey)
    server("POST", f"/v1/images/{image}/objects", {"expression": "discs"})
    server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 80, "y": 30}]})
    shown = server("GET", f"/v1/images/{image}").json()
    assert (shown["height"], shown["width"], len(shown["objects"])) == (60, 100, 2)
    results = server("GET", f"/v1/images/{image}/results").json()["results"]
    assert [each["steps"][0]["by"] for each in results] == ["model", "person"]
    coco = server("GET", f"/v1/images/{image}/coco").json()
    assert [each["bbox"][2:] for each in coco["annotations"]][1] == [21, 21]
    assert pixels(server("GET", f"/v1/images/{image}/picture").body).shape == (60, 100, 3)
    assert server("DELETE", f"/v1/images/{image}/objects/1").status == 204
    assert server("DELETE", f"/v1/images/{image}").status == 204
    assert server("GET", f"/v1/images/{image}").status == 404


def test_images_come_as_bytes_base64_or_by_path(tmp_path, grey):
    (tmp_path / "in.png").write_bytes(grey)
    text = base64.b64encode(grey).decode()
    with LiveServer({"fake": FakeRuntime()}, roots=[tmp_path]) as server:
        for body in (
            {"image": text},
            {"image": f"data:image/png;base64,{text}", "name": "a.png"},
            {"path": "in.png", "bundle": "fake"},
        ):
            assert server("POST", "/v1/images", body).json()["width"] == 100
        for body in ({"image": "???"}, {"image": "data:,x"}, {}, {"path": "../x"}, [], {"a": 1}):
            assert server("POST", "/v1/images", body).status == 422, body
        assert server("POST", "/v1/images", b"", Content_Type="image/png").status == 422
        assert server("POST", "/v1/images?bundle=other", grey).status == 404


def test_one_request_does_it_all(own_server, grey):
    server = own_server
    text = base64.b64encode(grey).decode()
    prior = np.zeros((60, 100), np.bool_)
    prior[:10, :10] = True
    for mask in (None, mask_to_rle(prior), base64.b64encode(png(prior)).decode()):
        body = {"image": text, "clicks": [{"x": 80, "y": 30}], "mask": mask, "format": "rle"}
        answer = server("POST", "/v1/segment", body)
        assert answer.status == 200, answer.body
        found = rle_to_mask(answer.json()["mask"]["value"])
        assert found[30, 80]
        assert found[0, 0] == (mask is not None)
    assert server("POST", "/v1/segment", {"image": text, "expression": "discs"}).json()["rating"]
    assert server.service.images.count == 0


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [60, 100], "counts": [1]},
        {"size": [60, 100], "counts": "zzzz"},
        {"size": [0, 0], "counts": []},
        {"size": [16000000, 16000000], "counts": [1]},
        {"size": [5, 5], "counts": [25]},
        "bm8=",
    ],
)
def test_a_bad_mask_is_refused(server, grey, mask):
    body = {"image": base64.b64encode(grey).decode(), "expression": "x", "mask": mask}
    answer = server("POST", "/v1/segment", body)
    assert answer.status == 422, answer.body


def test_errors_are_one_sentence_and_a_hint(server, grey):
    image = server.open(grey)
    answer = server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 100, "y": 0}]})
    assert answer.status == 422
    assert answer.json() == {
        "error": "the point (100, 0) is outside the image",
        "hint": "x goes from 0 to 99, y from 0 to 59",
    }
    assert server("GET", "/v1/images/none").status == 404
    assert server("GET", "/v1/none").json()["error"]
    assert server("PUT", "/v1/bundles").status == 405
    assert server("POST", "/v1/segment", b"{", Content_Type="application/json").status in (400, 422)


def test_a_full_queue_is_503_with_retry_after(grey):
    segmenter = HeldSegmenter()
    limits = ServeLimits(rate=0, workers=1, waiting=0)
    with LiveServer({"fake": FakeRuntime(segmenter)}, limits) as server:
        image = server.open(grey)
        body = json.dumps({"clicks": [{"x": 1, "y": 1}]}).encode()
        head = f"POST /v1/images/{image}/objects HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with server.raw(head.encode() + body) as held:
            assert segmenter.begun.wait(5)
            assert server("GET", "/ready").status == 503
            refused = server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 1, "y": 1}]})
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) > 0
            segmenter.let_go.set()
            assert held.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: server("GET", "/ready").status == 200)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_client_that_goes_away_frees_its_work(grey, accept):
    segmenter = HeldSegmenter()
    with LiveServer({"fake": FakeRuntime(segmenter)}) as server:
        image = server.open(grey)
        body = b'{"expression": "discs"}'
        head = (
            f"POST /v1/images/{image}/objects HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n"
        )
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with server.raw(head.encode() + body):
            assert segmenter.begun.wait(5)
        assert segmenter.interrupted.wait(5)
        wait_until(lambda: server.service.queue.load == 0)


def test_health_metrics_and_bundles(own_server, grey):
    server = own_server
    assert server("GET", "/health").json()["status"] == "ok"
    image = server.open(grey)
    server("POST", f"/v1/images/{image}/objects", {"expression": "discs"})
    text = server("GET", "/metrics").body.decode()
    assert "segagent_open_images 1" in text
    assert 'route="/v1/images/{image}/objects",status="200"} 1' in text
    assert 'segagent_stage_seconds_total{stage="segment"}' in text
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or len(line.rsplit(" ", 1)) == 2
    (card,) = server("GET", "/v1/bundles").json()
    assert card["takes_words"] is True


def test_shipped_bundles_say_what_they_are_for(shipped_server):
    tiny, photo = shipped_server("GET", "/v1/bundles").json()
    assert "demonstration" in tiny["use"]
    assert "circle" in tiny["words"]
    assert not photo["takes_words"]
    assert any("CC BY" in each for each in photo["parts"]["segmenter"]["trained_on"])
    image = shipped_server.open(png(np.zeros((50, 50, 3), np.uint8)), "photo")
    answer = shipped_server("POST", f"/v1/images/{image}/objects", {"expression": "the mug"})
    assert (answer.status, "takes clicks" in answer.json()["error"]) == (422, True)


def test_the_page_and_its_files(server):
    page = server("GET", "/")
    assert page.status == 200
    assert b"http:" not in page.body.replace(b"http://www.w3.org", b"")
    again = server("GET", "/", If_None_Match=page.headers["etag"])
    assert again.status == 304
    assert server("GET", "/static/main.js").headers["content-type"].startswith("text/javascript")
    assert server("GET", "/static/..%2Fservice.py").status == 404
    assert b"/v1/images/{image}" in server("GET", "/docs").body
    assert b"<script" not in server("GET", "/docs").body


def test_an_adapter_adds_routes_over_the_same_service(grey):
    from fastapi import APIRouter, Request

    def adapter(runner):
        router = APIRouter()

        @router.post("/tool")
        async def tool(request: Request) -> dict[str, int]:
            content = await request.body()
            image = await runner.run(request, lambda job: runner.service.open_image(job, content))
            return {"width": image.canvas.image.shape[1]}

        return router

    with LiveServer({"fake": FakeRuntime()}, adapters=[adapter]) as server:
        assert server("POST", "/tool", grey).json() == {"width": 100}
