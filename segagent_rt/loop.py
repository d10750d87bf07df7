"""The loop: look at the mask so far, click, segment, look again."""

from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from contextlib import closing
from typing import Any

from segagent_rt.elsewhere import elsewhere
from segagent_rt.errors import Interrupted
from segagent_rt.rules import Rules
from segagent_rt.timing import Deadline, Stopwatch
from segagent_rt.types import (
    Click,
    Finish,
    Prediction,
    Request,
    Segmenter,
    Step,
    Stop,
    Trajectory,
    Turn,
    View,
)


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

    The embedding is a future: the segmenter encodes meanwhile, or when it is asked for. `prior` is
    a mask to start from.
    """
    rules = rules or Rules()
    prediction, clicks, tried = prior, list[Click](), list[Prediction]()
    ratings = list[float | None]()
    ended: Stop | None = None
    with closing(Deadline(rules.deadline)) as deadline:
        while ended is None:
            watch, turn, anew = Stopwatch(), Turn("", Finish()), False
            try:
                with deadline.active(), watch("annotate"):
                    spent = len(tried) >= rules.max_clicks
                    turn = _ask(view, Request(prediction, expression), rules, spent=spent)
                ratings += [] if prediction is None else [turn.predicted_iou]
                stop = rules.verdict(turn, len(tried), ratings)
                if stop is None and prior is None and len(clicks) == 1 and rules.doubts(turn):
                    with deadline.active(), watch("annotate"):
                        other = elsewhere(expression, view, turn, tried)
                    turn, anew = other or turn, other is not None
                if stop is not None or not isinstance(turn.action, Click):
                    yield Step(turn, None, prediction, watch.seconds, stop)
                    return
                clicks = [turn.action] if anew else [*clicks, turn.action]
                with deadline.active(), watch("segment"):
                    encoded = embedding.result(deadline.remaining)
                    before = None if anew else prediction
                    after = segmenter.decode(encoded, clicks, prior=before, box=turn.box)
            except (Interrupted, NotReady):
                yield Step(turn, None, prediction, watch.seconds, "deadline")
                return
            # Shown the same mask again, the annotator would say the same again.
            settled = rules.settles and prediction is not None and after.agrees(prediction)
            tried.append(after)
            last = not rules.rates_last and len(tried) == rules.max_clicks
            ended = "unchanged" if settled else "budget" if last else None
            prediction = after
            yield Step(turn, clicks[-1], after, watch.seconds, ended, anew=anew)


def _ask(view: View, request: Request, rules: Rules, *, spent: bool) -> Turn:
    """The rating of the mask shown; and the next click, unless it is accepted or none is left."""
    if request.prediction is None or (rules.accept is None and not spent):
        return view.propose([request])[0][0]
    rated = view.rate([request])[0]
    if spent or rules.accepts(rated.predicted_iou):
        return rated
    return view.propose([request])[0][0].after(rated)


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
