"""Sessions are used where they can be, and outputs of foreign graphs are checked before anything
is computed with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.errors import EngineRefused, RuntimeClosed
from segagent_rt.types import Buffers, DeviceTensor, Feeds, Names, Session

Shape: TypeAlias = tuple[int | str, ...]
"""A length that must be so, or the name of one that is the same wherever the name occurs."""


class SessionWrapper:
    """What is the same of a session and of one around it. Classes below it add their `run`."""

    __slots__ = ()
    session: Session

    @property
    def inputs(self) -> Names:
        return self.session.inputs

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceTensor:
        return self.session.allocate(shape, dtype)

    def close(self) -> None:
        self.session.close()


@dataclass(frozen=True, slots=True)
class CheckedSession(SessionWrapper):
    """A session whose outputs are finite arrays of floats of the shapes that a manifest implies.

    Attributes:
        session: runs the graph.
        name: what errors call the graph.
        shapes: of the outputs that are checked; those that stay with the backend are not.
    """

    session: Session
    name: str
    shapes: Mapping[str, Shape]

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        """As `Session.run`.

        Raises:
            EngineRefused: an output is not what it should be.
        """
        results = self.session.run(feeds, outputs, into=into, keep=keep)
        lengths: dict[str, int] = {}
        for output, shape in self.shapes.items():
            if output in results and output not in keep:
                self._check(output, results[output], shape, lengths)
        return results

    def _check(self, output: str, found: Any, shape: Shape, lengths: dict[str, int]) -> None:
        known = isinstance(found, np.ndarray) and found.dtype.kind == "f"
        if not known or not (found.shape == shape or _fits(found.shape, shape, lengths)):
            wanted = "x".join(map(str, shape))
            has = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else "none"
            raise EngineRefused(
                f"the {self.name} does not fit its manifest: `{output}` is {has}, not {wanted}",
                hint="export the bundle again, or ask its author",
            )
        if not np.isfinite(found).all():
            raise EngineRefused(
                f"the {self.name} computes `{output}` with numbers that are not finite",
                hint="its weights are damaged, or too large for its precision: "
                "try another --backend, or export the checkpoint again",
            )


def check_process(loaded_in: int, name: str) -> None:
    """A session does not outlive a fork: its threads and its device stay with the parent.

    Raises:
        RuntimeClosed: this is not the process with the number `loaded_in`.
    """
    if loaded_in != os.getpid():
        raise RuntimeClosed(
            f"{name} was loaded before a fork, and does not run after it",
            hint="load the bundle in each process, or start processes with `spawn`",
        )


def closed(name: str) -> RuntimeClosed:
    """The error about a session that is closed."""
    return RuntimeClosed(f"{name} is closed", hint="load the bundle again")


def _fits(found: tuple[int, ...], shape: Shape, lengths: dict[str, int]) -> bool:
    if len(found) != len(shape) or 0 in found:
        return False
    return all(
        side == (lengths.setdefault(wanted, side) if isinstance(wanted, str) else wanted)
        for side, wanted in zip(found, shape, strict=True)
    )
