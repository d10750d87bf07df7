"""Which window SimpleClick looks through: sequences of the reference, and its rule's corners."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.segmenters.zoom import Roi, Span, ZoomRules, choose_roi
from segagent_rt.types import Click

GOLDEN = Path(__file__).parents[1] / "golden" / "simple_click" / "windows.json"
CASES = json.loads(GOLDEN.read_text("utf-8"))["cases"]
RULES = ZoomRules()
SIZE = (480, 854)


def roi(top, bottom, left, right):
    return Roi(Span(top, bottom), Span(left, right))


def replay(case, rules=RULES):
    """The windows that our rule chooses, each step beginning where the reference was."""
    steps = case["steps"]
    clicks = [Click(column, row, bool(sign)) for row, column, sign in (s["click"] for s in steps)]
    windows = [choose_roi(None, None, clicks[:1], case["size"], rules)]
    for count, (before, _) in enumerate(pairwise(steps), 2):
        last, above = roi(*before["roi"]), roi(*before["above"])
        windows.append(choose_roi(last, above, clicks[:count], case["size"], rules))
    return windows


def expected(case):
    return [roi(*step["roi"]) for step in case["steps"]]


@pytest.mark.parametrize("case", CASES)
def test_windows_are_those_of_the_reference(case):
    assert replay(case) == expected(case)


FAULTS = {
    "the last pixel counts as inside": ("holds", lambda s, pixel: s.first <= pixel <= s.last),
    "lengths exclude the last pixel": ("length", property(lambda s: s.last - s.first)),
    "clicks do not widen the window": ("including", lambda s, pixels: s),
    "ends are cut off, not rounded": (
        "expanded",
        lambda s, rules, side: Span(
            max(int((s.first + s.last) / 2 - max(rules.expansion * s.length, 200) / 2), 0),
            min(int((s.first + s.last) / 2 + max(rules.expansion * s.length, 200) / 2), side - 1),
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_golden_sequences_notice(fault, monkeypatch):
    monkeypatch.setattr(Span, *FAULTS[fault])
    assert any(replay(case) != expected(case) for case in CASES)


@pytest.mark.parametrize("rules", [ZoomRules(expansion=1.5), ZoomRules(least=224)])
def test_the_golden_sequences_notice_other_numbers(rules):
    assert any(replay(case, rules) != expected(case) for case in CASES)


def test_a_window_stays_at_an_overlap_of_exactly_one_half():
    window, half = roi(0, 399, 0, 399), roi(0, 199, 0, 399)
    assert window.still_fits([Click(5, 5, True)], half, RULES)
    assert not window.still_fits([Click(5, 5, True)], half, ZoomRules(keep=0.51))


def test_the_first_window_is_the_whole_image():
    assert choose_roi(None, None, [Click(3, 3, True)], SIZE, RULES) == Roi.whole(SIZE)


def test_without_a_mask_the_whole_image_is_wanted_again():
    """A window stays only if it overlaps with what is wanted, so an empty mask zooms out."""
    clicks = [Click(300, 200, True)]
    assert choose_roi(roi(100, 300, 200, 400), None, clicks, SIZE, RULES) == Roi.whole(SIZE)


def test_a_window_stays_while_it_overlaps_by_half():
    before, clicks = roi(100, 300, 200, 400), [Click(300, 200, True)]
    near = choose_roi(before, roi(150, 290, 230, 390), clicks, SIZE, RULES)
    far = choose_roi(before, roi(10, 290, 30, 390), clicks, SIZE, RULES)
    assert near == before
    assert far == roi(0, 347, 0, 463)


@pytest.mark.parametrize(
    ("x", "y", "stays"),
    [(200, 100, True), (399, 299, True), (400, 200, False), (300, 300, False), (199, 200, False)],
)
def test_a_positive_click_on_the_last_row_or_column_is_outside(x, y, stays):
    before, mask = roi(100, 300, 200, 400), roi(150, 250, 250, 350)
    after = choose_roi(before, mask, [Click(x, y, True)], SIZE, RULES)
    assert (after == before) is stays
    if not stays:
        assert after == mask.around([Click(x, y, True)], RULES, SIZE)


def test_negative_clicks_neither_move_nor_widen_the_window():
    before, mask = roi(100, 300, 200, 400), roi(150, 250, 250, 350)
    outside = Click(850, 470, False)
    assert choose_roi(before, mask, [outside], SIZE, RULES) == before
    assert mask.around([outside], RULES, SIZE) == mask.around([], RULES, SIZE)


def test_halves_round_to_even():
    assert Span(0, 99).expanded(ZoomRules(expansion=1.0, least=1), 500) == Span(0, 100)
    assert Span(201, 300).expanded(ZoomRules(expansion=1.0, least=1), 500) == Span(200, 300)


spans = st.tuples(st.integers(0, 500), st.integers(0, 500)).map(lambda ends: Span(*sorted(ends)))


@given(spans, spans)
def test_overlap_counts_pixels(one, other):
    ours, theirs = (set(range(s.first, s.last + 1)) for s in (one, other))
    hull = max(one.last, other.last) - min(one.first, other.first) + 1
    assert one.iou(other) == len(ours & theirs) / hull
    assert one.iou(other) == other.iou(one)


@given(spans, st.integers(501, 2000))
def test_windows_stay_inside_and_hold_the_mask(span, side):
    wider = span.expanded(RULES, side)
    assert 0 <= wider.first <= span.first <= span.last <= wider.last < side
