"""Triton: `config.pbtxt` by the published protobuf, and the loop with the repository's graphs."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import segagent_rt
from segagent_rt.draw import png
from segagent_rt.errors import OutputError
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click
from tests.cli.terminal import Terminal

pytest.importorskip("segagent_rt_export", reason="the exporter is not on the path")

from segagent_rt_export.targets.triton import Enum, pbtxt, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    write_repository("tiny", folder, lambda _: None)
    return folder


@dataclass
class FakeTensor:
    """As `triton_python_backend_utils.Tensor`."""

    key: str
    array: Any

    def name(self):
        return self.key

    def as_numpy(self):
        return self.array


@dataclass
class FakeTriton:
    """Runs the models of a repository with ONNX Runtime, by their configurations."""

    folder: Any
    sessions: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)

    def module(self):
        made = ModuleType("triton_python_backend_utils")
        made.Tensor = FakeTensor
        made.TritonError = lambda message: message
        made.InferenceResponse = lambda output_tensors=(), error=None: SimpleNamespace(
            output_tensors=output_tensors, error=error
        )
        made.InferenceRequest = lambda model_name, requested_output_names, inputs: SimpleNamespace(
            exec=lambda: self.run(model_name, requested_output_names, inputs)
        )
        return made

    def run(self, model, outputs, inputs):
        if model not in self.sessions:
            path = self.folder / model / "1" / "model.onnx"
            self.sessions[model] = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        self.calls.append(model)
        feeds = {tensor.key: tensor.array for tensor in inputs}
        found = self.sessions[model].run(outputs, feeds)
        tensors = [FakeTensor(name, value) for name, value in zip(outputs, found, strict=True)]
        return SimpleNamespace(has_error=lambda: False, output_tensors=lambda: tensors)


@pytest.fixture(scope="module")
def loop(repository):
    """The loop's model as Triton would load it, and what it calls."""
    fake = FakeTriton(repository)
    sys.modules["triton_python_backend_utils"] = fake.module()
    path = repository / "tiny" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("triton_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    config = {"parameters": {"threads": {"string_value": "1"}}}
    model.initialize(
        {
            "model_repository": str(repository / "tiny"),
            "model_version": "1",
            "model_name": "tiny",
            "model_config": json.dumps(config),
        }
    )
    yield model, fake
    model.finalize()
    del sys.modules["triton_python_backend_utils"]


@pytest.fixture(scope="module")
def scene():
    return make_scene(7, 256)


def ask(loop, scene, **inputs):
    tensors = {"IMAGE": np.frombuffer(png(scene.image), np.uint8), **inputs}
    request = SimpleNamespace(inputs=lambda: [FakeTensor(*item) for item in tensors.items()])
    (response,) = loop[0].execute([request])
    return response.error, {tensor.key: tensor.array for tensor in response.output_tensors}


def test_configurations_are_of_the_published_schema(repository):
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    names = sorted(path.name for path in repository.iterdir())
    assert names == ["tiny", "tiny_mllm_vision", "tiny_segmenter_decoder", "tiny_segmenter_encoder"]
    for name in names:
        text = (repository / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, messages.ModelConfig())
        assert config.name == name
        assert config.max_batch_size == 0
        if name == "tiny":
            assert config.backend == "python"
            assert [each.name for each in config.input if not each.optional] == ["IMAGE"]
            continue
        session = onnxruntime.InferenceSession(
            str(repository / name / "1" / config.default_model_filename),
            providers=["CPUExecutionProvider"],
        )
        for described, tensors in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [each.name for each in described] == [each.name for each in tensors]
            for each, tensor in zip(described, tensors, strict=True):
                sizes = [n if isinstance(n, int) else -1 for n in tensor.shape]
                assert list(each.dims) == sizes
                assert messages.DataType.Name(each.data_type).startswith("TYPE_")


def test_clicks_give_the_masks_of_the_library(loop, scene):
    rows, columns = scene.mask(0).nonzero()
    click = Click(int(columns.mean()), int(rows.mean()), positive=True)
    error, found = ask(loop, scene, CLICKS=np.array([[click.x, click.y, 1]], np.int32))
    assert error is None
    with segagent_rt.load("tiny", threads=1, parts=["segmenter"]) as runtime:
        wanted = runtime.open(scene.image).segment([click]).mask()
    assert np.mean(found["MASK"].astype(bool) == wanted) > 0.999
    assert {"tiny_segmenter_encoder", "tiny_segmenter_decoder"} <= set(loop[1].calls)


def test_words_run_the_loop(loop, scene):
    said = scene.expressions[0].text
    error, found = ask(loop, scene, EXPRESSION=np.array([said.encode()], np.object_))
    assert error is None
    result = json.loads(found["RESULT"][0])
    with segagent_rt.load("tiny", threads=1) as runtime:
        wanted = runtime.open(scene.image).annotate(said)
    clicks = [(each["x"], each["y"]) for each in result["clicks"]]
    assert clicks == [(click.x, click.y) for click in wanted.clicks]
    assert "tiny_mllm_vision" in loop[1].calls


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"CLICKS": np.array([1, 2, 3], np.int32)},
        {"CLICKS": np.array([[9999, 0, 1]], np.int32)},
        {"BOX": np.array([1, 2], np.int32)},
        {"IMAGE": np.zeros(4, np.uint8), "BOX": np.array([1, 2, 3, 4], np.int32)},
        {"EXPRESSION": np.array([b"the mug"], np.object_)},
    ],
)
def test_a_request_that_cannot_be_answered_has_an_error(loop, scene, inputs):
    error, found = ask(loop, scene, **inputs)
    assert error
    assert found == {}


def test_a_folder_with_files_is_not_written_to(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OutputError):
        write_repository("tiny", tmp_path, lambda _: None)


def test_the_command_names_the_models(tmp_path, monkeypatch, capsys):
    done = Terminal(monkeypatch, capsys)("export", "photo", "--target", "triton", "-o", tmp_path)
    assert done.code == 0, done.err
    names = ["photo", "photo_segmenter_encoder", "photo_segmenter_decoder"]
    assert done.out.split() == names


def test_text_format_quotes_and_nests():
    text = pbtxt({"a": 'x"\\', "b": [1, -1], "c": [{"d": Enum("E")}], "e": True, "f": {"g": 1}})
    assert text == 'a: "x\\"\\\\"\nb: [ 1, -1 ]\nc {\n  d: E\n}\ne: true\nf {\n  g: 1\n}\n'
