"""The JSON document of a trajectory: every step has the rating of its own mask."""

import numpy as np

from segagent_rt.image import mask_to_rle
from segagent_rt.results import describe
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.types import Box, Click, Finish, Malformed, Step, Trajectory, Turn


def filled(columns):
    mask = np.zeros((4, 6), np.bool_)
    mask[:, :columns] = True
    return GivenMask(mask)


def step(x, columns, rating, **more):
    click = Click(x, 1, positive=True)
    return Step(click, filled(columns), rating, turn=Turn(f"point {x}", click), **more)


def test_ratings_and_the_first_mask_are_those_of_the_steps():
    steps = (
        step(1, 2, 0.4, seconds={"annotate": 1.0, "vision": 0.5}),
        step(2, 4, 0.83333, restarted=True, seconds={"annotate": 2.0, "segment": 0.25}),
        step(3, 6, 0.7, stop="budget"),
    )
    document = describe(Trajectory("it", steps))
    assert [each["rating"] for each in document["steps"]] == [0.4, 0.8333, 0.7]
    assert [each["restarted"] for each in document["steps"]] == [False, True, False]
    assert [each["reply"] for each in document["steps"]] == ["point 1", "point 2", "point 3"]
    assert (document["returned"], document["predicted_iou"]) == (2, 0.8333)
    assert document["mask"] == mask_to_rle(filled(4).mask())
    assert document["one_shot"] == {"predicted_iou": 0.4, "mask": mask_to_rle(filled(2).mask())}
    assert document["seconds"] == {"annotate": 3.0, "vision": 0.5, "segment": 0.25}
    assert document["stop"] == "budget"


def test_a_given_mask_may_be_returned_after_no_click_and_is_not_the_one_shot_result():
    given = Step(prediction=filled(3), rating=0.9)
    document = describe(Trajectory("it", (given, step(1, 2, 0.4, stop="budget"))))
    assert (document["returned"], document["predicted_iou"]) == (0, 0.9)
    assert document["steps"][0]["reply"] is None
    assert document["one_shot"]["predicted_iou"] == 0.4


def test_a_box_is_a_step_without_a_click():
    box = Box(1, 0, 2, 3)
    made = Step(prediction=filled(2), turn=Turn("box", box), box=box, stop="one-shot")
    document = describe(Trajectory("it", (made,)))
    assert document["steps"][0]["box"] == {"x0": 1, "y0": 0, "x1": 2, "y1": 3}
    assert (document["clicks"], document["returned"], document["stop"]) == ([], 0, "one-shot")
    assert document["one_shot"]["mask"] == document["mask"]


def test_a_reply_without_an_action_says_what_is_missing():
    for action, problem in ((Malformed("no point"), "no point"), (Finish(), None)):
        document = describe(Trajectory("it", (Step(turn=Turn("eh", action), stop="malformed"),)))
        assert document["steps"][0]["problem"] == problem
        assert (document["mask"], document["one_shot"], document["returned"]) == (None, None, None)
