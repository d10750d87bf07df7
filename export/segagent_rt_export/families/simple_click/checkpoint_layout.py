"""The checkpoints of SimpleClick's authors: what they say of the net, and how tensors are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional

from segagent_rt.errors import InputError
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.simple_click.net import WINDOW_PIXELS, NetShape, by_windows
from segagent_rt_export.registry import family_hint

UNUSED = ("backbone.cls_token", "backbone.fc_norm.", "backbone.head.", "head.up_conv")
"""Left over from pretraining and from variants of the head; nothing reads them."""

KNOWN = {"use_disks": True, "with_prev_mask": True, "upsample": "x1", "align_corners": False}
"""What all released checkpoints have in common, and the net and the runtime rely on."""

Colour: TypeAlias = tuple[float, float, float]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint: the class of its net, the values that class was built with, its tensors."""

    kind: str
    parameters: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, content: Any) -> Source:
        """Raises CheckpointInvalid if that is no SimpleClick."""
        try:
            config, tensors = content["config"], dict(content["state_dict"])
            parameters = {name: entry["value"] for name, entry in config["params"].items()}
            kind = str(config["class"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointInvalid(
                "the checkpoint is no SimpleClick: it lacks `config` and `state_dict`",
                hint=family_hint([*content, *_names(content.get("model"))])
                if isinstance(content, dict)
                else "checkpoints of several stages, saved as a list, are not read",
            ) from error
        if not kind.endswith(".PlainVitModel"):
            raise CheckpointInvalid(f"the checkpoint is a {kind}, only PlainVitModel is known")
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise CheckpointInvalid("the checkpoint's state_dict holds more than tensors")
        return cls(kind, parameters, tensors)

    @property
    def unused(self) -> list[str]:
        """Names of the tensors that the net does without."""
        return sorted(name for name in self.tensors if name.startswith(UNUSED))

    @property
    def colours(self) -> tuple[Colour, Colour]:
        """Mean and standard deviation of red, green and blue in 0..1."""
        try:
            mean, std = self.parameters.get("norm_mean_std", IMAGENET)
            return _colour(*mean), _colour(*std)
        except (TypeError, ValueError) as error:
            raise CheckpointInvalid(f"the checkpoint misstates norm_mean_std: {error}") from error

    @property
    def radius(self) -> int:
        """Of a click's disk."""
        return int(self.parameters.get("norm_radius", 5))

    def shape(self, side: int) -> NetShape:
        """The sizes of the net, read off the tensors; what the config says must agree.

        Raises:
            CheckpointInvalid: it does not, or describes another kind of net.
            InputError: the side does not fit the windows of the net.
        """
        try:
            shape = self._measured(side)
            backbone, neck, head = (
                self.parameters[f"{part}_params"] for part in ("backbone", "neck", "head")
            )
            said = {
                "embed_dim": (backbone["embed_dim"], shape.width),
                "depth": (backbone["depth"], shape.depth),
                "patch_size": (tuple(backbone["patch_size"]), (shape.patch, shape.patch)),
                "out_dims": (tuple(neck["out_dims"]), shape.pyramid),
                "channels": (head["channels"], shape.head),
            }
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise CheckpointInvalid(f"the checkpoint lacks or misstates {error}") from error
        found = {**self.parameters, **head}
        said |= {name: (found.get(name, value), value) for name, value in KNOWN.items()}
        for name, (value, right) in said.items():
            if value != right:
                raise CheckpointInvalid(f"the checkpoint has {name} {value}, not {right}")
        return _fitting(shape)

    def _measured(self, side: int) -> NetShape:
        tensors = self.tensors
        width, _, patch, _ = tensors["backbone.patch_embed.proj.weight"].shape
        fine, eighth, sixteenth, coarse = (
            tensors[f"head.convs.{level}.conv.weight"].shape[1] for level in range(4)
        )
        return NetShape(
            side=side,
            patch=patch,
            width=width,
            depth=sum(name.endswith(".mlp.fc1.weight") for name in tensors),
            heads=int(self.parameters["backbone_params"]["num_heads"]),
            hidden=tensors["backbone.blocks.0.mlp.fc1.weight"].shape[0],
            pyramid=(fine, eighth, sixteenth, coarse),
            head=tensors["head.conv_seg.weight"].shape[1],
        )

    def arranged(self, shape: NetShape) -> dict[str, Tensor]:
        """The tensors as `SimpleClickNet` has them."""
        own = dict(self.tensors)
        try:
            positions = own["backbone.pos_embed"]
            mix = own.pop("head.fusion_conv.conv.weight")
            own["head.blend.0.bias"] = own.pop("head.fusion_conv.conv.bias")
        except KeyError as error:
            raise CheckpointInvalid(f"the checkpoint lacks the tensor {error}") from None
        own["backbone.pos_embed"] = resampled(positions, shape)
        for level, part in enumerate(mix.chunk(4, 1)):
            own[f"head.blend.{level}.weight"] = part
        return own


def _names(found: Any) -> list[Any]:
    return list(found) if isinstance(found, dict) else []


def _colour(red: float, green: float, blue: float) -> Colour:
    return float(red), float(green), float(blue)


def _fitting(shape: NetShape) -> NetShape:
    if shape.depth % 4 or not 0 < shape.heads <= shape.width or shape.width % shape.heads:
        raise CheckpointInvalid(
            f"no net has {shape.depth} blocks of {shape.width} channels in {shape.heads} heads"
        )
    fits = shape.side % (2 * shape.patch) == 0 and shape.side >= WINDOW_PIXELS
    if not fits or shape.grid % shape.windows:
        raise InputError(
            f"a side of {shape.side} does not fit the windows of the net",
            hint=f"choose a multiple of {WINDOW_PIXELS}",
        )
    return shape


def resampled(positions: Tensor, shape: NetShape) -> Tensor:
    """The position embedding [1, 1 + n * n, C] for the net's grid, in the order of its windows.

    Its first row belongs to a class token that this net does not have. Another grid than the
    trained one is reached bicubically, edges on edges, as the authors' code does.
    """
    grid = round((positions.shape[1] - 1) ** 0.5)
    if positions.shape[1] != 1 + grid * grid:
        raise CheckpointInvalid(f"{positions.shape[1]} positions are no square and a class token")
    planes = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2).float()
    if grid != shape.grid:
        planes = functional.interpolate(
            planes, (shape.grid, shape.grid), mode="bicubic", align_corners=False
        )
    return by_windows(planes, shape.windows).contiguous()
