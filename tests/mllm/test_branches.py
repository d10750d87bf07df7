"""Two tokens per decoder call: what may come next is read in branches that do not see each other.

The decoder here computes no attention, but keeps to what the graph's inputs mean: each token sees
the slots before it of its own branch and of branch 0, at the angles that they were written with.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from segagent_rt.bench.stepwise_decoder import StepwiseDecoder
from segagent_rt.mllm.decoder import ConstrainedDecoder, DecodeState, DraftReply, Prompt, greedy
from segagent_rt.mllm.grammar import compile_grammar
from segagent_rt.mllm.language_model import (
    BRANCH_INPUT,
    MOST_BRANCH_TOKENS,
    LanguageModel,
    LanguageSettings,
)
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt.reply import BoxListProtocol, ReplyProtocol
from segagent_rt.types import Box
from tests.test_reply import characters

VOCABULARY = 128
TABLE = np.arange(VOCABULARY, dtype=np.float16)[:, None]
THOUSANDTHS, PIXELS = BoxListProtocol("relative", 3), BoxListProtocol("pixels", 3)
RATED = ReplyProtocol()
FRAMES = ((476, 644), (1204, 588), (392, 1596), (1596, 1204))


class Held:
    """A buffer on the host."""

    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


class SeeingSession:
    """A decoder whose logits depend on all that a token sees, and on nothing else."""

    inputs = ("inputs_embeds", BRANCH_INPUT)

    def __init__(self, rows, seed=0):
        self.rows, self.seed, self.tokens_of_calls = list(rows), seed, []

    def run(self, feeds, outputs, *, into=None, keep=()):
        tokens, (stop,) = feeds["inputs_embeds"][0, :, 0], feeds["length"]
        start = stop - len(tokens)
        self.tokens_of_calls.append(len(tokens))
        kept, branch = feeds["past.0.key"].numpy()[0, 0], self.branch(feeds)
        kept[start:stop, 0] = tokens
        kept[start:stop, 1] = feeds["rope_cos"][start:stop, 0]
        logits = []
        for at in feeds["logits_at"]:
            slots = np.arange(start + at + 1)
            seen = kept[slots[(branch[slots] == 0) | (branch[slots] == branch[start + at])]]
            logits.append(self.logits(seen))
        return {"logits": np.array(logits, np.float32)}

    def branch(self, feeds):
        return feeds.get(BRANCH_INPUT, np.zeros(feeds["rope_cos"].shape[0], np.int32))

    def logits(self, seen):
        """Small whole numbers, many of them equal."""
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(seen).tobytes()) + self.seed)
        return rng.integers(0, 6, len(self.rows))

    def allocate(self, shape, dtype):
        return Held(np.zeros(shape, dtype))

    def close(self):
        pass


class CausalSession(SeeingSession):
    """The planted fault: a branch sees those before it."""

    def branch(self, feeds):
        return np.zeros_like(super().branch(feeds))


class TypingSession(SeeingSession):
    """Writes a given reply behind a prompt of two tokens."""

    def __init__(self, rows, text):
        super().__init__(rows)
        self.text = text

    def logits(self, seen):
        written = "".join(chr(int(token)) for token in seen[2:, 0])
        following = self.text[len(written) : len(written) + 1]
        return [float(chr(row) == following) for row in self.rows]


def language_model(session, *, branches):
    settings = LanguageSettings(1, 1, 1, RopeSettings(2, 100.0))
    model = LanguageModel(session, TABLE, settings)
    if branches:
        model.allow_branches()
    return model


@cache
def grammar_of(protocol, frame):
    return compile_grammar(protocol, characters, "the mug", frame)


def write(decoder, automaton, session, *, branches, sampler=greedy, stop_at=None, guess=()):
    """A reply to a prompt of two tokens, with the model and the cache behind it."""
    model = language_model(session, branches=branches)
    cache = model.new_cache(640)
    prompt = Prompt(model.embed([1, 2]), None, tuple(guess))
    written = decoder(model, session.rows).write(
        cache, prompt, automaton, sampler, stop_at or automaton.ended
    )
    return written, model, cache


def choices(written):
    return [(choice.tokens, choice.scores.tolist()) for choice in written.choices]


def states(count):
    """Models and grammars; every fourth reply is in SegAgent's form, which rates and is guessed."""
    for seed in range(count):
        protocol = (THOUSANDTHS, PIXELS, PIXELS, RATED)[seed % 4]
        automaton = grammar_of(protocol, FRAMES[seed // 4 % len(FRAMES)])
        yield (
            seed,
            automaton,
            lambda seed=seed, a=automaton: SeeingSession(sorted(a.tokens()), seed),
        )


@pytest.mark.thorough
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_branches_equal_masked_greedy(count):
    """Token for token and logit for logit, with ties, several boxes, and numbers of any length."""
    digits, boxes, ties, saved = Counter(), Counter(), 0, []
    for seed, automaton, session in states(count):
        plain, *_ = write(StepwiseDecoder, automaton, session(), branches=False)
        guess = automaton.opening if seed % 8 == 3 else ()
        alone, *_ = write(ConstrainedDecoder, automaton, session(), branches=False, guess=guess)
        found, *_ = write(ConstrainedDecoder, automaton, session(), branches=True, guess=guess)
        assert found.tokens == alone.tokens == plain.tokens
        assert choices(found) == choices(plain)
        saved.append(alone.calls - found.calls)
        text = "".join(map(chr, plain.tokens))
        if '"bbox_2d"' in text:
            boxes[text.count("bbox_2d")] += 1
            digits.update(
                len(number)
                for box in text.split("[")[2:]
                for number in box.partition("]")[0].split(", ")
            )
        ties += sum(list(c.scores).count(max(c.scores)) > 1 for c in plain.choices)
    assert set(boxes) == {1, 2, 3}
    assert set(digits) == {1, 2, 3, 4}
    assert ties > count
    assert min(saved) >= 0
    assert np.mean(saved) > 3


def test_branches_that_see_each_other_are_noticed():
    """The planted fault: only the first branch of a call is read as if it were alone."""
    different = 0
    for _, automaton, session in states(12):
        right, wrong = session(), session()
        wrong.__class__ = CausalSession
        found, *_ = write(ConstrainedDecoder, automaton, right, branches=True)
        causal, *_ = write(ConstrainedDecoder, automaton, wrong, branches=True)
        different += choices(found) != choices(causal)
    assert different == 12


def test_a_sampled_reply_is_that_of_single_tokens():
    for seed, automaton, session in states(20):
        samplers = [np.random.default_rng(seed) for _ in range(2)]
        plain, found = (
            write(
                decoder, automaton, session(), branches=decoder is ConstrainedDecoder,
                sampler=lambda scores, rng=rng: int(rng.integers(len(scores))),
            )[0]
            for decoder, rng in zip((StepwiseDecoder, ConstrainedDecoder), samplers, strict=True)
        )  # fmt: skip
        assert found.tokens == plain.tokens


def test_a_draft_is_resumed_and_forked_as_if_written_anew():
    """The cache holds fewer tokens of a draft than were decided: the last two choices of a call are
    read with the next."""
    for seed, automaton, session in states(40):
        rng, decided = np.random.default_rng(seed), []
        whole, *_ = write(ConstrainedDecoder, automaton, session(), branches=True)
        begun, model, cache = write(
            ConstrainedDecoder, automaton, session(), branches=True, stop_at=automaton.past_rating
        )
        draft, decoder = (
            DraftReply(2, begun, cache.length - 2),
            ConstrainedDecoder(model, model._session.rows),
        )
        resumed = decoder.resume(cache, draft, automaton, greedy, automaton.ended)
        assert resumed.tokens == whole.tokens
        for _ in range(4):
            plan = rng.random(30) < 0.3
            rated = [not automaton.past_rating(c.state) for c in whole.choices].count(True)
            forked = decoder.resume(cache, draft, automaton, second_where(plan), automaton.ended)
            skipped = np.concatenate([np.zeros(rated, np.bool_), plan])
            anew, *_ = write(
                ConstrainedDecoder, automaton, session(), branches=True,
                sampler=second_where(skipped),
            )  # fmt: skip
            assert forked.tokens == anew.tokens
            decided.append(forked.tokens)
        again = decoder.resume(cache, draft, automaton, greedy, automaton.ended)
        assert again.tokens == whole.tokens


def second_where(plan):
    """Takes the second likeliest token where the plan says so, else the likeliest."""
    told = iter(plan)
    return lambda scores: int(np.argsort(-scores, kind="stable")[int(next(told, False))])


@pytest.mark.parametrize("numbers", ["330, 412, 900, 987", "7, 0, 1000, 54", "100, 1, 999, 1000"])
def test_a_box_takes_at_most_eight_calls(numbers):
    automaton = grammar_of(BoxListProtocol("relative"), (480, 640))
    text = f'```json\n[\n\t{{"bbox_2d": [{numbers}], "label": "the mug"}}\n]\n```'
    calls = {}
    for branches in (False, True):
        session = TypingSession(sorted(automaton.tokens()), text)
        written, *_ = write(ConstrainedDecoder, automaton, session, branches=branches)
        assert "".join(map(chr, written.tokens)) == text
        assert written.calls == len(session.tokens_of_calls) - 1
        assert max(session.tokens_of_calls[1:]) <= MOST_BRANCH_TOKENS
        calls[branches] = written.calls
    assert calls[True] <= 8
    assert calls[True] < calls[False]
    if numbers == "330, 412, 900, 987":
        assert calls == {False: 12, True: 7}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("protocol", "frame", "alone", "branching"),
    [
        (BoxListProtocol("relative"), (480, 640), 16, 8),
        (BoxListProtocol("pixels"), (476, 644), 12, 7),
        (BoxListProtocol("pixels"), (588, 1204), 14, 8),
        (BoxListProtocol("pixels"), (1596, 392), 14, 8),
        (BoxListProtocol("pixels"), (1596, 1204), 16, 9),  # larger than any recipe's pictures
    ],
)
def test_the_worst_box(protocol, frame, alone, branching):
    """No reply with one box needs more calls than this, with one token in each, and with two."""
    automaton = grammar_of(protocol, frame)
    assert most_calls(automaton, branch_tokens=0) == alone
    assert most_calls(automaton, branch_tokens=MOST_BRANCH_TOKENS) == branching


def most_calls(automaton, branch_tokens):
    """Calls of the reply with one box that takes the most of them."""
    model = SimpleNamespace(branch_tokens=branch_tokens)
    kv_cache = SimpleNamespace(length=0, capacity=10_000)
    decoder = ConstrainedDecoder(model, ())

    @cache
    def after(state, token):
        put = DecodeState(automaton, state)
        put.put(token)
        return put.state, len(put.tokens)

    def allowed(state):
        """Without a further box. Four digits stand for all ten."""
        edges = automaton.edges(state)
        ends = ord("\n") in edges
        return [t for t in edges if chr(t) not in "234678" and not (ends and chr(t) == ",")]

    @cache
    def worst(state, known):
        """Most calls from a choice on; `known` tokens are not yet in the cache."""
        if automaton.ended(state):
            return 0
        branches = decoder._branches(
            kv_cache, DecodeState(automaton, state), known, automaton.ended
        )
        most = 0
        for token in allowed(state):
            following, count = after(state, token)
            if token not in branches:
                most = max(most, worst(following, count))
                continue
            for second in allowed(following):
                last, more = after(following, second)
                most = max(most, worst(last, count + more))
        return 1 + most

    begin = DecodeState(automaton, automaton.start)
    begin.put_forced()
    return max(worst(*after(begin.state, token)) for token in allowed(begin.state))


def test_a_graph_without_the_input_decides_one_token_a_call():
    """As in bundles that were exported before, and in ONNX Runtime's dialect."""
    automaton = grammar_of(THOUSANDTHS, FRAMES[0])
    rows = sorted(automaton.tokens())
    fed = []

    class OlderSession(SeeingSession):
        inputs = ("inputs_embeds",)

        def run(self, feeds, outputs, **more):
            fed.append(BRANCH_INPUT in feeds)
            return super().run(feeds, outputs, **more)

    older, model, _ = write(ConstrainedDecoder, automaton, OlderSession(rows), branches=True)
    assert model.branch_tokens == 0
    assert not any(fed)
    plain, *_ = write(StepwiseDecoder, automaton, SeeingSession(rows), branches=False)
    assert older.tokens == plain.tokens
    assert older.calls == len(older.choices) - 1


def test_branches_wait_until_the_cache_has_room():
    automaton = grammar_of(THOUSANDTHS, FRAMES[0])
    session = SeeingSession(sorted(automaton.tokens()), 5)
    model = language_model(session, branches=True)
    decoder, cache = ConstrainedDecoder(model, session.rows), model.new_cache(64)
    state = DecodeState(automaton, automaton.start)
    state.put_forced()
    state.put(ord("3"))
    cache.length = 64 - 13
    assert decoder._branches(cache, state, 1, automaton.ended)
    cache.length += 1
    assert decoder._branches(cache, state, 1, automaton.ended) == {}


def test_a_call_with_branches_leaves_the_cache_as_one_without():
    session = SeeingSession(range(8))
    model = language_model(session, branches=True)
    cache, other = model.new_cache(64), model.new_cache(64)
    for each in (cache, other):
        model.forward(each, model.embed([1, 2, 3]), np.array([[0, 4, 5]] * 3))
    angles = cache.cos.copy(), cache.sin.copy()
    found = model.forward_branches(cache, [4, 5], [[6], [7, 6, 5], [6, 7]])
    wanted = model.forward_branches(other, [4, 5], [])
    assert np.array_equal(found[0], wanted[0])
    assert cache.length == other.length == 5
    assert not cache.branch.any()
    assert all(np.array_equal(*pair) for pair in zip(angles, (cache.cos, cache.sin), strict=True))
    alone = model.forward(other, model.embed([7, 6, 5]))[0]
    assert np.array_equal(found[2], alone)
    with pytest.raises(RuntimeError), cache.branching(5, [2, 2]):
        raise RuntimeError
    assert not cache.branch.any()
    assert np.array_equal(cache.cos, angles[0])


def test_boxes_are_read_from_what_branches_wrote():
    automaton = grammar_of(BoxListProtocol("relative"), (1000, 1000))
    text = BoxListProtocol("relative").write(
        [Box(1, 22, 333, 999), Box(100, 0, 1000, 9)], (1000, 1000), expression="the mug"
    )
    session = TypingSession(sorted(automaton.tokens()), text)
    written, *_ = write(ConstrainedDecoder, automaton, session, branches=True)
    assert "".join(map(chr, written.tokens)) == text
