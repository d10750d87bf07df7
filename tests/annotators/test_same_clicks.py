"""A server in a process of its own with the MLLM that ships: the same clicks as without it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import segagent_rt
from segagent_rt.annotators.endpoint import Endpoint
from segagent_rt.errors import AnnotatorError
from segagent_rt.loop import StoppingRules
from segagent_rt.scenes import make_scene

FIRST = 6000


@pytest.fixture(scope="module")
def url():
    program = Path(__file__).with_name("tiny_server.py")
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


def walked(scenes: range, endpoint: Endpoint | None):
    with segagent_rt.load("tiny", backend="cpu", threads=1, endpoint=endpoint) as runtime:
        for seed in scenes:
            scene = make_scene(seed, 320)
            # A server does not say how certain a click is, so every mask is rated on both sides.
            rules = StoppingRules(accept_unrated=False)
            yield runtime.open(scene.image).annotate(scene.expressions[0].text, rules=rules)
        loaded = any(name.startswith("mllm") for name in runtime.placements)
        assert loaded == (endpoint is None)


def compare(url: str, count: int) -> None:
    scenes = range(FIRST, FIRST + count)
    here = walked(scenes, None)
    there = walked(scenes, Endpoint(url, "tiny", "vllm"))
    clicks = drawn = 0
    for ours, theirs in zip(here, there, strict=True):
        both = [ours, theirs]
        if any(step.restarted for step in ours.steps):
            # Another first click is sampled, and a server has its own random numbers.
            both, drawn = [replace(t, steps=t.steps[:1]) for t in both], drawn + 1
        ours, theirs = both
        assert theirs.clicks == ours.clicks
        assert theirs.stop == ours.stop
        ratings = [[step.rating for step in t.steps] for t in both]
        assert ratings[1] == pytest.approx(ratings[0], abs=1e-4)
        clicks += len(ours.clicks)
    assert drawn <= count / 5
    print(f"{count} scenes, {clicks} clicks, {drawn} of the scenes up to where one was drawn")


@pytest.mark.thorough
def test_a_few_scenes(url):
    compare(url, 5)


@pytest.mark.slow
def test_fifty_scenes(url):
    compare(url, 50)


def test_a_model_that_the_server_does_not_have_is_named(url):
    with (
        segagent_rt.load(endpoint=Endpoint(url, "huge", "vllm")) as runtime,
        pytest.raises(AnnotatorError, match=r"answers 404: The model `huge` does not exist$"),
    ):
        runtime.open(make_scene(1, 128).image).annotate("the circle")
