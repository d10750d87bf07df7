"""When a walk ends, and when it begins again."""

from collections.abc import Sequence
from dataclasses import dataclass

from segagent_rt.types import Finish, Malformed, Stop, Turn


@dataclass(frozen=True, slots=True)
class Rules:
    """When to stop clicking, and what to think of a first click.

    Attributes:
        max_clicks: the budget (7 in SegAgent, section 5.1).
        accept: a mask that the annotator rates this high is good enough; None to never accept.
        doubt: the mask of a first click that the annotator rates lower than this is put away, and
            another first click is tried; None to keep it, as SegAgent does.
        patience: as many masks in a row rated no better than an earlier one; None to go on.
        settles: whether a click that leaves the mask as it was is the last.
        rates_last: whether the mask that uses up the budget is rated too; SegAgent's is not.
        deadline: seconds after which the best mask so far is the result; a running call is stopped.
    """

    max_clicks: int = 7
    accept: float | None = 0.9
    doubt: float | None = 0.5
    patience: int | None = None
    settles: bool = True
    rates_last: bool = True
    deadline: float | None = None

    @classmethod
    def fixed(cls, clicks: int, *, rates_last: bool = True) -> "Rules":
        """So many clicks, whatever the annotator thinks of their masks: for measuring."""
        return cls(clicks, accept=None, doubt=None, settles=False, rates_last=rates_last)

    def verdict(self, turn: Turn, clicks: int, ratings: Sequence[float | None]) -> Stop | None:
        """Why to stop instead of making the click that `turn` proposes, or None to make it."""
        rated = [rating for rating in ratings if rating is not None]
        if rated and self.accepts(rated[-1]):
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

    def accepts(self, rating: float | None) -> bool:
        """Whether a mask that is rated so needs no further click."""
        return self.accept is not None and rating is not None and rating >= self.accept

    def doubts(self, turn: Turn) -> bool:
        """Whether a first click was a wrong one, by what `turn` says of its mask."""
        rating = turn.predicted_iou
        return self.doubt is not None and rating is not None and rating < self.doubt
