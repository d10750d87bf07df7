"""The SAM family's host: frames, padding, feedback, the choice of a mask, and how it is drawn.

The graphs are replaced by two small sessions whose answer can be computed by hand: the mask is a
disc around every positive click.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.segmenters.prediction import GivenMask, LogitsPrediction
from segagent_rt.segmenters.sam import Sam, SamEmbedding, SamPrediction, SamSettings
from segagent_rt.segmenters.sam_frame import Frame, pixels
from segagent_rt.types import Array, Box, Click, DeviceTensor

SAM = SamSettings()
SAM2 = SamSettings(
    resize="squash",
    features=("embedding", "hi0", "hi1"),
    pads_with_box=True,
    feedback_limit=32.0,
)


class Encoder:
    """Keeps what it is shown."""

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], *, into: Any = None, keep: Any = ()
    ) -> dict[str, Any]:
        assert set(keep) == set(outputs)
        self.image = feeds["image"]
        return {name: f"{name} on its device" for name in outputs}

    def allocate(self, shape: Sequence[int], dtype: Any) -> DeviceTensor:
        raise NotImplementedError

    def close(self) -> None: ...


class DiscDecoder(Encoder):
    """Draws discs of 3 logits' radius around the positive clicks; masks 0..3 differ in scale."""

    def __init__(self, scores: Sequence[float] = (0.9, 0.1, 0.8, 0.3), scale: float = 1.0) -> None:
        self.scores, self.scale = np.array([scores], np.float32), scale
        self.feeds: dict[str, Array] = {}

    def run(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], *, into: Any = None, keep: Any = ()
    ) -> dict[str, Any]:
        self.feeds = dict(feeds)
        side = feeds["mask_input"].shape[-1]
        rows, columns = np.mgrid[:side, :side] + 0.5
        logits = np.full((side, side), -3.0)
        for (x, y), label in zip(feeds["point_coords"][0], feeds["point_labels"][0], strict=True):
            if label == 1:
                distance = np.hypot(columns - (x + 0.5) / 4, rows - (y + 0.5) / 4)
                logits = np.maximum(logits, 3 - distance)
        masks = np.stack([logits * self.scale * factor for factor in (1, 2, 3, 4)])
        return {"masks": masks[None].astype(np.float32), "scores": self.scores}


def embedding(size: tuple[int, int], chosen: SamSettings = SAM) -> SamEmbedding:
    features = dict.fromkeys(chosen.features, np.zeros(1))
    return SamEmbedding(features, Frame(size, chosen.side, chosen.resize))


def fed(
    chosen: SamSettings, clicks: Sequence[Click], box: Box | None = None, prior: Any = None
) -> dict[str, Array]:
    """What the decoder is given for a picture of 400 x 600."""
    decoder = DiscDecoder()
    Sam(Encoder(), decoder, chosen).decode(
        embedding((400, 600), chosen), clicks, prior=prior, box=box
    )
    return decoder.feeds


CLICKS = [Click(30, 200, True), Click(599, 399, False)]
BOX = Box(60, 40, 300, 200)


def test_sizes_within_the_square_are_those_of_the_published_code() -> None:
    """`int(length * scale + 0.5)`: 682.67 rows are 683, and a thin picture keeps one."""
    assert Frame((400, 600), 1024, "longest").inside == (683, 1024)
    assert Frame((600, 400), 1024, "longest").inside == (1024, 683)
    assert Frame((1024, 1024), 1024, "longest").inside == (1024, 1024)
    assert Frame((1, 5000), 1024, "longest").inside == (1, 1024)
    assert Frame((400, 600), 1024, "squash").inside == (1024, 1024)


def test_clicks_are_followed_by_one_padding_point() -> None:
    feeds = fed(SAM, CLICKS)
    golden = [[51.2, 341.5], [599 * 1024 / 600, 399 * 683 / 400], [0, 0]]
    np.testing.assert_allclose(feeds["point_coords"], [golden], atol=1e-4)
    assert feeds["point_labels"].tolist() == [[1, 0, -1]]
    assert feeds["point_coords"].dtype == feeds["point_labels"].dtype == np.float32


def test_a_box_is_two_corners_in_the_place_of_the_padding() -> None:
    feeds = fed(SAM, CLICKS[:1], BOX)
    scale = np.array([1024 / 600, 683 / 400])
    golden = np.array([[30, 200], [60, 40], [300, 200]]) * scale
    np.testing.assert_allclose(feeds["point_coords"], [golden], atol=1e-4)
    assert feeds["point_labels"].tolist() == [[1, 2, 3]]


def test_sam_2_squashes_and_pads_after_a_box_too() -> None:
    feeds = fed(SAM2, CLICKS[:1], BOX)
    golden = np.array([[30, 200], [60, 40], [300, 200], [0, 0]]) * [1024 / 600, 1024 / 400]
    np.testing.assert_allclose(feeds["point_coords"], [golden], atol=1e-4)
    assert feeds["point_labels"].tolist() == [[1, 2, 3, -1]]
    assert {"embedding", "hi0", "hi1"} <= feeds.keys()


def test_a_box_alone_and_nothing_at_all_are_prompts() -> None:
    assert fed(SAM, [], BOX)["point_labels"].tolist() == [[2, 3]]
    assert fed(SAM, [])["point_labels"].tolist() == [[-1]]


def test_without_a_mask_so_far_none_is_claimed() -> None:
    feeds = fed(SAM, CLICKS)
    assert feeds["has_mask"].tolist() == [0.0]
    assert feeds["mask_input"].shape == (1, 1, 256, 256)
    assert not feeds["mask_input"].any()


def test_masks_need_not_be_a_quarter_of_the_square() -> None:
    """SAM 3's tracker: 288 logits for 1,008 pixels."""
    chosen = dataclasses.replace(SAM2, side=1008, mask_side=288)
    mask = np.zeros((400, 600), np.bool_)
    mask[100:200, 300:] = True
    feeds = fed(chosen, CLICKS, prior=GivenMask(mask))
    assert feeds["mask_input"].shape == (1, 1, 288, 288)
    assert (feeds["mask_input"] > 0).mean() == pytest.approx(mask.mean(), abs=1e-3)
    logits = np.linspace(-1, 1, 288 * 288, dtype=np.float32).reshape(288, 288)
    prior = SamPrediction(logits, Frame((400, 600), 1008, "squash"))
    assert np.array_equal(fed(chosen, CLICKS, prior=prior)["mask_input"][0, 0], logits)
    assert prior.mask().shape == (400, 600)
    other = SamPrediction(np.where(logits > 0.9, -logits, logits), prior.frame)
    assert prior.agrees(prior)
    assert not prior.agrees(other)


@pytest.mark.parametrize("frame", [Frame((400, 600), 1008, "longest")])
def test_what_lies_in_the_padding_does_not_tell_masks_apart(frame) -> None:
    logits = np.zeros((288, 288), np.float32)
    logits[-80:] = 1.0  # 672 of 1,008 rows hold the picture: 192 of 288
    plain = SamPrediction(np.zeros((288, 288), np.float32), frame)
    assert plain.agrees(SamPrediction(logits, frame))
    logits[191] = 1.0
    assert not plain.agrees(SamPrediction(logits, frame))


@pytest.mark.parametrize("chosen", [SAM, SAM2], ids=["sam", "sam2"])
def test_the_chosen_logits_are_fed_back(chosen: SamSettings) -> None:
    """As they are; SAM 2 clips them to 32."""
    sam = Sam(Encoder(), DiscDecoder(scale=9.0), chosen)
    first = sam.decode(embedding((400, 600), chosen), CLICKS[:1])
    assert first.logits.max() > 40
    feeds = fed(chosen, CLICKS, prior=first)
    limit = chosen.feedback_limit or np.inf
    np.testing.assert_array_equal(feeds["mask_input"][0, 0], np.clip(first.logits, -limit, limit))
    assert feeds["has_mask"].tolist() == [1.0]


def test_a_given_mask_becomes_certain_logits_in_the_square() -> None:
    """Ten where it is set, minus ten elsewhere, also in the padding below a wide picture."""
    mask = np.zeros((400, 600), np.bool_)
    mask[200:, :300] = True
    logits = fed(SAM, CLICKS, prior=GivenMask(mask))["mask_input"][0, 0]
    assert set(np.unique(logits)) == {-10.0, 10.0}
    assert (logits[87:170, :127] == 10).all()
    assert (logits[:84] == -10).all()
    assert (logits[172:] == -10).all()
    assert (logits[:, 129:] == -10).all()
    squashed = fed(SAM2, CLICKS, prior=GivenMask(mask))["mask_input"][0, 0]
    assert (squashed[129:, :127] == 10).all()


def test_logits_of_another_picture_or_segmenter_are_taken_as_a_mask() -> None:
    logits = np.full((256, 256), 3.0, np.float32)
    elsewhere = SamPrediction(logits, Frame((500, 500), 1024, "longest"))
    for prior in (elsewhere, LogitsPrediction(logits, (400, 600))):
        fed_back = fed(SAM, CLICKS, prior=prior)["mask_input"][0, 0]
        assert (fed_back[:170] == 10).all()
        assert (fed_back[171:] == -10).all()


FAULTS = {
    "no padding of points": lambda f: f | {"point_labels": f["point_labels"][:, :-1]},
    "row before column": lambda f: f | {"point_coords": f["point_coords"][..., ::-1]},
    "half a pixel added on the host": lambda f: f | {"point_coords": f["point_coords"] + 0.5},
    "one scale for both sides": lambda f: f | {"point_coords": np.array(
        [[[51.2, 200 * 1024 / 600], [599 * 1024 / 600, 399 * 1024 / 600], [0, 0]]]
    )},
    "signs swapped": lambda f: f | {"point_labels": np.array([[0, 1, -1]])},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_golden_frames_notice_a_planted_fault(
    fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fed
    monkeypatch.setitem(globals(), "fed", lambda *asked: fault(right(*asked)))
    with pytest.raises(AssertionError):
        test_clicks_are_followed_by_one_padding_point()


@given(st.tuples(st.integers(100, 1500), st.integers(100, 1500)), st.data())
def test_a_disc_is_drawn_around_its_click(size: tuple[int, int], data: Any) -> None:
    """There and back: into the square and out of it, for pictures of any shape."""
    height, width = size
    click = Click(data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1)), True)
    for chosen in (SAM, SAM2):
        mask = Sam(Encoder(), DiscDecoder(), chosen).decode(embedding(size, chosen), [click]).mask()
        assert mask.shape == size
        assert mask[click.y, click.x]
        inside = Frame(size, 1024, chosen.resize).inside
        rows, columns = np.nonzero(mask)
        assert abs(rows - click.y).max() <= 14 * height / inside[0] + 1
        assert abs(columns - click.x).max() <= 14 * width / inside[1] + 1


def test_the_mask_is_drawn_as_sam_does() -> None:
    """At the square's size, without the padding, then at the picture's: bilinear both times."""
    logits = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    prediction = SamPrediction(logits, Frame((400, 600), 1024, "longest"))
    square = cv2.resize(logits, (1024, 1024), interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(square[:683], (600, 400), interpolation=cv2.INTER_LINEAR) > 0
    np.testing.assert_array_equal(prediction.mask(), expected)
    assert prediction.mask((100, 150)).shape == (100, 150)
    stretched = SamPrediction(logits, Frame((400, 600), 1024, "squash"))
    expected = cv2.resize(logits, (600, 400), interpolation=cv2.INTER_LINEAR) > 0
    np.testing.assert_array_equal(stretched.mask(), expected)


@pytest.mark.parametrize(
    ("choice", "scale", "factor"),
    [("best", 1.0, 3), ("single", 1.0, 1), ("stable", 1.0, 3), ("stable", 1000.0, 1)],
)
def test_the_choice_of_a_mask(choice: Any, scale: float, factor: int) -> None:
    """The best-scored of the last three, whatever the first one's score; or the first."""
    chosen = dataclasses.replace(SAM, choice=choice)
    sam = Sam(Encoder(), DiscDecoder(scale=scale), chosen)
    prediction = sam.decode(embedding((1024, 1024)), [Click(512, 512, True)])
    assert prediction.logits.min() == pytest.approx(-3.0 * scale * factor)


def test_an_empty_first_mask_is_stable() -> None:
    """Nothing above either threshold: no pixel disagrees."""
    chosen = dataclasses.replace(SAM, choice="stable")
    prediction = Sam(Encoder(), DiscDecoder(), chosen).decode(embedding((1024, 1024)), [])
    assert prediction.logits.min() == -3.0


def test_scores_stay_between_0_and_1() -> None:
    """SAM's head has no sigmoid; a score above 1 is still the best."""
    decoder = DiscDecoder(scores=(0.2, 1.2, 1.1, -0.4))
    prediction = Sam(Encoder(), decoder, SAM).decode(embedding((400, 600)), CLICKS)
    assert prediction.score == 1.0
    assert prediction.logits.min() == -6.0


def test_predictions_agree_where_the_picture_is() -> None:
    frame = Frame((400, 600), 1024, "longest")
    logits = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    prediction = SamPrediction(logits, frame)
    assert prediction.agrees(SamPrediction(2 * logits, frame, 0.5))
    padding, picture = logits.copy(), logits.copy()
    padding[171:] *= -1
    picture[100, 100] *= -1
    assert prediction.agrees(SamPrediction(padding, frame))
    assert not prediction.agrees(SamPrediction(picture, frame))
    assert prediction.agrees(GivenMask(prediction.mask()))
    assert not prediction.agrees(GivenMask(~prediction.mask()))


def test_pixels_are_normalised_and_then_padded() -> None:
    """The padding is 0, not the normalised black."""
    image = np.full((400, 600, 3), (255, 0, 128), np.uint8)
    square = pixels(image, Frame((400, 600), 1024, "longest"), SAM.mean, SAM.std)
    assert square.shape == (1, 3, 1024, 1024)
    assert square.dtype == np.float32
    golden = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    np.testing.assert_allclose(square[0, :, 682, 1023], golden, rtol=1e-6)
    assert not square[0, :, 683:].any()


def test_shrinking_widens_the_filter() -> None:
    """Every pixel of a fine pattern counts: a checkerboard becomes grey, not black or white."""
    image = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (200, 200))[..., None].repeat(3, 2)
    square = pixels(image, Frame((400, 400), 64, "longest"), (0.0,) * 3, (255.0,) * 3)
    np.testing.assert_allclose(square[0, :, 2:-2, 2:-2], 0.5, atol=0.01)


def test_the_encoder_sees_the_picture_once_and_its_maps_stay_put() -> None:
    encoder = Encoder()
    image = np.zeros((40, 60, 3), np.uint8)
    kept = Sam(encoder, DiscDecoder(), SAM2).encode(image)
    assert kept.size == (40, 60)
    assert kept.features["hi1"] == "hi1 on its device"
    assert encoder.image.shape == (1, 3, 1024, 1024)
