"""The rating is what the model expects, not only what it writes."""

from __future__ import annotations

import numpy as np
import pytest

from segagent_rt.mllm.decoder import DecodedReply, TokenChoice
from segagent_rt.mllm.grammar import compile_grammar
from segagent_rt.mllm.rating import click_confidence, expected_iou
from segagent_rt.reply import ReplyProtocol


def characters(text):
    return [ord(letter) for letter in text]


GRAMMAR = compile_grammar(ReplyProtocol(), characters, "", (100, 100))


def written(*chances):
    """A reply whose rating's digits were chosen with these chances, each a dict of digits."""
    state, choices = GRAMMAR.start, []
    for wanted in chances:
        while len(edges := GRAMMAR.edges(state)) == 1:
            ((_, state),) = edges.items()
        tokens = tuple(GRAMMAR.edges(state))
        shares = np.array([wanted.get(GRAMMAR.digits.get(token, "end"), 0.0) for token in tokens])
        with np.errstate(divide="ignore"):
            choices.append(TokenChoice(state, tokens, np.log(shares)))
        state = GRAMMAR.edges(state)[tokens[int(shares.argmax())]]
    return DecodedReply((), tuple(choices), 0)


def test_certain_digits_are_the_rating():
    assert expected_iou(written({"8": 1.0}, {"7": 1.0}), GRAMMAR) == pytest.approx(0.87)


def test_a_zero_is_nothing():
    assert expected_iou(written({"0": 1.0}), GRAMMAR) == 0.0


def test_neighbouring_tens_pull():
    found = expected_iou(written({"8": 0.6, "7": 0.4}, {"0": 1.0}), GRAMMAR)
    assert found == pytest.approx(0.6 * 0.80 + 0.4 * 0.745)


def test_a_one_beside_a_nine_begins_a_hundred():
    """Nearly perfect masks are rated 9x or 100; a 1 that counted as 10 to 19 would halve them."""
    found = expected_iou(written({"9": 0.8, "1": 0.2}, {"6": 1.0}), GRAMMAR)
    assert found == pytest.approx(0.8 * 0.96 + 0.2 * 1.0)


def test_a_one_beside_a_zero_or_a_two_begins_a_number_below_twenty():
    found = expected_iou(written({"2": 0.7, "1": 0.3}, {"1": 1.0}), GRAMMAR)
    assert found == pytest.approx(0.7 * 0.21 + 0.3 * 0.145)


def test_a_chance_of_nothing_is_never_picked_and_warns_nobody():
    """Logits of large models lie so far apart that chances vanish; warnings are errors here."""
    choice = written({"8": 1.0}).choices[0]
    assert np.isneginf(choice.scores).any()
    assert choice.tokens[int(choice.scores.argmax())] == ord("8")


SIGN = {"end": 1.0}


def test_a_click_is_as_certain_as_the_less_certain_of_its_first_digits():
    """Later digits only move the click by less than a tenth of the side."""
    rating = ({"0": 1.0}, SIGN)
    row = ({"4": 0.7, "5": 0.3}, {"1": 0.2, "2": 0.8}, {"3": 0.5, "9": 0.5})
    column = ({"6": 0.9, "7": 0.1}, {"1": 1.0}, {"0": 1.0})
    assert click_confidence(written(*rating, *row, *column), GRAMMAR) == pytest.approx(0.7)
    assert click_confidence(written(*rating, *column, *row), GRAMMAR) == pytest.approx(0.7)


def test_a_reply_that_ends_behind_its_rating_has_no_certain_click():
    assert click_confidence(written({"9": 1.0}, {"5": 1.0}), GRAMMAR) is None
