"""A bundle becomes a runtime: families find their classes, parts may lie in another bundle.

The segmenter is a SAM in files whose masks can be computed by hand: a disc around every positive
click.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import BundleIndex, FileRecord, Manifest, Variant, to_json
from segagent_rt.errors import BundleError, EngineRefused, ManifestInvalid
from segagent_rt.io import atomic_write
from segagent_rt.runtime import load
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.sam import SamSettings
from segagent_rt.types import Click

SIDE, RADIUS = 64, 12
"""Of the square that the segmenter sees, and of a disc in it, in pixels."""


def encoder() -> onnx.ModelProto:
    """The embedding is the picture at a sixteenth of its size."""
    pool = helper.make_node(
        "AveragePool", ["image"], ["embedding"], kernel_shape=[16, 16], strides=[16, 16]
    )
    return _model([pool], {"image": [1, 3, SIDE, SIDE]}, {"embedding": [1, 3, 4, 4]}, {})


def decoder() -> onnx.ModelProto:
    """Logits RADIUS^2 - distance^2 around positive points; four masks, the last scored best."""
    low = SIDE // 4
    rows, columns = np.mgrid[:low, :low].astype(np.float32) * 4 + 1.5
    constants = {
        "grid": np.stack([columns, rows], -1)[None, None],
        "reach": np.array(RADIUS**2, np.float32),
        "far": np.array(-1e3, np.float32),
        "one": np.array(1, np.float32),
        "last": np.array([-1]),
        "spread": np.array([1, -1, 1, 1, 2]),
        "per_point": np.array([1, -1, 1, 1]),
        "points": np.array([1]),
        "rating": np.array([[0.9, 0.1, 0.2, 0.8]], np.float32),
    }
    nodes = [
        helper.make_node("Reshape", ["point_coords", "spread"], ["places"]),
        helper.make_node("Sub", ["grid", "places"], ["offsets"]),
        helper.make_node("ReduceSumSquare", ["offsets", "last"], ["squares"], keepdims=0),
        helper.make_node("Sub", ["reach", "squares"], ["discs"]),
        helper.make_node("Reshape", ["point_labels", "per_point"], ["labels"]),
        helper.make_node("Equal", ["labels", "one"], ["positive"]),
        helper.make_node("Where", ["positive", "discs", "far"], ["drawn"]),
        helper.make_node("ReduceMax", ["drawn", "points"], ["mask"]),
        helper.make_node("Concat", ["mask"] * 4, ["masks"], axis=1),
        helper.make_node("Identity", ["rating"], ["scores"]),
    ]
    inputs: dict[str, list[int | str]] = {
        "embedding": [1, 3, 4, 4],
        "point_coords": [1, "N", 2],
        "point_labels": [1, "N"],
        "mask_input": [1, 1, low, low],
        "has_mask": [1],
    }
    return _model(nodes, inputs, {"masks": [1, 4, low, low], "scores": [1, 4]}, constants)


def _model(nodes, inputs, outputs, constants) -> onnx.ModelProto:
    described = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()]
        for values in (inputs, outputs)
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "disc", *described, weights)
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def write_disc_bundle(folder: Path, family: str, settings: SamSettings) -> Path:
    """The segmenter in `folder`, its MLLM in the shipped bundle, by relative path."""
    files = {}
    for name, model in (("encoder.onnx", encoder()), ("decoder.onnx", decoder())):
        content = model.SerializeToString()
        atomic_write(folder / "segmenter" / name, content)
        files[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    graphs = {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    variants = {"reference": Variant("any", "fp32", graphs)}
    manifest = Manifest("segmenter", family, to_json(settings), variants, files)
    (folder / "segmenter" / "manifest.json").write_text(json.dumps(to_json(manifest)))
    mllm = os.path.relpath(open_bundle().folder / "mllm", folder)
    index = BundleIndex("disc", {"segmenter": "segmenter", "mllm": Path(mllm).as_posix()})
    (folder / "bundle.json").write_text(json.dumps(to_json(index)))
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_masks_that_are_not_finite_are_an_error_and_no_mask(tmp_path, monkeypatch, value):
    """`NaN > 0` is False: they would look like a mask of nothing."""
    broken = decoder()
    reach = next(at for at, weight in enumerate(broken.graph.initializer) if weight.name == "reach")
    broken.graph.initializer[reach].CopyFrom(
        numpy_helper.from_array(np.array(value, np.float32), "reach")
    )
    monkeypatch.setitem(write_disc_bundle.__globals__, "decoder", lambda: broken)
    write_disc_bundle(tmp_path, "sam", SamSettings(side=SIDE))
    with load(tmp_path, backend="cpu") as runtime:
        canvas = runtime.open(np.zeros((96, 128, 3), np.uint8))
        with pytest.raises(EngineRefused, match="`masks` with numbers that are not finite"):
            canvas.segment([Click(100, 30, True)])


@pytest.mark.parametrize("family", ["sam", "sam_hq", "mobile_sam", "sam2", "sam3", "edgetam"])
@pytest.mark.parametrize("resize", ["longest", "squash"])
def test_every_family_of_sam_draws_where_it_is_clicked(tmp_path, family, resize):
    settings = SamSettings(side=SIDE, resize=resize)
    image = np.zeros((96, 128, 3), np.uint8)
    with load(write_disc_bundle(tmp_path, family, settings), backend="cpu") as runtime:
        prediction = runtime.open(image).segment([Click(100, 30, True), Click(5, 5, False)])
    y, x = np.mgrid[:96, :128] + 0.5
    height = SIDE if resize == "squash" else SIDE * 3 / 4
    across, down = SIDE / 128, height / 96
    wanted = np.hypot((x - 100.5) * across, (y - 30.5) * down) < RADIUS
    mask = prediction.mask()
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9
    assert prediction.score == pytest.approx(0.8)


def test_an_expression_is_walked_with_an_mllm_of_another_bundle(tmp_path):
    """Of which only the path is in the index."""
    bundle = write_disc_bundle(tmp_path, "sam", SamSettings(side=SIDE))
    scene = make_scene(7, 256)
    with load(bundle, backend="cpu") as runtime:
        found = runtime.open(scene.image).annotate(scene.expressions[0].text)
    assert found.clicks
    assert found.prediction is not None
    assert found.prediction.mask().shape == (256, 256)


def test_a_family_of_the_future_is_named(tmp_path):
    write_disc_bundle(tmp_path, "sam_9", SamSettings(side=SIDE))
    with pytest.raises(ManifestInvalid, match="sam_9"):
        load(tmp_path, backend="cpu")


def test_only_the_parts_that_are_named_are_loaded():
    """No graph is loaded, and no thread is started, by looking at an attribute."""
    with load(parts=("segmenter",), threads=1) as runtime:
        assert {name.split()[0] for name in runtime.placements} == {"segmenter"}
        canvas = runtime.open(np.zeros((64, 64, 3), np.uint8))
        assert canvas.segment([Click(5, 5, True)]).mask().shape == (64, 64)
        for use in (lambda: runtime.annotator, lambda: canvas.view):
            with pytest.raises(BundleError, match="the mllm was not loaded"):
                use()
    with load(parts=()) as runtime:
        assert runtime.placements == {}


def test_opening_an_image_starts_to_encode_it(monkeypatch):
    monkeypatch.setattr("segagent_rt.backends.cores.usable_cores", lambda: 4)
    with load(threads=1) as runtime:
        started = threading.Event()
        encode = runtime.segmenter.encode
        monkeypatch.setattr(
            type(runtime.segmenter), "encode", lambda _, image: started.set() or encode(image)
        )
        canvas = runtime.open(make_scene(7, 64).image)
        assert started.wait(10)
        assert canvas.embedding is canvas.embedding
