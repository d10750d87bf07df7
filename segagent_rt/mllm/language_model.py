"""The language model of an MLLM: embeddings in, logits out, keys and values in a reused buffer.

Embeddings are float32 [1 + deepstack, S, hidden]: what goes in before the first layer, and what is
added behind each of the first few layers (zero for text).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from segagent_rt.bounds import Count, Layers, Tokens
from segagent_rt.errors import EngineRefused, ManifestInvalid
from segagent_rt.memory import check_memory
from segagent_rt.mllm.rope import Positions, RopeSettings
from segagent_rt.types import Array, Buffers, Session

Floats = npt.NDArray[np.float32]

BRANCH_INPUT = "branch"
"""The input of decoder graphs that can read branches; see `LanguageModel.forward_branches`."""

MOST_BRANCH_TOKENS = 48
"""Tokens of the longest call with branches: the third digit of a number decides between up to
eleven branches, 32 tokens in all, and up to a dozen known tokens come before them."""


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """Shapes of a decoder graph; part of an MLLM's manifest."""

    layers: Layers
    hidden: Count
    kv_heads: Count
    rope: RopeSettings
    most_tokens: Tokens = 4096
    deepstack: Layers = 0


def cache_rows(tokens: int) -> int:
    """Rows of the cache for so many tokens."""
    return -(-tokens // 64) * 64


LEFT = 2
"""Caches' buffers that are kept for the next picture: as many as a trajectory needs."""


class KVCache:
    """Keys and values of a sequence, in buffers of `capacity` rows; only the first `length` count.

    `buffers` hold keys and values of every layer, [1, heads, rows, head_dim] each. Going back is
    setting `length`: what lies behind it is overwritten by the next call. `cos` and
    `sin` are the rotary angles of every row, those to come too; `branch` is the branch of every
    row, 0 for what all see.
    """

    def __init__(self, buffers: Buffers, capacity: int, rope: RopeSettings) -> None:
        self.capacity, self.length, self._rope = capacity, 0, rope
        self.past = {f"past.{name}": buffer for name, buffer in buffers.items()}
        self.present = {f"present.{name}": buffer for name, buffer in buffers.items()}
        self.cos, self.sin = np.empty((2, capacity, rope.head_dim // 2), np.float32)
        self.branch = np.zeros(capacity, np.int32)
        self.place(np.empty((3, 0), np.int64))

    def place(self, positions: Positions) -> None:
        """Say where the next tokens stand, int64 [3, T]; text counts on behind them."""
        left = self.capacity - self.length - positions.shape[1]
        text = positions.max(initial=-1) + 1 + np.arange(left)
        every = np.concatenate([positions, np.broadcast_to(text, (3, left))], axis=1)
        self.cos[self.length :], self.sin[self.length :] = self._rope.angles(every)

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        assert length <= self.length
        self.length = length

    @contextmanager
    def branching(self, start: int, lengths: Sequence[int]) -> Iterator[None]:
        """For one call, let branches of these lengths lie one after the other from row `start` on:
        each stands where the first does, and none sees another."""
        rows = slice(start, start + sum(lengths))
        angles = [(table, table[rows].copy()) for table in (self.cos, self.sin)]
        steps = [step for length in lengths for step in range(length)]
        self.branch[rows] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        for table, text in angles:
            table[rows] = text[steps]
        try:
            yield
        finally:
            self.branch[rows] = 0
            for table, text in angles:
                table[rows] = text


class LanguageModel:
    """A decoder graph with its table of token embeddings, and the full head if there is one.

    Attributes:
        settings: shapes of the graph.
        has_branches: whether the graph can read branches.
        branch_tokens: the most tokens of a call with branches; 0 if there is to be none.
    """

    def __init__(
        self,
        session: Session,
        table: Array,
        settings: LanguageSettings,
        head: Session | None = None,
    ) -> None:
        self._session, self._head = session, head
        self.has_branches = BRANCH_INPUT in session.inputs
        self.branch_tokens = 0
        self._table = np.asarray(table)  # no `memmap`, whose every slice costs
        self._left: deque[tuple[int, Buffers]] = deque(maxlen=LEFT)
        self.settings = settings

    def new_cache(self, tokens: int) -> KVCache:
        """A cache for at least that many tokens, in the buffers of one that is gone if they fit;
        so that more do, capacities are rounded up.

        Raises:
            ManifestInvalid: the model was not made for so many.
        """
        most = self.settings.most_tokens
        if tokens > most:
            raise ManifestInvalid(
                f"the model reads at most {most} tokens, and a prompt may need {tokens}",
                hint="export it for smaller pictures",
            )
        capacity = cache_rows(tokens)
        buffers = self._take(capacity) or self._allocate(capacity)
        cache = KVCache(buffers, capacity, self.settings.rope)
        finalize(cache, self._left.append, (capacity, buffers)).atexit = False
        return cache

    def _take(self, capacity: int) -> Buffers | None:
        with suppress(IndexError):
            rows, buffers = self._left.pop()
            return buffers if rows == capacity else None
        return None

    def _allocate(self, capacity: int) -> Buffers:
        shape = (1, self.settings.kv_heads, capacity, self.settings.rope.head_dim)
        check_memory(8 * self.settings.layers * math.prod(shape), "the keys and values of a prompt")
        return {
            f"{number}.{kind}": self._session.allocate(shape, np.float32)
            for number in range(self.settings.layers)
            for kind in ("key", "value")
        }

    def embed(self, tokens: Sequence[int]) -> Floats:
        """Embeddings of text."""
        if tokens and max(tokens) >= len(self._table):
            raise ManifestInvalid(
                f"the table of embeddings has {len(self._table)} tokens, and {max(tokens)} is asked"
            )
        words = self._table[list(tokens)].astype(np.float32)[None]
        if not self.settings.deepstack:
            return words
        deeper = np.zeros((self.settings.deepstack, *words.shape[1:]), np.float32)
        return np.concatenate([words, deeper])

    def forward(
        self, cache: KVCache, embeddings: Floats, positions: Positions | None = None, rows: int = 1
    ) -> Floats:
        """Append tokens to the cache; returns logits of the last `rows` of them, [rows, V'], over
        the tokens that the decoder's own head was cut to.

        Positions are int64 [3, T], of the first T tokens; those behind are text, which counts on.
        """
        if positions is not None:
            cache.place(positions)
        return self._run(cache, embeddings, _last(rows, embeddings), "logits")

    def allow_branches(self) -> None:
        """Let decoding use `forward_branches`, if the graph can."""
        self.branch_tokens = MOST_BRANCH_TOKENS if self.has_branches else 0

    def forward_branches(
        self, cache: KVCache, tokens: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> Floats:
        """Append tokens to the cache, and get logits for several continuations in the same call.

        Args:
            cache: gets the tokens, but no branch.
            tokens: what is known, at least one token.
            branches: texts that may come next, one instead of the other.

        Returns:
            Logits [1 + branches, V'] of the last of the tokens, and of the last of each branch as
            if it alone followed them.
        """
        known, lengths = cache.length + len(tokens), [len(branch) for branch in branches]
        ends = np.cumsum([len(tokens), *lengths]) - 1
        with cache.branching(known, lengths):
            embeddings = self.embed([*tokens, *chain.from_iterable(branches)])
            logits = self._run(cache, embeddings, ends, "logits")
        cache.rewind(known)
        return logits

    def forward_full_vocab(
        self, cache: KVCache, embeddings: Floats, positions: Positions | None = None
    ) -> Floats:
        """As `forward`; returns logits of the last token over the whole vocabulary, [1, V]."""
        assert self._head is not None
        if positions is not None:
            cache.place(positions)
        hidden = self._run(cache, embeddings, _last(1, embeddings), "hidden")
        logits: Floats = self._head.run({"hidden": hidden}, ["logits"])["logits"]
        return logits

    def _run(
        self, cache: KVCache, embeddings: Floats, at: npt.NDArray[np.int64], output: str
    ) -> Floats:
        """Append tokens to the cache; returns rows of an output, of the tokens at `at`."""
        cache.length += embeddings.shape[1]
        feeds: dict[str, Any] = {
            "inputs_embeds": embeddings[:1],
            "rope_cos": cache.cos,
            "rope_sin": cache.sin,
            "length": np.array([cache.length], np.int32),
            "logits_at": at,
        }
        if self.settings.deepstack:
            feeds["deepstack_embeds"] = embeddings[1:]
        if self.has_branches:
            feeds[BRANCH_INPUT] = cache.branch
        results = self._session.run(feeds | cache.past, (output,), into=cache.present)
        rows: Floats = results[output]
        if len(rows) != len(at):
            raise EngineRefused(f"the decoder gives {len(rows)} rows of {output}, not {len(at)}")
        return rows


def _last(rows: int, embeddings: Floats) -> npt.NDArray[np.int64]:
    """Which tokens of a call the last ones are."""
    count = embeddings.shape[1]
    return np.arange(count - rows, count)
