"""Stands for `tensorrt_edgellm.scripts.export` of TensorRT Edge-LLM 0.11.0: takes the same
arguments, refuses the same checkpoints, writes the same files. `FAKE_EDGE` breaks it.

Run as a program in an environment of its own; the tests never import it as theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

BROKEN = os.environ.get("FAKE_EDGE", "")


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    found = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found.pop("__metadata__", None)
    return found


def write_graph(path: Path, output: str, width: int) -> None:
    """A product with weights that lie in a file beside the graph."""
    path.parent.mkdir(parents=True)
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[4, width])
    weights.raw_data = bytes(8 * width)
    set_external_data(weights, "model.onnx.data", 0, 8 * width)
    weights.ClearField("raw_data")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", size])
        for name, size in (("x", 4), (output, width))
    ]
    node = helper.make_node("MatMul", ["x", "w"], [output])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    content = helper.make_model(graph).SerializeToString()
    path.write_bytes(content[:40] if BROKEN == "cut graph" else content)
    (path.parent / "model.onnx.data").write_bytes(
        bytes(8 if BROKEN == "cut weights" else 8 * width)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--reduced-vocab-dir", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    print("Model type    :", config["model_type"])
    if BROKEN == "exit":
        raise SystemExit("RuntimeError: \x1b[31mno such operator\x1b[0m")
    if BROKEN == "nothing":
        return
    if any(entry["dtype"] == "F32" for entry in header(args.model / "model.safetensors").values()):
        raise TypeError("FP16Linear expects float16 input, got torch.float32")
    rows = config["text_config"]["vocab_size"]
    if args.reduced_vocab_dir is not None and BROKEN != "whole head":
        vocabulary = header(args.reduced_vocab_dir / "vocab_map.safetensors")["vocab_map"]
        assert vocabulary["dtype"] == "I32"
        rows = vocabulary["shape"][0]
    language = args.output_dir / "llm"
    write_graph(language / "model.onnx", "logits", rows)
    version = "0.10.1" if BROKEN == "other version" else "0.11.0"
    (language / "config.json").write_text(json.dumps({"edgellm_version": version}))
    shutil.copyfile(args.model / "chat_template.jinja", language / "chat_template.jinja")
    table = json.dumps({"embedding": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}})
    content = len(table).to_bytes(8, "little") + table.encode() + bytes(2)
    (language / "embedding.safetensors").write_bytes(content)
    if BROKEN != "no vision":
        write_graph(args.output_dir / "visual" / "model.onnx", "output", 4)


if __name__ == "__main__":
    assert onnx.__version__
    main()
