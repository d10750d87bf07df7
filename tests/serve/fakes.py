"""A runtime of scripted clicks and discs, which is quick and can be held up in the middle."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace

from segagent_rt.runtime import Canvas
from segagent_rt.testing import DiscSegmenter, ScriptedAnnotator
from segagent_rt.timing import current_deadline
from segagent_rt.types import Click

CLICKS = (Click(20, 20, True), Click(40, 20, True), Click(60, 20, True))


class FakeRuntime:
    """What the service needs of a `Runtime`.

    Args:
        segmenter: discs, unless another one is given.
        words: whether there is an annotator; it makes `CLICKS`, each rated a little higher.
    """

    def __init__(self, segmenter=None, *, words=True):
        self.segmenter = segmenter or DiscSegmenter()
        self.annotator = ScriptedAnnotator(CLICKS, (0.6, 0.7, 0.8)) if words else None
        manifest = SimpleNamespace(family="discs", provenance={})
        kinds = ["segmenter", "mllm"] if words else ["segmenter"]
        parts = dict.fromkeys(kinds, SimpleNamespace(manifest=manifest))
        index = SimpleNamespace(name="fake", about="discs")
        self.bundle = SimpleNamespace(parts=parts, digest="0" * 12, index=index)
        self.endpoint, self.placements, self.closed = None, {}, False

    def check_usable(self):
        pass

    def loaded(self, part, what):
        return what

    def completed_rules(self, rules):
        return rules

    def open(self, pixels):
        embedding = Future()
        embedding.set_result(self.segmenter.encode(pixels))
        view = None if self.annotator is None else self.annotator.look(pixels)
        return Canvas(self, pixels, embedding, view)

    def close(self):
        self.closed = True


class HeldSegmenter(DiscSegmenter):
    """Begins to decode, says so, and ends when it is let go or its deadline passes."""

    def __init__(self):
        object.__setattr__(self, "radius", 10)
        object.__setattr__(self, "stability", None)
        object.__setattr__(self, "begun", threading.Event())
        object.__setattr__(self, "let_go", threading.Event())
        object.__setattr__(self, "interrupted", threading.Event())

    __slots__ = ("begun", "interrupted", "let_go")

    def decode(self, embedding, clicks, *, prior=None, box=None):
        self.begun.set()

        def stop():
            self.interrupted.set()
            self.let_go.set()

        with current_deadline().stopping(stop):
            assert self.let_go.wait(10)
        return super().decode(embedding, clicks, prior=prior, box=box)
