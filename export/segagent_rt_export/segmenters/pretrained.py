"""Folders as transformers writes them, read without any code of theirs, and filled into modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from segagent_rt.contracts import inside
from segagent_rt_export.checkpoints import read_checkpoint, source_record
from segagent_rt_export.errors import CheckpointInvalid

Net = TypeVar("Net", bound=nn.Module)

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path, *kinds: str) -> dict[str, Any]:
    """`config.json` of a model of one of these types.

    Raises:
        CheckpointInvalid: there is none, or it is of another type.
    """
    config = _read_object(folder / CONFIG)
    found = config.get("model_type")
    if found not in kinds:
        raise CheckpointInvalid(
            f"{folder} holds a model of type {found}, not {' or '.join(kinds)}",
            hint="the recipe names the family; is this the right folder?",
        )
    return config


def configuration(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A configuration of transformers' class `kind`.

    Raises:
        CheckpointInvalid: the fields are not those of the class, or of another type.
    """
    try:
        return kind.from_dict(dict(fields))
    except Exception as error:  # its validation raises classes of several libraries
        reason = " ".join(str(error).split())[:200]
        raise CheckpointInvalid(f"the configuration cannot be used: {reason}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors` or of the shards that its index names."""
    tensors: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        path = inside(folder, name)
        try:
            tensors |= load_file(path)
        except FileNotFoundError:
            raise CheckpointInvalid(
                f"{folder} has no {name}", hint="name a folder with config.json and safetensors"
            ) from None
        except Exception as error:  # the library's own errors share no public base class
            raise CheckpointInvalid(f"{path} is not a safetensors file: {error}") from error
    return tensors


def read_original(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that is a plain dict of them."""
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointInvalid(f"{path} holds something else than named tensors")
    return content


def build(config: Any, tensors: Mapping[str, Tensor], unused: tuple[str, ...] = ()) -> Any:
    """The transformers model of a configuration, with these weights; see `fill`."""
    with torch.device("meta"):
        net = AutoModel.from_config(config, attn_implementation="eager", trust_remote_code=False)
    return fill(net, tensors, unused)


def fill(net: Net, tensors: Mapping[str, Tensor], unused: tuple[str, ...] = ()) -> Net:
    """Give a module its weights, in float32, and make it ready for inference.

    Args:
        net: its own tensors are replaced, so it may have been built on the `meta` device.
        tensors: by the module's names.
        unused: prefixes of tensors that the module does without.

    Raises:
        CheckpointInvalid: tensors are missing, unknown, or of another shape.
    """
    wanted = net.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    unknown = sorted(n for n in tensors.keys() - wanted.keys() if not n.startswith(unused))
    _refuse("lacks the tensor", missing)
    _refuse("has an unknown tensor", unknown)
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointInvalid(
                f"the tensor {name} is {list(tensors[name].shape)}, "
                f"this model needs {list(tensor.shape)}"
            )
    floats = {name: tensors[name].to(wanted[name].dtype) for name in wanted}
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def _refuse(problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointInvalid(
            f"the checkpoint {problem} {names[0]}{more}", hint="is it a model of another family?"
        )


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return [WEIGHTS]
    return sorted(set(_read_object(folder / SHARDS).get("weight_map", {}).values()))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointInvalid(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"{path} does not hold an object")
    return content


def provenance(source: Path) -> dict[str, Any]:
    """Where weights come from: a record of every file that was read."""
    files = [source]
    if source.is_dir():
        files = [source / CONFIG, *(source / name for name in _weight_files(source))]
    return {"source": source.name, "files": [source_record(path) for path in files]}
