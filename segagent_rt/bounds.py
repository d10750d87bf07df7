"""Bounds of the numbers in settings; they are checked before anything is allocated for a number.

A field of a settings class is annotated with one of these types, or with `Annotated[..., Between]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from segagent_rt.errors import ManifestInvalid


@dataclass(frozen=True, slots=True)
class Between:
    """The smallest and the largest value that a number may have; NaN is never between them."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most


Side: TypeAlias = Annotated[int, Between(1, 1 << 14)]
"""Pixels along a side of a picture or a map."""

Count: TypeAlias = Annotated[int, Between(1, 1 << 16)]
"""How many there are of something; width of a layer."""

Layers: TypeAlias = Annotated[int, Between(0, 512)]

Tokens: TypeAlias = Annotated[int, Between(1, 1 << 20)]
"""Length of a sequence."""

Token: TypeAlias = Annotated[int, Between(0, (1 << 31) - 1)]
"""A number of the vocabulary."""

Pixels: TypeAlias = Annotated[int, Between(1, 1 << 28)]
"""Area of a picture."""

Level: TypeAlias = Annotated[int, Between(0, 255)]
"""Of a colour."""

Share: TypeAlias = Annotated[float, Between(0, 1)]

Scale: TypeAlias = Annotated[float, Between(1e-6, 1e6)]
"""A divisor or a factor."""

Slope: TypeAlias = Annotated[float, Between(-100, 100)]
"""Of a logistic curve; exponents stay finite."""

THETA = Between(1, 1e12)

Theta: TypeAlias = Annotated[float, THETA]
"""Base of the frequencies of rotary positions."""


def check_theta(theta: float) -> None:
    """Check the base of rotary frequencies that is not read from a manifest.

    Raises:
        ManifestInvalid: the frequencies would not be finite, or grow.
    """
    if theta not in THETA:
        raise ManifestInvalid(f"rope theta is {theta:g}, not between 1 and 1e12")
