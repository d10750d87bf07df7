"""Decoding within the reply grammar: what the grammar forces is not asked of the model.

Tokens that have no alternative ride along in the next call (jump-forward), and the end token is
never decoded. The result equals masked greedy decoding, one token at a time, token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segagent_rt.mllm.language import Cache, Floats, LanguageModel
from segagent_rt.mllm.rope import Positions
from segagent_rt.reply import Automaton, State


@dataclass(frozen=True, slots=True)
class Choice:
    """A point where the model chose: the allowed tokens, and their probabilities."""

    state: State
    tokens: tuple[int, ...]
    chances: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Written:
    """A decoded reply."""

    tokens: tuple[int, ...]
    choices: tuple[Choice, ...]
    calls: int
    """Decoder calls after the one that read the prompt."""


Pick = Callable[[npt.NDArray[np.float64]], int]
"""Index of the token to take, given logits of the allowed ones."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply follows: embeddings float32 [1 + deepstack, S, hidden] and positions int64
    [3, S]."""

    embeddings: Floats
    positions: Positions

    def following(self, count: int, skip: int = 0) -> Positions:
        """Positions of `count` text tokens behind the prompt, after `skip` others."""
        start = int(self.positions.max()) + 1 + skip
        return np.broadcast_to(start + np.arange(count), (3, count))


def greedy(logits: npt.NDArray[np.float64]) -> int:
    """The likeliest token; of equal ones the first."""
    return int(logits.argmax())


class Writer:
    """Writes replies with a language model whose head is cut to the tokens of the grammar."""

    def __init__(self, model: LanguageModel, rows: Sequence[int]) -> None:
        self._model = model
        self._row = {token: row for row, token in enumerate(rows)}

    def write(
        self,
        cache: Cache,
        prompt: Prompt,
        automaton: Automaton,
        pick: Pick,
        until: Callable[[State], bool],
    ) -> Written:
        """Read the prompt into the cache and decode a reply as far as a state that is `until`."""
        forced, state = self._forced(automaton, automaton.start)
        embeddings = np.concatenate([prompt.embeddings, self._model.embed(forced)], axis=1)
        positions = np.concatenate([prompt.positions, prompt.following(len(forced))], axis=1)
        tokens, choices, calls = list(forced), [], 0
        while True:
            logits = self._model.feed(cache, embeddings, positions)[0]
            choice = self._choice(automaton, state, logits)
            choices.append(choice)
            token = choice.tokens[pick(np.log(choice.chances))]
            forced, state = self._forced(automaton, automaton.edges(state)[token])
            pending = [token, *forced]
            if until(state):
                return Written((*tokens, *pending), tuple(choices), calls)
            embeddings = self._model.embed(pending)
            positions = prompt.following(len(pending), skip=len(tokens))
            tokens += pending
            calls += 1

    @staticmethod
    def _forced(automaton: Automaton, state: State) -> tuple[list[int], State]:
        tokens = []
        while len(edges := automaton.edges(state)) == 1:
            ((token, state),) = edges.items()
            tokens.append(token)
        return tokens, state

    def _choice(self, automaton: Automaton, state: State, logits: Floats) -> Choice:
        tokens = tuple(automaton.edges(state))
        chosen = logits[[self._row[token] for token in tokens]].astype(np.float64)
        chances = np.exp(chosen - chosen.max())
        return Choice(state, tokens, chances / chances.sum())
