"""The states that one object went through: the model's steps and a person's, to undo and redo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segagent_rt.types import Prediction, Step, Trajectory


@dataclass(frozen=True, slots=True)
class ObjectState:
    """An object of an open image at one moment; immutable.

    Attributes:
        number: the object's number in its image, from 1.
        expression: the object in words; empty if it was only shown by hand.
        steps: how its mask came about. Steps with a `turn` are the model's, others a person's.
        shown: the index of the step whose mask is shown; None if there is no mask.
        undoable: states before this one.
        redoable: states that were undone.
    """

    number: int
    expression: str = ""
    steps: tuple[Step, ...] = ()
    shown: int | None = None
    undoable: int = 0
    redoable: int = 0

    @property
    def step(self) -> Step | None:
        """The step whose mask is shown."""
        return None if self.shown is None else self.steps[self.shown]

    @property
    def prediction(self) -> Prediction | None:
        """The mask that is shown."""
        return None if self.step is None else self.step.prediction

    @property
    def base(self) -> Sequence[Step]:
        """The steps that the next click or box continues."""
        return () if self.shown is None else self.steps[: self.shown + 1]

    def after_model(self, expression: str, steps: Sequence[Step]) -> ObjectState:
        """The state after further steps of a model's run.

        Args:
            expression: what the model was asked.
            steps: all steps of the run so far. The best-rated mask is shown once it has ended,
                until then the last one.
        """
        with_mask = [at for at, step in enumerate(steps) if step.prediction is not None]
        shown = with_mask[-1] if with_mask else None
        best = Trajectory(expression, tuple(steps)).best
        if steps and steps[-1].stop is not None and best is not None:
            shown = next(at for at, step in enumerate(steps) if step is best)
        return replace(self, expression=expression, steps=tuple(steps), shown=shown)

    def after_person(self, steps: Sequence[Step]) -> ObjectState:
        """The state after a click or a box of a person, the last one of `steps`."""
        return replace(self, steps=tuple(steps), shown=len(steps) - 1)


class ObjectHistory:
    """All states of one object. Threads take turns by the lock of the image.

    Args:
        number: the object's number.
        most: states that are kept.
    """

    def __init__(self, number: int, most: int) -> None:
        self._states, self._at, self._most = [ObjectState(number)], 0, most

    @property
    def state(self) -> ObjectState:
        """The current state."""
        undoable, redoable = self._at, len(self._states) - 1 - self._at
        return replace(self._states[self._at], undoable=undoable, redoable=redoable)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever done to the object."""
        return len(self._states) == 1 and not self._states[0].steps

    @property
    def predictions(self) -> list[Prediction]:
        """The masks of all states, for an estimate of their memory."""
        steps = (step for state in self._states for step in state.steps)
        return [step.prediction for step in steps if step.prediction is not None]

    def push(self, state: ObjectState) -> ObjectState:
        """Make a state the current one; what was undone is forgotten."""
        self._states[self._at + 1 :] = [state]
        del self._states[: -self._most]
        self._at = len(self._states) - 1
        return self.state

    def move_to(self, at: int) -> ObjectState:
        """Undo or redo up to the state with so many before it, or the nearest one that there is."""
        self._at = min(max(at, 0), len(self._states) - 1)
        return self.state
