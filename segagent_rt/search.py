"""The loop with several clicks tried at each step: it goes on from the best-rated mask.

This is best-step selection (SegAgent, algorithm 2). Predictions are values, so a candidate costs
one decoding and one look; the look that rates a mask also proposes the click after it, which makes
1 + steps * candidates looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotReady
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segagent_rt.errors import Interrupted
from segagent_rt.loop import Stages, StoppingRules, completed, iter_steps
from segagent_rt.timing import Deadline, Stopwatch
from segagent_rt.types import Prediction, Sampling, Segmenter, Step, View


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How widely to search, and when to stop.

    Attributes:
        rules: of the loop. `retry_below` applies to one candidate only, because more candidates
            try several clicks anyway. More candidates rate every mask, the last one too, and
            always stop if no click changes the mask.
        candidates: clicks tried at each step: the most likely one, and samples. With one, the
            search is the loop.
        temperature: of the samples. The one that SegAgent used is not published.
        seed: of the samples.
    """

    rules: StoppingRules = field(default_factory=StoppingRules)
    candidates: int = 3
    temperature: float = 1.0
    seed: int = 0


def search_steps(
    expression: str,
    view: View,
    segmenter: Segmenter,
    embedding: Future[Any],
    *,
    config: SearchConfig,
    prior: Prediction | None = None,
) -> Iterator[Step]:
    """Annotate step by step; yield the steps that were chosen, as `loop.iter_steps` does."""
    if config.candidates == 1:
        yield from iter_steps(
            expression, view, segmenter, embedding, rules=config.rules, prior=prior
        )
        return
    rules = replace(config.rules, rate_last_mask=True, stop_if_unchanged=True, accept_unrated=False)
    rng, steps = np.random.default_rng(config.seed), list[Step]()
    with closing(Deadline(rules.deadline)) as deadline:
        stages = Stages(expression, view, segmenter, embedding, deadline)
        while not steps or steps[-1].stop is None:
            watch, tried = Stopwatch(), [Step()]
            try:
                if prior is not None and not steps:
                    tried = [Step(prediction=prior)]
                else:
                    tried = propose(stages, steps, config, rng, watch)
                    tried = [stages.decode(step, steps, watch) for step in tried]
                stops = [rules.stop_unrated(step, steps) for step in tried]
                stop = stops[0]
                if not all(stops):
                    changed = [step for step, stop in zip(tried, stops, strict=True) if not stop]
                    tried = [best_of(stages.rate(changed, watch))]
                    stop = rules.stop_rated([*steps, tried[0]])
            except (Interrupted, NotReady):
                stop = "deadline"
            steps.append(completed(tried[0], steps, stop, watch))
            yield steps[-1]


def propose(
    stages: Stages,
    steps: Sequence[Step],
    config: SearchConfig,
    rng: np.random.Generator,
    watch: Stopwatch,
) -> list[Step]:
    """The most likely action and sampled ones, each once. Samples without an action are left out;
    if the most likely answer has none, nothing is sampled."""
    first = stages.propose(steps, watch)[0]
    if first.click is None and first.box is None:
        return [first]
    sampling = Sampling(config.candidates - 1, config.temperature, rng)
    samples = stages.propose(steps, watch, sampling)
    distinct = {first.click or first.box: first}
    for step in samples:
        distinct.setdefault(step.click or step.box, step)
    return [step for action, step in distinct.items() if action is not None]


def best_of(steps: Sequence[Step]) -> Step:
    """The step with the best-rated mask, the first of equals."""
    return max(steps, key=lambda step: -1.0 if step.rating is None else step.rating)
