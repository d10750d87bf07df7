"""Profiles cover all that a trajectory feeds its graphs; engines are built for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_part
from segagent_rt.runtime import open_mllm
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Request
from segagent_rt_export.graphs.shape_profiles import mllm_profiles
from tests.export.mllm.conftest import NAMES

pytestmark = pytest.mark.export

SIZES = [(64, 64), (480, 640), (700, 90), (40, 900), (3, 500), (1200, 1000)]


class Watched:
    """A session that keeps the shapes of its inputs."""

    def __init__(self, session):
        self.session, self.shapes, self.inputs = session, [], session.inputs

    def run(self, feeds, outputs, **more):
        self.shapes.append({n: tuple(_array(feed).shape) for n, feed in feeds.items()})
        return self.session.run(feeds, outputs, **more)

    def allocate(self, shape, dtype):
        return self.session.allocate(shape, dtype)


def _array(feed):
    return feed if hasattr(feed, "shape") else feed.numpy()


def fits(shapes, profile) -> bool:
    return all(
        all(a <= b <= c for a, b, c in zip(r.least, shapes[name], r.most, strict=True))
        for name, r in profile.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_call_of_a_walk_fits_a_profile(exported, photo, name):
    made = exported(name, "portable")
    files = {role: made.folder / f"{role}.onnx" for role in ("vision", "decoder")}
    profiles = mllm_profiles(files, made.source.codec)
    part, watched = open_part(made.folder, "mllm"), {}

    def watch(part, role):
        watched[role] = Watched(part.session(role, SessionOptions("cpu", 1)))
        return watched[role]

    annotator: MllmAnnotator = open_mllm(part, watch)
    annotator.model.allow_branches()
    for height, width in SIZES:
        image = photo(height, width)
        view = annotator.look(image)
        mask = GivenMask(image[..., 0] > 127)
        for prediction in (None, mask):
            view.propose([Request(prediction, "the red circle" + " at the left" * 12)])
    for role, session in watched.items():
        for shapes in session.shapes:
            assert any(fits(shapes, profile) for profile in profiles[role]), (role, shapes)
        for profile in profiles[role]:
            assert {n for n, r in profile.items() if r.least != r.most} <= set(session.shapes[0])
    # While a reply is written the narrow profile is enough, which is the first of two.
    narrow = [fits(shapes, profiles["decoder"][0]) for shapes in watched["decoder"].shapes]
    assert sum(narrow) > len(narrow) / 2


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_in_order_and_says_the_same_of_each_axis(exported, name):
    made = exported(name, "portable")
    files = {role: Path(made.folder / f"{role}.onnx") for role in ("vision", "decoder")}
    for profiles in mllm_profiles(files, made.source.codec).values():
        for profile in profiles:
            for found in profile.values():
                sizes = zip(found.least, found.typical, found.most, strict=True)
                assert all(1 <= a <= b <= c for a, b, c in sizes)
    rows = {r.most[2] for p in profiles for n, r in p.items() if n.startswith("past.")}
    assert len(rows) == 1
