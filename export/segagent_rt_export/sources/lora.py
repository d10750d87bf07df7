"""LoRA adapters, merged into the weights on their way into a graph.

The change of a weight is scale * B @ A (Hu et al. 2021, section 4.1). What peft makes of an adapter
when it loads one is the measure for everything else here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.sources.shards import open_shards, read_object
from segagent_rt_export.sources.weights import Stored, Weight

Start: TypeAlias = Literal["base", "pissa", "olora"]
"""Which weights an adapter was trained upon: the base model's, or what is left of these when the
parts that A and B began as are taken out (PiSSA, OLoRA)."""

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight")
_TABLE = re.compile(r"base_model\.model\.(.+)\.lora_embedding_(A|B)(?:\.default)?")
_LENGTHS = re.compile(r"base_model\.model\.(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(
    r"base_model\.model\.(.+?)(?:\.modules_to_save(?:\.default)?)?(?:\.base_layer)?\.(weight|bias)"
)
_WITHIN = re.compile(r"\.(?:modules_to_save(?:\.default)?|original_module)(?=\.)")

HEAD, TABLE = "head.weight", "language.embed_tokens.weight"

_PLAIN: Mapping[str, Any] = {
    "peft_type": "LORA", "layer_replication": None, "trainable_token_indices": None,
    "target_parameters": None, "use_qalora": False, "use_bdlora": None, "velora_config": None,
    "monteclora_config": None, "kasa_config": None, "arrow_config": None,
    "alora_invocation_tokens": None,
}  # fmt: skip
"""Fields of an adapter's configuration that must be so: other values change what a merge is."""

_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to begin the training that leave the base model as it is, beside true and false."""


@dataclass(frozen=True)
class Adapted:
    """A weight with an adapter's change.

    Attributes:
        base: [outputs, inputs].
        down, up: the adapter's halves A [rank, inputs] and B [outputs, rank].
        scale: of the change.
        start: what the change is added to.
        lengths: of the rows of the result (DoRA's magnitudes); as they come out if None.
    """

    base: Stored
    down: Stored
    up: Stored
    scale: float
    start: Start = "base"
    lengths: Stored | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def width(self) -> int:
        return self.base.width

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        change: Weight = self.up.read(rows) @ self.down.read()
        change *= self.scale
        change += self.base.read(rows)
        if self.start != "base":
            up, down = self._taken_out
            change -= up[rows] @ down
        if self.lengths is not None:
            found = np.linalg.norm(change, axis=1, keepdims=True)
            change *= self.lengths.read().reshape(-1, 1)[rows] / found
        return change

    @cached_property
    def _taken_out(self) -> tuple[Weight, Weight]:
        """The part of the base that A and B began as, in two factors; in torch's arithmetic, as
        peft computes it, because another's differs by more than the gate allows."""
        base, rank = torch.from_numpy(self.base.read()), self.down.shape[0]
        if self.start == "olora":
            q, r = torch.linalg.qr(base)
            up, down = self.scale * q[:, :rank], r[:rank]
        else:
            u, lengths, v = torch.linalg.svd(base, full_matrices=False)
            root = torch.sqrt(lengths[:rank])
            up, down = u[:, :rank] * root, root[:, None] * v[:rank]
        return up.numpy(), down.numpy()


@dataclass(frozen=True, slots=True)
class Transposed:
    """A small matrix on disk, turned around."""

    whole: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[::-1]

    @property
    def width(self) -> int:
        return self.whole.width

    def read(self, rows: slice | Sequence[int] = slice(None)) -> Weight:
        return self.whole.read().T[rows]


def adapt(
    tensors: Mapping[str, Stored],
    adapter: Path,
    common: Callable[[str], str],
    *,
    tied: bool = False,
) -> dict[str, Stored]:
    """The tensors with an adapter's changes.

    Args:
        tensors: the base model's by common names.
        adapter: the adapter's folder.
        common: maps the names of either to common ones.
        tied: whether the output head is the table of embeddings. If the adapter holds one of them
            anew, the result has both.

    Raises:
        CheckpointInvalid: the adapter is of a kind that cannot be merged, or of another model.
    """
    config = read_object(adapter / "adapter_config.json")
    start = _start(config, adapter)
    stored, result = open_shards(adapter, "adapter_model"), dict(tensors)
    if tied:
        result[HEAD] = tensors[TABLE]
    # 1. Tensors that the adapter holds as a whole.
    for name, tensor in stored.items():
        if (saved := saved_name(name)) is not None:
            target = common(saved)
            _same_shape(result.get(target), tensor.shape, name)
            result[target] = tensor
            tied &= target not in (HEAD, TABLE) or ".base_layer." in name
        elif not any(kind.fullmatch(name) for kind in (_NAME, _TABLE, _LENGTHS)):
            raise CheckpointInvalid(f"{adapter} holds `{name}`, which is no part of a LoRA adapter")
    if tied:
        del result[HEAD]
    # 2. Changes of the others.
    for name in stored:
        match = _NAME.fullmatch(name) or _TABLE.fullmatch(name)
        if match and match[2] == "A":
            target = common(f"{match[1]}.weight")
            target = TABLE if tied and target == HEAD else target
            pair = _halves(stored, name, match[1])
            down, up = _fitting(result.get(target), *pair, name)
            scale, lengths = _scale(config, match[1], adapter), _lengths(stored, match[1])
            result[target] = Adapted(result[target], down, up, scale, start, lengths)
        elif match and name.replace("_B", "_A") not in stored:
            raise _half(name)
    return result


def saved_name(name: str) -> str | None:
    """The base model's name of a tensor that an adapter holds as a whole, None for the others."""
    if any(kind.fullmatch(name) for kind in (_NAME, _TABLE, _LENGTHS)):
        return None
    match = _SAVED.fullmatch(_WITHIN.sub("", name))
    return f"{match[1]}.{match[2]}" if match else None


def renamed(name: str, rename: Callable[[str], str | None]) -> str | None:
    """An adapter's name for a tensor, where the base model names its own as `rename` says; None
    where it has none of that name."""
    plain = _WITHIN.sub("", name).replace(".default", "")
    match = next((m for k in (_NAME, _TABLE, _LENGTHS, _SAVED) if (m := k.fullmatch(plain))), None)
    if match is None:
        return None
    end = match[2] if match.re is _SAVED else "weight"
    own = rename(f"{match[1]}.{end}")
    if own is None:
        return None
    return f"base_model.model.{own.removesuffix(f'.{end}')}{plain[match.end(1) :]}"


def _start(config: Mapping[str, Any], adapter: Path) -> Start:
    """What the adapter was trained upon.

    Raises:
        CheckpointInvalid: that cannot be told from the base model, or merging is something else.
    """
    for name, plain in _PLAIN.items():
        if config.get(name, plain) not in (plain, None):
            raise _unmergeable(config, name, adapter)
    begun = config.get("init_lora_weights", True)
    if begun is None or isinstance(begun, bool) or begun in _STARTS:
        return "base"
    if begun == "olora":
        return "olora"
    if begun == "pissa":
        return "pissa"
    if isinstance(begun, str) and begun.startswith("pissa_niter_"):
        raise CheckpointInvalid(
            f"{adapter}: an adapter that began with {begun[:40]} stands on random numbers that are "
            "not in it",
            hint="save it with peft's path_initial_model_for_weight_conversion, and export that",
        )
    raise _unmergeable(config, "init_lora_weights", adapter)


def _unmergeable(config: Mapping[str, Any], name: str, adapter: Path) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{adapter}: adapters with {name} = {str(config[name])[:40]} cannot be merged here",
        hint="merge it with peft's merge_and_unload and export the result",
    )


def _scale(config: Mapping[str, Any], module: str, adapter: Path) -> float:
    """lora_alpha / r, of which either may be another for some modules."""
    rank = _for_module(config, "rank_pattern", module, config.get("r"))
    alpha = _for_module(config, "alpha_pattern", module, config.get("lora_alpha"))
    right = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not right or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise CheckpointInvalid(f"{adapter / 'adapter_config.json'} has no rank r and lora_alpha")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _for_module(config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """A module's value: that of the first pattern which fits the end of its name, as in peft."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        return None
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            return None
    return default


def _lengths(stored: Mapping[str, Stored], module: str) -> Stored | None:
    """DoRA's magnitudes of a module, if it has some."""
    for key, tensor in stored.items():
        match = _LENGTHS.fullmatch(key)
        if match and match[1] == module:
            return tensor
    return None


def _halves(
    stored: Mapping[str, Stored], name: str, module: str
) -> tuple[Stored | None, Stored | None]:
    """A and B of the tensor whose A has this name; those of tables are stored turned around."""
    other = stored.get(name.replace(f"{module}.lora_A", f"{module}.lora_B"))
    if _NAME.fullmatch(name):
        return stored[name], other
    other = stored.get(name.replace(f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"))
    return (None if other is None else Transposed(other)), Transposed(stored[name])


def _fitting(
    base: Stored | None, down: Stored | None, up: Stored | None, name: str
) -> tuple[Stored, Stored]:
    """Both halves, checked."""
    if down is None or up is None or len(down.shape) != 2 or len(up.shape) != 2:
        raise _half(name)
    _same_shape(base, (up.shape[0], down.shape[1]), name)
    if up.shape[1] != down.shape[0]:
        raise CheckpointInvalid(f"the two halves of the adapter's `{name}` do not fit")
    return down, up


def _half(name: str) -> CheckpointInvalid:
    return CheckpointInvalid(f"the adapter holds `{name}` without its other half")


def _same_shape(base: Stored | None, shape: tuple[int, ...], name: str) -> None:
    if base is None or base.shape != shape:
        raise CheckpointInvalid(
            f"the adapter's `{name}` changes a tensor that the base model does not have",
            hint="was the adapter trained on this very checkpoint?",
        )
