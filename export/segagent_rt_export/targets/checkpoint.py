"""A checkpoint as servers load it: transformers' format, 16 bits wide, an adapter merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segagent_rt_export.bundle_writer import write_json
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.chat_templates import read_template
from segagent_rt_export.families.mllm_model import pixel_limits
from segagent_rt_export.families.weight_names import common_name, rename
from segagent_rt_export.sources.lora import HEAD, Adapted, adapt
from segagent_rt_export.sources.mllm_config import Config, open_processor
from segagent_rt_export.sources.shards import MappedTensor, open_shards, read_object
from segagent_rt_export.sources.weights import Stored, Weight, row_pieces

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DESCRIBING, LARGEST = (".json", ".jinja", ".txt", ".model"), 64_000_000
"""Files beside the weights that are copied: how their names end, and bytes of the largest."""

WIDE = ("F32", "F64")
BYTES = {"F16": 2, "BF16": 2}


def write_checkpoint(source: Path, adapter: Path | None, family: str, folder: Path) -> None:
    """Put a checkpoint into a new folder. Weights that are 16 bits wide or quantised, and that no
    adapter changes, are copied as they are; all others are written anew, a piece at a time.

    Raises:
        CheckpointInvalid: it is damaged, has no chat, cannot be merged, overflows 16 bits, or is
            quantised by bitsandbytes.
    """
    if read_template(source) is None:
        raise CheckpointInvalid(
            f"{source} holds no chat template, and a server needs one",
            hint="copy chat_template.jinja or tokenizer_config.json from the model it began as",
        )
    quantised = Config.load(source / "config.json").section("quantization_config")
    if quantised.get("quant_method", None) == "bitsandbytes":
        raise CheckpointInvalid(
            f"{source} is quantised by bitsandbytes, which this server does not read",
            hint="name the checkpoint that it was quantised from",
        )
    folder.mkdir(parents=True)
    tensors = open_shards(source)
    changed = _merged(tensors, source, adapter, family)
    wide = not quantised.fields and any(_type(tensor) is None for tensor in tensors.values())
    for path in sorted(source.iterdir()):
        kept = path.suffix in DESCRIBING and not path.name.endswith(".index.json")
        if kept and path.is_file() and path.stat().st_size <= LARGEST:
            shutil.copyfile(path, folder / path.name)
    if adapter is None and not wide:
        _copy_weights(tensors, source, folder)
    else:
        _write_weights(changed, folder / WEIGHTS)
    if wide:
        write_json(folder / "config.json", _halved(read_object(source / "config.json")))


def limit_pictures(folder: Path, least: int, most: int) -> None:
    """Let a server resize pictures as a bundle does: between `least` and `most` pixels."""
    if pixel_limits(open_processor(folder)) == (least, most):
        return
    for name in ("processor_config.json", "preprocessor_config.json"):
        content = read_object(folder / name) if (folder / name).is_file() else {}
        found = content if name.startswith("pre") else content.get("image_processor")
        if isinstance(found, dict) and (found or name.startswith("pre")):
            found |= {"min_pixels": least, "max_pixels": most}
            found["size"] = {"shortest_edge": least, "longest_edge": most}
            write_json(folder / name, content)


def _merged(
    tensors: Mapping[str, Stored], source: Path, adapter: Path | None, family: str
) -> Mapping[str, Stored]:
    """The tensors with an adapter's changes, by the names that the checkpoint uses."""
    if adapter is None:
        return tensors
    if Config.load(source / "config.json").section("quantization_config").fields:
        raise CheckpointInvalid(
            f"{source} is quantised, and {adapter} cannot be merged into it",
            hint="name the checkpoint that it was quantised from",
        )
    common = rename(family, tensors)
    tied = HEAD not in common
    adapted = adapt(common, adapter, lambda name: common_name(family, name), tied=tied)
    if tied and HEAD in adapted:
        raise CheckpointInvalid(
            f"{adapter} parts the output head from the table of embeddings, which are one in "
            f"{source}, and servers would join them again",
            hint="merge it with peft's merge_and_unload and export the result",
        )
    return {name: adapted[common_name(family, name)] for name in tensors}


def _copy_weights(tensors: Mapping[str, Stored], source: Path, folder: Path) -> None:
    paths = {t.path for t in tensors.values() if isinstance(t, MappedTensor)}
    if (source / INDEX).is_file():
        paths.add(source / INDEX)
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _write_weights(tensors: Mapping[str, Stored], path: Path) -> None:
    """A safetensors file: the length of a header, the header, the tensors in its order."""
    header, at = dict[str, Any](), 0
    for name, tensor in tensors.items():
        dtype = _type(tensor) or "F16"
        width = BYTES.get(dtype, tensor.width)
        end = at + int(np.prod(tensor.shape, dtype=np.int64)) * width
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            for piece in _pieces(tensor):
                stream.write(np.ascontiguousarray(_narrow(piece, tensor, name)).tobytes())


def _type(tensor: Stored) -> str | None:
    """In which type a tensor is written; None if it must become narrower."""
    if isinstance(tensor, Adapted):
        return _type(tensor.base)
    stored = isinstance(tensor, MappedTensor) and tensor.dtype not in WIDE
    return tensor.dtype if isinstance(tensor, MappedTensor) and stored else None


def _pieces(tensor: Stored) -> Iterator[Weight]:
    if not tensor.shape:
        yield tensor.read()
    elif isinstance(tensor, MappedTensor) and tensor.dtype not in WIDE:
        for start in range(0, tensor.shape[0], 8192):
            yield tensor.stored(slice(start, start + 8192))
    else:
        yield from row_pieces(tensor)


def _narrow(values: Weight, tensor: Stored, name: str) -> npt.NDArray[Any]:
    """Values in the type of `_type`, rounded to nearest; a bfloat16 is its bits."""
    dtype = _type(tensor) or "F16"
    if values.dtype != np.float32:
        return values
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        return rounded.astype(np.uint16)
    expect_in_range(values, name)
    return values.astype(np.float16)


def expect_in_range(values: Weight, name: str) -> None:
    """Refuse values that overflow, or are no numbers, in float16."""
    if values.size and not np.abs(values).max() <= np.finfo(np.float16).max:
        raise CheckpointInvalid(
            f"the tensor `{name}` has values that 16 bits do not hold",
            hint="this server computes in float16; this checkpoint cannot be served by it",
        )


def expect_half(folder: Path) -> None:
    """Refuse a checkpoint with bfloat16 weights that float16 does not hold."""
    for name, tensor in open_shards(folder).items():
        if isinstance(tensor, MappedTensor) and tensor.dtype == "BF16" and tensor.shape:
            for piece in row_pieces(tensor):
                expect_in_range(piece, name)


def _halved(config: Any) -> Any:
    """A configuration that no longer says that weights are 32 bits wide."""
    if not isinstance(config, dict):
        return config
    return {
        key: "float16" if key in ("dtype", "torch_dtype") and value == "float32" else _halved(value)
        for key, value in config.items()
    }
