"""A contender for tests: our own runtime again, wrong if told so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import Runtime
from segagent_rt.types import Click, Step, Trajectory


@dataclass(frozen=True)
class Twin:
    runtime: Runtime
    flipped: bool = False
    """Whether its clicks have the wrong sign."""

    def describe(self) -> dict[str, Any]:
        return {"twin": True}

    def annotate(self, image, expression, clicks):
        rules = StoppingRules.fixed(clicks)
        found = self.runtime.open(image).annotate(expression, rules=rules)
        steps = [step for step in found.steps if step.click is not None]
        return Trajectory(expression, tuple(map(self._said, steps)))

    def _said(self, step: Step) -> Step:
        action = step.turn.action
        if not self.flipped:
            return step
        wrong = Click(action.x, action.y, not action.positive)
        return replace(step, click=wrong, turn=replace(step.turn, action=wrong))
