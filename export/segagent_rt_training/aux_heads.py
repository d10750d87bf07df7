"""First half of the MLLM's training: teach the vision encoder what is true of every object.

Linear heads on the visual tokens, dropped at export, predict the facts; heads on the patches
predict where objects, mask and errors are. What is linearly there, the language model can read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt.scenes.layout import COLOURS, SHAPES, SIZES
from segagent_rt.scenes.paint import Bytes
from segagent_rt.types import Mask
from segagent_rt_export.families.demo_mllm.net import (
    CELLS,
    HIDDEN,
    MERGE,
    PATCH,
    PATCHES,
    SIDE,
    WIDTH,
    Sight,
)
from segagent_rt_training.object_targets import LEVELS, RANKS, ObjectTargets, cell_shares

SHOWN = 0.08
"""Share of a cell from which an object counts as shown in it."""
BITS = 4
"""Patch maps have BITS x BITS values for each patch."""

SHAPE_FIRST = 4.5
"""Weight of naming the shape: of all facts the last to be learnt, and half of all words need it."""

_SLOTS = {
    "there": 1,
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "size": len(SIZES),
    "radius": 1,
    "missing": 2,
    "surplus": 2,
    "missing_digits": 40,
    "surplus_digits": 40,
    "iou": 1,
    "iou_tens": 10,
    "lean": 1,
    "ranks": LEVELS * 4 * RANKS,
    "extremes": LEVELS * 2,
    "covered": 1,
}


class AuxHeads(nn.Module):
    """Everything that is predicted from visual tokens and patches in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Linear(HIDDEN, sum(_SLOTS.values()))
        self.middle = nn.Linear(WIDTH, 2 * BITS**2)  # objects, mask
        self.last = nn.Linear(
            WIDTH, 2 * BITS**2 + len(COLOURS) + len(SHAPES)
        )  # missing, surplus; names

    def forward(self, sight: Sight) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        tokens = F.layer_norm(sight.tokens.float(), (HIDDEN,))
        slots = dict(zip(_SLOTS, self.token(tokens).split(list(_SLOTS.values()), -1), strict=True))
        middle = self.middle(F.layer_norm(sight.middle.float(), (WIDTH,)))
        return slots, middle, self.last(F.layer_norm(sight.last.float(), (WIDTH,)))


@dataclass(frozen=True, slots=True)
class AuxTargets:
    """What the heads should say, for B images; cells in row-major order, patches in merge order."""

    owner: Tensor  # int64 [B, cells], row of the fact tables; -1 for none
    object_targets: dict[str, Tensor]  # [B, objects, ...]
    covered: Tensor  # [B, cells] share of the cell under the mask
    painted: Tensor  # [B] is there a mask
    middle: Tensor  # [B, patches, 2 * BITS^2]
    last: Tensor
    patch_names: Tensor  # int64 [B, patches, 2] colour and shape, -100 for none


def aux_targets(
    all_labels: Sequence[Bytes], masks: Sequence[Mask], all_facts: Sequence[ObjectTargets]
) -> AuxTargets:
    """Assemble the targets of a batch."""
    rows = [_one(*row) for row in zip(all_labels, masks, all_facts, strict=True)]
    most = max(len(facts.colour) for facts in all_facts)
    tables = {
        name: torch.stack([_padded(getattr(facts, name), most) for facts in all_facts])
        for name in ObjectTargets.__dataclass_fields__
    }
    tables["missing_digits"], tables["surplus_digits"] = (
        _digits(tables["missing"]),
        _digits(tables["surplus"]),
    )
    owner, covered, middle, last, names = (
        torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
    )
    painted = torch.tensor([bool(mask.any()) for mask in masks])
    return AuxTargets(owner, tables, covered, painted, middle, last, names)


def _one(labels: Bytes, mask: Mask, facts: ObjectTargets) -> tuple[npt.NDArray[np.generic], ...]:
    shares = cell_shares(labels, len(facts.colour), CELLS).reshape(len(facts.colour), -1)
    owner = np.where(shares.max(0) > SHOWN, shares.argmax(0), -1)
    covered = mask.reshape(CELLS, SIDE // CELLS, CELLS, -1).mean((1, 3)).reshape(-1)
    main = labels == int(facts.iou.argmax()) + 1 if facts.iou.max() > 0 else np.zeros_like(mask)
    lacking = main & ~mask if main.any() else main
    middle = np.concatenate([_bits(labels > 0), _bits(mask)], 1)
    last = np.concatenate([_bits(lacking), _bits(mask & ~main)], 1)
    shares = cell_shares(labels, len(facts.colour), PATCHES).reshape(len(facts.colour), -1)
    best, much = shares.argmax(0), shares.max(0) > 0.3
    names = np.stack(
        [np.where(much, table[best], -100) for table in (facts.colour, facts.shape)], 1
    )
    return owner, covered.astype(np.float32), middle, last, names[_MERGE_ORDER]


_MERGE_ORDER = (
    np.arange(PATCHES**2).reshape(CELLS, MERGE, CELLS, MERGE).transpose(0, 2, 1, 3).reshape(-1)
)


def _bits(mask: Mask) -> npt.NDArray[np.float32]:
    step = PATCH // BITS
    blocks = mask.reshape(PATCHES, BITS, step, PATCHES, BITS, step).mean((2, 5), dtype=np.float32)
    ordered = blocks.transpose(0, 2, 1, 3).reshape(PATCHES**2, BITS**2)[_MERGE_ORDER]
    return np.asarray(ordered, np.float32)


def _padded(table: npt.NDArray[np.generic], rows: int) -> Tensor:
    padding = [(0, rows - len(table))] + [(0, 0)] * (table.ndim - 1)
    return torch.from_numpy(np.pad(table, padding))


def _digits(points: Tensor) -> Tensor:
    """Hundreds and tens of row and column over 1000: int64 [..., 4]."""
    value = (points * 1000).long().clamp(0, 999)
    return torch.stack(
        [
            value[..., 1] // 100,
            value[..., 1] // 10 % 10,
            value[..., 0] // 100,
            value[..., 0] // 10 % 10,
        ],
        -1,
    )


def _centres() -> Tensor:
    place = (torch.arange(CELLS) + 0.5) / CELLS
    row, column = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([column.reshape(-1), row.reshape(-1)], -1)


def aux_loss(
    heads: AuxHeads, sight: Sight, targets: AuxTargets
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of all heads' losses, and the figures worth watching."""
    slots, middle, last = heads(sight)
    shown = targets.owner >= 0
    image, cell = shown.nonzero(as_tuple=True)
    row = targets.owner[image, cell]
    said = {name: values[image, cell] for name, values in slots.items()}
    true = {name: values[image, row] for name, values in targets.object_targets.items()}
    centre = _centres()[cell]
    painted = targets.painted[image].float()
    losses = {
        "there": F.binary_cross_entropy_with_logits(slots["there"][..., 0], shown.float()),
        "colour": F.cross_entropy(said["colour"], true["colour"]),
        "shape": SHAPE_FIRST * F.cross_entropy(said["shape"], true["shape"]),
        "size": 0.3 * F.cross_entropy(said["size"], true["size"]),
        "radius": 2 * F.smooth_l1_loss(said["radius"][:, 0], true["radius"], beta=0.1),
        "covered": 2 * F.smooth_l1_loss(slots["covered"][..., 0], targets.covered, beta=0.1),
        "ranks": _rank_loss(said["ranks"], true["ranks"]),
        "extremes": _masked_bce(said["extremes"], true["extremes"].flatten(1)),
    }
    losses |= _click_losses(said, true, centre, painted)
    losses["middle"] = F.binary_cross_entropy_with_logits(middle, targets.middle)
    bits = 2 * BITS**2
    losses["error_maps"] = F.binary_cross_entropy_with_logits(last[..., :bits], targets.last)
    names = targets.patch_names.flatten(0, 1)
    colour, shape = last[..., bits:].flatten(0, 1).split([len(COLOURS), len(SHAPES)], -1)
    losses["patch"] = 0.3 * F.cross_entropy(colour, names[:, 0]) + SHAPE_FIRST / 3 * (
        F.cross_entropy(shape, names[:, 1])
    )
    return torch.stack(list(losses.values())).sum(), losses | _figures(said, true, centre, painted)


def _rank_loss(said: Tensor, true: Tensor) -> Tensor:
    return F.cross_entropy(said.reshape(-1, RANKS), true.reshape(-1))


def _masked_bce(said: Tensor, true: Tensor) -> Tensor:
    known = (true >= 0).float()
    each = F.binary_cross_entropy_with_logits(said, true.clamp_min(0), reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(1e-3)


def _click_losses(
    said: dict[str, Tensor], true: dict[str, Tensor], centre: Tensor, painted: Tensor
) -> dict[str, Tensor]:
    iou = true["iou"]
    fixable = (
        0.15 + 0.85 * (iou < 0.88).float()
    )  # near the end an error is a rim that nobody can point at
    touched = true["has_surplus"] * (0.1 + 0.9 * (iou > 0.03).float()) * fixable
    missing = F.smooth_l1_loss(
        said["missing"], (true["missing"] - centre) * 2, beta=0.03, reduction="none"
    ).sum(-1)
    surplus = F.smooth_l1_loss(
        said["surplus"], (true["surplus"] - centre) * 2, beta=0.05, reduction="none"
    ).sum(-1)
    state = painted * (0.3 + 0.7 * (iou > 0.03).float())
    rated = F.smooth_l1_loss(said["iou"][:, 0], iou, beta=0.05, reduction="none")
    tens = F.cross_entropy(said["iou_tens"], (iou * 10).long().clamp(0, 9), reduction="none")
    lean = F.binary_cross_entropy_with_logits(said["lean"][:, 0], true["lean"], reduction="none")
    return {
        "missing": 6 * _mean(missing, fixable),
        "surplus": 5 * _mean(surplus, touched),
        "missing_digits": 0.3
        * _mean(_digit_loss(said["missing_digits"], true["missing_digits"]), fixable),
        "surplus_digits": 0.2
        * _mean(_digit_loss(said["surplus_digits"], true["surplus_digits"]), touched),
        "iou": 5 * _mean(rated, state),
        "iou_tens": 0.3 * _mean(tens, state),
        "lean": 0.8 * _mean(lean, state * (iou > 0.03).float() * fixable),
    }


def _digit_loss(said: Tensor, true: Tensor) -> Tensor:
    each = F.cross_entropy(said.reshape(-1, 10), true.reshape(-1), reduction="none")
    return each.view(-1, 4).mean(-1)


@torch.no_grad()
def _figures(
    said: dict[str, Tensor], true: dict[str, Tensor], centre: Tensor, painted: Tensor
) -> dict[str, Tensor]:
    def median(values: Tensor, chosen: Tensor) -> Tensor:
        return values[chosen].median() if chosen.any() else torch.tensor(float("nan"))

    iou, clear = true["iou"], painted == 0
    state = (painted > 0) & (iou > 0.05)
    off_missing = (said["missing"] / 2 + centre - true["missing"]).norm(dim=-1) * SIDE
    off_surplus = (said["surplus"] / 2 + centre - true["surplus"]).norm(dim=-1) * SIDE
    middling = state & (iou < 0.88)
    known = true["ranks"].flatten() >= 0
    ranked = said["ranks"].reshape(-1, RANKS).argmax(-1) == true["ranks"].flatten()
    sign = (said["lean"][:, 0] > 0) == true["negative"]
    return {
        "shape_right": (said["shape"].argmax(-1) == true["shape"]).float().mean(),
        "rank_right": ranked[known].float().mean(),
        "px_first": median(off_missing, clear),
        "px_missing": median(off_missing, middling & ~true["negative"]),
        "px_surplus": median(off_surplus, middling & true["negative"]),
        "iou_off": (said["iou"][:, 0] - iou)[state].abs().mean()
        if state.any()
        else torch.tensor(float("nan")),
        "sign_right": sign[middling].float().mean()
        if middling.any()
        else torch.tensor(float("nan")),
    }
