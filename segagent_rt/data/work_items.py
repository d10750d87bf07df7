"""Long work in pieces that do not depend on each other, kept in a journal as they are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from segagent_rt.data.journal import CountReporter, Journal
from segagent_rt.data.record import Sample
from segagent_rt.errors import InputError


class WorkItem(Protocol):
    """Something to be done about a sample; `key` is unique in its data set."""

    @property
    def key(self) -> str: ...

    @property
    def sample(self) -> Sample: ...


P = TypeVar("P", bound=WorkItem)

ProcessItem: TypeAlias = Callable[[P], dict[str, Any]]
"""Does one piece: what a journal keeps of it, or an `InputError`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a piece: what is kept of it, or a sentence that says why there is nothing."""

    key: str
    content: dict[str, Any] | None
    problem: str | None = None


ProcessAll: TypeAlias = Callable[[Sequence[P]], Iterator[Outcome]]
"""Has pieces done, one after the other or in many processes; outcomes come in any order."""


def attempt(do: ProcessItem[P], item: P) -> Outcome:
    """Do one piece."""
    try:
        return Outcome(item.key, do(item))
    except InputError as error:
        return Outcome(item.key, None, str(error))


def sequentially(do: ProcessItem[P]) -> ProcessAll[P]:
    """Pieces are done in this process, in order."""
    return lambda items: (attempt(do, item) for item in items)


def complete(
    journal: Journal, items: Sequence[P], spread: ProcessAll[P], report_progress: CountReporter
) -> Mapping[str, str]:
    """Have everything done that the journal does not hold yet; returns what failed, by key.

    `report_progress` is called with the number of pieces done and to do, those of earlier runs not
    counted.
    """
    todo = [item for item in items if item.key not in journal.done]
    problems = dict[str, str]()
    for done, outcome in enumerate(spread(todo), 1):
        if outcome.content is None:
            problems[outcome.key] = outcome.problem or ""
        else:
            journal.append(outcome.key, outcome.content)
        report_progress(done, len(todo))
    return problems


def complete_in_order(
    journal: Journal, items: Sequence[P], spread: ProcessAll[P], report_progress: CountReporter
) -> tuple[list[Any], list[str]]:
    """As `complete`, of a journal that is opened for it.

    Returns:
        What it holds then of the pieces, in their order, and a sentence for each that failed.

    Raises:
        OutputError: the journal cannot be written, or belongs to another run.
    """
    with journal:
        problems = complete(journal, items, spread, report_progress)
    failed = [f"{i.sample.source}: {problems[i.key]}" for i in items if i.key in problems]
    return [journal.done[item.key] for item in items if item.key in journal.done], failed


def shards(items: Sequence[P], most: int) -> list[list[P]]:
    """Neighbours that share a picture stay together, `most` at a time."""
    found, picture = list[list[P]](), None
    for item in items:
        if not found or item.sample.image != picture or len(found[-1]) == most:
            found.append([])
        picture = item.sample.image
        found[-1].append(item)
    return found
