"""The language model of an MLLM: embeddings in, logits out, keys and values in a reused buffer.

Embeddings are float32 [1 + deepstack, S, hidden]: what goes in before the first layer, and what is
added behind each of the first few layers (zero for text).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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
    `sin` are the rotary angles of every row, those to come too.
    """

    def __init__(self, buffers: Buffers, capacity: int, rope: RopeSettings) -> None:
        self.capacity, self.length, self._rope = capacity, 0, rope
        self.past = {f"past.{name}": buffer for name, buffer in buffers.items()}
        self.present = {f"present.{name}": buffer for name, buffer in buffers.items()}
        self.cos, self.sin = np.empty((2, capacity, rope.head_dim // 2), np.float32)
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


class LanguageModel:
    """A decoder graph with its table of token embeddings, and the full head if there is one."""

    def __init__(
        self,
        session: Session,
        table: Array,
        settings: LanguageSettings,
        head: Session | None = None,
    ) -> None:
        self._session, self._head = session, head
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
        return self._run(cache, embeddings, positions, rows, "logits")

    def forward_full_vocab(
        self, cache: KVCache, embeddings: Floats, positions: Positions | None = None
    ) -> Floats:
        """As `feed`; returns logits of the last token over the whole vocabulary, [1, V]."""
        assert self._head is not None
        hidden = self._run(cache, embeddings, positions, 1, "hidden")
        logits: Floats = self._head.run({"hidden": hidden}, ["logits"])["logits"]
        return logits

    def _run(
        self,
        cache: KVCache,
        embeddings: Floats,
        positions: Positions | None,
        rows: int,
        output: str,
    ) -> Floats:
        if positions is not None:
            cache.place(positions)
        count = embeddings.shape[1]
        cache.length += count
        feeds: dict[str, Any] = {
            "inputs_embeds": embeddings[:1],
            "rope_cos": cache.cos,
            "rope_sin": cache.sin,
            "length": np.array([cache.length], np.int32),
            "logits_at": np.arange(count - rows, count),
        }
        if self.settings.deepstack:
            feeds["deepstack_embeds"] = embeddings[1:]
        results = self._session.run(feeds | cache.past, (output,), into=cache.present)
        logits: Floats = results[output]
        if len(logits) != rows:
            raise EngineRefused(f"the decoder gives {len(logits)} rows of {output}, not {rows}")
        return logits
