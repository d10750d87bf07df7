"""The service: a model's steps and a person's are one history, with undo, bounds and turns."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from segagent_rt.errors import (
    ClickOutside,
    InputError,
    Interrupted,
    NotOpen,
    ServerBusy,
)
from segagent_rt.segmenters.prediction import GivenMask
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.service import RunSettings, SegmentationService
from segagent_rt.types import Box, Click, ObjectPrompt
from tests.serve.fakes import CLICKS, FakeRuntime, HeldSegmenter
from tests.serve.live import wait_until

GREY = np.full((60, 100, 3), 128, np.uint8)


@pytest.fixture
def service():
    return SegmentationService({"fake": FakeRuntime(), "hand": FakeRuntime(words=False)})


@pytest.fixture
def job(service):
    with service.admit() as job:
        yield job


def area(state):
    return 0 if state.prediction is None else int(state.prediction.mask().sum())


def test_words_make_a_state_for_each_step_and_the_best_mask_is_shown(service, job):
    image = service.open_image(job, GREY)
    states = list(service.segment(job, image.id, "discs"))
    assert [len(state.steps) for state in states] == [1, 2, 3, 4]
    assert [state.shown for state in states] == [0, 1, 2, 2]
    assert states[-1].steps[-1].stop == "finished"
    assert area(states[2]) == area(states[3]) > area(states[0])


def test_a_person_goes_on_from_the_mask_that_is_shown(service, job):
    image = service.open_image(job, GREY)
    *_, last = service.segment(job, image.id, "discs")
    state = service.click(job, image.id, 1, [Click(40, 20, False)])
    assert [step.click for step in state.steps] == [*CLICKS, Click(40, 20, False)]
    assert state.steps[-1].turn is None
    assert state.expression == "discs"
    assert not state.prediction.mask()[20, 40]
    assert area(state) < area(last)


def test_undo_and_redo_go_through_the_steps_of_both(service, job):
    image = service.open_image(job, GREY)
    list(service.segment(job, image.id, "discs", settings=RunSettings(max_clicks=2)))
    service.click(job, image.id, 1, [Click(80, 40, True)])
    areas = [area(service.state(image.id, 1))]
    areas += [area(service.undo(image.id, 1)) for _ in range(4)]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] == 0
    assert service.state(image.id, 1).redoable == 3
    assert area(service.undo(image.id, 1, -3)) == areas[0]


def test_a_new_step_after_undo_forgets_what_was_undone(service, job):
    image = service.open_image(job, GREY)
    for x in (10, 50):
        service.click(job, image.id, None if x == 10 else 1, [Click(x, 30, True)])
    service.undo(image.id, 1)
    state = service.click(job, image.id, 1, [Click(90, 30, True)])
    assert [step.click.x for step in state.steps] == [10, 90]
    assert state.redoable == 0


def test_a_box_starts_anew_and_clicks_follow_it(service, job):
    image = service.open_image(job, GREY)
    service.click(job, image.id, None, [Click(90, 50, True)])
    boxed = service.box(job, image.id, 1, Box(10, 10, 29, 19))
    assert area(boxed) == 20 * 10
    assert len(boxed.steps) == 1
    state = service.click(job, image.id, 1, [Click(90, 50, True)])
    assert state.steps[-1].box == Box(10, 10, 29, 19)
    assert area(state) > 20 * 10


def test_refine_starts_from_the_mask_that_is_shown(service, job):
    image = service.open_image(job, GREY)
    service.click(job, image.id, None, [Click(90, 50, True)])
    states = list(service.refine(job, image.id, 1, "discs"))
    assert states[0].steps[0].given
    assert states[-1].expression == "discs"
    assert states[-1].prediction.mask()[50, 90]


def test_score_rates_the_mask_that_is_shown(service, job):
    image = service.open_image(job, GREY)
    service.click(job, image.id, None, [Click(90, 50, True)])
    assert service.score(job, image.id, 1, "discs") == 0.6


def test_a_click_during_a_run_takes_over():
    segmenter = HeldSegmenter()
    segmenter.let_go.set()
    service = SegmentationService({"fake": FakeRuntime(segmenter)})
    with service.admit() as job, service.admit() as other:
        image = service.open_image(job, GREY)
        run = service.segment(job, image.id, "discs")
        next(run)
        state = service.click(other, image.id, 1, [Click(90, 50, True)])
        assert [step.click for step in state.steps] == [CLICKS[0], Click(90, 50, True)]
        assert job.cancelled
        assert list(run) == []
    assert service.state(image.id, 1).steps == state.steps


def test_a_click_goes_on_from_the_state_that_the_person_saw(service, job):
    image = service.open_image(job, GREY)
    first, *_ = service.segment(job, image.id, "discs")
    state = service.click(job, image.id, 1, [Click(90, 50, True)], state=first.undoable)
    assert [step.click for step in state.steps] == [CLICKS[0], Click(90, 50, True)]
    assert service.undo(image.id, 1, state=2).undoable == 1
    assert service.undo(image.id, 1, state=99, count=0).redoable == 0


def test_a_cancelled_job_stops_the_call_that_runs():
    segmenter = HeldSegmenter()
    service = SegmentationService({"fake": FakeRuntime(segmenter)})
    with service.admit() as job:
        image = service.open_image(job, GREY)
        clicked = threading.Thread(target=lambda: quiet(service, job, image))
        clicked.start()
        assert segmenter.begun.wait(5)
        job.cancel()
        clicked.join(5)
        assert segmenter.interrupted.is_set()


def quiet(service, job, image):
    with suppress(Interrupted):
        service.click(job, image.id, None, [Click(1, 1, True)])


def test_time_that_is_up_ends_a_run_with_the_mask_so_far():
    segmenter = HeldSegmenter()
    segmenter.let_go.set()
    service = SegmentationService({"fake": FakeRuntime(segmenter)})
    with service.admit(0.5) as job:
        image = service.open_image(job, GREY)
        run = service.segment(job, image.id, "discs")
        next(run)
        segmenter.let_go.clear()
        *_, last = run
    assert last.steps[-1].stop == "deadline"
    assert area(last) > 0


def test_a_full_queue_refuses():
    service = SegmentationService({"fake": FakeRuntime()}, ServeLimits(workers=1, waiting=1))
    with service.admit(), service.admit():
        with pytest.raises(ServerBusy) as refused:
            service.admit()
        assert refused.value.retry_after > 0
    with service.admit():
        assert service.queue.load == 1


def test_pieces_of_work_take_turns_in_the_order_in_which_they_were_asked_for():
    service = SegmentationService({"fake": FakeRuntime()})
    order, started, let_go = [], threading.Event(), threading.Event()

    def hold():
        started.set()
        let_go.wait(5)

    def work(name, piece):
        with service.admit() as job:
            job.run(piece)
            order.append(name)

    threads = [threading.Thread(target=work, args=("first", hold))]
    threads[0].start()
    assert started.wait(5)
    for number in range(4):
        threads.append(threading.Thread(target=work, args=(number, lambda: None)))
        threads[-1].start()
        wait_until(lambda number=number: len(service.queue._line) == number + 1)
    let_go.set()
    for thread in threads:
        thread.join(5)
    assert sorted(order[1:], key=str) == [0, 1, 2, 3]
    assert order[0] == "first"


def test_a_job_that_waits_too_long_is_interrupted_and_leaves_the_line():
    service = SegmentationService({"fake": FakeRuntime()})
    with service.admit() as running, service.admit(0.05) as late:

        def wait_in_line():
            with pytest.raises(Interrupted):
                late.run(lambda: pytest.fail("ran"))

        running.run(wait_in_line)
    with service.admit() as job:
        assert job.run(lambda: 5) == 5


def test_a_request_that_was_stopped_in_line_keeps_no_image():
    """The error held itself by its own traceback, and with it the image, until a search for
    garbage: under load the server grew by an image for each client that went away."""
    service = SegmentationService({"fake": FakeRuntime()})
    gc.disable()
    try:
        with service.admit() as running, service.admit(0.05) as late:
            image = service.open_image(running, GREY)
            running.run(partial(quiet, service, late, image))
            canvas = weakref.ref(image.canvas)
            service.close_image(image.id)
            del image
            assert canvas() is None
    finally:
        gc.enable()


def test_images_are_closed_when_there_are_too_many_or_they_are_too_large():
    limits = ServeLimits(open_images=2, open_bytes=3 * GREY.nbytes)
    service = SegmentationService({"fake": FakeRuntime()}, limits)
    with service.admit() as job:
        ids = [service.open_image(job, GREY).id for _ in range(3)]
        assert service.images.count == 2
        service.images.get(ids[1])
        large = service.open_image(job, np.zeros((120, 100, 3), np.uint8)).id
        for gone in (ids[0], ids[2]):
            with pytest.raises(NotOpen):
                service.images.get(gone)
        assert service.images.get(large)


def test_images_that_nobody_uses_are_closed():
    now = [0.0]
    service = SegmentationService({"fake": FakeRuntime()}, ServeLimits(idle_seconds=10))
    service.images._clock = lambda: now[0]
    with service.admit() as job:
        used, unused = (service.open_image(job, GREY).id for _ in range(2))
    now[0] = 8.0
    service.images.get(used)
    now[0] = 12.0
    service.images.expire()
    assert service.images.count == 1
    with pytest.raises(NotOpen, match="not open"):
        service.images.get(unused)
    assert service.images.bytes > 0


def test_memory_of_an_open_image_is_counted(shipped):
    service = SegmentationService(shipped)
    with service.admit() as job:
        image = service.open_image(job, GREY, bundle="photo")
        opened = service.images.bytes
        assert 1 << 20 < opened < 64 << 20
        service.click(job, image.id, None, [Click(50, 30, True)])
        assert opened < service.images.bytes < opened + (4 << 20)
        service.close_image(image.id)
    assert service.images.bytes == 0


def test_objects_and_states_are_bounded():
    service = SegmentationService({"fake": FakeRuntime()}, ServeLimits(objects=2, states=3))
    with service.admit() as job:
        image = service.open_image(job, GREY)
        for _ in range(2):
            service.click(job, image.id, None, [Click(1, 1, True)])
        with pytest.raises(InputError, match="limit"):
            service.click(job, image.id, None, [Click(1, 1, True)])
        for _ in range(5):
            state = service.click(job, image.id, 1, [Click(1, 1, True)])
        assert state.undoable == 2


def test_a_run_that_fails_leaves_no_object(service, job):
    image = service.open_image(job, GREY)
    job.cancel()
    with pytest.raises(Interrupted):
        list(service.segment(job, image.id, "discs"))
    assert image.states == []


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda s, j, i: s.click(j, i, None, [Click(100, 0, True)]), ClickOutside),
        (lambda s, j, i: s.click(j, i, None, []), ClickOutside),
        (lambda s, j, i: s.click(j, i, 7, [Click(0, 0, True)]), NotOpen),
        (lambda s, j, i: s.box(j, i, None, Box(5, 5, 5, 9)), ClickOutside),
        (lambda s, j, i: s.box(j, i, None, Box(5, 5, 9, 60)), ClickOutside),
        (lambda s, j, i: s.undo(i, 7), NotOpen),
        (lambda s, j, i: s.remove_object(i, 7), NotOpen),
        (lambda s, j, i: s.open_image(j, b"text"), InputError),
        (lambda s, j, i: s.open_image(j, GREY, bundle="other"), NotOpen),
        (lambda s, j, i: s.open_path(j, "/etc/passwd"), InputError),
        (lambda s, j, i: s.segment_once(j, GREY, ObjectPrompt("x"), bundle="hand"), InputError),
    ],
)
def test_what_cannot_be_done_is_an_error_of_ours(service, job, work, error):
    image = service.open_image(job, GREY)
    with pytest.raises(error):
        work(service, job, image.id)
    assert image.states == []


def test_segment_once_by_hand_equals_the_library(shipped, scene):
    service, clicks = SegmentationService(shipped), (Click(60, 30, True), Click(5, 5, False))
    with service.admit() as job:
        _, state = service.segment_once(job, scene.image, ObjectPrompt("", clicks), bundle="photo")
    own = shipped["photo"].open(scene.image).segment(clicks)
    assert np.array_equal(state.prediction.mask(), own.mask())


def test_segment_once_by_words_equals_the_library(shipped, scene):
    service, text = SegmentationService(shipped), scene.expressions[0].text
    with service.admit() as job:
        image, state = service.segment_once(job, scene.image, ObjectPrompt(text))
    own = shipped["tiny"].open(scene.image).annotate(text)
    assert np.array_equal(state.prediction.mask(), own.prediction.mask())
    assert image.bundle == "tiny"
    assert service.images.count == 0


def test_a_prior_of_another_size_is_refused(service, job):
    prior, prompt = GivenMask(np.ones((5, 5), np.bool_)), ObjectPrompt("", (Click(1, 1, True),))
    with pytest.raises(InputError, match="size"):
        service.segment_once(job, GREY, prompt, prior=prior)


def test_only_files_below_a_root_are_opened(tmp_path, grey):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "deep").mkdir(parents=True)
    for path in (root / "deep" / "in.png", outside):
        path.write_bytes(grey)
    (root / "link.png").symlink_to(outside)
    service = SegmentationService({"fake": FakeRuntime()}, roots=[root])
    with service.admit() as job:
        for inside in ("deep/in.png", str(root / "deep" / "in.png"), "deep/../deep/in.png"):
            assert service.open_path(job, inside).name == "in.png"
        said = set()
        for path in ("../outside.png", str(outside), "link.png", "missing.png", "deep", "a\0b", ""):
            with pytest.raises(InputError) as refused:
                service.open_path(job, path)
            said.add(str(refused.value))
        assert len(said) == 1, "the message tells what lies outside"
