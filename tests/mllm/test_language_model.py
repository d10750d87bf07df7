"""The cache and what is fed to a decoder, with a decoder that writes down what it is given."""

from __future__ import annotations

import numpy as np
import pytest

from segagent_rt.errors import ManifestInvalid
from segagent_rt.mllm.decoder import Prompt, greedy
from segagent_rt.mllm.free_decoder import LONGEST, FreeDecoder
from segagent_rt.mllm.language_model import LanguageModel, LanguageSettings
from segagent_rt.mllm.rope import RopeSettings


class Buffer:
    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


class Scripted:
    """A decoder and a head at once: its likeliest tokens are given beforehand."""

    inputs = ()

    def __init__(self, script=(), vocabulary=8):
        self.script, self.vocabulary, self.calls = list(script), vocabulary, []

    def run(self, feeds, outputs, *, into=None, keep=()):
        self.calls.append({name: feed for name, feed in feeds.items()})
        if "hidden" in outputs:
            return {"hidden": np.zeros((1, 4), np.float32)}
        rows = len(feeds.get("logits_at", [0]))
        logits = np.zeros((rows, self.vocabulary), np.float32)
        if self.script:
            logits[-1, self.script.pop(0)] = 1
        return {"logits": logits}

    def allocate(self, shape, dtype):
        return Buffer(np.zeros(shape, dtype))

    def close(self):
        pass


ROPE = RopeSettings(4, 100.0)
TABLE = np.arange(32, dtype=np.float16).reshape(8, 4)


def model(session, head=None, **changes):
    settings = LanguageSettings(2, 4, 1, ROPE, **changes)
    return LanguageModel(session, TABLE, settings, head)


def text(start, count):
    return np.broadcast_to(np.arange(start, start + count), (3, count))


def test_a_call_tells_the_decoder_the_length_and_the_angles_by_slot():
    session = Scripted()
    language = model(session)
    cache = language.new_cache(10)
    assert cache.capacity == 64
    language.forward(cache, language.embed([1, 2, 3]), text(0, 3))
    language.forward(cache, language.embed([4, 5]), text(7, 2), rows=2)
    first, second = session.calls
    assert first["inputs_embeds"].shape == (1, 3, 4)
    assert first["logits_at"].tolist() == [2]
    assert second["length"].tolist() == [5]
    assert second["length"].dtype == np.int32
    assert second["logits_at"].tolist() == [0, 1]
    assert np.array_equal(second["rope_cos"][3:5], ROPE.angles(text(7, 2))[0])
    assert second["past.1.key"] is cache.past["past.1.key"]
    assert "deepstack_embeds" not in second


def test_text_counts_on_where_no_positions_are_given():
    session = Scripted()
    language = model(session)
    cache = language.new_cache(10)
    picture = np.array([[0, 1, 1], [0, 1, 6], [0, 1, 1]])
    language.forward(cache, language.embed([1, 2, 3, 4]), picture)
    cache.rewind(3)
    language.forward(cache, language.embed([5, 6]))
    wanted = np.concatenate([picture, text(7, 2)], axis=1)
    assert np.array_equal(session.calls[-1]["rope_cos"][:5], ROPE.angles(wanted)[0])
    assert np.array_equal(language.new_cache(10).sin, ROPE.angles(text(0, 64))[1])


def test_going_back_overwrites_what_lies_behind():
    session = Scripted()
    language = model(session)
    cache = language.new_cache(10)
    language.forward(cache, language.embed([1, 2, 3]), text(0, 3))
    cache.rewind(1)
    language.forward(cache, language.embed([6]), text(1, 1))
    assert session.calls[-1]["length"].tolist() == [2]
    with pytest.raises(AssertionError):
        cache.rewind(3)


def test_text_adds_nothing_behind_the_first_layers():
    session = Scripted()
    language = model(session, deepstack=2)
    x = language.embed([1, 2])
    assert x.shape == (3, 2, 4)
    assert np.array_equal(x[0], TABLE[[1, 2]].astype(np.float32))
    assert not x[1:].any()
    language.forward(language.new_cache(4), x, text(0, 2))
    assert session.calls[0]["deepstack_embeds"].shape == (2, 2, 4)


def test_more_tokens_than_the_model_reads_are_refused():
    with pytest.raises(ManifestInvalid, match="at most 128 tokens"):
        model(Scripted(), most_tokens=128).new_cache(129)
    assert model(Scripted(), most_tokens=100).new_cache(100).capacity == 128


def written(script, stops):
    decoder, head = Scripted(), Scripted(script)
    language = model(decoder, head)
    prompt = Prompt(language.embed([1, 2]), text(0, 2))
    writer = FreeDecoder(language, stops)
    return writer.write(language.new_cache(200), prompt, greedy), decoder


def test_free_decoding_ends_at_a_stop_token_which_is_no_part_of_the_reply():
    reply, decoder = written([3, 4, 5, 7, 1], stops=(7,))
    assert reply.tokens == (3, 4, 5)
    assert reply.calls == 3
    fed = [call["inputs_embeds"].shape[1] for call in decoder.calls]
    assert fed == [2, 1, 1, 1]
    assert [int(call["length"][0]) for call in decoder.calls] == [2, 3, 4, 5]


def test_free_decoding_of_a_model_that_never_stops_is_cut():
    reply, _ = written([1] * 1000, stops=(7,))
    assert reply.tokens == (1,) * LONGEST
