"""What graphs are told of a grid of patches, against values worked out elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.errors import ManifestInvalid
from segagent_rt.mllm.patch_layout import (
    MASKED,
    VisionRope2D,
    interpolate_positions,
    merge_order,
    sort_windows,
)
from segagent_rt.mllm.preprocess import SquareResize
from segagent_rt.mllm.rope import RopeSettings, prompt_positions
from segagent_rt.mllm.vision_encoder import VisionSettings, cut_patches, patch_inputs

SIZES = st.integers(1, 12)


def test_patches_of_a_token_stand_together():
    row, column = merge_order(2, 4, 2)
    assert row.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert column.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_patches_hold_their_pixels_channel_by_channel():
    picture = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    patches = cut_patches(picture, 2, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[1, 2].tolist() == picture[2:4, 4:6].transpose(2, 0, 1).reshape(-1).tolist()


def test_windows_golden():
    """Qwen2.5-VL, 3 x 5 tokens in windows of 2 x 2: transformers' get_vision_window_index."""
    windows = sort_windows(3, 5, 2, 2)
    assert windows.order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    counts = (windows.mask[:, 0] == 0).sum(1)
    assert np.cumsum(counts).tolist() == [16, 32, 40, 48, 56, 60]
    assert windows.members.shape == (6, 16)


@given(SIZES, SIZES, st.integers(1, 4), st.integers(1, 2))
def test_every_patch_is_in_one_window_and_comes_back(rows, columns, side, merge):
    windows = sort_windows(rows, columns, side, merge)
    tokens, patches = rows * columns, rows * columns * merge**2
    assert sorted(windows.order) == list(range(tokens))
    assert (windows.order[windows.back] == np.arange(tokens)).all()
    assert (windows.members.reshape(-1)[windows.places] == np.arange(patches)).all()
    inside = np.zeros(windows.members.size, bool)
    inside[windows.places] = True
    assert ((windows.mask.reshape(-1) == MASKED) == ~inside).all()
    row, column = np.divmod(windows.order, columns)
    for members, mask in zip(windows.members, windows.mask[:, 0], strict=True):
        token = members[mask == 0] // merge**2
        assert len(set(zip(row[token] // side, column[token] // side, strict=True))) == 1


def test_angles_are_of_row_and_column():
    cos, sin = VisionRope2D(8, 100.0).angles(np.array([0, 3]), np.array([2, 1]))
    wanted = [[0, 0, 2, 0.2], [3, 0.3, 1, 0.1]]
    assert np.allclose(cos, np.cos(wanted), atol=1e-6)
    assert np.allclose(sin, np.sin(wanted), atol=1e-6)
    assert cos.dtype == np.float32


def test_table_golden():
    """Qwen3-VL, 2 x 4 patches over a table of 6 x 6: corners meet corners."""
    row, column = (part.reshape(-1) for part in merge_order(2, 4, 2))
    taps, weights = interpolate_positions(row, column, 6)
    assert taps[0].tolist()[0] == 0
    assert weights[0].tolist() == [1, 0, 0, 0]
    assert taps[7].tolist() == [35, 35, 35, 35]
    assert taps[1].tolist() == [1, 2, 7, 8]
    assert np.allclose(weights[1], [1 / 3, 2 / 3, 0, 0], atol=1e-6)
    assert weights.dtype == np.float32


@given(SIZES, SIZES, st.integers(2, 9))
def test_a_table_of_places_is_read_as_places(rows, columns, side):
    """If the table holds each entry's own place, interpolation gives the place asked for."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    taps, weights = interpolate_positions(row, column, side)
    assert np.allclose(weights.sum(1), 1, atol=1e-5)
    for place, last, entry in ((row, rows - 1, taps // side), (column, columns - 1, taps % side)):
        assert np.allclose((entry * weights).sum(1), place * (side - 1) / max(last, 1), atol=1e-4)


def test_inputs_follow_the_order_of_the_windows():
    settings = VisionSettings(14, SquareResize(28), 2, rope=VisionRope2D(16), window=2)
    order, feeds = patch_inputs((6, 10), settings)
    row, column = merge_order(6, 10, 2)
    cos, _ = VisionRope2D(16).angles(row[order].reshape(-1), column[order].reshape(-1))
    assert np.array_equal(feeds["rope_cos"], cos)
    assert set(feeds) == {"rope_cos", "rope_sin", "windows", "window_mask", "places", "back"}
    assert set(patch_inputs((6, 10), VisionSettings(14, SquareResize(28)))[1]) == set()


CHUNKED = RopeSettings(16, 10000.0, "chunked", (2, 3, 3))
INTERLEAVED = RopeSettings(16, 10000.0, "interleaved", (2, 3, 3))


def test_frequencies_turn_with_their_axes():
    assert CHUNKED.axes().tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert INTERLEAVED.axes().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert RopeSettings(16, 10000.0).axes().tolist() == [0] * 8


@pytest.mark.parametrize("rope", [CHUNKED, INTERLEAVED])
def test_text_turns_alike_in_every_layout(rope):
    plain = RopeSettings(16, 10000.0)
    positions = np.broadcast_to(np.arange(50), (3, 50))
    for ours, theirs in zip(rope.angles(positions), plain.angles(positions), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_picture_spreads_and_text_goes_on_behind_its_longer_side():
    positions = prompt_positions(2, (2, 3), 2)
    assert positions.T.tolist() == [
        [0, 0, 0], [1, 1, 1],
        [2, 2, 2], [2, 2, 3], [2, 2, 4], [2, 3, 2], [2, 3, 3], [2, 3, 4],
        [5, 5, 5], [6, 6, 6],
    ]  # fmt: skip
    assert np.array_equal(CHUNKED.before_text(2, (2, 3)), positions[:, :8])


def test_a_plain_layout_counts_visual_tokens_like_words():
    assert RopeSettings(16, 1e4).before_text(2, (2, 3)).tolist() == [list(range(8))] * 3


def test_angles_golden():
    cos, sin = RopeSettings(4, 100.0).angles(np.array([[0, 1, 7]] * 3))
    assert np.allclose(cos, [[1, 1], [0.5403023, 0.9950042], [0.7539023, 0.7648422]], atol=1e-6)
    assert np.allclose(sin, [[0, 0], [0.8414710, 0.0998334], [0.6569866, 0.6442177]], atol=1e-6)


@pytest.mark.parametrize("theta", [float("nan"), float("inf"), 0.0, -1e4, 0.5])
def test_a_base_of_frequencies_that_cannot_be_is_refused(theta):
    for make in (lambda: RopeSettings(64, theta), lambda: VisionRope2D(64, theta)):
        with pytest.raises(ManifestInvalid, match="rope theta"):
            make()


@pytest.mark.parametrize(
    ("head_dim", "sections"), [(64, (8, 8, 8)), (64, (48, -8, -8)), (63, (8, 12, 11))]
)
def test_sections_that_do_not_fill_a_head_are_refused(head_dim, sections):
    with pytest.raises(ManifestInvalid, match="rope sections"):
        RopeSettings(head_dim, 1e4, "chunked", sections)
