"""Scenes: reproducible to the pixel, unambiguous, hard enough."""

import hashlib

import numpy as np
import pytest

from segagent_rt.scenes import make_scene
from segagent_rt.scenes.expressions import KINDS
from segagent_rt.scenes.layout import COLOURS, SHAPES
from segagent_rt.scenes.reading import meanings, unknown_words
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.scenes.shapes import area


@pytest.fixture(scope="module", params=[150, pytest.param(400, marks=pytest.mark.thorough)])
def scenes(request):
    return [make_scene(seed, 128, 6) for seed in range(request.param)]


@pytest.mark.parametrize(
    ("seed", "digest", "text"),
    [
        (0, "31ed253f3146b859", "the big object"),
        (7, "451cf109007f488f", "triangle over the square"),
        (12, "8d528a5771a11f48", "pink triangle"),
        (33, "f73bd5a3fe8ea32c", "object that is third from the bottom"),
    ],
)
def test_a_seed_gives_the_same_pixels_everywhere(seed, digest, text):
    """Golden: x86-64, OpenCV 5.0, NumPy 2.4. Another platform must agree to the last bit."""
    scene = make_scene(seed, 256)
    found = hashlib.sha256(scene.image.tobytes() + scene.labels.tobytes()).hexdigest()
    assert found[:16] == digest
    assert scene.expressions[0].text == text


def test_objects_and_words_do_not_depend_on_the_size():
    small, large = make_scene(3, 128), make_scene(3, 512)
    assert small.objects == large.objects
    assert [e.text for e in small.expressions] == [e.text for e in large.expressions]


def test_every_expression_means_its_object_to_an_independent_reader(scenes):
    wrong = [
        (scene.seed, e.text)
        for scene in scenes
        for e in scene.expressions
        if meanings(e.text, scene.objects) != {e.target}
    ]
    assert wrong == []


def test_the_reader_can_tell_an_ambiguous_expression(scenes):
    """Planted fault: a noun that two objects share."""
    scene = next(s for s in scenes if len({o.shape for o in s.objects}) < len(s.objects))
    shapes = [o.shape for o in scene.objects]
    shared = next(shape for shape in shapes if shapes.count(shape) > 1)
    assert len(meanings(f"the {shared}", scene.objects)) > 1


def test_every_word_is_in_the_vocabulary(scenes):
    assert not [w for scene in scenes for e in scene.expressions for w in unknown_words(e.text)]
    assert unknown_words("the Red zebra, near it") == ["zebra", "near", "it"]


def test_the_task_is_hard_enough(scenes):
    """At least 4 objects, distractors of the same colour and shape, small targets, every kind."""
    first = [(scene, scene.expressions[0]) for scene in scenes]
    assert np.mean([len(scene.objects) for scene in scenes]) >= 4
    both = []
    for scene, said in first:
        target = scene.objects[said.target]
        others = [o for i, o in enumerate(scene.objects) if i != said.target]
        both.append(
            any(o.colour == target.colour for o in others)
            and any(o.shape == target.shape for o in others)
        )
    assert np.mean(both) >= 0.5
    assert np.median([scene.mask(said.target).mean() for scene, said in first]) <= 0.05
    kinds = [said.kind for _, said in first]
    assert min(kinds.count(kind) for kind in KINDS) >= 0.08 * len(kinds)
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 7


def test_masks_are_where_the_object_shows():
    scene = make_scene(5, 256)
    for index, item in enumerate(scene.objects):
        rows, columns = np.nonzero(scene.mask(index))
        if len(rows):
            assert abs(columns.mean() - item.x) < item.radius
            assert abs(rows.mean() - item.y) < item.radius


def test_areas_of_known_shapes():
    assert area("circle") == pytest.approx(np.pi, rel=0.01)
    assert area("square") == pytest.approx(2 * 1.15**2)


def test_dice_are_fair_enough_and_independent():
    draws = [
        DeterministicRng("a", 1).uniform(0, 1),
        DeterministicRng("a", 2).uniform(0, 1),
        DeterministicRng("b", 1).uniform(0, 1),
    ]
    assert len(set(draws)) == 3
    assert DeterministicRng("a", 1).uniform(0, 1) == draws[0]
    picks = [DeterministicRng("pick", n).pick("abcd") for n in range(400)]
    assert min(picks.count(c) for c in "abcd") > 60
