"""Label Studio's ML backend: its requests, its run lengths by its own converter, its schema."""

from __future__ import annotations

import base64
import http.server
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segagent_rt.errors import AnnotatorError, InputError
from segagent_rt.serve.adapters.brush_rle import encode_brush
from segagent_rt.serve.adapters.label_config import parse_label_config
from segagent_rt.serve.adapters.label_studio import label_studio_router, wanted
from segagent_rt.serve.adapters.label_studio_media import LabelStudioMedia, site_of
from tests.adapters.conftest import area

CONFIG = """
<View>
  <Image name="photo" value="$image"/>
  <{tag} name="out" toName="photo"><Label value="Mug"/><Label value="Spoon"/></{tag}>
  <KeyPointLabels name="points" toName="photo" smart="true"><Label value="Spoon"/></KeyPointLabels>
  <TextArea name="words" toName="photo" value="$caption"/>
</View>
"""


def key_point(x, y, positive=1, label="Spoon"):
    """A click as Label Studio sends it, at a pixel of an image of 64 x 48."""
    return {
        "id": "a", "type": "keypointlabels", "from_name": "points", "to_name": "photo",
        "original_width": 64, "original_height": 48, "image_rotation": 0,
        "is_positive": positive,
        "value": {"x": 100 * x / 64, "y": 100 * y / 48, "width": 0.3, "keypointlabels": [label]},
    }  # fmt: skip


@pytest.fixture
def ask(client, picture):
    """Sends what `MLApi.make_predictions` sends; returns the first task's prediction."""
    send = client(lambda runner: label_studio_router(runner, LabelStudioMedia()))
    image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"

    def predict(tag="BrushLabels", context=(), **data):
        body = {
            "tasks": [{"id": 1, "data": {"image": image, **data}, "annotations": []}],
            "model_version": None,
            "project": "1.1700000000",
            "label_config": CONFIG.format(tag=tag),
            "params": {"login": None, "password": None, "context": {"result": list(context)}},
        }
        if not context:
            body["params"]["context"] = None
        answer = send("POST", "/predict", body)
        assert answer.status == 200, answer.content
        (result,) = answer.json["results"]
        check_interface(CONFIG.format(tag=tag), result)
        return result

    return predict


def check_interface(config, prediction):
    """Label Studio's own check of a prediction, where its SDK is installed."""
    try:
        from label_studio_sdk.label_interface import LabelInterface
    except ImportError:
        return
    problems = LabelInterface(config).validate_prediction(prediction, return_errors=True)
    assert not problems, problems


def test_a_click_gives_brush_labels_that_its_converter_decodes(ask, mask):
    brush = pytest.importorskip("label_studio_converter.brush")
    prediction = ask(context=[key_point(15.5, 12.5)])
    (result,) = prediction["result"]
    assert (result["from_name"], result["to_name"]) == ("out", "photo")
    assert result["value"]["brushlabels"] == ["Spoon"]
    assert prediction["score"] == result["score"] == 0.75
    layers = brush.decode_from_annotation(
        "out", [{"type": "brushlabels", "rle": result["value"]["rle"], **result}]
    )
    (layer,) = layers.values()
    assert np.array_equal(layer > 0, mask)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (48, 64), (333, 517), (1, 70_000)])
@pytest.mark.parametrize("kind", ["empty", "full", "noise", "blocks"])
def test_run_lengths_are_those_of_its_converter(shape, kind):
    brush = pytest.importorskip("label_studio_converter.brush")
    rng = np.random.default_rng(3)
    mask = {
        "empty": np.zeros(shape, bool),
        "full": np.ones(shape, bool),
        "noise": rng.random(shape) < 0.4,
        "blocks": np.add.outer(np.arange(shape[0]) // 20, np.arange(shape[1]) // 30) % 2 == 0,
    }[kind]
    if kind == "noise" and mask.size > 10_000:
        mask = mask & (np.arange(shape[1]) < 40)
    assert encode_brush(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


def test_polygons_and_rectangles_are_in_percent(ask, mask):
    (polygon,) = ask("PolygonLabels", [key_point(15, 12)])["result"]
    points = np.asarray(polygon["value"]["points"]) * [64 / 100, 48 / 100] - 0.5
    assert np.array_equal(area(points, mask.shape), mask)
    (box,) = ask("RectangleLabels", [key_point(15, 12)])["result"]
    value = box["value"]
    pixels = [value["x"] * 0.64, value["y"] * 0.48, value["width"] * 0.64, value["height"] * 0.48]
    assert pixels == pytest.approx([10, 8, 12, 12])


def test_negative_clicks_and_boxes(ask):
    box = key_point(10, 8)
    box["type"] = "rectanglelabels"
    box["value"] = {
        "x": 100 * 10 / 64, "y": 100 * 8 / 48, "width": 100 * 12 / 64, "height": 100 * 12 / 48,
        "rectanglelabels": ["Mug"],
    }  # fmt: skip
    (result,) = ask(context=[box])["result"]
    assert result["value"]["brushlabels"] == ["Mug"]
    outside = ask(context=[key_point(15, 12), key_point(60, 40, positive=0)])
    assert outside["result"] == []  # the fake segmenter takes the region of the last click


def test_a_text_area_is_an_expression(ask, mask):
    text = {"type": "textarea", "from_name": "words", "value": {"text": ["the bright mug"]}}
    (result,) = ask(context=[text])["result"]
    assert result["value"]["brushlabels"] == ["Mug"]
    assert result["score"] == 0.95


def test_without_an_interaction_the_tasks_text_or_the_labels_are_expressions(ask):
    (result,) = ask(caption="spoon")["result"]
    assert result["value"]["brushlabels"] == ["Spoon"]
    labels = [each["value"]["brushlabels"] for each in ask()["result"]]
    assert labels == [["Mug"], ["Spoon"]]


def test_setup_webhook_and_health(client):
    send = client(lambda runner: label_studio_router(runner, LabelStudioMedia()))
    assert send("GET", "/health").status == 200
    body = {"project": "1.17", "schema": CONFIG.format(tag="BrushLabels"), "hostname": "http://x"}
    assert send("POST", "/setup", body).json["model_version"].startswith("segagent-rt tiny-")
    assert send("POST", "/setup", {**body, "schema": "<View/>"}).status == 422
    assert send("POST", "/webhook", {"action": "ANNOTATION_CREATED"}).status == 201


def test_local_files_are_read_below_the_roots_only(service, picture):
    media = LabelStudioMedia()
    assert media.read(service, "/data/local-files/?d=a.png") == picture
    for place in ("/data/local-files/?d=../secret.png", "/data/local-files/?d=/etc/passwd"):
        with pytest.raises(InputError):
            media.read(service, place)


class _Uploads(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers["Authorization"] == "Token secret"
        moved = self.path == "/moved"
        self.send_response(302 if moved else 200 if right else 401)
        if moved:
            self.send_header("Location", "/data/upload/1/a.png")
        self.end_headers()
        self.wfile.write(b"picture" if right and not moved else b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def uploads():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Uploads)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_uploads_are_fetched_from_label_studio_alone(service, uploads):
    media = LabelStudioMedia(site_of(uploads), "secret")
    assert media.read(service, "/data/upload/1/a%20b.png") == b"picture"
    assert media.read(service, f"{uploads}/data/upload/1/a.png?x=1") == b"picture"
    with pytest.raises(AnnotatorError, match="302"):
        media.read(service, "/moved")
    with pytest.raises(AnnotatorError, match="401"):
        LabelStudioMedia(site_of(uploads)).read(service, "/data/upload/1/a.png")


@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data", "https://127.0.0.1/a.png", "//evil/a.png",
        "file:///etc/passwd", "ftp://x/a", "a.png", "http://127.0.0.1:1@evil/", "http://[::1",
        "http://127.0.0.1.evil.com:80/a", "\\\\evil\\a", "", "s3://bucket/a.png",
    ],
)  # fmt: skip
def test_nothing_else_is_fetched(service, place):
    for media in (LabelStudioMedia(), LabelStudioMedia(("http", "127.0.0.1", 80))):
        with pytest.raises(InputError):
            media.read(service, place)


def test_media_are_set_by_the_environment(monkeypatch):
    monkeypatch.setenv("SEGAGENT_LABEL_STUDIO_URL", "https://labels.example")
    monkeypatch.setenv("SEGAGENT_LABEL_STUDIO_TOKEN", "t")
    media = LabelStudioMedia.from_environment()
    assert media.site == ("https", "labels.example", 443)
    assert "'t'" not in repr(media)
    monkeypatch.setenv("SEGAGENT_LABEL_STUDIO_URL", "labels.example")
    with pytest.raises(InputError):
        LabelStudioMedia.from_environment()


@pytest.mark.parametrize(
    "text",
    [
        "", "no xml", "<View>", "<View/>", '<View><Image name="i" value="$image"/></View>',
        '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "<View>" * 5000,
    ],
)  # fmt: skip
def test_interfaces_that_cannot_be_used_are_refused(text):
    with pytest.raises(InputError):
        parse_label_config(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "text", "width"]), inner)
    ),
    max_leaves=6,
)
ITEMS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["keypointlabels", "rectanglelabels", "textarea", "other"]) | JSON,
        "value": st.dictionaries(
            st.sampled_from(
                ["x", "y", "width", "height", "text", "keypointlabels", "rectanglelabels"]
            ),
            JSON,
        )
        | JSON,
    },
    optional={"is_positive": JSON},
)


def repr_start(value):
    return repr(value)[:5]


@pytest.mark.parametrize(
    "x", [float("nan"), float("inf"), True, None, "5", 10**400], ids=repr_start
)
def test_coordinates_that_are_no_numbers_are_refused(x):
    item = key_point(1, 1)
    item["value"]["x"] = x
    config = parse_label_config(CONFIG.format(tag="BrushLabels"))
    with pytest.raises(InputError):
        wanted(config, {}, [item], (48, 64))


@given(context=st.lists(ITEMS, max_size=4), data=st.dictionaries(st.just("caption"), JSON))
@settings(database=None)
def test_any_context_is_understood_or_refused(context, data):
    config = parse_label_config(CONFIG.format(tag="BrushLabels"))
    try:
        found = wanted(config, data, context, (48, 64))
    except InputError:
        return
    for asked in found:
        for click in asked.prompt.clicks:
            assert 0 <= click.x < 64
            assert 0 <= click.y < 48
