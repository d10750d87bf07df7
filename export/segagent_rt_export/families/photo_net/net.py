"""The photo segmenter: an encoder that runs once, a light decoder that runs for every prompt."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segagent_rt_export.families.photo_net.efficientnet import WIDTHS, EfficientNetLite0

NEAR, FAR = 2.0, 10.0
"""Standard deviations of the two Gaussians round each click, in cells of 4 pixels."""

COARSE, FINE, DEEP = 64, 32, 96
"""Channels of the decoder at strides 8, 4 and 16."""

COARSE_KEYS, FINE_KEYS = 32, 24
"""Channels of the features that clicked places are compared by, at strides 8 and 4."""

CLICK_MAPS = 8
"""For each polarity: two Gaussians, and the similarity at both strides."""

PROMPT_MAPS = CLICK_MAPS + 1 + 4
"""Click maps, box, and the 2 x 2 values of the previous mask in each cell."""

EVIDENCE = 4
"""Plain numbers about the predicted probabilities that the IoU head reads."""


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    return nn.Sequential(*conv_norm(inputs, outputs, kernel, stride), nn.ReLU())


def upsample(x: Tensor) -> Tensor:
    """Twice as many rows and columns, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class PhotoResidual(nn.Module):
    """A dilated 3 x 3 convolution and a 1 x 1 convolution beside the identity."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.body = nn.Sequential(
            first, nn.BatchNorm2d(width), nn.ReLU(), *conv_norm(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class CellFold(nn.Module):
    """2 x 2 pixels of one channel to four channels, and back.

    Written as convolutions, which runtimes compute faster than a pixel shuffle.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.eye(4).view(4, 1, 2, 2), persistent=False)

    def fold(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] to [B, 4, H/2, W/2]."""
        return F.conv2d(x, self.kernel.to(x.dtype), stride=2)

    def unfold(self, x: Tensor) -> Tensor:
        """[B, 4, H, W] to [B, 1, 2H, 2W]."""
        return F.conv_transpose2d(x, self.kernel.to(x.dtype), stride=2)


class ImageFeatures(NamedTuple):
    """All that the decoder reads of an image.

    `coarse` [B, 64, H/8, W/8] and `fine` [B, 32, H/4, W/4] are the image's parts of two sums;
    `coarse_keys` [B, 32, H/8, W/8] and `fine_keys` [B, 24, H/4, W/4] have length 1 at each place.
    """

    coarse: Tensor
    fine: Tensor
    coarse_keys: Tensor
    fine_keys: Tensor


class Pyramid(nn.Module):
    """The encoder's four maps to `ImageFeatures`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lateral4 = conv_norm(WIDTHS[0], FINE, 1)
        self.lateral8, self.lateral16, self.lateral32 = (
            conv_norm(inputs, width, 1) for inputs in WIDTHS[1:]
        )
        self.smooth16, self.smooth8 = conv_relu(width, width), conv_relu(width, width)
        self.narrow, self.smooth4 = nn.Conv2d(width, FINE, 1), conv_relu(FINE, FINE)
        self.coarse, self.fine = nn.Conv2d(width, COARSE, 1), nn.Conv2d(FINE, FINE, 1)
        self.coarse_keys = nn.Conv2d(width, COARSE_KEYS, 1)
        self.fine_keys = nn.Conv2d(FINE, FINE_KEYS, 1)

    def forward(self, maps: list[Tensor]) -> ImageFeatures:
        x4, x8, x16, x32 = maps
        top = F.relu(self.lateral32(x32))
        top = self.smooth16(F.relu(self.lateral16(x16) + upsample(top)))
        x8 = self.smooth8(F.relu(self.lateral8(x8) + upsample(top)))
        x4 = self.smooth4(F.relu(self.lateral4(x4) + upsample(self.narrow(x8))))
        return ImageFeatures(
            self.coarse(x8),
            self.fine(x4),
            F.normalize(self.coarse_keys(x8).float(), dim=1),
            F.normalize(self.fine_keys(x4).float(), dim=1),
        )


class PhotoPrompts(NamedTuple):
    """What a decoding is asked, in pixels of the encoded image.

    `points` [B, N, 3] holds x, y and a label: 1 positive, 0 negative, -1 no click. `box` [B, 4]
    holds left, top, right, bottom; four zeros are no box. `prior` [B, 1, H/2, W/2] holds the
    probabilities of the previous mask; zeros are no mask.
    """

    points: Tensor
    box: Tensor
    prior: Tensor


class PhotoDecoder(nn.Module):
    """Features and prompts to logits [B, 1, H/2, W/2] and the predicted IoU [B] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = CellFold()
        self.enter8, self.norm8 = nn.Conv2d(PROMPT_MAPS, COARSE, 3, 2, 1), nn.BatchNorm2d(COARSE)
        self.clicked = nn.Linear(2 * COARSE_KEYS + FINE_KEYS, COARSE)
        self.first8 = nn.Sequential(PhotoResidual(COARSE), PhotoResidual(COARSE, 2))
        self.down16 = conv_relu(COARSE, DEEP, stride=2)
        self.before16 = PhotoResidual(DEEP)
        self.pooled = nn.Linear(2 * DEEP, DEEP)
        self.after16 = nn.Sequential(PhotoResidual(DEEP, 2), PhotoResidual(DEEP, 4))
        self.up8 = conv_norm(DEEP, COARSE, 1)
        self.last8 = nn.Sequential(PhotoResidual(COARSE), PhotoResidual(COARSE))
        self.up4 = nn.Conv2d(COARSE, FINE, 1)
        self.enter4, self.norm4 = nn.Conv2d(PROMPT_MAPS, FINE, 3, padding=1), nn.BatchNorm2d(FINE)
        self.last4 = nn.Sequential(conv_relu(FINE, FINE), conv_relu(FINE, FINE))
        self.logits = nn.Conv2d(FINE, 4, 1)
        self.rate = nn.Sequential(
            nn.Linear(DEEP + 2 * FINE + EVIDENCE, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, features: ImageFeatures, prompts: PhotoPrompts) -> tuple[Tensor, Tensor]:
        coarse, fine, coarse_keys, fine_keys = features
        # 1. Draw the prompts as maps at stride 4.
        with torch.autocast("cpu", enabled=False):
            prior, area = self.cells.fold(prompts.prior), box_map(prompts.box, fine_keys)
            clicks, clicked = click_maps(prompts.points, coarse_keys, fine_keys)
            boxed = masked_mean(coarse_keys, F.avg_pool2d(area, 2))
            maps = torch.cat([clicks, area, prior], 1)
            clicked = self.clicked(torch.cat([clicked, boxed], 1))[..., None, None]
            deep_prior = F.avg_pool2d(prior.mean(1, keepdim=True), 4)
        # 2. Down to stride 16, where the mask so far is summed up, and back to stride 4.
        x8 = self.first8(F.relu(self.norm8(coarse + self.enter8(maps) + clicked)))
        x16 = self.before16(self.down16(x8))
        summary = torch.cat([x16.mean((2, 3)), masked_mean(x16, deep_prior)], 1)
        x16 = self.after16(x16 + self.pooled(summary)[..., None, None])
        x8 = self.last8(F.relu(x8 + upsample(self.up8(x16))))
        entered = fine + self.enter4(maps) + upsample(self.up4(x8))
        x4 = self.last4(F.relu(self.norm4(entered)))
        logits = self.logits(x4).float()  # [B, 4, H/4, W/4]
        # 3. Rate the new mask.
        iou = self._rate(x16.float(), x4.float(), logits)
        return self.cells.unfold(logits), iou

    def _rate(self, x16: Tensor, x4: Tensor, logits: Tensor) -> Tensor:
        """The IoU that the mask of `logits` probably has."""
        with torch.autocast("cpu", enabled=False):
            chance = torch.sigmoid(logits)
            inside = masked_mean(x4, chance.mean(1, keepdim=True))
            known = torch.cat([x16.mean((2, 3)), x4.mean((2, 3)), inside, evidence(chance)], 1)
            return torch.sigmoid(self.rate(known))[:, 0]


def evidence(chance: Tensor) -> Tensor:
    """What probabilities [B, C, H, W] say by themselves: the IoU that they expect, how unsure they
    are inside the mask and round it, and the mask's share of the image. [B, 4]."""
    chance = chance.flatten(1)
    mask = (chance > 0.5).float()
    total, area = chance.sum(1), mask.sum(1)
    overlap = (chance * mask).sum(1)
    expected = overlap / (area + total - overlap + 1.0)
    return torch.stack(
        [
            expected,
            overlap / (area + 1.0),
            (total - overlap) / (area + 1.0).sqrt() * 0.1,
            area / chance.shape[1],
        ],
        1,
    )


def masked_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of x [B, C, H, W] over a map [B, 1, H, W], nearly zero if that is empty: [B, C]."""
    return (x * weight).sum((2, 3)) / (weight.sum((2, 3)) + 1.0)


def box_map(box: Tensor, like: Tensor) -> Tensor:
    """The share of each cell that a box [B, 4] in pixels covers: [B, 1, h, w], sized as `like`."""
    corners = box / 4.0

    def covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
        start = torch.arange(cells, dtype=torch.float32, device=box.device)
        ends = torch.minimum(high[:, None], start + 1)
        return (ends - torch.maximum(low[:, None], start)).clamp(0, 1)  # [B, cells]

    across = covered(corners[:, 0], corners[:, 2], like.shape[3])
    down = covered(corners[:, 1], corners[:, 3], like.shape[2])
    return (down[:, :, None] * across[:, None, :])[:, None]


def click_maps(points: Tensor, coarse_keys: Tensor, fine_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Clicks as maps, and the mean features at the positive ones.

    Args:
        points: [B, N, 3], see `PhotoPrompts`.
        coarse_keys: [B, 32, h/2, w/2] of length 1.
        fine_keys: [B, 24, h, w] of length 1.

    Returns:
        Maps [B, 8, h, w], all zero where there is no click: for positive and then for negative
        clicks the near Gaussian, the far Gaussian, and the similarity in 0..2 by coarse and by fine
        keys, each the maximum over the clicks; and [B, 56].
    """
    height, width = fine_keys.shape[2:]
    x, y = points[..., 0] / 4.0, points[..., 1] / 4.0
    xs = torch.arange(width, dtype=torch.float32, device=points.device) + 0.5
    ys = torch.arange(height, dtype=torch.float32, device=points.device) + 0.5
    across, down = (xs - x[..., None]) ** 2, (ys - y[..., None]) ** 2  # [B, N, w], [B, N, h]
    layers = []
    for spread in (-2 * NEAR**2, -2 * FAR**2):
        rows, columns = torch.exp(down / spread), torch.exp(across / spread)
        layers.append(rows[..., None] * columns[..., None, :])  # [B, N, h, w]
    coarse, at_coarse = similarity(coarse_keys, x / 2.0, y / 2.0)
    fine, at_fine = similarity(fine_keys, x, y)
    maps = []
    for label in (1, 0):
        there = (points[..., 2] == label).float()[..., None, None]  # [B, N, 1, 1]
        near, far, by_coarse, by_fine = (
            (layer * there).amax(1, keepdim=True) for layer in (*layers, coarse, fine)
        )
        maps += [near, far, upsample(by_coarse), by_fine]
    positive = (points[..., 2] == 1).float()[:, None]  # [B, 1, N]
    features = (torch.cat([at_coarse, at_fine], 1) * positive).sum(2)
    return torch.cat(maps, 1), features / positive.sum(2).clamp(min=1.0)


def similarity(keys: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """1 + cosine of keys [B, C, h, w] and those at N places [B, N], in cells: [B, N, h, w]; and the
    keys at these places [B, C, N]."""
    batch, channels, height, width = keys.shape
    column, row = x.long().clamp(0, width - 1), y.long().clamp(0, height - 1)
    flat = keys.flatten(2)
    place = (row * width + column)[:, None].expand(-1, channels, -1)
    clicked = torch.gather(flat, 2, place)
    cosine = clicked.transpose(1, 2) @ flat
    return cosine.view(batch, -1, height, width) + 1.0, clicked


class PhotoSegmenterNet(nn.Module):
    """Encoder, pyramid and decoder, trained together and exported as two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = EfficientNetLite0()
        self.pyramid = Pyramid()
        self.decoder = PhotoDecoder()

    def encode(self, image: Tensor) -> ImageFeatures:
        """All that depends on the image alone; `image` as of `EfficientNetLite0`."""
        return cast(ImageFeatures, self.pyramid(self.encoder(image)))
