"""The loop with several clicks tried at every turn: the best-rated mask is the one to go on from.

SegAgent, algorithm 2. Predictions are values, so a candidate costs one decoding and one look; the
reply that rates a mask also says the next click, which makes 1 + turns * candidates looks.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segagent_rt.errors import Interrupted
from segagent_rt.loop import walk
from segagent_rt.rules import Rules
from segagent_rt.timing import Deadline, Stopwatch
from segagent_rt.types import Click, Finish, Prediction, Request, Segmenter, Step, Turn, View


@dataclass(frozen=True, slots=True)
class Tree:
    """How widely to search, and when to stop.

    Attributes:
        rules: of the loop; `doubt` is for one candidate only, as more try several clicks anyway.
        candidates: clicks tried at a turn: the likeliest one, the others drawn. With one this is
            `loop.walk`.
        temperature: of the draws; which one SegAgent used is not published.
        seed: the same draws every time.
    """

    rules: Rules = field(default_factory=Rules)
    candidates: int = 3
    temperature: float = 1.0
    seed: int = 0


def explore(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: "Future[Any]",
    *,
    tree: Tree,
    prior: Prediction | None = None,
) -> Iterator[Step]:
    """Yield the steps of the branch that was taken, as `loop.walk` does.

    The turn of a step rates the mask that it was shown greedily, also where its click was drawn.
    """
    if tree.candidates == 1:
        yield from walk(expression, view, segmenter, embedding, rules=tree.rules, prior=prior)
        return
    rules, deadline = tree.rules, Deadline(tree.rules.deadline)
    branches = _Branches(expression, view, segmenter, tree)
    prediction, clicks, ratings = prior, list[Click](), list[float | None]()
    watch, turn, tried = Stopwatch(), Turn("", Finish()), list[Step]()
    try:
        with deadline.active(), watch("annotate"):
            turn = view.propose([Request(prior, expression)])[0][0]
        while True:
            if prediction is not None:
                ratings.append(turn.predicted_iou)
            stop = rules.verdict(turn, len(clicks), ratings)
            if stop is not None or not isinstance(turn.action, Click):
                yield Step(turn, None, prediction, watch.seconds, stop)
                break
            with deadline.active(), watch("annotate"):
                turns = branches.sprout(turn, prediction)
            with deadline.active(), watch("segment"):
                encoded = embedding.result(deadline.remaining)
                tried = branches.grow(turns, prediction, clicks, encoded)
            if all(step.stop for step in tried):
                yield replace(tried[0], seconds=watch.seconds)
                break
            with deadline.active(), watch("annotate"):
                last = len(clicks) + 1 == rules.max_clicks
                best, turn = branches.judge(tried, last=last)
            prediction = best.prediction
            clicks += [best.click] if best.click else []
            yield replace(best, seconds=watch.seconds)
            watch, tried = Stopwatch(), []
    except (Interrupted, NotReady):
        for step in tried[:1]:  # nobody has rated it, but it may be all there is
            prediction, turn = step.prediction, Turn("", Finish())
            yield step
        yield Step(turn, None, prediction, watch.seconds, "deadline")
    finally:
        deadline.close()


class _Branches:
    """Candidates: drawn, segmented, rated."""

    def __init__(self, expression: str, view: View, segmenter: Segmenter, tree: Tree) -> None:
        self._expression, self._view, self._segmenter = expression, view, segmenter
        self._tree, self._rng = tree, np.random.default_rng(tree.seed)

    def sprout(self, turn: Turn, prediction: Prediction | None) -> dict[Click, Turn]:
        """The clicks of the turn and of others about the same mask."""
        turns = {turn.action: turn}
        drawn = self._view.propose(
            [Request(prediction, self._expression)],
            samples=self._tree.candidates - 1,
            temperature=self._tree.temperature,
            rng=self._rng,
        )
        for other in drawn[0]:
            rated = replace(other, predicted_iou=turn.predicted_iou)
            turns.setdefault(other.action, rated)
        return {action: other for action, other in turns.items() if isinstance(action, Click)}

    def grow(
        self,
        turns: Mapping[Click, Turn],
        prediction: Prediction | None,
        clicks: Sequence[Click],
        encoded: Any,
    ) -> list[Step]:
        """A step for each turn; one that changes nothing would end the walk."""
        steps = []
        for click, turn in turns.items():
            after = self._segmenter.decode(
                encoded, [*clicks, click], prior=prediction, box=turn.box
            )
            settled = prediction is not None and after.agrees(prediction)
            steps.append(Step(turn, click, after, {}, "unchanged" if settled else None))
        return steps

    def judge(self, tried: Sequence[Step], *, last: bool) -> tuple[Step, Turn]:
        """The step with the best-rated mask, the first of equals, and the turn that rated it.

        Each mask is looked at once: a view goes on with the reply in which it rated one.
        """
        steps = [step for step in tried if step.stop is None]
        requests = [Request(step.prediction, self._expression) for step in steps]
        turns = self._view.rate(requests)
        ratings = [-1.0 if t.predicted_iou is None else t.predicted_iou for t in turns]
        at = int(np.argmax(ratings))
        if last or self._tree.rules.accepts(turns[at].predicted_iou):
            return steps[at], turns[at]
        return steps[at], self._view.propose(requests[at : at + 1])[0][0].after(turns[at])
