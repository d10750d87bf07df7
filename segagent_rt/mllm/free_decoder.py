"""Decoding without a grammar, for checkpoints whose replies it does not know."""

from __future__ import annotations

from collections.abc import Collection

from segagent_rt.mllm.decoder import DecodedReply, Prompt, Sampler
from segagent_rt.mllm.language_model import KVCache, LanguageModel

LONGEST = 128
"""Tokens after which a reply that does not end is cut."""


class FreeDecoder:
    """Writes what the model would write by itself, one token at a time, up to a stop token."""

    def __init__(self, model: LanguageModel, stops: Collection[int]) -> None:
        self._model, self._stops = model, frozenset(stops)

    def write(self, cache: KVCache, prompt: Prompt, sampler: Sampler) -> DecodedReply:
        """Read the prompt into the cache and decode a reply; stop tokens are not part of it."""
        logits = self._model.forward_full_vocab(cache, prompt.embeddings, prompt.positions)[0]
        tokens: list[int] = []
        while (token := sampler(logits)) not in self._stops:
            tokens.append(token)
            if len(tokens) == LONGEST:
                break
            logits = self._model.forward_full_vocab(cache, self._model.embed([token]))[0]
        return DecodedReply(tuple(tokens), (), len(tokens))
