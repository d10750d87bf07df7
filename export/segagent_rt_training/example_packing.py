"""Packed questions: several expressions and their replies behind one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from segagent_rt.mllm.rope import prompt_positions
from segagent_rt.scenes.expressions import Candidate, candidates, choose
from segagent_rt.scenes.phrases import say
from segagent_rt.scenes.rng import DeterministicRng
from segagent_rt.types import Click, Size
from segagent_rt_export.families.demo_mllm.net import CELLS, SIDE
from segagent_rt_export.families.demo_mllm.tokenizer import PROMPT, PROTOCOL
from segagent_rt_training.object_targets import ObjectTargets, cell_shares
from segagent_rt_training.states import TrainingState

SIGNS = tuple(f" {sign}" for sign in PROTOCOL.signs)
NEARLY_RIGHT = 0.88
"""From this IoU on, what is left to correct is a rim that nobody can point at: those clicks hardly
count."""

ORDINAL_SHARE = 0.4
"""Counting is what is learnt last: so many of the questions about any object are about ordinals."""


@dataclass(frozen=True, slots=True)
class LabelledExpression:
    """An expression, and the truth about the object that it means.

    Attributes:
        target: the object's number in its state.
        click: the right one, in pixels of a picture of `size`.
        iou: of the mask shown.
    """

    expression: str
    target: int
    click: Click
    size: Size
    iou: float


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """An expression about a state, tokenised with its reply."""

    prompt: list[int]
    reply: list[int]
    weights: list[float]
    decisive: list[int]
    """Indices in the reply of the tokens that say most: the rating, the sign, the row, the column.
    """
    target: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B pictures with Q questions each. L counts the shared prefix and Q slots of equal length."""

    tokens: Tensor  # int64 [B, L]
    picture: slice
    positions: Tensor  # int64 [3, B, L]
    bias: Tensor  # float32 [B, 1, L, L]
    labels: Tensor  # int64 [B, L], the next token, -100 where there is none to learn
    weights: Tensor  # float32 [B, L]
    asking: Tensor  # int64 [B, K], places that should look at the target
    cells: Tensor  # bool [B, K, CELLS^2], the target's cells


class ExamplePacker:
    """Asks about states, in the tokens of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        lead, tail = PROMPT.split("<|image_pad|>")
        self._lead, self._tail = self._ids(lead), tail
        self._after = self._ids("<|vision_end|>")
        self._end = self._ids("<|im_end|>")

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def questions(
        self, state: TrainingState, facts: ObjectTargets, rng: DeterministicRng, count: int
    ) -> list[TokenisedExample]:
        """`count` questions; if a mask is shown, most are about the object it was made for, the
        first of them with the words that the loop was asked with."""
        found = candidates(state.objects, state.visible)
        if not found:
            return []
        said = [(state.asked, state.meant)] if state.asked else []
        if state.mask.any():
            about = [c for c in found if c.target == state.meant]
            said += _say(choose(about, rng, max(1, count * 5 // 8) - len(said)), rng)
        ordinals = [c for c in found if c.kind == "ordinal"]
        while len(said) < count:
            counted = ordinals and rng.chance(ORDINAL_SHARE)
            said += _say(choose(ordinals if counted else found, rng, 1), rng)
        return [self.question(_asked(*each, facts), state) for each in said]

    def question(self, asked: LabelledExpression, state: TrainingState) -> TokenisedExample:
        """What is asked about a state, in tokens."""
        tokens = self._ids(PROTOCOL.write(asked.click, asked.size, iou=asked.iou))
        prompt = self._ids(self._tail.format(expression=asked.expression))[len(self._after) :]
        weights = self._weights(tokens, asked.iou, painted=bool(state.mask.any()))
        return TokenisedExample(
            prompt, tokens + self._end, [*weights, 0.05], self._decisive(tokens), asked.target
        )

    def _decisive(self, tokens: Sequence[int]) -> list[int]:
        """The first digit of each of the three numbers, and the sign."""
        texts = [" ", *(self._text(token) for token in tokens)]
        rating, row, column = (
            i
            for i, (before, text) in enumerate(pairwise(texts))
            if text.isdigit() and not before.isdigit()
        )
        sign = next(i for i, text in enumerate(texts[1:]) if text in SIGNS)
        return [rating, sign, row, column]

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _weights(self, tokens: Sequence[int], iou: float, *, painted: bool) -> list[float]:
        """Leading digits and the sign carry the meaning; the fixed words need only be known."""
        clear = 0.15 if iou >= NEARLY_RIGHT else 1.0
        weights, number, place = [], 0, 0
        for token in tokens:
            text = self._text(token)
            if text.isdigit():
                rating = number == 0
                leading = (1.2, 0.25, 0.25) if rating else (1.0, 1.0, 0.3)
                scale = (1.0 if painted else 0.1) if rating else clear
                weights.append(leading[min(place, 2)] * scale)
                place += 1
            elif text in SIGNS:
                weights.append(1.5 * clear if painted else 0.2)
            else:  # the token behind a number also says how many digits it has
                weights.append(0.12 if place else 0.04)
                number, place = number + (place > 0), 0
        return weights

    def pack(
        self, states: Sequence[TrainingState], asked: Sequence[Sequence[TokenisedExample]]
    ) -> PackedBatch:
        """Lay out the questions of each state behind its picture."""
        lead, cells = len(self._lead), CELLS**2
        prefix = lead + cells + len(self._after)
        slot = max(len(q.prompt) + len(q.reply) for qs in asked for q in qs)
        many, length = len(asked[0]), prefix + len(asked[0]) * slot
        tokens = np.zeros((len(asked), length), np.int64)
        labels = np.full_like(tokens, -100)
        weights = np.zeros(tokens.shape, np.float32)
        owner = np.full_like(tokens, -2)  # -1 shared prefix, q for question q, -2 padding
        asking = np.zeros((len(asked), 4 * many), np.int64)
        looked = np.zeros((len(asked), 4 * many, cells), np.bool_)
        owner[:, :prefix] = -1
        tokens[:, :prefix] = self._lead + [0] * cells + self._after
        for b, (state, questions) in enumerate(zip(states, asked, strict=True)):
            shares = cell_shares(state.labels, len(state.visible), CELLS).reshape(-1, cells)
            for q, question in enumerate(questions):
                start = prefix + q * slot
                self._lay(tokens[b], labels[b], weights[b], start, question)
                owner[b, start : start + len(question.prompt) + len(question.reply)] = q
                share = shares[question.target]
                asking[b, 4 * q : 4 * q + 4] = self._asking(start, question)
                looked[b, 4 * q : 4 * q + 4] = share > min(0.06, share.max() * 0.5)
        positions = prompt_positions(lead, (CELLS, CELLS), len(self._after) + slot)
        positions = np.concatenate([positions[:, :prefix]] + [positions[:, prefix:]] * many, axis=1)
        return PackedBatch(
            tokens=torch.from_numpy(tokens),
            picture=slice(lead, lead + cells),
            positions=torch.from_numpy(positions)[:, None].expand(-1, len(asked), -1),
            bias=_bias(torch.from_numpy(owner)),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            asking=torch.from_numpy(asking),
            cells=torch.from_numpy(looked),
        )

    @staticmethod
    def _lay(
        tokens: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        start: int,
        question: TokenisedExample,
    ) -> None:
        whole = question.prompt + question.reply
        tokens[start : start + len(whole)] = whole
        answer = start + len(question.prompt)
        labels[answer - 1 : answer - 1 + len(question.reply)] = question.reply
        weights[answer - 1 : answer - 1 + len(question.reply)] = question.weights

    @staticmethod
    def _asking(start: int, question: TokenisedExample) -> list[int]:
        """The places that decide: one before each decisive token."""
        return [start + len(question.prompt) + i - 1 for i in question.decisive]


def _asked(expression: str, target: int, facts: ObjectTargets) -> LabelledExpression:
    """The truth about an object of a scene."""
    negative = bool(facts.negative[target])
    x, y = (facts.surplus if negative else facts.missing)[target] * SIDE
    click = Click(int(x), int(y), not negative)
    return LabelledExpression(expression, target, click, (SIDE, SIDE), float(facts.iou[target]))


def _say(chosen: Sequence[Candidate], rng: DeterministicRng) -> list[tuple[str, int]]:
    return [(say(candidate.query, rng), candidate.target) for candidate in chosen]


def _bias(owner: Tensor) -> Tensor:
    length = owner.shape[1]
    shared = (owner == -1)[:, None, :]
    same = owner[:, None, :] == owner[:, :, None]
    allowed = (shared | same) & torch.ones(length, length, dtype=torch.bool).tril()
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)[:, None]
