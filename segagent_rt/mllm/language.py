"""The language model of an MLLM: embeddings in, logits out, keys and values in a reused buffer.

Embeddings are float32 [1 + deepstack, S, hidden]: what goes in before the first layer, and what is
added behind each of the first few layers (zero for text).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from segagent_rt.errors import ManifestInvalid
from segagent_rt.mllm.rope import Positions, RopeSettings
from segagent_rt.types import Array, Resident, Session

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """Shapes of a decoder graph; part of an MLLM's manifest."""

    layers: int
    hidden: int
    kv_heads: int
    rope: RopeSettings
    most_tokens: int = 4096
    deepstack: int = 0


def rows_for(tokens: int) -> int:
    """Rows of the cache for so many tokens."""
    return -(-tokens // 64) * 64


Buffers = Mapping[str, Resident]
"""Keys and values of every layer, [1, heads, rows, head_dim] each."""

LEFT = 2
"""Caches' buffers that are kept for the next picture: as many as a walk needs."""


class Cache:
    """Keys and values of a sequence, in buffers of `capacity` rows; only the first `length` count.

    Going back is setting `length`: what lies behind it is overwritten by the next call.
    """

    def __init__(self, buffers: Buffers, capacity: int, half: int) -> None:
        self.buffers, self.capacity, self.length = buffers, capacity, 0
        self.cos = np.zeros((capacity, half), np.float32)
        self.sin = np.zeros((capacity, half), np.float32)

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

    def new_cache(self, tokens: int) -> Cache:
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
        capacity = rows_for(tokens)
        buffers = self._take(capacity) or self._allocate(capacity)
        cache = Cache(buffers, capacity, self.settings.rope.head_dim // 2)
        finalize(cache, self._left.append, (capacity, buffers)).atexit = False
        return cache

    def _take(self, capacity: int) -> Buffers | None:
        with suppress(IndexError):
            rows, buffers = self._left.pop()
            return buffers if rows == capacity else None
        return None

    def _allocate(self, capacity: int) -> Buffers:
        shape = (1, self.settings.kv_heads, capacity, self.settings.rope.head_dim)
        return {
            f"{number}.{kind}": self._session.allocate(shape, np.float32)
            for number in range(self.settings.layers)
            for kind in ("key", "value")
        }

    def embed(self, tokens: Sequence[int]) -> Floats:
        """Embeddings of text."""
        words = self._table[np.asarray(tokens, np.int64)].astype(np.float32)[None]
        deeper = np.zeros((self.settings.deepstack, *words.shape[1:]), np.float32)
        return np.concatenate([words, deeper]) if self.settings.deepstack else words

    def feed(self, cache: Cache, embeddings: Floats, positions: Positions, rows: int = 1) -> Floats:
        """Append tokens to the cache; returns logits of the last `rows` of them, [rows, V'], over
        the tokens that the decoder's own head was cut to. Positions are int64 [3, S]."""
        return self._run(cache, embeddings, positions, rows, "logits")

    def feed_whole(self, cache: Cache, embeddings: Floats, positions: Positions) -> Floats:
        """As `feed`; returns logits of the last token over the whole vocabulary, [1, V]."""
        assert self._head is not None
        hidden = self._run(cache, embeddings, positions, 1, "hidden")
        logits: Floats = self._head.run({"hidden": hidden}, ["logits"])["logits"]
        return logits

    def _run(
        self, cache: Cache, embeddings: Floats, positions: Positions, rows: int, output: str
    ) -> Floats:
        count, start = embeddings.shape[1], cache.length
        cache.length += count
        cos, sin = self.settings.rope.angles(positions)
        cache.cos[start : cache.length], cache.sin[start : cache.length] = cos, sin
        feeds: dict[str, Any] = {
            "inputs_embeds": embeddings[:1],
            "rope_cos": cache.cos,
            "rope_sin": cache.sin,
            "length": np.array([cache.length], np.int32),
            "logits_at": np.arange(count - rows, count),
        }
        if self.settings.deepstack:
            feeds["deepstack_embeds"] = embeddings[1:]
        into = {f"present.{name}": buffer for name, buffer in cache.buffers.items()}
        feeds |= {f"past.{name}": buffer for name, buffer in cache.buffers.items()}
        result: Floats = self._session.run(feeds, [output], into=into)[output]
        return result
