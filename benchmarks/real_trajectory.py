"""Three clicks with their masks: ours, and the plain loop with the same weights and clicks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_turn import in_turn
from real_bundle import BundlePlace
from real_ours import Ear, OurMllm, Replies, apart
from real_reference import PlainMllm, PlainRun, plain_run, plain_segmenter, torch_segmenter

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.bench.loop_runs import BenchQuery, LoopRun, figures, timed_run
from segagent_rt.bench.profiling import GraphProfiler
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.io import attributes, dump_json
from segagent_rt.loop import StoppingRules
from segagent_rt.metrics import iou
from segagent_rt.runtime import Runtime, load
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.sam import SamSettings
from segagent_rt.types import RgbImage

CLICKS, THEIR_CLICKS = 3, 7
RATED = StoppingRules.fixed(CLICKS)
RULES = StoppingRules.fixed(CLICKS, rate_last_mask=False)
EXPRESSION = "the mug behind the laptop"
SIDE = 1024
EXACT, MASK_IOU = 1e-3, 0.95
"""What parity asks for, beside rounding: logits of the graphs in full precision, in `apart` from
torch in fp32, and the mean IoU of masks after the same clicks."""

STOPPED = Path(__file__).parent / "results" / "against-reference.json"
"""Has the mean number of clicks after which the stop rules end a trajectory."""


def check_graphs(place: BundlePlace) -> None:
    """Compare the graphs in full precision with torch; what was found stays beside the bundle."""
    image = make_scene(0, SIDE).image
    ours = OurMllm(place, "reference")
    click = ours.click(image, EXPRESSION)
    ours.close()
    expected = PlainMllm(place, torch.float32).choices(image, EXPRESSION, click.tokens)
    found = {"graphs_apart": apart(click.logits, expected)}
    _noted(place).write_text(dump_json(found), "utf-8")


def _noted(place: BundlePlace) -> Path:
    return place.folder / "graphs.json"


@dataclass(frozen=True, slots=True)
class Listened:
    """A runtime that is metered, with what its decoder gave and what its annotator said."""

    runtime: Runtime
    meter: GraphProfiler
    ear: Ear
    replies: Replies

    def run(self, image: RgbImage, rules: StoppingRules = RULES) -> LoopRun:
        """Three clicks on an image that was not seen before."""
        nothing = np.zeros(image.shape[:2], np.bool_)
        return timed_run(
            self.runtime.open(image), self.meter, rules, BenchQuery(EXPRESSION, nothing)
        )


def listen(place: BundlePlace) -> Listened:
    """Load the bundle."""
    meter, ear = GraphProfiler(), Ear()
    runtime = load(place.bundle, backend="cpu", wrap=meter.wrap)
    annotator = runtime.annotator
    assert isinstance(annotator, MllmAnnotator)
    annotator.decoder_class = ear.writer()
    return Listened(runtime, meter, ear, Replies(annotator))


def measure_trajectories(place: BundlePlace, laps: int) -> dict[str, Any]:
    """Three clicks in each lap, on the same picture: new canvases know nothing of it."""
    ours = listen(place)
    first = _clicked(ours)
    plain = PlainMllm(place, torch.float32)
    settings = ours.runtime.bundle.part("segmenter").settings(SamSettings)
    assert place.segmenter is not None
    pair = torch_segmenter(place.segmenter.family, place.segmenter_checkpoint)
    segmenter = plain_segmenter(pair, settings)
    expected = plain.choices(first.image, EXPRESSION, first.replies[0])
    other = plain.choices(make_scene(1, SIDE).image, EXPRESSION, first.replies[0])
    apart_by = {
        **json.loads(_noted(place).read_text("utf-8")),
        "rounded_apart": apart(first.logits[: len(expected)], expected),
        "allowed_when_rounded": apart(other, expected) / 2,
    }
    done = in_turn(
        {
            "ours": lambda _: ours.run(first.image),
            "ours rated": lambda _: ours.run(first.image, RATED),
            "torch fp32": lambda _: plain_run(
                plain, segmenter, first.image, EXPRESSION, first.replies
            ),
        },
        laps,
    )
    runs, rated, theirs = done["ours"], done["ours rated"], done["torch fp32"]
    apart_by["mask_iou"] = float(np.mean([_alike(o, t) for o, t in zip(runs, theirs, strict=True)]))
    passed = (
        apart_by["graphs_apart"] <= EXACT
        and apart_by["rounded_apart"] <= apart_by["allowed_when_rounded"]
        and apart_by["mask_iou"] >= MASK_IOU
    )
    stops = json.loads(STOPPED.read_text("utf-8"))["accuracy"]["ours"]["clicks_mean"]
    return {
        "clicks": CLICKS,
        "patches": place.pixels // 16**2,
        "reply_tokens": float(np.mean([len(reply) for reply in first.replies])),
        "parity_figures": apart_by,
        "parity": passed,
        "clicks_with_stop": stops,
        "times_as_fast": speed_up(runs, rated, theirs, stops) if passed else None,
        "ours": {k: v for k, v in attributes(figures(runs)).items() if k != "miou"},
        "torch": {
            "click": percentiles([s for run in theirs for s in run.each]),
            "encode": percentiles([run.encode for run in theirs]),
            "vision": percentiles([c.seconds["vision"] for run in theirs for c in run.clicks]),
            "language": percentiles([c.language for run in theirs for c in run.clicks]),
            "segment": percentiles([s for run in theirs for s in run.segment]),
        },
    }  # fmt: skip


def speed_up(
    runs: Sequence[LoopRun], rated: Sequence[LoopRun], theirs: Sequence[PlainRun], stops: float
) -> dict[str, Any]:
    """How many times as long the plain loop takes.

    The plain loop does not rate its last mask, and with the same clicks `runs` do not either;
    `rated` do, which is the second figure. With stopping rules it is the plain loop of seven clicks
    against ours of `stops` clicks, each rated, put together from the steps that were measured.
    """
    same = [run.seconds(CLICKS) for run in theirs]
    return {
        "same_clicks": ratio_percentiles(same, [run.seconds for run in runs]),
        "same_clicks_with_our_last_rating": ratio_percentiles(same, [run.seconds for run in rated]),
        "with_stop": ratio_percentiles(
            [run.seconds(THEIR_CLICKS) for run in theirs],
            [stopped(_steps(run), stops) for run in rated],
        ),
    }


def stopped(steps: Sequence[float], clicks: float) -> float:
    """Seconds of a trajectory of `clicks` clicks: the first step, and further ones."""
    first, *later = steps
    return first + (clicks - 1) * float(np.mean(later))


def _steps(run: LoopRun) -> list[float]:
    """Seconds of every step: click, mask and rating."""
    return [step.seconds["annotate"] + step.seconds.get("segment", 0) for step in run.found.steps]


def _alike(ours: LoopRun, theirs: PlainRun) -> float:
    """Mean IoU of the masks after each click."""
    masks = [step.prediction.mask() for step in ours.found.steps if step.click and step.prediction]
    return float(np.mean([iou(o, t) for o, t in zip(masks, theirs.masks, strict=True)]))


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with the replies that our trajectory gives, and the logits behind all of them."""

    image: RgbImage
    replies: tuple[tuple[int, ...], ...]
    logits: np.ndarray


def _clicked(ours: Listened) -> Picture:
    """Our own trajectory, which says what the plain loop is to say; it warms everything up."""
    image = make_scene(0, SIDE).image
    run = ours.run(image)
    return Picture(image, tuple(_proposals(ours.replies.take(), run)), ours.ear.take()[0])


def _proposals(decoded: Sequence[tuple[int, ...]], run: LoopRun) -> list[tuple[int, ...]]:
    """The replies that proposed clicks: every other one that was decoded rates a mask."""
    return [*decoded[::2]][: run.clicks]
