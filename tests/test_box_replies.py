"""Lists of boxes: what stock Qwen-VL models write, what is understood, what the grammar allows."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.annotators.preset_codec import preset_codec
from segagent_rt.annotators.structured_output import gbnf, regex
from segagent_rt.mllm.grammar import compile_grammar
from segagent_rt.reply import BoxListProtocol
from segagent_rt.types import Box, Finish, Malformed
from tests.test_reply import characters, spell

THOUSANDTHS, PIXELS = BoxListProtocol("relative"), BoxListProtocol("pixels")
FENCED = '```json\n[\n\t{{"bbox_2d": [{}], "label": "{}"}}\n]\n```'


@pytest.mark.parametrize(
    ("size", "numbers", "box"),
    [
        ((480, 640), "250, 500, 750, 1000", Box(160, 240, 480, 479)),
        ((1000, 250), "100, 100, 900, 200", Box(25, 100, 225, 200)),  # 1:4
        ((250, 1000), "100, 100, 900, 200", Box(100, 25, 900, 50)),  # 4:1
        ((480, 640), "0, 0, 1000, 1000", Box(0, 0, 639, 479)),
    ],
)
def test_qwen3_counts_thousandths_of_each_side(size, numbers, box):
    """Golden: Qwen3-VL's technical report, appendix B, and its spatial-understanding cookbook."""
    assert THOUSANDTHS.read(FENCED.format(numbers, "the mug"), size).action == box


@pytest.mark.parametrize(
    ("size", "frame", "numbers", "box"),
    [
        ((480, 640), (476, 644), "161, 238, 483, 476", Box(160, 240, 480, 479)),
        ((2000, 500), (980, 252), "126, 98, 252, 490", Box(250, 200, 499, 1000)),  # 1:4
        ((500, 2000), (252, 980), "98, 126, 490, 252", Box(200, 250, 1000, 499)),  # 4:1
    ],
)
def test_qwen2_5_counts_pixels_of_the_resized_image(size, frame, numbers, box):
    """Golden: the frame is what smart_resize made of the image, not the image."""
    assert PIXELS.read(FENCED.format(numbers, "the mug"), size, frame=frame).action == box


RELATIVE_NUMBERS = (
    (100, 200, 600, 900), (0, 0, 1000, 1000), (330, 50, 340, 950), (710, 520, 990, 580),
    (450, 450, 550, 550),
)  # fmt: skip

GOLDEN = {
    ("qwen3-vl", (1600, 400), (1600, 384)): (
        RELATIVE_NUMBERS,
        ((40, 320, 240, 1440), (0, 0, 399, 1599), (132, 80, 136, 1520), (284, 832, 396, 928),
         (180, 720, 220, 880)),
    ),
    ("qwen3-vl", (1200, 600), (1216, 608)): (
        RELATIVE_NUMBERS,
        ((60, 240, 360, 1080), (0, 0, 599, 1199), (198, 60, 204, 1140), (426, 624, 594, 696),
         (270, 540, 330, 660)),
    ),
    ("qwen3-vl", (720, 720), (704, 704)): (
        RELATIVE_NUMBERS,
        ((72, 144, 432, 648), (0, 0, 719, 719), (238, 36, 245, 684), (511, 374, 713, 418),
         (324, 324, 396, 396)),
    ),
    ("qwen3-vl", (600, 1200), (608, 1216)): (
        RELATIVE_NUMBERS,
        ((120, 120, 720, 540), (0, 0, 1199, 599), (396, 30, 408, 570), (852, 312, 1188, 348),
         (540, 270, 660, 330)),
    ),
    ("qwen3-vl", (400, 1600), (384, 1600)): (
        RELATIVE_NUMBERS,
        ((160, 80, 960, 360), (0, 0, 1599, 399), (528, 20, 544, 380), (1136, 208, 1584, 232),
         (720, 180, 880, 220)),
    ),
    ("qwen2.5-vl", (1600, 400), (1596, 392)): (
        ((39, 319, 235, 1436), (0, 0, 392, 1596), (129, 79, 133, 1516), (278, 829, 388, 925),
         (176, 718, 215, 877)),
        ((40, 320, 240, 1440), (0, 0, 399, 1599), (132, 79, 136, 1520), (284, 831, 396, 927),
         (180, 720, 219, 879)),
    ),
    ("qwen2.5-vl", (1200, 600), (1204, 588)): (
        ((58, 240, 352, 1083), (0, 0, 588, 1204), (194, 60, 199, 1143), (417, 626, 582, 698),
         (264, 541, 323, 662)),
        ((59, 239, 359, 1079), (0, 0, 599, 1199), (198, 60, 203, 1139), (426, 624, 594, 696),
         (269, 539, 330, 660)),
    ),
    ("qwen2.5-vl", (720, 720), (728, 728)): (
        ((72, 145, 436, 655), (0, 0, 728, 728), (240, 36, 247, 691), (516, 378, 720, 422),
         (327, 327, 400, 400)),
        ((71, 143, 431, 648), (0, 0, 719, 719), (237, 36, 244, 683), (510, 374, 712, 417),
         (323, 323, 396, 396)),
    ),
    ("qwen2.5-vl", (600, 1200), (588, 1204)): (
        ((120, 117, 722, 529), (0, 0, 1204, 588), (397, 29, 409, 558), (854, 305, 1191, 341),
         (541, 264, 662, 323)),
        ((120, 119, 720, 540), (0, 0, 1199, 599), (396, 30, 408, 569), (851, 311, 1187, 348),
         (539, 269, 660, 330)),
    ),
    ("qwen2.5-vl", (400, 1600), (392, 1596)): (
        ((159, 78, 957, 352), (0, 0, 1596, 392), (526, 19, 542, 372), (1133, 203, 1580, 227),
         (718, 176, 877, 215)),
        ((159, 80, 959, 359), (0, 0, 1599, 399), (527, 19, 543, 380), (1136, 207, 1584, 232),
         (720, 180, 879, 219)),
    ),
}  # fmt: skip
"""(preset, image, resized image): the numbers of a reply, and the boxes in pixels of the image,
computed with fractions. The resized sizes are those of transformers' smart_resize."""


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("case", GOLDEN)
def test_boxes_of_images_from_one_to_four_to_four_to_one(case, count):
    """A documented reply is spelt by the grammar and read as the right pixels."""
    (preset, size, frame), (numbers, boxes) = case, GOLDEN[case]
    codec = preset_codec(preset)
    assert codec.settings.resize.target(size) == frame
    entries = ",\n\t".join(
        f'{{"bbox_2d": [{", ".join(map(str, row))}], "label": "the mug"}}'
        for row in numbers[:count]
    )
    reply = f"```json\n[\n\t{entries}\n]\n```"
    spell(compile_grammar(codec.settings.reply, characters, "the mug", frame), reply)
    reading = codec.understand(reply, size, frame)
    assert reading.boxes == tuple(Box(*box) for box in boxes[:count])
    assert reading.action == reading.boxes[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_box_of_a_list_is_read_and_the_first_is_the_action(count):
    boxes = tuple(Box(10 * at, 20, 10 * at + 5, 400) for at in range(1, count + 1))
    text = THOUSANDTHS.write(boxes, (1000, 1000), expression="a cup")
    labels = [entry["label"] for entry in json.loads(text.strip("`").removeprefix("json"))]
    assert labels == ["a cup"] * count
    reading = THOUSANDTHS.read(text, (1000, 1000))
    assert reading.boxes == boxes
    assert reading.action == boxes[0]
    assert reading.iou is None


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('[{"bbox_2d": [250, 500, 750, 900], "label": "x"}]', Box(160, 240, 480, 432)),
        ('{"bbox_2d": [250, 500, 750, 900]}', Box(160, 240, 480, 432)),
        ('It is here: [{"bbox_2d":[250.0,500.0,750.0,900.0]', Box(160, 240, 480, 432)),
        ('[{"bbox_2d": [750, 900, 250, 500], "label": "x"}]', Box(160, 240, 480, 432)),
        ('[{"bbox_2d": [-20, 500, 1200, 900], "label": "x"}]', Box(0, 240, 639, 432)),
        ("```json\n[]\n```", Finish()),
        ("", Malformed("no box in the reply")),
        ("I cannot see it.", Malformed("no box in the reply")),
        ('[{"bbox_2d": [250, 500, 250, 500], "label": "x"}]', Malformed("no box in the reply")),
        ('[{"bbox_2d": [' + "9" * 400 + ", 1, 2, 3]}]", Malformed("no box in the reply")),
    ],
)
def test_free_text_is_understood(text, action):
    assert THOUSANDTHS.read(text, (480, 640)).action == action


_SIDE = st.integers(64, 2000)


@given(st.data(), _SIDE, _SIDE, st.integers(1, 8), st.sampled_from([THOUSANDTHS, PIXELS]))
def test_what_is_written_is_spelt_by_the_grammar_and_read_back_within_a_unit(
    data, height, width, count, protocol
):
    def interval(side):
        return sorted(data.draw(st.tuples(st.integers(0, side - 1), st.integers(0, side - 1))))

    size = frame = (height, width)
    corners = [(interval(width), interval(height)) for _ in range(count)]
    boxes = [Box(x[0], y[0], x[1], y[1]) for x, y in corners]
    text = protocol.write(boxes, size, expression='a "big" cup', frame=frame)
    spell(compile_grammar(protocol, characters, 'a "big" cup', frame), text)
    wide = [b for b in boxes if min(b.x1 - b.x0, b.y1 - b.y0) > max(size) / 500]
    read = protocol.read(text, size, frame=frame).boxes
    for box in wide:
        assert any(
            max(abs(box.x0 - r.x0), abs(box.x1 - r.x1)) <= 1 + width / 1000
            and max(abs(box.y0 - r.y0), abs(box.y1 - r.y1)) <= 1 + height / 1000
            for r in read
        )


def test_only_digits_and_the_end_of_the_list_are_free():
    """The floor of decoder calls: one for each digit, and one that decides whether to go on."""
    grammar = compile_grammar(THOUSANDTHS, characters, "the mug", (480, 640))
    text = FENCED.format("330, 412, 900, 987", "the mug")
    assert len(text) - spell(grammar, text) == 12 + 1


def test_the_grammar_refuses_what_is_no_list_of_boxes():
    grammar = compile_grammar(THOUSANDTHS, characters, "the mug", (480, 640))
    for wrong in (
        FENCED.format("1, 2, 3", "the mug"),
        FENCED.format("1, 2, 3, 1001", "the mug"),
        FENCED.format("1, 2, 3, 4", "the cup"),
        "```json\n[]\n```",
    ):
        with pytest.raises(AssertionError):
            spell(grammar, wrong)


def test_a_server_is_asked_for_the_same_lists():
    pattern = re.compile(regex(PIXELS, "a (red) cup", (476, 644)))
    boxes = [Box(0, 1, 643, 475), Box(10, 20, 30, 40)]
    for count in (1, 2):
        text = PIXELS.write(boxes[:count], (476, 644), expression="a (red) cup")
        assert pattern.fullmatch(text)
    assert not pattern.fullmatch(FENCED.format("1, 2, 645, 4", "a (red) cup"))
    assert not pattern.fullmatch(PIXELS.write(boxes * 5, (476, 644), expression="a (red) cup"))
    assert "){0,7}" in gbnf(PIXELS, "a (red) cup", (476, 644))
