"""Decoding within the reply grammar: what the grammar forces is not asked of the model.

Tokens that have no alternative ride along in the next call (jump-forward), and the end token is
never decoded. Where a prompt comes with a guess of how the reply begins, that is read along with
it, and counts as far as the model would have written it. Where the model reads branches, one call
decides two tokens: it reads every token that may come next, each with what is forced behind it, as
a branch of its own. The result equals masked greedy decoding, one token at a time, token for token.

A reply that the cache still holds can be gone on with, or drawn anew from one of its choices on:
what was weighed at each of them is known, so only what comes behind the first other token is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.errors import ManifestInvalid
from segagent_rt.mllm.grammar import Automaton, State
from segagent_rt.mllm.language_model import Floats, KVCache, LanguageModel
from segagent_rt.mllm.rope import Positions

Scores: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A point where the model chose: the allowed tokens, and their logits."""

    state: State
    tokens: tuple[int, ...]
    scores: Scores

    @property
    def chances(self) -> npt.NDArray[np.float64]:
        """Probabilities of the tokens among each other."""
        scores = self.scores.astype(np.float64)
        shares = np.exp(scores - scores.max())
        chances: npt.NDArray[np.float64] = shares / shares.sum()
        return chances


@dataclass(frozen=True, slots=True)
class DecodedReply:
    """A decoded reply."""

    tokens: tuple[int, ...]
    choices: tuple[TokenChoice, ...]
    calls: int
    """Decoder calls after the one that read the prompt."""


Sampler = Callable[[Scores], int]
"""Index of the token to take, given logits of the allowed ones."""

StopAt = Callable[[State], bool]
"""Whether a reply need not go beyond a state."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply follows: embeddings float32 [1 + deepstack, S, hidden]; positions int64 [3, T],
    as far as they are not those of text that counts on; and a guess of the tokens that the reply
    begins with, up to a choice."""

    embeddings: Floats
    positions: Positions | None = None
    guess: tuple[int, ...] = ()


def greedy(logits: Scores) -> int:
    """The likeliest token; of equal ones the first."""
    return int(logits.argmax())


@dataclass(slots=True)
class DraftReply:
    """A reply, as far as it was decoded greedily.

    The cache holds what it follows, `start` tokens, and the first `kept` tokens of the reply.
    """

    start: int
    written: DecodedReply
    kept: int


@dataclass(slots=True)
class DecodeState:
    """A reply while it is written, up to the next choice."""

    automaton: Automaton
    state: State
    tokens: list[int] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)
    calls: int = 0

    def put(self, token: int) -> None:
        """Write a token, and those that have no alternative behind it."""
        self.tokens.append(token)
        self.state = self.automaton.edges(self.state)[token]
        self.put_forced()

    def put_forced(self) -> None:
        while len(edges := self.automaton.edges(self.state)) == 1:
            ((token, self.state),) = edges.items()
            self.tokens.append(token)

    @property
    def written(self) -> DecodedReply:
        return DecodedReply(tuple(self.tokens), tuple(self.choices), self.calls)


class ConstrainedDecoder:
    """Writes replies with a language model whose head is cut to the tokens of the grammar."""

    def __init__(self, model: LanguageModel, rows: Sequence[int]) -> None:
        self._model = model
        self._row = {token: row for row, token in enumerate(rows)}
        self._rows: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}

    def write(
        self,
        cache: KVCache,
        prompt: Prompt,
        automaton: Automaton,
        sampler: Sampler,
        stop_at: StopAt,
    ) -> DecodedReply:
        """Read the prompt into the cache and decode a reply up to where `stop_at` holds."""
        state = DecodeState(automaton, automaton.start)
        state.put_forced()
        first, guess = len(state.tokens), prompt.guess or tuple(state.tokens)
        start = cache.length + prompt.embeddings.shape[1]
        embeddings = np.concatenate([prompt.embeddings, self._model.embed(guess)], axis=1)
        rows = 1 + len(guess) - first
        logits = self._model.forward(cache, embeddings, prompt.positions, rows)
        while True:
            known = len(state.tokens)
            self._choose(state, logits[known - first], sampler)
            if stop_at(state.state) or state.tokens[known] not in guess[known : known + 1]:
                break
        cache.rewind(start + known)
        return self._decode(cache, state, known, (sampler, stop_at))

    def resume(
        self,
        cache: KVCache,
        draft: DraftReply,
        automaton: Automaton,
        sampler: Sampler,
        stop_at: StopAt,
    ) -> DecodedReply:
        """As `write` where a draft was written, whose rating stays; picking greedily makes the
        draft longer."""
        drafted, state = draft.written, DecodeState(automaton, automaton.start)
        state.put_forced()
        at, same = draft.kept, True
        for choice in drafted.choices:
            if not same or stop_at(state.state):
                break
            at = len(state.tokens)
            state.choices.append(choice)
            old = drafted.tokens[at]
            rated = automaton.past_rating(choice.state)
            state.put(choice.tokens[sampler(choice.scores)] if rated else old)
            same = state.tokens[at] == old
        if stop_at(state.state):
            return state.written
        kept = min(at, draft.kept)
        cache.rewind(draft.start + kept)
        written = self._decode(cache, state, kept, (sampler, stop_at))
        if same and sampler is greedy:
            draft.written, draft.kept = written, cache.length - draft.start
        else:
            draft.kept = len(drafted.tokens) if same else at
        return written

    def _decode(
        self, cache: KVCache, state: DecodeState, kept: int, how: tuple[Sampler, StopAt]
    ) -> DecodedReply:
        """Go on with a reply of which the cache holds the first `kept` tokens."""
        sampler, stop_at = how
        while not stop_at(state.state):
            tokens, known = state.tokens[kept:], len(state.tokens)
            branches = self._branches(cache, state, len(tokens), stop_at)
            if branches:
                logits = self._model.forward_branches(cache, tokens, list(branches.values()))
            else:
                logits = self._model.forward(cache, self._model.embed(tokens))
            state.calls, kept = state.calls + 1, known
            self._choose(state, logits[0], sampler)
            if (chosen := state.tokens[known]) in branches:
                self._choose(state, logits[1 + list(branches).index(chosen)], sampler)
        return state.written

    def _branches(
        self, cache: KVCache, state: DecodeState, known: int, stop_at: StopAt
    ) -> dict[int, list[int]]:
        """The tokens that may come next and lead to another choice, each with those forced behind
        it. None if they are too many for a call with `known` other tokens."""
        if not self._model.branch_tokens:
            return {}
        found = dict[int, list[int]]()
        for token in state.automaton.edges(state.state):
            branch = DecodeState(state.automaton, state.state)
            branch.put(token)
            if not stop_at(branch.state):
                found[token] = branch.tokens
        count = known + sum(map(len, found.values()))
        room = min(self._model.branch_tokens, cache.capacity - cache.length)
        return found if count <= room else {}

    def _choose(self, state: DecodeState, logits: Floats, sampler: Sampler) -> None:
        choice = self._choice(state.automaton, state.state, logits)
        state.choices.append(choice)
        state.put(choice.tokens[sampler(choice.scores)])

    def _choice(self, automaton: Automaton, state: State, logits: Floats) -> TokenChoice:
        tokens = tuple(automaton.edges(state))
        if tokens not in self._rows:
            if missing := [token for token in tokens if token not in self._row]:
                raise ManifestInvalid(f"head_rows lacks the token {missing[0]} of the replies")
            self._rows[tokens] = np.array([self._row[token] for token in tokens])
        return TokenChoice(state, tokens, logits[self._rows[tokens]])
