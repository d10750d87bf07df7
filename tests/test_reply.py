"""The reply text: what is written, what is understood, what the grammar allows."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.mllm.grammar import Automaton, compile_grammar
from segagent_rt.mllm.prompts import PRESETS
from segagent_rt.reply import ReplyProtocol
from segagent_rt.types import Box, Click, Finish, Malformed

SEGAGENT = ReplyProtocol()
SIZE = (480, 640)


def characters(text):
    """A tokenizer that writes every character as one token."""
    return [ord(c) for c in text]


def utf8_bytes(text):
    """One that writes bytes, as Qwen's does with what it does not know."""
    return list(text.encode())


def compatible(text):
    """One that first replaces letters by their plain forms, as SentencePiece can."""
    return characters(unicodedata.normalize("NFKC", text))


def spell(automaton, text):
    """Follow the automaton along a text; returns the tokens that had no alternative."""
    state, forced = automaton.start, 0
    for token in characters(text):
        edges = automaton.edges(state)
        assert token in edges, f"{chr(token)!r} is not allowed in {text!r}"
        forced += len(edges) == 1
        state = edges[token]
    assert automaton.ended(state)
    return forced


def test_the_point_is_row_then_column_over_1000():
    """Golden: SegAgent's prompt says (x, y), its code (evaltools/model_loader.py) reads (y, x)."""
    reading = SEGAGENT.read(
        "<ref>the chicken</ref> Current IOU: 87  Positive point: (588, 116)", SIZE
    )
    assert reading.action == Click(x=74, y=282, positive=True)
    assert reading.iou == 0.87


def test_the_box_is_x_then_y_over_999_cut_to_whole_pixels():
    text = "<box>(68,308),(255,986)</box> Positive point: (679, 186)"
    assert SEGAGENT.read(text, SIZE).box == Box(43, 147, 163, 473)


def test_rounding_is_to_even_and_the_last_value_stays_inside():
    assert SEGAGENT.read("Positive point: (1000, 1000)", SIZE).action == Click(639, 479, True)
    assert SEGAGENT.read("Positive point: (5, 5)", (100, 300)).action == Click(
        x=2, y=0, positive=True
    )


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("Finish", Finish()),
        ("No Object Found<|im_end|>", Finish()),
        ("<ref>Positive point: (1, 2)</ref> Finish", Finish()),
        ("", Malformed("no point in the reply")),
        ("Neutral point: (1, 2)", Malformed("no point in the reply")),
        ("Positive point: (99999, 3)", Malformed("the point lies far outside the image")),
        ("negative POINT (500,250", Click(160, 240, False)),
        ("Positive point: (0.5, 0.25)", Click(160, 240, True)),
        ("Positive point: (1, 2) Negative point: (500, 250)", Click(160, 240, False)),
        ("<ref>the (left) man</ref> Negative point: (500, 250)", Click(160, 240, False)),
    ],
)
def test_free_text_is_understood(text, action):
    assert SEGAGENT.read(text, SIZE).action == action


def test_a_rating_above_100_is_none():
    assert SEGAGENT.read("Current IOU: 150  Positive point: (1, 2)", SIZE).iou is None


@given(x=st.integers(0, 639), y=st.integers(0, 479), positive=st.booleans(), iou=st.floats(0, 1))
def test_what_is_written_is_read_back_within_a_unit(x, y, positive, iou):
    text = SEGAGENT.write(Click(x, y, positive), SIZE, iou=iou)
    reading = SEGAGENT.read(text, SIZE)
    assert reading.action.positive == positive
    assert abs(reading.action.x - x) <= 0.5 * 640 / 1000 + 1
    assert abs(reading.action.y - y) <= 0.5 * 480 / 1000 + 1
    assert reading.iou == int(100 * iou) / 100


@given(x=st.integers(0, 639), y=st.integers(0, 479), positive=st.booleans(), iou=st.floats(0, 1))
def test_the_grammar_spells_every_reply_that_the_protocol_writes(x, y, positive, iou):
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    spell(grammar, SEGAGENT.write(Click(x, y, positive), SIZE, iou=iou))


NUMBERED = [
    "the 3 mugs",
    "24 m²",
    "room ①",
    "number \N{FULLWIDTH DIGIT FIVE}",
    "٣ خيول",
    "१२",
    "⅔ of it",
    "x₀",
    "0 and 1",
]


@pytest.mark.parametrize("expression", NUMBERED)
@pytest.mark.parametrize("encode", [characters, utf8_bytes, compatible], ids=lambda f: f.__name__)
def test_an_expression_may_hold_digits_of_any_kind(expression, encode):
    """Also where the tokenizer knows them only as bytes, or turns them into the usual ones."""
    protocol = PRESETS["segagent"].reply
    grammar = compile_grammar(protocol, encode, expression, SIZE)
    text = protocol.write(Click(3, 4, True), SIZE, iou=0.5, expression=expression)
    state = grammar.start
    for token in encode(text):
        state = grammar.edges(state)[token]
    assert grammar.ended(state)
    boxes = compile_grammar(PRESETS["qwen3-vl"].reply, encode, expression, SIZE)
    assert boxes.edges(boxes.start)


def test_digits_are_a_branch_because_numbers_are_not_padded():
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    state = grammar.start
    for token in characters(" Current IOU: 8"):
        state = grammar.edges(state)[token]
    assert {chr(t) for t in grammar.edges(state)} == set("0123456789 ")


def test_the_rating_goes_to_100_and_coordinates_to_999():
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    spell(grammar, " Current IOU: 100  Negative point: (0, 999)")
    for wrong in (
        " Current IOU: 101",
        " Current IOU: 05",
        " Current IOU: 7  Positive point: (1000",
    ):
        with pytest.raises(AssertionError):
            spell(grammar, wrong)


def test_only_digits_and_sign_are_free():
    """13 of 43 characters: what jump-forward saves."""
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    text = " Current IOU: 87  Positive point: (588, 116)"
    assert len(text) - spell(grammar, text) == 9


def test_the_rating_is_found_and_its_end_too():
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    state = grammar.start
    for token in characters(" Current IOU: "):
        assert grammar.rating_digits(state) is None or chr(token) == " "
        state = grammar.edges(state)[token]
    assert grammar.rating_digits(state) == ""
    for token in characters("87 "):
        assert not grammar.past_rating(state)
        state = grammar.edges(state)[token]
    assert grammar.past_rating(state)


def test_endings_are_alternatives():
    protocol = ReplyProtocol(template="{sign} point: ({row}, {column})", endings=("Finish",))
    grammar = compile_grammar(protocol, characters, "", SIZE)
    spell(grammar, "Finish")
    spell(grammar, "Positive point: (1, 2)")
    assert not protocol.rates


@pytest.mark.parametrize(
    ("template", "endings", "expected"),
    [
        (SEGAGENT.template, (), " Current IOU: 0  Positive point: ("),
        (" {sign} point: ({row}, {column})", (), " Positive point: ("),
        ("{sign} point: ({column}, {row})", ("Finish",), "Positive point: ("),
        ("<box>({x0},{y0}),({x1},{y1})</box> {sign} point: ({column}, {row})", (), "<box>("),
        ("<ref>{expression}</ref> Current IOU: {iou}  {sign} point: ({row}, {column})", (),
         "<ref>mug 3</ref> Current IOU: 0  Positive point: ("),
    ],
)  # fmt: skip
def test_a_reply_about_no_mask_opens_rated_0_and_positive_up_to_its_first_free_number(
    template, endings, expected
):
    grammar = compile_grammar(ReplyProtocol(template, endings=endings), characters, "mug 3", SIZE)
    assert list(grammar.opening) == characters(expected)
    rated, before, _ = expected.partition("0  ")
    assert list(grammar.praise) == (characters(f"{rated}9") if before else [])
    state = grammar.start
    for token in grammar.opening:
        state = grammar.edges(state)[token]
    assert len(grammar.edges(state)) == 10, "a digit is chosen next"


def test_the_expression_is_echoed_and_forced():
    protocol = ReplyProtocol(template="<ref>{expression}</ref> {sign} point: ({row}, {column})")
    grammar = compile_grammar(protocol, characters, "mug 3", SIZE)
    spell(grammar, "<ref>mug 3</ref> Negative point: (10, 20)")


def test_pixels_count_in_the_frame_that_the_model_sees():
    protocol = ReplyProtocol(template="{sign} point: ({column}, {row})", unit="pixels")
    text = protocol.write(Click(320, 240, True), SIZE, frame=(240, 320))
    assert text == "Positive point: (160, 120)"
    assert protocol.read(text, SIZE, frame=(240, 320)).action == Click(320, 240, True)
    spell(compile_grammar(protocol, characters, "", (240, 320)), text)


def test_decimals_have_three_digits():
    protocol = ReplyProtocol(template="{sign} point: ({row}, {column})", unit="decimal")
    text = protocol.write(Click(320, 120, False), SIZE)
    assert text == "Negative point: (0.250, 0.500)"
    assert protocol.read(text, SIZE).action == Click(320, 120, False)
    spell(compile_grammar(protocol, characters, "", SIZE), text)


def test_a_tokenizer_that_joins_digits_is_refused():
    def pairs(text):
        return [hash(text[i : i + 2]) for i in range(0, len(text), 2)]

    with pytest.raises(ValueError, match="digits"):
        compile_grammar(SEGAGENT, pairs, "", SIZE)


def test_states_with_one_future_are_one_state():
    """Digits of different numbers lead to few states: the automaton stays small."""
    grammar = compile_grammar(SEGAGENT, characters, "", SIZE)
    seen, todo = set(), [grammar.start]
    while todo:
        state = todo.pop()
        if state not in seen and not any(len(w) > 1 for _, _, w in state):
            seen.add(state)
            todo += grammar.edges(state).values()
    assert isinstance(grammar, Automaton)
    assert len(seen) < 200
