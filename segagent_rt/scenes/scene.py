"""A scene: a picture of coloured shapes, where each is, and what can be said of them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.scenes.expressions import Candidate, Expression, candidates, choose
from segagent_rt.scenes.layout import CANVAS, SceneObject, sample_layout
from segagent_rt.scenes.paint import paint
from segagent_rt.scenes.phrases import say
from segagent_rt.scenes.rng import DeterministicRng

GENERATOR = "shapes-1"
"""Version of everything in this package that decides pixels or words; stored in every result."""

LEAST_VISIBLE = 150
"""An object may be meant if it shows at least this many pixels of the 256 x 256 canvas."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Image uint8 [S, S, 3] RGB; labels uint8 [S, S], where object i shows the value i + 1."""

    seed: int
    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]

    def mask(self, target: int) -> npt.NDArray[np.bool_]:
        """Where object `target` is visible, bool [S, S]."""
        return np.asarray(self.labels == target + 1)


def make_scene(seed: int, side: int = 512, expressions: int = 4) -> Scene:
    """The scene of this seed, `side` pixels square, with up to that many expressions.

    The same seed gives the same objects and expressions at every size. The first expression is as
    likely of one kind as of another, among the kinds that the scene admits.
    """
    for attempt in range(100):
        objects = sample_layout(DeterministicRng("layout", seed, attempt))
        image, labels = paint(objects, DeterministicRng("paint", seed, attempt), side)
        found = candidates(objects, visible_objects(objects, labels))
        if found:
            rng = DeterministicRng("words", seed, attempt)
            phrases = phrase_all(choose(found, rng, expressions), rng)
            return Scene(seed, image, labels, tuple(objects), tuple(phrases))
    raise AssertionError(
        "no layout admits an expression"
    )  # never seen: about one in 10^4 layouts admits none


def visible_objects(objects: list[SceneObject], labels: npt.NDArray[np.uint8]) -> list[bool]:
    """Which objects show enough of themselves to be meant."""
    least = LEAST_VISIBLE * (labels.shape[0] / CANVAS) ** 2
    areas = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
    return [bool(area >= least) for area in areas]


def phrase_all(chosen: Iterable[Candidate], rng: DeterministicRng) -> list[Expression]:
    """Say each of them in one way or another."""
    return [Expression(say(c.query, rng), c.target, c.kind) for c in chosen]
