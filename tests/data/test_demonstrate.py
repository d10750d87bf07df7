"""The simulated annotator over a segmenter: what is kept, when it ends, that it can be replayed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.data.demonstrate import EncodedImage, Limits, begin, demonstrate, same_masks
from segagent_rt.data.images import ImageFolders
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.record import RunLengths, Sample
from segagent_rt.data.trajectories import Demonstration, Start, read_trajectories
from segagent_rt.metrics import iou
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.testing import DiscEmbedding, DiscSegmenter
from tests.data.datasets import DRAWN

TARGET = DRAWN[1].mask
SIZE = TARGET.shape
NOTHING = Start("empty", RunLengths.empty(SIZE))


def bench(radius=4):
    return EncodedImage(DiscSegmenter(radius), DiscEmbedding(SIZE))


@dataclass(frozen=True)
class Moody(DiscSegmenter):
    """Paints nothing at every third call: clicks that lose."""

    calls: list[int] = field(default_factory=list)

    def decode(self, embedding, clicks, *, prior=None, box=None):
        self.calls.append(len(clicks))
        if len(self.calls) % 3 == 0:
            return GivenMask(np.zeros(embedding.size, np.bool_))
        return super().decode(embedding, clicks, prior=prior, box=box)


def test_ious_only_rise_and_belong_to_the_masks():
    made = demonstrate(TARGET, NOTHING, bench(), Limits(good=0.9))
    values = [click.iou for click in made]
    assert len(values) > 3
    assert values == sorted(set(values))
    assert values == [iou(click.mask.mask(), TARGET) for click in made]
    assert all(click.click.positive == TARGET[click.click.y, click.click.x] for click in made)


def test_a_good_mask_ends_it_and_is_kept():
    made = demonstrate(TARGET, NOTHING, bench(), Limits(good=0.5))
    assert made[-1].iou >= 0.5 > made[-2].iou


def test_the_cap_is_kept():
    assert len(demonstrate(TARGET, NOTHING, bench(2), Limits(most=3))) == 3


def test_the_first_click_that_gains_nothing_ends_it_or_is_taken_back():
    """As SegAgent's code, and as its paper has it."""
    ends = EncodedImage(Moody(4), DiscEmbedding(SIZE))
    assert len(demonstrate(TARGET, NOTHING, ends, Limits(after_loss="end"))) == 2
    goes_on = EncodedImage(Moody(4), DiscEmbedding(SIZE))
    limits = Limits(most=9, after_loss="discard")
    made = demonstrate(TARGET, NOTHING, goes_on, limits)
    assert len(made) == 6, "six of nine calls"
    assert goes_on.segmenter.calls == [1, 2, 3, 3, 4, 5, 5, 6, 7], "lost clicks leave no trace"
    assert len({click.click for click in made}) == 6


def test_a_gain_that_is_too_small_counts_as_a_loss():
    everything = demonstrate(TARGET, NOTHING, bench(2), Limits())
    picky = demonstrate(TARGET, NOTHING, bench(2), Limits(least_gain=0.02))
    steps = np.diff([0.0, *(click.iou for click in everything)])
    assert len(picky) == int(np.argmax(steps < 0.02)), "up to the first small gain"


@pytest.mark.parametrize("kind", ["empty", "box", "random", "grid"])
def test_every_start_is_written_kept_and_replayed(kind):
    start = begin(kind, TARGET, bench(), DeterministicRng("start", 0))
    assert start.kind == kind
    assert start.iou == (0.0 if kind == "empty" else iou(start.mask.mask(), TARGET))
    made = demonstrate(TARGET, start, bench(), Limits(good=0.9))
    sample = Sample(0, "meadow.jpg", None, RunLengths.of(TARGET), ("it",), "")
    demonstration = Demonstration(sample, start, tuple(made))
    assert same_masks(demonstration, bench()) == len(made) > 0
    assert same_masks(demonstration, bench(3)) < len(made), "another segmenter is noticed"


def test_starts_lie_in_the_box():
    columns = np.flatnonzero(TARGET.any(0))
    rows = np.flatnonzero(TARGET.any(1))
    box = begin("box", TARGET, bench(), DeterministicRng("start", 0)).mask.mask()
    assert box.sum() == (np.ptp(columns) + 1) * (np.ptp(rows) + 1)
    for seed in range(20):
        one = begin("random", TARGET, bench(0), DeterministicRng("start", seed)).mask.mask()
        assert one.sum() == 1
        assert box[one].all()
    four = begin("grid", TARGET, bench(0), DeterministicRng("start", 0)).mask.mask()
    assert four.sum() == 4


def test_nothing_to_segment_starts_and_ends_empty():
    empty = np.zeros(SIZE, np.bool_)
    start = begin("box", empty, bench(), DeterministicRng("start", 0))
    assert start.kind == "empty"
    assert demonstrate(empty, start, bench(), Limits()) == []


@given(st.integers(0, 2**20), st.integers(1, 6), st.sampled_from(["end", "discard"]))
def test_any_blob_gives_rising_ious_that_can_be_replayed(seed, radius, after_loss):
    rng = np.random.default_rng(seed)
    target = np.zeros(SIZE, np.bool_)
    for _ in range(3):
        y, x = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])
        target[y : y + rng.integers(1, 15), x : x + rng.integers(1, 15)] = True
    made = demonstrate(target, NOTHING, bench(radius), Limits(after_loss=after_loss))
    values = [click.iou for click in made]
    assert all(b > a for a, b in zip([0.0, *values], values, strict=False))
    sample = Sample(0, "a", None, RunLengths.of(target), ("it",), "")
    assert same_masks(Demonstration(sample, NOTHING, tuple(made)), bench(radius)) == len(made)


@dataclass
class Recorded:
    """A segmenter that answers with the masks of a recorded trajectory, if it is asked in its
    order; beyond its end nothing changes any more."""

    demonstration: Demonstration

    def decode(self, embedding, clicks, *, prior=None, box=None):
        recorded = self.demonstration.clicks
        assert list(clicks[: len(recorded)]) == [m.click for m in recorded[: len(clicks)]]
        return GivenMask(recorded[min(len(clicks), len(recorded)) - 1].mask.mask())


@pytest.mark.parametrize("name", ["trace_iou098.json", "trace_iou_low.json"])
def test_the_trajectories_of_segagents_own_code_come_out(segagent_golden, name):
    """Clicks, masks, IoUs and ends, given the masks of its segmenter."""
    folder = segagent_golden / "trajectories"
    thresholds = json.loads((folder / "meta.json").read_text())["thresholds"]
    document = json.loads((folder / name).read_text())
    limits = Limits(thresholds["max_clicks"], thresholds[name])
    for recorded in read_trajectories(document, name, ReadContext(ImageFolders((folder,)))):
        target = recorded.sample.mask.mask()
        made = demonstrate(target, recorded.start, EncodedImage(Recorded(recorded), None), limits)
        assert [(m.click, m.mask) for m in made] == [(m.click, m.mask) for m in recorded.clicks]
        assert [m.iou for m in made] == pytest.approx([m.iou for m in recorded.clicks], abs=1e-7)
