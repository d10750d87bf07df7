"""Results of SegAgent's own code (evaltools, isegm) on the clicker, the overlay and the replies."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from segagent_rt.annotators.oracle import next_click
from segagent_rt.image import jpeg_round_trip, load_image, overlay
from segagent_rt.mllm.preprocess import bicubic
from segagent_rt.reply import ReplyProtocol
from segagent_rt.types import Click, Finish, Malformed


def test_the_next_click_is_the_same_in_every_case(segagent_golden):
    """All 40, plateaus included. One documented difference: with nothing left to correct SegAgent
    returns a negative click at (0, 0), we return none."""
    cases = np.load(segagent_golden / "clicker" / "cases.npz")
    nothing_left = 0
    for number, (row, column, positive) in enumerate(cases["expected"].tolist()):
        height, width = cases[f"shape_{number:02d}"].tolist()

        def mask(name, at=number, size=(height, width)):
            bits = np.unpackbits(cases[f"{name}_{at:02d}"], count=size[0] * size[1])
            return bits.reshape(size).astype(np.bool_)

        clicked = np.zeros((height, width), np.bool_)
        for y, x, _ in cases.get(f"prev_{number:02d}", ()):
            clicked[y, x] = True
        ignored = mask("ignore") if f"ignore_{number:02d}" in cases else None
        found = next_click(mask("gt"), mask("pred"), clicked=clicked, ignored=ignored)
        if not cases[f"diag_{number:02d}"][:2].any():
            assert found is None
            nothing_left += 1
        else:
            assert found == Click(column, row, bool(positive)), number
    assert nothing_left == 1


@pytest.mark.parametrize("number", range(3))
def test_the_painted_picture_is_the_same_to_the_last_bit(shared, number):
    """Overlay, JPEG file, and what the MLLM's processor makes of it."""
    folder = shared / "segagent" / "overlay"
    stored = np.load(folder / "jpeg_resize.npz")
    image = load_image(folder / f"{number}_input.png")
    with Image.open(folder / f"{number}_mask.png") as picture:
        mask = np.asarray(picture) > 0
    painted = overlay(image, mask)
    assert np.array_equal(painted, load_image(folder / f"{number}_overlay.png"))
    decoded = jpeg_round_trip(painted)
    assert np.array_equal(decoded, stored[f"decoded_{number}"])
    content = stored[f"jpeg_{number}"].tobytes()
    assert np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(content))))
    assert np.array_equal(bicubic(decoded, (448, 448)), stored[f"resized448_{number}"])


def reading(reply):
    """What was read of a reply in the terms of the corpus, in an image of 1000 x 1000 pixels."""
    action = ReplyProtocol().read(reply["text"], (1000, 1000)).action
    if isinstance(action, (Finish, Malformed)):
        return None, None
    return action.positive, (action.y, action.x)


def wanted(result):
    place = result["relative_coor"]
    if place is None:
        return None, None
    return result["is_positive"], tuple(min(round(1000 * n), 999) for n in place)


def test_replies_are_read_as_there_or_as_the_corpus_says_is_sane(segagent_golden):
    """66 texts. Differences from SegAgent's parser are those that the corpus names, each with its
    reason: floats, other brackets or letter case, line breaks, captions that contain an action,
    numbers outside of the image."""
    replies = json.loads((segagent_golden / "replies" / "corpus.json").read_text())["replies"]
    different = []
    for reply in replies:
        best = reply["ref"] if reply["robust"] is None else reply["robust"]
        taken = [wanted(best), *(wanted(other) for other in reply["also_acceptable"])]
        assert reading(reply) in taken, reply["text"]
        if reading(reply) != wanted(reply["ref"]):
            different.append(reply["id"])
    assert len(replies) == 66
    assert different == [26, 27, 28, 29, 35, 36, 37, 44, 45, 48, 53, 55, 57, 59, 61]


def test_ratings_of_replies_are_those_of_segagents_rule(segagent_golden):
    replies = json.loads((segagent_golden / "replies" / "corpus.json").read_text())["replies"]
    for reply in replies:
        rule, ours = reply["iou_ref_rule"], ReplyProtocol().read(reply["text"], (1000, 1000)).iou
        if rule is not None and "Current IOU" in reply["text"]:
            assert ours == (None if rule > 100 else pytest.approx(rule / 100)), reply["text"]
