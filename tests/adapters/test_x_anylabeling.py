"""X-AnyLabeling: the requests that its client sends, and shapes that its server's schema takes."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from segagent_rt.serve.adapters.x_anylabeling import OBJECT, polygons, x_anylabeling_router
from tests.adapters.conftest import area

SHAPE = {
    "label": str, "shape_type": str, "points": list, "score": (float, type(None)),
    "attributes": dict, "description": (str, type(None)), "difficult": bool,
    "direction": (int, float), "flags": (dict, type(None)), "group_id": (int, type(None)),
    "kie_linking": list,
}  # fmt: skip
"""Fields of a shape by X-AnyLabeling-Server's docs/user_guide.md, `Response Schema`."""


@pytest.fixture
def ask(client, picture):
    """Sends what X-AnyLabeling's `RemoteServer.predict_shapes` sends; returns the shapes."""
    send = client(x_anylabeling_router)
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"

    def predict(model="tiny", **params):
        usual = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001}
        body = {"model": model, "image": uri, "params": {**usual, **params}}
        answer = send("POST", "/v1/predict", body, token="")
        assert answer.status == 200, answer.content
        assert answer.json["success"] is True
        shapes = answer.json["data"]["shapes"]
        for shape in shapes:
            assert set(shape) == set(SHAPE)
            assert all(isinstance(shape[name], kind) for name, kind in SHAPE.items())
            assert shape["score"] is None or 0 <= shape["score"] <= 1
            assert all(len(point) == 2 for point in shape["points"])
        return shapes

    return predict


def test_the_list_of_models_has_widgets_for_words_and_clicks(client):
    answer = client(x_anylabeling_router)("GET", "/v1/models").json
    assert set(answer["data"]) == {"tiny", "tiny-boxes"}
    model = answer["data"]["tiny"]
    assert model["batch_processing_mode"] == "text_prompt"
    assert {"edit_text", "button_send", "button_add_point"} <= {w["name"] for w in model["widgets"]}


def test_words_give_a_polygon_of_the_mask(ask, mask):
    (shape,) = ask(text_prompt="the bright square")
    assert shape["label"] == "the bright square"
    assert shape["shape_type"] == "polygon"
    assert shape["points"][0] == shape["points"][-1]
    assert np.array_equal(area(shape["points"], mask.shape), mask)
    assert shape["score"] == 0.95
    assert shape["description"] == "1 click, accepted"


def test_commas_separate_expressions(ask):
    shapes = ask(text_prompt="the bright square, the light thing")
    assert [shape["label"] for shape in shapes] == ["the bright square", "the light thing"]


def test_points_are_clicks_and_other_models_give_rectangles(ask, mask):
    marks = [{"type": "point", "data": [15.7, 12.2], "label": 1}]
    (shape,) = ask(model="tiny-boxes", marks=marks)
    assert shape["label"] == OBJECT
    assert shape["shape_type"] == "rectangle"
    assert shape["points"] == [[10, 8], [21, 8], [21, 19], [10, 19]]


def test_each_rectangle_is_an_object(ask):
    marks = [{"type": "rectangle", "data": [21.9, 19.9, 10, 8], "label": 1}] * 2
    assert len(ask(marks=marks)) == 2


def test_shapes_below_the_threshold_are_left_out(ask):
    marks = [{"type": "point", "data": [15, 12], "label": 1}]
    assert len(ask(marks=marks, conf_threshold=0.75)) == 1
    assert ask(marks=marks, conf_threshold=0.76) == []


def test_the_image_is_encoded_once(ask, service):
    for x in (12, 14, 16):
        ask(marks=[{"type": "point", "data": [x, 12], "label": 1}])
    assert service.images.count == 1
    (image,) = [service.images.get(id) for id in service.images._images]
    assert image.states == []


@pytest.mark.parametrize("epsilon", [0.0, 0.001, 0.5])
def test_polygons_stay_within_a_pixel_of_the_mask(epsilon):
    rows, columns = np.ogrid[:200, :300]
    mask = ((rows - 90) ** 2 + (columns - 150) ** 2 < 60**2) & ((rows + columns) % 97 > 3)
    for part in polygons(mask, epsilon):
        drawn = area(part, mask.shape)
        edge = drawn & ~mask
        padded = np.pad(mask, 1)
        near = np.zeros_like(padded)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near |= np.roll(padded, (dy, dx), (0, 1))
        assert not (edge & ~near[1:-1, 1:-1]).sum() > 0.02 * mask.sum()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "nothing", "image": "data:image/png;base64,AAAA"}, 404),
        ({"model": "tiny", "image": "data:image/png;base64,AAAA"}, 422),
        ({"model": "tiny", "image": "%%%"}, 422),
        ({"model": "tiny"}, 422),
        ({"model": "tiny", "image": "", "params": {"marks": [{"type": "circle"}]}}, 422),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(client, body, status):
    answer = client(x_anylabeling_router)("POST", "/v1/predict", body)
    assert answer.status == status
    assert answer.json["error"]


def test_the_key_of_x_anylabeling_is_the_servers_token(client):
    send = client(x_anylabeling_router, token="a-long-secret-token")
    assert send("GET", "/v1/models", token="wrong").status == 401
    assert send("GET", "/v1/models", token="a-long-secret-token").status == 200
