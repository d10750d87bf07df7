"""The loop: look at the mask so far, click, segment, look again."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from segagent_rt.errors import Interrupted
from segagent_rt.timing import Deadline, Stopwatch
from segagent_rt.types import (
    Click,
    Finish,
    Malformed,
    Prediction,
    Request,
    Segmenter,
    Step,
    Stop,
    Trajectory,
    Turn,
    View,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """When to stop clicking.

    Attributes:
        max_clicks: the budget (7 in SegAgent, section 5.1).
        accept: a mask that the annotator rates this high is good enough; None to never accept.
        patience: as many masks in a row rated no better than an earlier one; None to go on.
        settles: whether a click that leaves the mask as it was is the last.
        rates_last: whether the mask that uses up the budget is rated too; SegAgent's is not.
        deadline: seconds after which the best mask so far is the result; a running call is stopped.
    """

    max_clicks: int = 7
    accept: float | None = 0.9
    patience: int | None = None
    settles: bool = True
    rates_last: bool = True
    deadline: float | None = None

    def verdict(self, turn: Turn, clicks: int, ratings: Sequence[float | None]) -> Stop | None:
        """Why to stop instead of making the click that `turn` proposes, or None to make it."""
        rated = [rating for rating in ratings if rating is not None]
        if self.accept is not None and rated and rated[-1] >= self.accept:
            return "accepted"
        if clicks == self.max_clicks:
            return "budget"
        if isinstance(turn.action, Malformed):
            return "malformed"
        if isinstance(turn.action, Finish):
            return "finished"
        best = rated.index(max(rated)) if rated else 0
        if self.patience is not None and rated and len(rated) - 1 - best >= self.patience:
            return "no gain"
        return None


def walk(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: "Future[Any]",
    *,
    rules: Rules | None = None,
    prior: Prediction | None = None,
) -> Iterator[Step]:
    """Yield a step for every click, and a last one without a click that says why it ended.

    The embedding is a future: the segmenter encodes meanwhile. `prior` is a mask to start from.
    """
    rules = rules or Rules()
    prediction, clicks, ratings = prior, list[Click](), list[float | None]()
    ended: Stop | None = None
    with closing(Deadline(rules.deadline)) as deadline:
        while ended is None:
            watch, turn = Stopwatch(), Turn("", Finish())
            try:
                with deadline.active(), watch("annotate"):
                    request = [Request(prediction, expression)]
                    asking = len(clicks) < rules.max_clicks
                    turn = view.propose(request)[0][0] if asking else view.rate(request)[0]
                ratings += [] if prediction is None else [turn.predicted_iou]
                stop = rules.verdict(turn, len(clicks), ratings)
                if stop is not None or not isinstance(turn.action, Click):
                    yield Step(turn, None, prediction, watch.seconds, stop)
                    return
                clicks.append(turn.action)
                with deadline.active(), watch("segment"):
                    encoded = embedding.result(deadline.remaining)
                    after = segmenter.decode(encoded, clicks, prior=prediction, box=turn.box)
            except (Interrupted, NotReady):
                yield Step(turn, None, prediction, watch.seconds, "deadline")
                return
            # Shown the same mask again, the annotator would say the same again.
            settled = rules.settles and prediction is not None and after.agrees(prediction)
            spent = not rules.rates_last and len(clicks) == rules.max_clicks
            ended = "unchanged" if settled else "budget" if spent else None
            prediction = after
            yield Step(turn, turn.action, after, watch.seconds, ended)


def annotate(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: "Future[Any]",
    *,
    rules: Rules | None = None,
    prior: Prediction | None = None,
) -> Trajectory:
    """Walk to the end and keep every step."""
    steps = walk(expression, view, segmenter, embedding, rules=rules, prior=prior)
    return Trajectory(expression, tuple(steps), prior)
