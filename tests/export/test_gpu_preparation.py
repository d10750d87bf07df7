"""What the host does between two clicks, as ONNX graphs: painting the mask, resizing the picture
and cutting patches. Such graphs compute the same bytes, so a loop may keep its pictures on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")

import onnxruntime as ort  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from segagent_rt.image import overlay  # noqa: E402
from segagent_rt.mllm.preprocess import bicubic  # noqa: E402
from segagent_rt.mllm.vision_encoder import cut_patches  # noqa: E402

pytestmark = pytest.mark.export

Array = npt.NDArray[np.generic]
ONE = 1 << 22
"""Pillow multiplies bytes with integers; this one stands for 1."""


def taps(old: int, new: int) -> npt.NDArray[np.float64]:
    """Pillow's bicubic filter from `old` to `new` pixels, [new, old], in whole numbers."""
    scale = old / new
    wide = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for at in range(new):
        centre = (at + 0.5) * scale
        first = max(int(centre - 2 * wide + 0.5), 0)
        last = min(int(centre + 2 * wide + 0.5), old)
        x = np.abs((np.arange(first, last) - centre + 0.5) / wide)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        matrix[at, first:last] = np.rint(weights / weights.sum() * ONE)
    return matrix


class Graph:
    """Nodes and constants of a small graph."""

    def __init__(self) -> None:
        self._nodes, self._constants = [], []

    def node(self, kind: str, *inputs: str | Array, **attributes: object) -> str:
        """Add a node, with arrays among its inputs; returns its output."""
        names = [name if isinstance(name, str) else self._constant(name) for name in inputs]
        self._nodes.append(helper.make_node(kind, names, [f"v{len(self._nodes)}"], **attributes))
        return str(self._nodes[-1].output[0])

    def _constant(self, values: Array) -> str:
        self._constants.append(numpy_helper.from_array(values, f"c{len(self._constants)}"))
        return str(self._constants[-1].name)

    def run(self, output: str, feeds: Mapping[str, Array]) -> Array:
        """What comes out on the CPU."""
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(f.dtype), f.shape)
            for n, f in feeds.items()
        ]
        made = onnx.ValueInfoProto(name=output)
        graph = helper.make_graph(self._nodes, "prepare", given, [made], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run([output], dict(feeds))[0]


def painted(graph: Graph, image: str, mask: str) -> str:
    """uint8 [H, W, 3] and bool [H, W] to uint8 [H, W, 3]."""
    wide = graph.node("Cast", image, to=onnx.TensorProto.INT32)
    green = graph.node("Add", wide, np.array([0, 255, 0], np.int32))
    halved = graph.node("Div", green, np.array(2, np.int32))
    under = graph.node("Unsqueeze", mask, np.array([2]))
    return graph.node(
        "Cast", graph.node("Where", under, halved, wide), to=onnx.TensorProto.UINT8
    )  # fmt: skip


def resized(graph: Graph, image: str, old: Sequence[int], new: Sequence[int]) -> str:
    """uint8 [H, W, 3] to [h, w, 3]: rows, then columns, each rounded to bytes."""
    x = graph.node("Transpose", image, perm=[2, 0, 1])  # [3, H, W]
    if old[1] != new[1]:
        x = rounded(graph, graph.node("MatMul", double(graph, x), taps(old[1], new[1]).T))
    if old[0] != new[0]:
        x = rounded(graph, graph.node("MatMul", taps(old[0], new[0]), double(graph, x)))
    return graph.node("Transpose", x, perm=[1, 2, 0])


def double(graph: Graph, x: str) -> str:
    return graph.node("Cast", x, to=onnx.TensorProto.DOUBLE)


def rounded(graph: Graph, sums: str) -> str:
    """Bytes of sums of integers, as Pillow rounds and cuts them off."""
    shifted = graph.node("Div", graph.node("Add", sums, np.array(ONE / 2)), np.array(float(ONE)))
    cut = graph.node("Clip", graph.node("Floor", shifted), np.array(0.0), np.array(255.0))
    return graph.node("Cast", cut, to=onnx.TensorProto.UINT8)


def patches(graph: Graph, picture: str, size: Sequence[int], patch: int, merge: int) -> str:
    """uint8 [H, W, 3] to float32 [M, merge^2, 3 patch^2]."""
    rows, columns = (side // patch // merge for side in size)
    shape = np.array([rows, merge, patch, columns, merge, patch, 3])
    blocks = graph.node("Reshape", picture, shape)
    moved = graph.node("Transpose", blocks, perm=[0, 3, 1, 4, 6, 2, 5])
    flat = graph.node("Reshape", moved, np.array([-1, merge**2, 3 * patch * patch]))
    return graph.node("Cast", flat, to=onnx.TensorProto.FLOAT)


@pytest.fixture
def image() -> npt.NDArray[np.uint8]:
    """Noise, in which every rounding shows."""
    return np.random.default_rng(0).integers(0, 256, (203, 310, 3), np.uint8)


@pytest.fixture
def mask(image) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(1).random(image.shape[:2]) < 0.4


def test_a_mask_is_painted_as_on_the_host(image, mask):
    graph = Graph()
    found = graph.run(painted(graph, "image", "mask"), {"image": image, "mask": mask})
    assert np.array_equal(found, overlay(image, mask))


@pytest.mark.parametrize("size", [(112, 168), (203, 168), (448, 616), (56, 28), (224, 308)])
def test_a_picture_is_resized_to_the_same_bytes(image, size):
    graph = Graph()
    found = graph.run(resized(graph, "image", image.shape[:2], size), {"image": image})
    assert np.array_equal(found, bicubic(image, size))


@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (16, 2), (14, 1)])
def test_patches_are_cut_as_on_the_host(patch, merge):
    size = 6 * patch, 4 * patch
    picture = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    graph = Graph()
    found = graph.run(patches(graph, "picture", size, patch, merge), {"picture": picture})
    assert np.array_equal(found, cut_patches(picture, patch, merge))


def test_one_graph_makes_patches_of_an_image_and_a_mask(image, mask):
    size, graph = (112, 168), Graph()
    shown = resized(graph, painted(graph, "image", "mask"), image.shape[:2], size)
    found = graph.run(patches(graph, shown, size, 14, 2), {"image": image, "mask": mask})
    assert np.array_equal(found, cut_patches(bicubic(overlay(image, mask), size), 14, 2))
