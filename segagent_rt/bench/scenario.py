"""What a benchmark does: read from TOML files, which may be the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from segagent_rt.bench.packaged import packaged
from segagent_rt.bundle.manifest import parse
from segagent_rt.errors import InputError, ManifestInvalid
from segagent_rt.io import open_regular, read_bounded
from segagent_rt.loop import StoppingRules
from segagent_rt.scenes import Scene, make_scene

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 20
"""Of a scenario's file."""

Kind: TypeAlias = Literal["one", "many", "sequence", "endurance", "deadline", "ablation", "growth"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A benchmark on synthetic scenes.

    Attributes:
        kind: `one`, an image and an expression at a time; `many`, several expressions on one image;
            `sequence`, a new frame for each expression, as in a video; `endurance`, memory over
            many images; `deadline`, the loop stopped at shares of its usual time; `ablation`, each
            optimisation switched off; `growth`, larger images, more clicks, expressions and
            threads.
        scenes: how many, from `seed` on.
        clicks: the budget for each expression.
        accept: the rating at which a mask is good enough; 0 to use up the budget.
        expressions: for `many`, how many on each image.
        shares: for `deadline`, of the median time of the whole loop.
        warm_up: scenes that are run first and not counted.
    """

    name: str
    kind: Kind
    scenes: int = 20
    seed: int = 50_000
    side: int = 512
    clicks: int = 7
    accept: float = 0.9
    expressions: tuple[int, ...] = (1, 4, 16)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    warm_up: int = 2

    @property
    def rules(self) -> StoppingRules:
        """The rules of the loop."""
        return StoppingRules(self.clicks, self.accept or None)

    def draw(self, expressions: int = 1) -> Iterator[Scene]:
        """The scenes, those for warming up first."""
        for number in range(self.warm_up + self.scenes):
            yield make_scene(self.seed + number, self.side, expressions)


def read_scenario(where: str | Path) -> Scenario:
    """A scenario by the path of its file, or by the name of one that is packaged.

    Raises:
        InputError: there is none, or it is not what a scenario should be.
    """
    known = packaged_scenarios()
    path = known.get(str(where), Path(where))
    if not os.path.lexists(path):
        raise InputError(
            f"there is no scenario `{where}`", hint="packaged ones: " + ", ".join(known)
        )
    try:
        with open_regular(path) as stream:
            text = read_bounded(stream, MAX_BYTES, str(path)).decode("utf-8")
        content = tomllib.loads(text)
        scenario: Scenario = parse({**content, "name": path.stem}, Scenario, str(path))
        _check(scenario)
    except ManifestInvalid as error:
        raise InputError(
            f"not a scenario: {error}", hint="`segagent-rt bench --list` names the packaged ones"
        ) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or out of bounds
        raise InputError(
            f"{path} is not a scenario: {error}",
            hint="`segagent-rt bench --list` names the packaged ones",
        ) from None
    return scenario


def _check(scenario: Scenario) -> None:
    """Bound what a file may ask for."""
    for name, (least, most) in _BOUNDS.items():
        value = getattr(scenario, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(least <= each <= most for each in values):
            raise ValueError(f"`{name}` must lie between {least} and {most}")


_BOUNDS = {
    "scenes": (1, 100_000),
    "seed": (0, 2**31),
    "side": (32, 4096),
    "clicks": (1, 100),
    "accept": (0, 1),
    "expressions": (1, 256),
    "shares": (0, 1),
    "warm_up": (0, 1000),
}


def packaged_scenarios() -> dict[str, Path]:
    """Name and path of every scenario that comes with the package."""
    return {path.stem: path for path in sorted(packaged("scenarios").glob("*.toml"))}
