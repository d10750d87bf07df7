"""A pass leaves no weight behind that its graph does not read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from segagent_rt_export.passes.weight_only_int8 import (
    dequantise_conv_weights,
    quantise_conv_weights,
)

pytestmark = pytest.mark.export


def convolution():
    values = np.random.default_rng(0).normal(size=(16, 8, 3, 3)).astype(np.float32)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 9, 9])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(values, "w"), numpy_helper.from_array(values, "spare")]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [image], [out], weights)), values


def names(model):
    return sorted(tensor.name for tensor in model.graph.initializer)


def test_int8_weights_replace_the_real_ones_and_can_be_unpacked_again():
    model, values = convolution()
    quantise_conv_weights(model)
    assert names(model) == ["w_codes", "w_scale"]
    dequantise_conv_weights(model)
    assert names(model) == ["w"]
    back = numpy_helper.to_array(model.graph.initializer[0])
    step = np.abs(values).max((1, 2, 3), keepdims=True) / 127
    assert (np.abs(back - values) <= step / 2 + 1e-6).all()
