"""Training: resumable after a kill, and its result is a bundle that runs."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.export

SCALE = "0.002"


def start(folder):
    command = [sys.executable, "-m", "segagent_rt_training", "all", "--folder", str(folder)]
    return subprocess.Popen([*command, "--scale", SCALE], start_new_session=True)


def test_the_net_of_training_is_the_net_of_transformers():
    """Packed batches give the logits that transformers' own forward gives."""
    import torch

    from segagent_rt.mllm.rope import prompt_positions
    from segagent_rt_export.families.demo_mllm.net import CELLS, TinyMllm, tiny_config
    from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    net = TinyMllm(tiny_config(tokenizer.get_vocab())).eval()
    image = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    pad = tokenizer.token_to_id("<|image_pad|>")
    lead, tail = [1, 2, tokenizer.token_to_id("<|vision_start|>")], [5, 6, 7, 8]
    ids = torch.tensor([[*lead, *[pad] * CELLS**2, *tail]])
    patches = (image.float() / 127.5 - 1)[0].permute(2, 0, 1)
    patches = patches.reshape(3, 8, 2, 16, 8, 2, 16).permute(1, 4, 2, 5, 0, 3, 6)
    patches = patches[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, 2, -1, -1).reshape(256, -1)
    grid = torch.tensor([[1, 16, 16]])
    positions = torch.from_numpy(prompt_positions(len(lead), (CELLS, CELLS), len(tail)))
    with torch.no_grad():
        wanted = net.model(
            input_ids=ids, pixel_values=patches, image_grid_thw=grid,
            position_ids=positions[:, None], mm_token_type_ids=(ids == pad).int(),
        ).logits  # fmt: skip
        words = torch.nn.functional.embedding(ids, net.embedding)
        words[:, len(lead) : len(lead) + CELLS**2] = net.see(image).tokens
        length = ids.shape[1]
        bias = torch.zeros(1, 1, length, length)
        bias = bias.masked_fill(~torch.ones(length, length).tril().bool(), -1e4)
        hidden, _ = net.read(words, positions[:, None], bias, torch.zeros(1, 1, dtype=torch.long))
        found = hidden @ net.embedding.T
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.std())


def test_questions_behind_one_picture_do_not_see_each_other():
    import torch

    from segagent_rt.scenes.rng import DeterministicRng
    from segagent_rt_export.families.demo_mllm.net import TinyMllm, tiny_config
    from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
    from segagent_rt_training.example_packing import ExamplePacker
    from segagent_rt_training.object_targets import compute_object_targets
    from segagent_rt_training.states import make_state

    tokenizer = build_tokenizer()
    net = TinyMllm(tiny_config(tokenizer.get_vocab())).eval()
    state = make_state(DeterministicRng("test", 3), 0.0)
    facts = compute_object_targets(state.objects, state.labels, state.mask)
    packer = ExamplePacker(tokenizer)
    questions = packer.questions(state, facts, DeterministicRng("q", 1), 3)

    def logits(asked):
        packed = packer.pack([state], [asked])
        words = torch.nn.functional.embedding(packed.tokens, net.embedding)
        hidden, _ = net.read(words, packed.positions, packed.bias, packed.asking)
        return hidden[packed.labels >= 0]

    with torch.no_grad():
        together = logits(questions)
        alone = torch.cat([logits([question]) for question in questions])
    assert torch.allclose(together, alone, atol=1e-5)


def test_facts_by_hand():
    from segagent_rt.scenes.layout import SceneObject
    from segagent_rt_training.object_targets import compute_object_targets

    labels = np.zeros((256, 256), np.uint8)
    labels[100:120, 20:40], labels[100:140, 200:240] = 1, 2
    objects = [
        SceneObject("square", "red", "small", 30, 110, 14, 0),
        SceneObject("square", "blue", "medium", 220, 120, 28, 0),
    ]
    mask = np.zeros((256, 256), np.bool_)
    mask[100:140, 200:240] = True
    facts = compute_object_targets(objects, labels, mask)
    assert facts.iou.tolist() == [0.0, 1.0]
    assert facts.ranks[0, 0].tolist() == [0, 1, 0, 1], "leftmost and topmost of the two"
    assert facts.ranks[0, 1].tolist() == [-100] * 4, "the only red one"
    assert facts.extremes[1, 0].tolist() == [1.0, 0.0]
    assert not facts.negative[0], "an untouched object is clicked, whatever else is covered"
    assert np.allclose(facts.missing[0] * 256, [29.5, 109.5], atol=1.1)
    assert np.allclose(facts.surplus[0] * 256, [219.5, 119.5], atol=1.1)


def test_a_walk_that_goes_astray_is_to_come_back_by_taking_away():
    """A positive click on another object, a negative one on what that selected, then the target."""
    from segagent_rt.scenes.rng import DeterministicRng
    from segagent_rt_training.segmenter import _aims, sample_click

    targets = np.zeros((2, 32, 32), np.bool_)
    targets[0, 4:12, 4:12], targets[1, 18:30, 18:30] = True, True
    masks, rng = np.zeros_like(targets), DeterministicRng("astray", 0)
    for turn, (place, sign) in enumerate([(1, 1.0), (1, 0.0), (0, 1.0)]):
        aims = _aims(targets, masks, [0], turn)
        clicks = [sample_click(aims[0], masks[0], rng, first=False) for _ in range(40)]
        on_it = [targets[place, int(y * 32), int(x * 32)] for x, y, _ in filter(None, clicks)]
        assert all(click is not None and click[2] == sign for click in clicks)
        assert np.mean(on_it) > 0.9
        assert np.array_equal(aims[1], targets[1])
        masks = aims
    assert np.array_equal(masks, targets)


def test_a_pool_is_stored_whole_and_draws_what_went_astray_more_often(tmp_path):
    from segagent_rt.scenes.rng import DeterministicRng
    from segagent_rt_training.pool import ASTRAY_SHARE, TURNS, Pool, load_pool

    scenes, astray = 20, np.zeros((20, TURNS), np.bool_)
    astray[7, 2] = True
    masks = np.zeros((scenes, TURNS, 256 * 256 // 8), np.uint8)
    masks[7, 2] = 255
    asked = np.array(["the red star"] * scenes)
    Pool("rollout-0", 3, np.zeros(scenes, np.int64), asked, masks, astray).save(tmp_path / "p.npz")
    pool = load_pool(tmp_path / "p.npz")
    states = [pool.draw(DeterministicRng("draw", n)) for n in range(40)]
    strayed = sum(bool(state.mask.all()) for state in states)
    assert strayed / 40 == pytest.approx(ASTRAY_SHARE, abs=0.2), "1 of 80 would be by chance"
    assert all(state.asked == "the red star" for state in states)


def test_the_first_question_is_the_one_that_the_loop_was_asked():
    """A model that misread an expression learns from the very words that it misread."""
    from dataclasses import replace

    from segagent_rt.scenes.rng import DeterministicRng
    from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
    from segagent_rt_training.example_packing import ExamplePacker
    from segagent_rt_training.object_targets import compute_object_targets
    from segagent_rt_training.states import make_state

    tokenizer = build_tokenizer()
    state = replace(
        make_state(DeterministicRng("test", 3), 1.0), asked="the second star from the left"
    )
    facts = compute_object_targets(state.objects, state.labels, state.mask)
    questions = ExamplePacker(tokenizer).questions(state, facts, DeterministicRng("q", 1), 6)
    assert len(questions) == 6
    assert "the second star from the left" in tokenizer.decode(questions[0].prompt)
    assert questions[0].target == state.meant


def trajectories(folder):
    """One trajectory over a picture of a bright square: a click beside it, then one that is
    right."""
    from segagent_rt.data.record import RunLengths, Sample
    from segagent_rt.data.trajectories import (
        Demonstration,
        ShownClick,
        Start,
        describe_demonstration,
        write_trajectories,
    )
    from segagent_rt.draw import png
    from segagent_rt.types import Click

    image, square, wrong = np.zeros((80, 120, 3), np.uint8), *np.zeros((2, 80, 120), np.bool_)
    square[20:60, 30:90], wrong[0:20, 0:30] = True, True
    image[square] = 250
    (folder / "square.png").write_bytes(png(image))
    size, mask = (80, 120), RunLengths.of(square)
    sample = Sample(0, "square.png", folder / "square.png", mask, ("the square",), "made here")
    clicks = (
        ShownClick(Click(5, 5, positive=True), RunLengths.of(wrong), 0.0),
        ShownClick(Click(60, 40, positive=True), mask, 1.0),
    )
    walked = Demonstration(sample, Start("empty", RunLengths.empty(size)), clicks)
    write_trajectories(folder / "t.json", [describe_demonstration(walked)], {})
    return folder / "t.json"


def test_a_lesson_is_the_mask_before_a_click_and_the_reply_that_says_it(tmp_path):
    from segagent_rt.scenes.rng import DeterministicRng
    from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
    from segagent_rt_training.example_packing import ExamplePacker
    from segagent_rt_training.trajectory_examples import read_trajectory_examples

    first, second = read_trajectory_examples([trajectories(tmp_path)], None)
    assert not first.state().mask.any(), "the first click is made on the picture as it is"
    state = second.state()
    assert state.mask[:62, :62].all(), "a quarter each way of 256"
    assert not state.mask[66:].any()
    assert state.image[10, 10, 1] > state.image[10, 10, 0], "the mask is painted green"
    assert state.labels[66:190, 66:190].all()
    assert set(np.unique(state.labels)) == {0, 1}
    tokenizer = build_tokenizer()
    question = ExamplePacker(tokenizer).question(second.asked(DeterministicRng("words", 0)), state)
    reply = tokenizer.decode(question.reply, skip_special_tokens=True)
    assert reply == " Current IOU: 0  Positive point: (500, 500)"
    assert "the square" in tokenizer.decode(question.prompt)


def test_lessons_without_their_pictures_are_refused(tmp_path):
    from segagent_rt.errors import DataInvalid
    from segagent_rt_training.trajectory_examples import read_trajectory_examples

    path = trajectories(tmp_path)
    (tmp_path / "square.png").unlink()
    with pytest.raises(DataInvalid, match=r"square.png is not there"):
        read_trajectory_examples([path], None)


def test_lessons_need_trajectories_and_something_to_go_on_from(tmp_path):
    path = trajectories(tmp_path)
    command = [
        sys.executable,
        "-m",
        "segagent_rt_training",
        "trajectories",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--trajectories" in done.stderr
    command += ["--trajectories", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds no finished training" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter, about itself
def test_what_lessons_taught_ships_and_a_second_start_has_nothing_left_to_learn(tmp_path):
    from segagent_rt_export.demo_bundle import write_demo_bundle
    from segagent_rt_training.checkpoints import last_stage, trained_nets

    command = [sys.executable, "-m", "segagent_rt_training", "trajectories", "--init", "tiny"]
    command += ["--folder", str(tmp_path), "--trajectories", str(trajectories(tmp_path))]
    for _ in range(2):
        subprocess.run([*command, "--scale", "0.001"], check=True)
    assert last_stage(tmp_path) == "trajectories"
    write_demo_bundle(*trained_nets(tmp_path, "trajectories"), tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter, about itself
def test_training_survives_a_kill_and_ends_in_a_bundle(tmp_path):
    from segagent_rt.runtime import load
    from segagent_rt_export.demo_bundle import write_demo_bundle
    from segagent_rt_training.checkpoints import last_stage, trained_nets

    run = start(tmp_path)
    time.sleep(40)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert start(tmp_path).wait() == 0
    assert last_stage(tmp_path) == "mean"
    write_demo_bundle(*trained_nets(tmp_path, "mean"), tmp_path / "bundle")
    with load(tmp_path / "bundle") as runtime:
        found = runtime.open(np.zeros((64, 64, 3), np.uint8)).annotate("the red circle")
    assert found.clicks
