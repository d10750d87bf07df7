"""SegAgent's loop: propose a click, segment, rate the new mask, stop or click again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from segagent_rt.errors import Interrupted
from segagent_rt.timing import Deadline, Stopwatch
from segagent_rt.types import (
    GREEDY,
    Box,
    Click,
    Malformed,
    Prediction,
    Request,
    Sampling,
    Segmenter,
    Step,
    Stop,
    Trajectory,
    Turn,
    View,
)

RETRY_SAMPLES = 4
"""First clicks sampled at a time (docs/decisions/retry-first-click.md)."""


def iter_steps(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: Future[Any],
    *,
    rules: StoppingRules | None = None,
    prior: Prediction | None = None,
) -> Iterator[Step]:
    """Annotate step by step; the arguments are those of `annotate`.

    Yields:
        A step for every mask, as soon as it is rated; the last one says why the loop stopped. If
        the annotator finished, gave no action, or ran out of time, the last step has no mask.
    """
    rules = rules or StoppingRules()
    steps = list[Step]()
    with closing(Deadline(rules.deadline)) as deadline:
        stages = Stages(expression, view, segmenter, embedding, deadline)
        while not steps or steps[-1].stop is None:
            watch, step = Stopwatch(), Step()
            try:
                if prior is not None and not steps:
                    step = Step(prediction=prior)
                else:
                    # 1. Propose the next click, or another first one.
                    retry = stages.retry_first_click(steps, watch) if rules.retries(steps) else None
                    step = retry or stages.propose(steps, watch)[0]
                    # 2. Segment all clicks so far.
                    step = stages.decode(step, steps, watch)
                # 3. Rate the new mask.
                stop = rules.stop_unrated(step, steps)
                if stop is None:
                    step = stages.rate([step], watch)[0]
                    # 4. Stop?
                    stop = rules.stop_rated([*steps, step])
            except (Interrupted, NotReady):
                stop = "deadline"
            steps.append(completed(step, steps, stop, watch))
            yield steps[-1]


def annotate(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: Future[Any],
    *,
    rules: StoppingRules | None = None,
    prior: Prediction | None = None,
) -> Trajectory:
    """Run the loop to its end.

    Args:
        expression: the object in words.
        view: the image as the annotator sees it.
        segmenter: turns clicks into masks.
        embedding: the segmenter's embedding of the image; it may still be computed.
        rules: when to stop.
        prior: a mask to start from; it is rated first, as a step of its own.

    Returns:
        Every step.
    """
    steps = iter_steps(expression, view, segmenter, embedding, rules=rules, prior=prior)
    return Trajectory(expression, tuple(steps))


@dataclass(frozen=True, slots=True)
class Stages:
    """What a step is made of: `propose`, `decode` and `rate`, each timed and under the deadline.

    Each fills in more of a `Step`. They are given the steps so far, and a stopwatch for this one.
    """

    expression: str
    view: View
    segmenter: Segmenter
    embedding: Future[Any]
    deadline: Deadline

    def propose(
        self, steps: Sequence[Step], watch: Stopwatch, sampling: Sampling = GREEDY
    ) -> list[Step]:
        """Ask for the next action about the last mask.

        Returns:
            A step without a mask for each answer.
        """
        return self._propose(steps[-1].prediction if steps else None, watch, sampling)

    def retry_first_click(self, steps: Sequence[Step], watch: Stopwatch) -> Step | None:
        """Sample another first click, outside every mask so far; None if no sample lies there.

        Samples have temperature 1 and a seed of their own, so a run can be repeated.
        """
        rng = np.random.default_rng(len(steps))
        samples = self._propose(None, watch, Sampling(RETRY_SAMPLES, 1.0, rng))
        masks = [step.prediction.mask() for step in steps if step.prediction is not None]
        for step in samples:
            at = step.click
            if at is not None and at.positive and not any(mask[at.y, at.x] for mask in masks):
                return replace(step, restarted=True)
        return None

    def decode(self, step: Step, steps: Sequence[Step], watch: Stopwatch) -> Step:
        """Segment with the proposed action and all clicks before it, back to the last restart."""
        if step.click is None and step.box is None:
            return step
        with self.deadline.active(), watch("segment"):
            encoded = self.embedding.result(self.deadline.remaining)
            return decode_step(step, steps, self.segmenter, encoded)

    def rate(self, steps: Sequence[Step], watch: Stopwatch) -> list[Step]:
        """Rate the masks of steps that are alternatives to each other."""
        requests = [Request(step.prediction, self.expression) for step in steps]
        with self.deadline.active(), watch("annotate"):
            ratings = self.view.rate(requests)
        for rating in ratings:
            watch.add_stages(rating.seconds)
        return [
            replace(step, rating=rating.value, rating_reply=rating.reply)
            for step, rating in zip(steps, ratings, strict=True)
        ]

    def _propose(
        self, shown: Prediction | None, watch: Stopwatch, sampling: Sampling
    ) -> list[Step]:
        with self.deadline.active(), watch("annotate"):
            turns = self.view.propose([Request(shown, self.expression)], sampling)[0]
        for turn in turns:
            watch.add_stages(turn.seconds)
        return [_proposed(turn) for turn in turns]


def decode_step(step: Step, steps: Sequence[Step], segmenter: Segmenter, embedding: Any) -> Step:
    """Segment with a step's click or box and all clicks before it, back to the last restart.

    Args:
        step: one without a mask.
        steps: those before it.
        segmenter: turns clicks into masks.
        embedding: the segmenter's embedding of the image.

    Returns:
        The step with its mask, and with the box that the mask was made of.
    """
    since = [] if step.restarted else steps_since_restart(steps)
    clicks = [each.click for each in (*since, step) if each.click is not None]
    prior = since[-1].prediction if since else None
    first_box = since[0].box if since and since[0].click is None else None
    box = step.box or first_box
    return replace(
        step, prediction=segmenter.decode(embedding, clicks, prior=prior, box=box), box=box
    )


def _proposed(turn: Turn) -> Step:
    if isinstance(turn.action, Click):
        return Step(turn.action, turn=turn, box=turn.box)
    return Step(turn=turn, box=turn.action if isinstance(turn.action, Box) else None)


def completed(step: Step, steps: Sequence[Step], stop: Stop | None, watch: Stopwatch) -> Step:
    """The step with its time and the reason to stop.

    An action without a mask is dropped, and a mask that did not change keeps its rating.
    """
    if step.prediction is None:
        step = Step(turn=step.turn)
    rating = steps[-1].rating if stop == "unchanged" else step.rating
    return replace(step, rating=rating, seconds=watch.seconds, stop=stop)


def steps_since_restart(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps whose clicks the next mask is made of."""
    return steps[max((at for at, step in enumerate(steps) if step.restarted), default=0) :]


@dataclass(frozen=True, slots=True)
class UnratedLimits:
    """From where on a mask is accepted without a look that rates it. All values are in 0..1.

    Attributes:
        stability: least stability score of a first mask.
        confidence: least confidence of its click.
        later_stability: least stability score of a later mask.
        rating: least rating of the mask before it.
    """

    stability: float
    confidence: float
    later_stability: float
    rating: float = 0.5


@dataclass(frozen=True, slots=True)
class StoppingRules:
    """When to stop clicking, and when to try another first click.

    Attributes:
        max_clicks: the most clicks (7 in SegAgent, section 5.1). Boxes after the first count, too.
        accept_above: stop at a mask rated at least this; None never accepts.
        retry_below: if the mask of a first click is rated below this, discard it and try another
            first click; None keeps it, as SegAgent does.
        patience: stop after this many masks in a row that are rated no better than an earlier one.
        stop_if_unchanged: stop at a click that does not change the mask.
        rate_last_mask: whether the mask of the last click allowed is rated; SegAgent's is not.
        stop_after_box: stop after a first look that gave a box if nobody rates the mask. Models
            that ground objects in boxes were not trained to click. With None, a canvas goes on if
            its bundle has a `loop_gain` above zero; without a canvas the loop stops.
        deadline: seconds after which a running call is interrupted, and the best mask so far is
            the result. They are counted from the first look; graphs are loaded before it.
        accept_unrated: stop at a mask that is surely good, without a look that rates it. With None,
            a canvas uses the limits that its bundle was calibrated with, if it has some and
            `accept_above` is at most 0.9; without a canvas, and with False, every mask is rated.
    """

    max_clicks: int = 7
    accept_above: float | None = 0.9
    retry_below: float | None = 0.5
    patience: int | None = None
    stop_if_unchanged: bool = True
    rate_last_mask: bool = True
    stop_after_box: bool | None = None
    deadline: float | None = None
    accept_unrated: UnratedLimits | Literal[False] | None = None

    @classmethod
    def fixed(cls, clicks: int, *, rate_last_mask: bool = True) -> StoppingRules:
        """Exactly this many clicks, whatever their ratings: for measurements."""
        return cls(
            clicks,
            accept_above=None,
            retry_below=None,
            stop_if_unchanged=False,
            rate_last_mask=rate_last_mask,
            stop_after_box=False,
        )

    def stop_unrated(self, step: Step, steps: Sequence[Step]) -> Stop | None:
        """Why to stop at `step` without rating its mask; `steps` are those before it."""
        if step.prediction is None:
            malformed = step.turn is not None and isinstance(step.turn.action, Malformed)
            return "malformed" if malformed else "finished"
        shown = steps[-1].prediction if steps else None
        if self.stop_if_unchanged and shown is not None and step.prediction.agrees(shown):
            return "unchanged"
        if self.accepts_unrated(step, steps):
            return "accepted unrated"
        if not self.rate_last_mask and self._spent([*steps, step]):
            return "budget"
        return None

    def stop_rated(self, steps: Sequence[Step]) -> Stop | None:
        """Why to stop after the last of these steps, whose mask has been rated."""
        last = steps[-1]
        if self.accepts(last.rating):
            return "accepted"
        if self._spent(steps):
            return "budget"
        unrated_box = last.click is None and not last.given and last.rating is None
        if self.stop_after_box is not False and unrated_box:
            return "one-shot"
        rated = [step.rating for step in steps if step.rating is not None]
        best = rated.index(max(rated)) if rated else 0
        if self.patience is not None and rated and len(rated) - 1 - best >= self.patience:
            return "no gain"
        return None

    def accepts(self, rating: float | None) -> bool:
        """Whether a mask with this rating needs no further click."""
        return self.accept_above is not None and rating is not None and rating >= self.accept_above

    def accepts_unrated(self, step: Step, steps: Sequence[Step]) -> bool:
        """Whether the mask of `step` needs no rating; `steps` are those before it.

        Its outline must be stable. A stable mask may show a wrong object, so the click must be
        certain as well, or the mask before it rated well.
        """
        limits, made = self.accept_unrated, step.prediction
        if not limits or made is None or step.restarted or step.given:
            return False
        if steps:
            needed, known, least = limits.later_stability, steps[-1].rating, limits.rating
        else:
            known = None if step.turn is None else step.turn.confidence
            needed, least = limits.stability, limits.confidence
        stable = made.stability is not None and made.stability >= needed
        return stable and known is not None and known >= least

    def retries(self, steps: Sequence[Step]) -> bool:
        """Whether the last mask, if it is made of a first click alone, is rated too low."""
        if not steps or steps[-1].click is None or len(steps_since_restart(steps)) > 1:
            return False
        rating = steps[-1].rating
        return self.retry_below is not None and rating is not None and rating < self.retry_below

    def _spent(self, steps: Sequence[Step]) -> bool:
        clicks = sum(step.click is not None for step in steps)
        boxes = sum(step.click is None and step.box is not None for step in steps)
        return clicks + max(0, boxes - 1) >= self.max_clicks
