"""Which TensorRT takes a graph, by NVIDIA's published tables, where there is none to try it.

Sources: `docs/operators.md` and `docs/Changelog.md` of github.com/onnx/onnx-tensorrt at the
releases 10.0 (opset 9 to 20, types with INT4) and 10.6 (opset 22). The operators of 10.3 are those
of 10.6 without what the changelog adds after 10.3. That blocks of codes must be of 4 bits is what
TensorRT 10.7 says when it refuses others ("Block quantization is supported only for
DataType::kINT4").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import NodeProto, TensorProto

OPSETS: Mapping[str, int] = {"10.3": 20, "10.6": 22}
"""The newest opset by version, the oldest first; JetPack 6 has 10.3, JetPack 7 has 10.13 or later.
"""

OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike
Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax
Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad
ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu
Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
"""What every one of these versions takes."""

_KNOWN = frozenset(OPERATORS.split())
_CODES = (TensorProto.INT8, TensorProto.INT4)


def oldest_tensorrt(model: onnx.ModelProto) -> str | None:
    """The oldest version by the tables that takes a graph; None if none of them does."""
    if next(unsupported(model), None) is not None:
        return None
    opset = _opset(model)
    return next((version for version, newest in OPSETS.items() if opset <= newest), None)


def unsupported(model: onnx.ModelProto) -> Iterator[str]:
    """What no version of the tables takes in a graph."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain or node.op_type not in _KNOWN:
            yield f"there is no {node.op_type}"
        elif node.op_type == "DequantizeLinear":
            yield from _of_codes(node, constants)
    if _opset(model) > max(OPSETS.values()):
        yield f"opset {_opset(model)} is newer than {max(OPSETS.values())}"


def _of_codes(node: NodeProto, constants: Mapping[str, TensorProto]) -> Iterator[str]:
    """What keeps a DequantizeLinear of weights from being taken."""
    codes = constants.get(node.input[0])
    blocks = next((a.i for a in node.attribute if a.name == "block_size"), 0)
    if codes is not None and codes.data_type not in _CODES:
        yield "codes must be INT8 or INT4"
    if blocks and codes is not None and codes.data_type != TensorProto.INT4:
        yield "blocks of codes must be of 4 bits"
    if blocks and codes is not None and len(codes.dims) != 2:
        yield "blocks of codes must be of matrices"
    zeros = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zeros is not None and onnx.numpy_helper.to_array(zeros).any():
        yield "zero points must be zero"


def _opset(model: onnx.ModelProto) -> int:
    return int(next(o.version for o in model.opset_import if not o.domain))
