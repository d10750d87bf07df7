"""Which objects a scene has, and where."""

import math
from dataclasses import dataclass

from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.shapes import TURNS, area

CANVAS = 256
"""Side of the square in which objects are laid out; scenes of any size are scaled from it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 35),
    "orange": (240, 130, 25),
    "yellow": (235, 215, 40),
    "blue": (40, 70, 210),
    "cyan": (60, 200, 220),
    "purple": (125, 45, 165),
    "pink": (245, 140, 185),
    "brown": (120, 75, 35),
    "white": (243, 243, 243),
    "black": (22, 22, 22),
}
"""RGB. No green: the mask shown to the annotator is green, see docs/decisions/demo-training.md."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
SIZES: dict[str, tuple[float, float]] = {"small": (16, 20), "medium": (26, 31), "large": (40, 50)}
"""Radius of each size, in canvas pixels."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: `x`, `y` and `radius` in canvas pixels, `turn` in degrees. Later objects lie on
    top."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float

    @property
    def extent(self) -> float:
        """Side of the square that has the object's full area, in canvas pixels."""
        return self.radius * math.sqrt(area(self.shape))


def sample_layout(rng: DeterministicRng) -> list[SceneObject]:
    """Three to seven objects from few colours and few shapes, so that most words are needed."""
    count = rng.weighted((3, 4, 5, 6, 7), (2, 5, 5, 3, 1))
    colours = rng.shuffled(list(COLOURS))[: rng.weighted((2, 3, 4, 10), (5, 4, 2, 1))]
    shapes = rng.shuffled(SHAPES)[: rng.weighted((2, 3, 4, 7), (5, 4, 2, 1))]
    crowd = rng.weighted((0.8, 0.92, 1.1), (2, 3, 2))
    objects: list[SceneObject] = []
    for _ in range(80):
        if len(objects) == count:
            break
        size = rng.weighted(tuple(SIZES), (4, 5, 3))
        radius = rng.uniform(*SIZES[size])
        x = rng.uniform(0.85 * radius, CANVAS - 0.85 * radius)
        y = rng.uniform(0.85 * radius, CANVAS - 0.85 * radius)
        shape, colour = rng.pick(shapes), rng.pick(colours)
        limit = TURNS.get(shape, 0.0)
        turn = rng.uniform(-limit, limit)
        if all(math.hypot(x - o.x, y - o.y) > crowd * (radius + o.radius) for o in objects):
            objects.append(SceneObject(shape, colour, size, x, y, radius, turn))
    return objects
