"""Checkpoints of segmenters, read without any code of theirs, and filled into modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from segagent_rt_export.dimensions import check_dimensions
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.registry import family_hint, segmenter_exporters
from segagent_rt_export.sources.checkpoints import read_checkpoint
from segagent_rt_export.sources.locations import origin_of
from segagent_rt_export.sources.shards import open_shards, read_object

Net = TypeVar("Net", bound=nn.Module)

CONFIG = "config.json"
WRAPPED = ("model", "state_dict", "model_state_dict")
"""Keys under which training programs save the tensors, beside what else they need."""

PARALLEL = "module."
"""What torch's DistributedDataParallel puts before every name."""


def read_config(folder: Path, *kinds: str) -> dict[str, Any]:
    """`config.json` of a model of one of these types.

    Raises:
        CheckpointInvalid: there is none, it is of another type, or has absurd dimensions.
    """
    config = read_object(folder / CONFIG)
    found = config.get("model_type")
    if found not in kinds:
        raise CheckpointInvalid(
            f"{folder} holds a model of type {str(found)[:60]}, not {' or '.join(kinds)}",
            hint=_family_hint(str(found)),
        )
    check_dimensions(config, str(folder / CONFIG))
    return config


def _family_hint(found: str) -> str:
    family = found.removesuffix("_video")
    if family in segmenter_exporters():
        return f'write family = "{family}" in the recipe, or name another folder'
    return "the recipe names the family; is this the right folder?"


def configuration(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A configuration of transformers' class `kind`.

    Raises:
        CheckpointInvalid: the fields are not those of the class, or of another type, or it has a
            part of another model: that part's code could download weights of its own.
    """
    for found in _types(fields):
        if not found.startswith(str(kind.model_type).split("_")[0]):
            raise CheckpointInvalid(
                f"the configuration has a part of the type `{found[:60]}`, which is none of "
                f"{kind.model_type}",
                hint="is it a model of another family?",
            )
    try:
        return kind.from_dict(dict(fields))
    except Exception as error:  # its validation raises classes of several libraries
        reason = " ".join(str(error).split())[:200]
        raise CheckpointInvalid(f"the configuration cannot be used: {reason}") from error


def _types(fields: Mapping[str, Any]) -> Iterator[str]:
    """The types of all parts that say one; some published folders leave them blank."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _types(value)
        elif name == "model_type" and value:
            yield str(value)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder that transformers saved, in float32.

    Raises:
        CheckpointInvalid: there are no weights, or a file is damaged.
    """
    return {name: torch.from_numpy(tensor.read()) for name, tensor in open_shards(folder).items()}


def read_original(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that is a dict of them, or holds one beside other things.

    Raises:
        CheckpointInvalid: it is damaged, or holds something else.
    """
    if path.is_dir():
        raise CheckpointInvalid(
            f"{path} is a folder, where a checkpoint's file is expected",
            hint="name the .pt or .pth file in it",
        )
    content = read_checkpoint(path)
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(tensor, Tensor) for tensor in content.values())
    ):
        raise CheckpointInvalid(
            f"{path} holds something else than named tensors",
            hint=f"save the model's state_dict, alone or under `{WRAPPED[0]}`",
        )
    if all(str(name).startswith(PARALLEL) for name in content):
        return {str(name).removeprefix(PARALLEL): tensor for name, tensor in content.items()}
    return {str(name): tensor for name, tensor in content.items()}


def build(
    kind: type[nn.Module], config: Any, tensors: Mapping[str, Tensor], unused: tuple[str, ...] = ()
) -> Any:
    """The transformers model of a class and a configuration, with these weights; see `fill`."""
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"):
            net = kind(config)
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointInvalid(f"no model has this configuration: {reason}") from error
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
    _refuse("lacks the tensor", missing, tensors)
    _refuse("has an unknown tensor", unknown, tensors)
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise CheckpointInvalid(
                f"the tensor {name} is {list(tensors[name].shape)}, "
                f"this model needs {list(tensor.shape)}"
            )
    floats = {name: tensors[name].to(wanted[name].dtype) for name in wanted}
    net.load_state_dict(floats, assign=True)
    return net.eval().requires_grad_(False)


def _refuse(problem: str, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointInvalid(
            f"the checkpoint {problem} {names[0]}{more}", hint=family_hint(tensors)
        )


def provenance(source: Path) -> dict[str, Any]:
    """Where weights come from: a record of every file that was read."""
    return {"source": source.name, **origin_of(source)}
