"""The promptable segmenter that ships: a convolutional encoder run once, a light decoder run for
every click."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 256
"""Pictures are squashed to SIDE x SIDE pixels; logits come out at the same size."""

NARROW, WIDE = 0.02, 0.12
"""Standard deviations of the two Gaussians drawn round each click, as a share of the side."""


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Folded(nn.Module):
    """Squares of pixels to channels (`pixel_unshuffle` of one channel), and back.

    Spelt as convolutions: runtimes have fast ones, and shuffle pixels one by one.
    """

    squares: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        squares = torch.eye(side**2).view(side**2, 1, side, side)
        self.register_buffer("squares", squares, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.squares.to(x.dtype), stride=self.squares.shape[-1])

    def back(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.squares.to(x.dtype), stride=self.squares.shape[-1])


class Joint(nn.Module):
    """A convolution over what a picture tells and what clicks do, joined in this order."""

    def __init__(self, still: int, moving: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.layers, self.share = _conv(still + moving, outputs, kernel), still

    def begin(self, still: Tensor) -> Tensor:
        """What can be done before there are clicks: here, nothing."""
        return still

    def forward(self, begun: Tensor, moving: Tensor) -> Tensor:
        return cast(Tensor, self.layers(torch.cat([begun, moving], 1)))


class Begun(nn.Module):
    """A joint whose norm is folded, in two: the half over the picture is made beforehand, and
    added."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        whole = cast(nn.Conv2d, joint.layers[0])
        self.still = _over(whole, slice(None, joint.share))
        self.moving = _over(whole, slice(joint.share, None))
        self.still.bias = whole.bias

    def begin(self, still: Tensor) -> Tensor:
        return cast(Tensor, self.still(still))

    def forward(self, begun: Tensor, moving: Tensor) -> Tensor:
        return F.relu(begun + self.moving(moving))


def _over(whole: nn.Conv2d, inputs: slice) -> nn.Conv2d:
    """A convolution over some of another one's inputs, without its bias."""
    weight = whole.weight[:, inputs].detach()
    outputs, count, kernel, _ = weight.shape
    some = nn.Conv2d(count, outputs, kernel, padding=kernel // 2, bias=False)
    some.weight = nn.Parameter(weight)
    return some


class ClickResidual(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(_conv(width, width), second, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class ClickEncoder(nn.Module):
    """Image to two feature maps: 64 channels at stride 4, 16 channels at stride 2.

    The image is uint8-valued float [B, 3, SIDE, SIDE], RGB in 0..255; normalisation is inside.
    """

    def __init__(self, out: int = 64) -> None:
        super().__init__()
        widths = (24, 48, 112, 160, 192)
        blocks = (0, 1, 3, 3, 2)
        stages, inputs = [], 3
        for width, depth in zip(widths, blocks, strict=True):
            stages.append(
                nn.Sequential(
                    _conv(inputs, width, stride=2), *(ClickResidual(width) for _ in range(depth))
                )
            )
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(width, out, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(_conv(out, out) for _ in range(3))
        self.fine = nn.Conv2d(widths[0], 16, 1)
        self.pooled = nn.Linear(widths[-1], out)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image / 58.0 - 2.1
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top = self.lateral[3](maps[4]) + self.pooled(maps[4].mean((2, 3)))[..., None, None]
        for level in (3, 2, 1):
            top = self.smooth[level - 1](self.lateral[level - 1](maps[level]) + _up(top))
        return cast(Tensor, top), self.fine(maps[0])


class ClickDecoder(nn.Module):
    """Features, clicks and the mask so far to a new mask and its predicted IoU.

    Inputs: features [B, 64, S/4, S/4] and fine [B, 16, S/2, S/2] of the encoder; points [B, P, 3]
    with x and y in 0..1 and label 1 (positive), 0 (negative) or -1 (not there); prior [B, 1, S, S],
    the probabilities of the mask so far. Outputs: logits [B, 1, S, S], iou [B] in 0..1.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.key = nn.Conv2d(width, 24, 1)
        self.enter: Joint | Begun = Joint(width, 6 + 16, 40, kernel=1)
        self.mix = _conv(40, 40)
        self.down8 = _conv(40, 64, stride=2)
        self.down16 = nn.Sequential(_conv(64, 96, stride=2), ClickResidual(96))
        self.down32 = nn.Sequential(_conv(96, 128, stride=2), ClickResidual(128))
        self.up16 = nn.Sequential(_conv(128, 96, 1))
        self.at16 = ClickResidual(96)
        self.up8 = _conv(96, 64, 1)
        self.at8 = nn.Sequential(_conv(64, 64), _conv(64, 40, 1))
        self.at4 = _conv(40, 40)
        self.squeeze = nn.Conv2d(40, 16, 1)
        self.refine: Joint | Begun = Joint(16, 16 + 4, 24)
        self.logits = nn.Conv2d(24, 4, 1)
        self.rate = nn.Sequential(nn.Linear(128 + 40, 64), nn.ReLU(), nn.Linear(64, 1))
        self.fours, self.twos = Folded(4), Folded(2)

    def forward(
        self, features: Tensor, fine: Tensor, points: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.click(*self.begin(features, fine), points, prior)

    def begin(self, features: Tensor, fine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What does not depend on clicks: keys [B, 24, S/4, S/4], at each place what clicks are
        compared with, of length 1; and what there is at both strides for `click` to go on from."""
        keys = F.normalize(self.key(features).float(), dim=1)
        return keys, self.enter.begin(features), self.refine.begin(fine)

    def click(
        self, keys: Tensor, coarse: Tensor, fine: Tensor, points: Tensor, prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`forward`, from what `begin` returned."""
        evidence = self._click_maps(keys, points).to(coarse.dtype)
        past = self.fours(prior).to(coarse.dtype)
        x4 = self.mix(self.enter(coarse, torch.cat([evidence, past], 1)))
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        x32 = self.down32(x16)
        x16 = self.at16(x16 + _up(self.up16(x32)))
        x8 = self.at8(x8 + _up(self.up8(x16)))
        x4 = self.at4(x4 + _up(x8))
        sharp = torch.cat([_up(self.squeeze(x4)), self.twos(prior).to(fine.dtype)], 1)
        logits = self.twos.back(self.logits(self.refine(fine, sharp)))
        summary = torch.cat([x32.mean((2, 3)), x4.mean((2, 3))], 1)
        return logits, torch.sigmoid(self.rate(summary))[:, 0]

    def _click_maps(self, keys: Tensor, points: Tensor) -> Tensor:
        """For each polarity, likeness to the clicked places and two Gaussians: [B, 6, h, w]."""
        batch, _, height, width = keys.shape
        keys = keys.flatten(2)
        column = (points[..., 0] * width).long().clamp(0, width - 1)
        row = (points[..., 1] * height).long().clamp(0, height - 1)
        place = (row * width + column)[:, None].expand(-1, keys.shape[1], -1)
        likeness = torch.gather(keys, 2, place).transpose(1, 2) @ keys
        xs = (torch.arange(width, device=points.device) + 0.5) / width
        ys = (torch.arange(height, device=points.device) + 0.5) / height
        across, along = (xs - points[..., 0, None]) ** 2, (ys - points[..., 1, None]) ** 2
        square = across[..., None, :] + along[..., None]
        near = torch.exp(square.flatten(2) / (-2 * NARROW**2))
        far = torch.exp(square.flatten(2) / (-2 * WIDE**2))
        maps = []
        for label in (1, 0):
            there = (points[..., 2] == label).float()[..., None]
            for layer in (likeness + 1, near, far):
                maps.append((layer * there).amax(1))
        return torch.stack(maps, 1).view(batch, 6, height, width)


class SegmenterNet(nn.Module):
    """Encoder and decoder, trained together and exported apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ClickEncoder()
        self.decoder = ClickDecoder()
