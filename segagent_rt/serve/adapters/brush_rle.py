"""Label Studio's run lengths of a brush mask (rle-pack, as its converter writes it).

The mask is an RGBA picture: four equal bytes for each pixel, row by row, 255 inside. A stream of
bits: the number of bytes (32), the bits of a value less one (5), four widths of lengths less one
(4 each), then the runs: 1, which width (2), the length less one (in that width), the value (8).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segagent_rt.types import Mask

CHANNELS, INSIDE, VALUE_BITS = 4, 255, 8
WIDTHS = (3, 4, 8, 16)
LONGEST = 1 << WIDTHS[-1]


def encode_brush(mask: Mask) -> list[int]:
    """Encode a mask.

    Args:
        mask: bool [H, W].

    Returns:
        The bytes of the stream, as a list of integers, which is what goes into JSON.
    """
    bits = f"{CHANNELS * mask.size:032b}{VALUE_BITS - 1:05b}"
    bits += "".join(f"{width - 1:04b}" for width in WIDTHS)
    bits += "".join(_runs(mask))
    bits += "0" * (8 - len(bits) % 8)  # as the converter does, a whole byte if there is no rest
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _runs(mask: Mask) -> Iterator[str]:
    flat = np.concatenate([mask.ravel(), [False]])
    flat[-1] = not flat[-2]
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        length, value = CHANNELS * (end - start), INSIDE if flat[start] else 0
        which = next((n for n, width in enumerate(WIDTHS) if length <= 1 << width), len(WIDTHS) - 1)
        while length > LONGEST:
            yield _run(LONGEST, which, value)
            length -= LONGEST
        yield _run(length, which, value)


def _run(length: int, which: int, value: int) -> str:
    return f"1{which:02b}{length - 1:0{WIDTHS[which]}b}{value:08b}"
