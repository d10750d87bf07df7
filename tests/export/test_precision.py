"""How linear layers are stored: both dialects compute what their codes say, and codes are near the
weights."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
torch = pytest.importorskip("torch", reason="needs the extra `export`")

import onnxruntime  # noqa: E402

from segagent_rt.backends.session import SessionOptions, open_session  # noqa: E402
from segagent_rt_export.graphs.blocks import Module, gated_mlp  # noqa: E402
from segagent_rt_export.graphs.builder import Dialect, new_graph  # noqa: E402
from segagent_rt_export.graphs.integer_product import MOST  # noqa: E402
from segagent_rt_export.graphs.precision import Precision, quantise_blocks, quantise_symmetric  # noqa: E402
from segagent_rt_export.passes.gptq import gptq_round  # noqa: E402
from segagent_rt_export.passes.weight_quant import quantise_matrices  # noqa: E402
from segagent_rt_export.sources.weights import StateDict  # noqa: E402
from segagent_rt_export.variants import MLLM_VARIANTS  # noqa: E402

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)


def run(folder, precision: Precision, dialect: Dialect, weight, bias, x):
    path = folder / "linear.onnx"
    with new_graph(path, dialect) as g:
        name = g.input("x", np.float32, ["N", weight.shape[1]])
        y = precision.linear(g, name, weight, bias)
        g.output(y, "y", np.float32, ["N", len(weight)])
    return open_session(path, SessionOptions("cpu", 1)).run({"x": x}, ["y"])["y"]


def layer(outputs: int, inputs: int):
    weight = RNG.normal(size=(outputs, inputs)).astype(np.float32)
    bias = RNG.normal(size=outputs).astype(np.float32)
    return weight, bias, RNG.normal(size=(5, inputs)).astype(np.float32)


LOSS = {"fp32": 1e-6, "8bit": 0.01, "4bit": 0.12, "int8": 0.02}
"""Root mean square of the error, over that of the result."""


@pytest.mark.parametrize(
    ("scheme", "dialect"),
    [(scheme, "ort") for scheme in LOSS]
    + [(scheme, "portable") for scheme in LOSS if scheme != "int8"],
)
@pytest.mark.parametrize("inputs", [64, 96, 76])
def test_results_are_near_those_of_the_weights(tmp_path, scheme, dialect, inputs):
    weight, bias, x = layer(48, inputs)
    wanted = x @ weight.T + bias
    found = run(tmp_path, Precision(scheme), dialect, weight, bias, x)
    loss = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    assert loss < LOSS[scheme]
    assert (tmp_path / "linear.onnx.data").exists()


def test_a_row_of_huge_activations_leaves_the_others_their_steps(tmp_path):
    """Large language models have such tokens; with one scale for all rows the others came out as
    nothing but rounding errors."""
    weight, bias, x = layer(48, 96)
    x[0] *= 1000
    wanted = x @ weight.T + bias
    found = run(tmp_path, Precision("int8"), "ort", weight, bias, x)
    for row, other in zip(found, wanted, strict=True):
        assert np.linalg.norm(row - other) < LOSS["int8"] * np.linalg.norm(other)


def test_integer_rows_fed_together_are_rows_fed_alone(tmp_path):
    """So that replies do not depend on how many tokens the grammar forces at once."""
    weight, bias, x = layer(48, 96)
    together = run(tmp_path, Precision("int8"), "ort", weight, bias, x)
    alone = [run(tmp_path, Precision("int8"), "ort", weight, bias, x[i : i + 1]) for i in range(5)]
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_do_not_overflow(tmp_path, sign):
    """On x86 without VNNI two products share 16 bits."""
    weight = np.full((48, 96), sign, np.float32)
    found = run(tmp_path, Precision("int8"), "ort", weight, None, np.ones((5, 96), np.float32))
    np.testing.assert_allclose(found, np.full((5, 48), 96.0 * sign), rtol=1e-5)


def test_a_row_of_zeros_stays_zero(tmp_path):
    weight, bias, x = layer(48, 96)
    x[1] = 0
    found = run(tmp_path, Precision("int8"), "ort", weight, bias, x)
    assert np.array_equal(found[1], bias)


@pytest.mark.parametrize("shape", [(1, 5, 96), (3, 2, 5, 96)])
def test_a_traced_product_of_any_rank_rounds_each_row(shape):
    """Encoders of segmenters multiply grids and windows; a row is what lies along the last axis."""
    own = np.random.default_rng(1)
    weight = own.normal(size=(48, 96)).astype(np.float32)
    x = own.normal(size=shape).astype(np.float32)
    x[..., 0, :] *= 1000
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])], "net",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, (*shape[:-1], 48))],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    quantise_matrices(model, Precision("int8"))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": x})
    wanted = x @ weight.T
    assert found.shape == wanted.shape
    away = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert 0 < away.max() < LOSS["int8"]


@pytest.mark.parametrize("hidden", [64, 70])
def test_a_gated_mlp_of_integers_may_be_wider_by_zeros(tmp_path, hidden):
    """Products are fastest at whole cache lines; the result is that of the width that was asked
    for."""
    shapes = {"gate_proj": (hidden, 32), "up_proj": (hidden, 32), "down_proj": (32, hidden)}
    torch.manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    x = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    found = {}
    for scheme in ("fp32", "int8"):
        path = tmp_path / f"{scheme}.onnx"
        with new_graph(path) as g:
            module = Module(g, StateDict(tensors), Precision(scheme))
            y = gated_mlp(module, g.input("x", np.float32, ["N", 32]), hidden, 32)
            g.output(y, "y", np.float32, ["N", 32])
        found[scheme] = open_session(path, SessionOptions("cpu", 1)).run({"x": x}, ["y"])["y"]
    assert Precision("fp32").aligned(70) == 70
    assert Precision("int8").aligned(70) == 128
    error = np.linalg.norm(found["int8"] - found["fp32"]) / np.linalg.norm(found["fp32"])
    assert 0 < error < 2 * LOSS["int8"]


@pytest.mark.parametrize("dialect", ["ort", "portable"])
@pytest.mark.parametrize("inputs", [76, 96, 192, 256, 380, 520])
def test_a_long_block_fits_every_width(tmp_path, dialect, inputs):
    weight, bias, x = layer(48, inputs)
    wanted = x @ weight.T + bias
    found = run(tmp_path, Precision("8bit", 128), dialect, weight, bias, x)
    loss = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    assert loss < LOSS["8bit"]


@pytest.mark.parametrize(
    ("inputs", "padded", "whole"),
    [(3420, 128, None), (1280, 128, 128), (1176, 64, None), (520, 32, None), (192, 64, 64),
     (144, 32, None), (96, 32, 32), (48, 32, None)],
)  # fmt: skip
def test_blocks_become_shorter_before_much_is_filled_up(tmp_path, inputs, padded, whole):
    """`whole` is a block that divides the width; without one there is a scale for each output.
    TensorRT takes blocks of four bits only."""
    weight, bias, x = layer(8, inputs)
    for dialect, scheme, kind, wanted in (
        ("ort", "8bit", "MatMulNBits", padded),
        ("portable", "4bit", "DequantizeLinear", whole),
        ("portable", "8bit", "DequantizeLinear", None),
    ):
        run(tmp_path, Precision(scheme, 128), dialect, weight, bias, x)
        nodes = onnx.load(tmp_path / "linear.onnx", load_external_data=False).graph.node
        node = next(node for node in nodes if node.op_type == kind)
        blocks = [option.i for option in node.attribute if option.name == "block_size"]
        assert blocks == ([] if wanted is None else [wanted])


@pytest.mark.parametrize("variant", ["cpu-w8", "cpu-w8a8-static", "cpu-w4"])
def test_words_keep_short_blocks(variant):
    """With long ones a token's numbers would depend on how many are fed with it."""
    assert MLLM_VARIANTS[variant].arithmetic.language.block_of(4864) == 32


def test_pictures_have_long_blocks():
    assert MLLM_VARIANTS["cpu-w8"].arithmetic.vision.block_of(3420) == 128


@pytest.mark.parametrize("bits", [8, 4])
def test_the_portable_form_is_its_codes_times_their_scales(tmp_path, bits):
    weight, bias, x = layer(48, 64)
    block = 32 if bits == 4 else 64  # eight bits have a scale for each output
    codes, scales = quantise_symmetric(weight, bits, block)
    unpacked = codes.reshape(48, -1, block) * scales[..., None]
    wanted = x @ unpacked.reshape(48, 64).T + bias
    found = run(tmp_path, Precision(f"{bits}bit"), "portable", weight, bias, x)  # type: ignore[arg-type]
    assert np.abs(found - wanted).max() < 1e-5
    assert (scales > 0).all()  # TensorRT refuses others


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_within_half_a_step(bits):
    weight = RNG.normal(size=(6, 70)).astype(np.float32)
    weight[0] = 0
    packed, scales = quantise_blocks(weight, bits, 32)
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(6, 3, 32)
    steps = scales.reshape(6, 3, 1)
    back = ((codes.astype(int) - (1 << (bits - 1))) * steps).reshape(6, -1)[:, :70]
    width = np.repeat(np.abs(steps[..., 0]), 32, 1)[:, :70]
    assert (np.abs(back - weight) <= 0.5001 * width).mean() > 0.99
    assert (np.abs(back - weight) <= 1.0001 * width).all()  # the far end has one code less
    assert not back[0].any()


def together(width: int):
    """Inputs that go together, as activations do, and their moments."""
    mixed = RNG.normal(size=(600, width)) @ RNG.normal(size=(width, width)) / width**0.5
    mixed += 2 * RNG.normal(size=(600, 1))
    return mixed.astype(np.float32), mixed.T @ mixed


def test_rounding_in_turn_errs_less_than_rounding_to_the_nearest():
    weight, (x, moments) = RNG.normal(size=(48, 96)).astype(np.float32), together(96)
    rounded = gptq_round(weight, moments)
    back = rounded.scales * (rounded.codes.astype(int) - rounded.zeros)
    nearest = rounded.scales * np.rint(weight / rounded.scales)
    errors = [float(np.square(x @ (w - weight).T).mean()) for w in (back, nearest)]
    assert errors[0] < 0.5 * errors[1]
    assert np.abs(rounded.codes.astype(int) - rounded.zeros).max() == MOST


def test_inputs_that_do_not_go_together_are_rounded_to_the_nearest():
    weight = RNG.normal(size=(8, 40)).astype(np.float32)
    rounded = gptq_round(weight, np.diag(RNG.uniform(1, 9, 40)))
    wanted = np.rint(weight / rounded.scales) + rounded.zeros
    assert np.array_equal(rounded.codes, wanted)


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_rounded_weights_are_multiplied_as_they_are(tmp_path, dialect):
    """In integers by ONNX Runtime: all that is lost beside their rounding is that of the inputs,
    an even error within one of 255 steps."""
    weight, (x, moments) = RNG.normal(size=(48, 96)).astype(np.float32), together(96)
    rounded = gptq_round(weight, moments)
    back = rounded.scales * (rounded.codes.astype(int) - rounded.zeros)
    wanted = x @ back.T
    expected = float(np.ptp(x) / 255 / 12**0.5 * np.linalg.norm(back) / 48**0.5)
    path = tmp_path / "linear.onnx"
    with new_graph(path, dialect) as g:
        name = g.input("x", np.float32, ["N", 96])
        y = Precision("rounded", 32).linear(g, name, weight, None, rounded)
        g.output(y, "y", np.float32, ["N", 48])
    found = open_session(path, SessionOptions("cpu", 1)).run({"x": x}, ["y"])["y"]
    loss = float(np.sqrt(((found - wanted) ** 2).mean()))
    assert loss < {"ort": 1.1 * expected, "portable": 1e-5}[dialect]
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    assert ("MatMulInteger" in kinds) == (dialect == "ort")
