"""Our side of the benchmarks at real size: a variant's MLLM, with an ear at what it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from real_bundle import BundlePlace

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import Part, open_bundle
from segagent_rt.mllm.decoder import ConstrainedDecoder, DecodedReply, Prompt, Sampler, greedy
from segagent_rt.runtime import open_mllm
from segagent_rt.types import Request, RgbImage, Session, Turn, View

Floats = npt.NDArray[np.float32]


class Ear:
    """Keeps the logits behind every choice of a reply, and counts decoder calls."""

    def __init__(self) -> None:
        self.heard, self.calls = list[Floats](), 0

    def writer(self) -> type[ConstrainedDecoder]:
        """A writer that is listened to."""
        ear = self

        class Listened(ConstrainedDecoder):
            def write(self, *asked: Any) -> DecodedReply:
                written = super().write(*asked)
                ear.calls += 1 + written.calls
                return written

            def _choose(self, pen: Any, logits: Floats, sampler: Sampler) -> None:
                ear.heard.append(np.array(logits))
                super()._choose(pen, logits, sampler)

        return Listened

    def take(self) -> tuple[Floats, int]:
        """Logits [choices, rows] and calls since the last time."""
        heard, calls = self.heard, self.calls
        self.heard, self.calls = [], 0
        return np.stack(heard) if heard else np.zeros((0, 0), np.float32), calls


class Replies:
    """Keeps the tokens of every reply that an annotator gives."""

    def __init__(self, annotator: MllmAnnotator) -> None:
        self._decode, annotator.decode = annotator.decode, self._keep
        self._said = list[tuple[int, ...]]()

    def _keep(self, tokens: Sequence[int]) -> str:
        self._said.append(tuple(tokens))
        return self._decode(tokens)

    def take(self) -> list[tuple[int, ...]]:
        """The replies since the last time."""
        said, self._said = self._said, []
        return said


@dataclass(frozen=True, slots=True)
class OurClick:
    """A turn, all its seconds, the tokens of its reply, the logits [choices, rows] of it, and the
    decoder calls for it."""

    turn: Turn
    total: float
    tokens: tuple[int, ...]
    logits: Floats
    calls: int

    @property
    def language(self) -> float:
        """Reading the prompt and writing the reply."""
        return self.turn.seconds["language"]


class OurMllm:
    """One variant; the full-precision one is run as it lies in its file, to save memory."""

    def __init__(
        self,
        place: BundlePlace,
        variant: str,
        backend: str = "cpu",
        wrap: Callable[[str, Session], Session] = lambda role, session: session,
    ) -> None:
        self._where = SessionOptions(backend, skip_prepack=variant == "reference")
        self._variant, self._wrap, self._sessions = variant, wrap, list[Session]()
        part = open_bundle(place.bundle).part("mllm")
        self.ear = Ear()
        self.annotator: MllmAnnotator = open_mllm(part, self._open)
        self.annotator.decoder_class = self.ear.writer()
        self._replies = Replies(self.annotator)

    def _open(self, part: Part, role: str) -> Session:
        session = self._wrap(role, part.session(role, self._where, self._variant))
        self._sessions.append(session)
        return session

    def click(self, image: RgbImage, expression: str) -> OurClick:
        """The first click on an image that was not seen before."""
        start = time.perf_counter()
        view = self.annotator.look(image)
        return self.ask(view, expression, start)

    def ask(self, view: View, expression: str, start: float | None = None) -> OurClick:
        """The first click for an expression; `start` is when its time began."""
        self.ear.take()
        start = time.perf_counter() if start is None else start
        turn = view.propose([Request(None, expression)])[0][0]
        total = time.perf_counter() - start
        return OurClick(turn, total, self._replies.take()[-1], *self.ear.take())

    def split(self, image: RgbImage, expression: str) -> Floats:
        """As `click`, with the prompt read in two calls: up to the end of the picture, and on."""
        annotator, model = self.annotator, self.annotator.model
        grammar = annotator.grammar(expression, (1, 1))
        assert grammar is not None
        lead, tail = annotator.prompt(expression)
        clean = annotator.vision_encoder.resize(image)
        seen = annotator.vision_encoder.embed(annotator.picture(image, clean, None))
        embeddings = np.concatenate([model.embed(lead), seen.embeddings], axis=1)
        positions = annotator.settings.language.rope.before_text(len(lead), seen.grid)
        cache = model.new_cache(annotator.room(seen.embeddings.shape[1]))
        model.forward(cache, embeddings, positions)
        rest = Prompt(model.embed(tail), guess=grammar.opening)
        self.ear.take()
        writer = self.ear.writer()(model, annotator.settings.head_rows)
        writer.write(cache, rest, grammar, greedy, grammar.ended)
        return self.ear.take()[0]

    def close(self) -> None:
        """Release the graphs."""
        for session in self._sessions:
            session.close()


def apart(found: Floats, wanted: Floats) -> float:
    """Root mean square of the difference of logits [choices, rows], as a share of the spread of the
    rows: of their median deviation, for with random weights the last token's own row stands out."""
    if found.shape != wanted.shape:
        return float("inf")
    spread = np.median(np.abs(wanted - np.median(wanted, -1, keepdims=True)), -1, keepdims=True)
    return float(np.sqrt(np.mean(((found - wanted) / spread) ** 2)))
