"""The vision encoder of an MLLM: what the host computes around its graph.

One class for every family: the settings say how a picture is resized and what the graph must be
told about the grid of patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from segagent_rt.bounds import Layers, Side
from segagent_rt.errors import EngineRefused, ManifestInvalid
from segagent_rt.mllm.patch_layout import (
    Indices,
    VisionRope2D,
    interpolate_positions,
    merge_order,
    sort_windows,
)
from segagent_rt.mllm.preprocess import Resize
from segagent_rt.types import Array, RgbImage, Session, Size

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VisionOutput:
    """A picture as the language model gets it: float32 [1 + deepstack, tokens, hidden], tokens row
    by row over `grid` (rows, columns)."""

    embeddings: Floats
    grid: Size


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """A vision encoder's geometry, part of an MLLM's manifest.

    Attributes:
        patch: side of a patch, in pixels.
        merge: patches along the side of what becomes one token.
        grid: tokens of every picture, (rows, columns), where that does not follow from its size.
        rope: rotary positions of the patches, if the graph takes them.
        window: side of an attention window in tokens, if the graph takes windows.
        table: side of the learned table of positions, if the graph reads between its entries.
        deepstack: number of further outputs, for the first layers of the language model.
    """

    patch: Side
    resize: Resize
    merge: Side = 1
    grid: tuple[Side, Side] | None = None
    rope: VisionRope2D | None = None
    window: Side | None = None
    table: Side | None = None
    deepstack: Layers = 0


class VisionEncoder:
    """Turns a picture into embeddings."""

    def __init__(self, session: Session, settings: VisionSettings) -> None:
        self._session, self._settings = session, settings

    def resize(self, image: RgbImage) -> RgbImage:
        """The picture at the size that the vision encoder takes.

        Raises:
            ImageUnreadable: the image is too narrow for it.
        """
        return self._settings.resize.resize(image)

    def embed(self, picture: RgbImage) -> VisionOutput:
        """Embeddings of a picture that `resize` made."""
        settings = self._settings
        if any(side % (settings.patch * settings.merge) for side in picture.shape[:2]):
            raise ManifestInvalid(
                f"a picture of {picture.shape[:2]} is not made of whole patches of "
                f"{settings.patch} pixels, merged by {settings.merge}"
            )
        grid = picture.shape[0] // settings.patch, picture.shape[1] // settings.patch
        order, geometry = patch_inputs(grid, settings)
        patches = cut_patches(picture, settings.patch, settings.merge)
        patches = patches if order is None else patches[order]
        names = ["image_embeds", "deepstack_embeds"][: 1 + bool(settings.deepstack)]
        feeds = {"patches": patches.reshape(-1, patches.shape[-1]), **geometry}
        outputs = self._session.run(feeds, names)
        embeddings = outputs["image_embeds"][None]
        if settings.deepstack:
            embeddings = np.concatenate([embeddings, outputs["deepstack_embeds"]])
        tokens = grid[0] // settings.merge, grid[1] // settings.merge
        shown = settings.grid or tokens
        if embeddings.shape[1] != shown[0] * shown[1]:
            raise EngineRefused(
                f"the vision graph gives {embeddings.shape[1]} tokens for a grid of {shown}"
            )
        return VisionOutput(embeddings, shown)


def cut_patches(picture: RgbImage, patch: int, merge: int) -> Floats:
    """Pixels by token and patch, float32 [M, merge^2, 3 patch^2] in 0..255, channel first."""
    height, width = picture.shape[:2]
    blocks = picture.reshape(
        height // patch // merge, merge, patch, width // patch // merge, merge, patch, 3
    )
    flat = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, merge**2, 3 * patch * patch)
    return flat.astype(np.float32)


@lru_cache(maxsize=16)
def patch_inputs(grid: Size, settings: VisionSettings) -> tuple[Indices | None, dict[str, Array]]:
    """The order in which the graph takes the tokens of a grid of patches (None: as they are), and
    its other inputs."""
    row, column = merge_order(*grid, settings.merge)
    order: Indices | None = None
    feeds: dict[str, Array] = {}
    if settings.window is not None:
        tokens = grid[0] // settings.merge, grid[1] // settings.merge
        windows = sort_windows(*tokens, settings.window, settings.merge)
        order, feeds = windows.order, windows.feeds()
        row, column = row[order], column[order]
    row, column = row.reshape(-1), column.reshape(-1)
    if settings.rope is not None:
        feeds["rope_cos"], feeds["rope_sin"] = settings.rope.angles(row, column)
    if settings.table is not None:
        feeds["taps"], feeds["tap_weights"] = interpolate_positions(row, column, settings.table)
    return order, feeds
