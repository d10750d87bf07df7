"""Masked greedy decoding, one token at a time: what jump-forward decoding must equal."""

from __future__ import annotations

from segagent_rt.mllm.decoder import ConstrainedDecoder, DecodedReply, Prompt, Sampler, StopAt
from segagent_rt.mllm.grammar import Automaton
from segagent_rt.mllm.language_model import KVCache


class StepwiseDecoder(ConstrainedDecoder):
    """The plain way: every token is fed alone, and picked among those that the grammar allows."""

    def write(
        self,
        cache: KVCache,
        prompt: Prompt,
        automaton: Automaton,
        sampler: Sampler,
        stop_at: StopAt,
    ) -> DecodedReply:
        """As jump-forward decoding, but what is forced is fed alone too."""
        logits = self._model.forward(cache, prompt.embeddings, prompt.positions)[0]
        tokens, choices, state = list[int](), [], automaton.start
        while True:
            token, *others = automaton.edges(state)
            if others:
                choice = self._choice(automaton, state, logits)
                token = choice.tokens[sampler(choice.scores)]
                choices.append(choice)
            tokens.append(token)
            state = automaton.edges(state)[token]
            if stop_at(state):
                return DecodedReply(tuple(tokens), tuple(choices), len(tokens) - 1)
            logits = self._model.forward(cache, self._model.embed([token]))[0]
