"""A model repository for Triton Inference Server, from a bundle.

    REPOSITORY/NAME/config.pbtxt, 1/model.py, 1/bundle/...      the loop, for the Python backend
    REPOSITORY/NAME_segmenter_encoder/config.pbtxt, 1/model.onnx, 1/encoder.onnx.data
    ...                                                         a model for each graph of `REMOTE`

Nothing is compiled: the graphs are those of the bundle, which are verified first.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from segagent_rt.bundle.bundle import Bundle, Part, open_bundle
from segagent_rt.bundle.graph import Graph
from segagent_rt.bundle.placement import compatible_graphs
from segagent_rt.errors import BundleError, OutputError
from segagent_rt.io import check_writable
from segagent_rt.serve.triton import REMOTE, model_name
from segagent_rt.types import ProgressReporter

Fields: TypeAlias = Mapping[str, Any]
"""Fields of a protobuf message: numbers, texts, `Enum`s, messages, and lists of these."""

MODEL = '''"""The loop of segagent-rt, which Triton's Python backend has to have installed."""

from segagent_rt.serve.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''

TYPES = {
    "tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8", "tensor(int32)": "TYPE_INT32", "tensor(int64)": "TYPE_INT64",
    "tensor(bool)": "TYPE_BOOL",
}  # fmt: skip
"""ONNX Runtime's names of types, and Triton's."""


@dataclass(frozen=True, slots=True)
class Enum:
    """A value of an enumeration, which stands without quotes."""

    name: str


def write_repository(
    bundle: str | Path, folder: Path, report_progress: ProgressReporter
) -> list[str]:
    """Write a model repository.

    Args:
        bundle: a folder or a name.
        folder: the repository; it must not be there, or be empty.
        report_progress: is told what happens.

    Returns:
        The names of the models; the loop's is the first.

    Raises:
        BundleError: the bundle cannot be used.
        OutputError: the folder cannot be written, or holds something.
    """
    opened = open_bundle(bundle)
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty", hint="choose another folder with -o")
    for part in opened.parts.values():
        report_progress(f"checking the {part.manifest.kind}")
        part.verify_once()
    loop = re.sub(r"[^A-Za-z0-9_-]", "_", opened.index.name)
    names = [loop]
    report_progress("copying the bundle")
    _write_loop(opened, folder / loop, loop)
    for kind, part in opened.parts.items():
        for role in part.roles:
            if f"{kind} {role}" in REMOTE:
                name = model_name(loop, kind, role)
                report_progress(f"copying the {kind}'s {role}")
                _write_graph(part, role, folder / name, name)
                names.append(name)
    return names


def _write_loop(bundle: Bundle, folder: Path, name: str) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    _copy(bundle.folder, version / "bundle")
    (version / "model.py").write_text(MODEL, "utf-8")
    optional = {"optional": True}
    inputs = [
        {"name": "IMAGE", "data_type": Enum("TYPE_UINT8"), "dims": [-1]},
        {"name": "EXPRESSION", "data_type": Enum("TYPE_STRING"), "dims": [1], **optional},
        {"name": "CLICKS", "data_type": Enum("TYPE_INT32"), "dims": [-1, 3], **optional},
        {"name": "BOX", "data_type": Enum("TYPE_INT32"), "dims": [4], **optional},
        {"name": "MAX_CLICKS", "data_type": Enum("TYPE_INT32"), "dims": [1], **optional},
    ]
    outputs = [
        {"name": "MASK", "data_type": Enum("TYPE_UINT8"), "dims": [-1, -1]},
        {"name": "RESULT", "data_type": Enum("TYPE_STRING"), "dims": [1]},
    ]
    config = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": 1, "kind": Enum("KIND_CPU")}],
        "parameters": [{"key": "threads", "value": {"string_value": "0"}}],
    }
    (folder / "config.pbtxt").write_text(pbtxt(config), "utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy a bundle: regular files only, as its manifests name no others."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _write_graph(part: Part, role: str, folder: Path, name: str) -> None:
    import onnxruntime

    graph = _choose(part, role)
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(graph.path, version / "model.onnx")
    for weights in part.weights(graph.variant.graphs[role]):
        shutil.copyfile(part.file(weights), version / Path(weights).name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(version / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    config = {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        "default_model_filename": "model.onnx",
        "input": [_tensor(each) for each in session.get_inputs()],
        "output": [_tensor(each) for each in session.get_outputs()],
        "instance_group": [{"count": 1, "kind": Enum("KIND_AUTO")}],
    }
    (folder / "config.pbtxt").write_text(pbtxt(config), "utf-8")


def _choose(part: Part, role: str) -> Graph:
    """The graph that suits a GPU best, which ONNX Runtime runs on a CPU as well; else any."""
    try:
        return compatible_graphs(part.graphs(role), "cuda")[0]
    except BundleError:
        return part.graphs(role)[0]


def _tensor(described: Any) -> Fields:
    """A tensor of a graph. Names stand for sizes that vary."""
    dims = [size if isinstance(size, int) else -1 for size in described.shape]
    return {"name": described.name, "data_type": Enum(TYPES[described.type]), "dims": dims}


def pbtxt(fields: Fields, indent: int = 0) -> str:
    """A message in protobuf's text format.

    Args:
        fields: by name, in their order. A list of messages becomes a field for each.
        indent: levels.
    """
    lines, space = [], "  " * indent
    for name, value in fields.items():
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            lines += [f"{space}{name} {{\n{pbtxt(each, indent + 1)}{space}}}\n" for each in value]
        elif isinstance(value, Mapping):
            lines.append(f"{space}{name} {{\n{pbtxt(value, indent + 1)}{space}}}\n")
        else:
            lines.append(f"{space}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    if isinstance(value, Sequence):
        return f"[ {', '.join(map(_scalar, value))} ]"
    return str(value)
