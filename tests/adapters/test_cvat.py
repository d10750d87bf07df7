"""CVAT: both functions, loaded and checked by the code of CVAT's own SDK and command."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segagent_rt import runtime as runtimes
from segagent_rt.errors import InputError
from segagent_rt.serve.adapters import cvat as words
from segagent_rt.serve.adapters import cvat_clicks as clicks
from tests import squares
from tests.adapters.conftest import PLACE, area

cvat = pytest.importorskip("cvat_sdk.auto_annotation", reason="cvat-sdk is not installed")
masks = pytest.importorskip("cvat_sdk.masks")

LABELS = "mug=the bright mug; square"


@pytest.fixture(autouse=True)
def runtime(monkeypatch):
    made = squares.square_runtime()
    monkeypatch.setattr(runtimes, "load", lambda *_, **__: made)
    for module in (words, clicks):
        monkeypatch.setattr(module, "load", lambda *_, **__: made)
    return made


@pytest.fixture
def image():
    return Image.fromarray(squares.square(*PLACE))


def load(module, **parameters):
    """As `cvat-cli --function-module` does."""
    common = pytest.importorskip("cvat_cli._internal.common", reason="cvat-cli is not installed")
    return common.FunctionLoader(module.__name__, None, parameters).load()


def remapped(function, shapes, kind):
    """What the SDK's driver makes of answers, for a task with the labels of the function.

    It raises `BadFunctionError` if an answer breaks the protocol.
    """
    from cvat_sdk import models
    from cvat_sdk.auto_annotation.driver import _AnnotationMapper

    names = [label.name for label in function.spec.labels]
    task = [
        SimpleNamespace(name=name, id=100 + n, type=kind, attributes=[], sublabels=[])
        for n, name in enumerate(names)
    ]
    mapper = _AnnotationMapper(
        logging.getLogger(), function.spec.labels, task,
        allow_unmatched_labels=False, conv_mask_to_poly=kind == "polygon",
    )  # fmt: skip
    mapper.validate_and_remap(shapes, 7)
    assert all(isinstance(shape, models.LabeledShapeRequest) for shape in shapes)
    assert all(shape.frame == 7 and shape.label_id >= 100 for shape in shapes)
    return shapes


def context(threshold=None, polygons=False):
    return SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)


def test_masks_are_equal_after_the_sdks_decoder(image, mask):
    function = load(words, labels=LABELS)
    assert [label.name for label in function.spec.labels] == ["mug", "square"]
    shapes = remapped(function, function.detect(context(), image), "mask")
    assert len(shapes) == 2
    for shape in shapes:
        decoded = masks.decode_mask(shape.points, image_width=64, image_height=48)
        assert np.array_equal(decoded, mask)


def test_polygons_where_cvat_wants_them(image, mask):
    function = load(words, labels="mug")
    (shape,) = remapped(function, function.detect(context(polygons=True), image), "polygon")
    points = np.asarray(shape.points).reshape(-1, 2) - 0.5
    assert np.array_equal(area(points, mask.shape), mask)


def test_rectangles(image):
    function = load(words, labels="mug", shape="rectangle")
    (shape,) = remapped(function, function.detect(context(), image), "rectangle")
    assert shape.points == [10, 8, 22, 20]


def test_objects_below_the_threshold_are_left_out(image):
    function = load(words, labels="mug")
    assert len(function.detect(context(0.9), image)) == 1
    assert function.detect(context(0.99), image) == []


def test_parameters_are_checked():
    for wrong in ({"labels": " ; "}, {"labels": "mug", "shape": "circle"}):
        with pytest.raises(InputError):
            words.create(**wrong)


def test_clicks_and_boxes(image, mask):
    function = load(clicks)
    assert isinstance(function.spec, cvat.InteractionFunctionSpec)
    ready = function.preprocess_image(SimpleNamespace(), image)

    def ask(positive=(), negative=(), box=None):
        prompts = SimpleNamespace(pos_points=positive, neg_points=negative, bounding_box=box)
        return function.detect(SimpleNamespace(), ready, prompts)

    for shapes in (ask([(15.2, 12.9)]), ask(box=((10.0, 8.0), (22.0, 20.0)))):
        (shape,) = shapes
        assert isinstance(shape, cvat.InteractionResultShape)
        decoded = masks.decode_mask(shape.points, image_width=64, image_height=48)
        assert np.array_equal(decoded, mask)
        assert shape.attributes[0].value == "0.7500"
    assert ask() == []
    assert ask([(15, 12)], [(60, 40)]) == []
