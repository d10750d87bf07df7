"""How the photo segmenter is trained: which photos, which crops, which prompts, and resuming."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segagent_rt.bundle.bundle import open_bundle  # noqa: E402
from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.photo_net.export import (  # noqa: E402
    PhotoDecoderGraph,
    example_prompts,
    fold_norms,
)
from segagent_rt_export.families.photo_net.from_bundle import photo_net_from_part  # noqa: E402
from segagent_rt_export.families.photo_net.net import (  # noqa: E402
    PhotoSegmenterNet,
    box_map,
    click_maps,
)
from segagent_rt_export.graphs.integer_product import MOST  # noqa: E402
from segagent_rt_export.passes.calibration import CPU  # noqa: E402
from segagent_rt_export.passes.qdq_conv import LEVELS  # noqa: E402
from segagent_rt_training.photo import training  # noqa: E402
from segagent_rt_training.photo.activations import RoundedActivations  # noqa: E402
from segagent_rt_training.photo.augmentation import random_crop  # noqa: E402
from segagent_rt_training.photo.batches import BatchPlan, Sampler  # noqa: E402
from segagent_rt_training.photo.bundle import mixed_weights, shipped_weights  # noqa: E402
from segagent_rt_training.photo.photos import LabelledImage, load_photos  # noqa: E402
from segagent_rt_training.photo.prompting import jittered_box, next_prompt  # noqa: E402
from segagent_rt_training.photo.rounding import rounded_weights  # noqa: E402

pytestmark = pytest.mark.export

LICENCES = {"coco_1": "CC BY 2.0", "coco_2": "CC BY-SA 2.0", "facade_1": "CC BY 4.0"}


def square(side=64, top=16, left=8, size=24):
    mask = np.zeros((side, side), np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photos of a red square on grey, with an index as of the training photos."""
    folder = tmp_path_factory.mktemp("photos")
    entries = []
    for name, licence in (*LICENCES.items(), ("nuts_1", "MIT")):
        labels = square()
        image = np.full((64, 64, 3), 128, np.uint8)
        image[labels == 1] = (0, 0, 255)
        cv2.imwrite(str(folder / f"{name}.png"), image)
        cv2.imwrite(str(folder / f"{name}.mask.png"), labels)
        share = float((labels == 1).mean())
        entries.append(
            {
                "name": name, "image": f"{name}.png", "mask": f"{name}.mask.png",
                "split": "train", "licence": licence,
                "instances": [{"id": 1, "category": "square", "area_share": share}],
            }
        )  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"photos": entries}))
    return folder


def test_share_alike_photos_are_never_trained_on(photos):
    """The licence of the weights stays simple."""
    assert {p.entry["name"] for p in load_photos(photos, "train")} == {
        "coco_1", "facade_1", "nuts_1",
    }  # fmt: skip


def test_labels_lie_where_the_crop_shows_the_object():
    """The label map has half the crop's side, and no shift against the image."""
    labels = square()
    image = np.full((64, 64, 3), 128, np.uint8)
    image[labels == 1] = (255, 0, 0)
    for seed in range(20):
        rng = random.Random(seed)
        crop = random_crop(LabelledImage(image, labels, (1,)), 96, (96, 96), rng)
        assert crop is not None
        red = (crop.image[..., 0] > 190).astype(np.float32)
        half = cv2.resize(red, (48, 48), interpolation=cv2.INTER_AREA) > 0.5
        both = (half & (crop.labels == 1)).sum()
        assert both / (half | (crop.labels == 1)).sum() > 0.9


def test_a_batch_is_the_same_whoever_draws_it(photos):
    """A resumed training goes on with the batches that it would have had."""
    plan = BatchPlan(seed=3, side=64, images=3, longest=(64, 96))
    one, other = (Sampler(load_photos(photos, "train")).batch(plan, 5) for _ in range(2))
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.targets, other.targets)
    assert one.images.shape == (3, 64, 64, 3)
    assert one.targets.shape == (6, 32, 32)


def test_the_annotator_corrects_the_larger_error():
    target, nothing = square() > 0, np.zeros((64, 64), np.bool_)
    for seed in range(10):
        x, y, label = next_prompt(target, nothing, nothing, random.Random(seed))
        assert label == 1
        assert target[int(y), int(x)]
        x, y, label = next_prompt(nothing, target, nothing, random.Random(seed))
        assert label == 0
        assert target[int(y), int(x)]
    assert next_prompt(target, target, nothing, random.Random(0)) is None
    assert next_prompt(target, nothing, target, random.Random(0)) is None


def test_boxes_are_edges_not_pixel_centres():
    boxes = {jittered_box(square() > 0, random.Random(seed)) for seed in range(30)}
    assert (8.0, 16.0, 32.0, 40.0) in boxes
    assert all(0 <= a < c <= 64 and 0 <= b < d <= 64 for a, b, c, d in boxes)


def test_click_maps_peak_at_the_click_and_are_empty_without_one():
    """Clicks are in pixels of the image, maps have a quarter of its side."""
    keys = torch.nn.functional.normalize(torch.randn(1, 24, 16, 16), dim=1)
    coarse = torch.nn.functional.normalize(torch.randn(1, 32, 8, 8), dim=1)
    points = torch.tensor([[[42.0, 22.0, 1.0], [10.0, 50.0, 0.0], [3.0, 3.0, -1.0]]])
    maps, _ = click_maps(points, coarse, keys)
    assert maps.shape == (1, 8, 16, 16)
    for layer in (0, 1, 3):
        assert divmod(int(maps[0, layer].argmax()), 16) == (22 // 4, 42 // 4)
        assert divmod(int(maps[0, 4 + layer].argmax()), 16) == (50 // 4, 10 // 4)
    torch.testing.assert_close(maps[0, 0, 5, 10], torch.tensor(1.0))
    torch.testing.assert_close(maps[0, 3, 5, 10], torch.tensor(2.0))
    empty, clicked = click_maps(torch.tensor([[[0.0, 0.0, -1.0]]]), coarse, keys)
    assert not empty.any()
    assert not clicked.any()


def test_the_box_map_covers_cells_by_their_share():
    keys = torch.zeros(1, 24, 4, 4)
    covered = box_map(torch.tensor([[2.0, 4.0, 12.0, 8.0]]), keys)[0, 0]
    torch.testing.assert_close(covered[1], torch.tensor([0.5, 1.0, 1.0, 0.0]))
    assert covered.sum() == 2.5
    assert not box_map(torch.zeros(1, 4), keys).any()


def test_a_training_goes_on_where_it_stopped(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_imagenet_weights", lambda encoder: None)
    plan = BatchPlan(seed=3, side=64, images=2, longest=(64, 96))
    recipe = training.PhotoRecipe(0.1, plan, frozen_share=0.0)
    batch = Sampler(load_photos(photos, "train")).batch(plan, 0)
    first = training.PhotoTraining(recipe, tmp_path, training.WorkerGroup())
    for _ in range(2):
        first.step(batch)
    assert first.progress.means["loss"] > 0
    first.progress.seconds = 7.0
    first.save()
    second = training.PhotoTraining(recipe, tmp_path, training.WorkerGroup())
    assert (second.progress.step, second.progress.seconds) == (2, 7.0)
    net, about = training.trained_photo_net(tmp_path)
    assert [run["recipe"]["batches"]["seed"] for run in about["runs"]] == [3]
    for name, value in first.average.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)


@pytest.mark.parametrize(("alone", "clicks"), [(1.0, 0), (0.0, 1)])
def test_boxes_come_alone_and_together_with_a_first_click(
    photos, tmp_path, monkeypatch, alone, clicks
):
    """In use a box and a click can come at once, before there is a mask to correct."""
    monkeypatch.setattr(training, "load_imagenet_weights", lambda encoder: None)
    plan = BatchPlan(seed=3, side=64, images=1, longest=(64, 96))
    recipe = training.PhotoRecipe(0.1, plan, box_share=1.0, box_alone_share=alone)
    trained, seen = training.PhotoTraining(recipe, tmp_path, training.WorkerGroup()), []
    trained.net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    trained.step(Sampler(load_photos(photos, "train")).batch(plan, 0))
    assert (seen[0].box[:, 2] > 0).all()
    assert ((seen[0].points[..., 2] >= 0).sum(1) == clicks).all()
    assert not seen[0].prior.any()


@pytest.mark.parametrize(("again", "clicks"), [(1.0, 0), (0.0, 1)])
def test_a_box_without_a_click_may_be_decoded_again(photos, tmp_path, monkeypatch, again, clicks):
    """With its own mask, as in use; the first click comes after that."""
    monkeypatch.setattr(training, "load_imagenet_weights", lambda encoder: None)
    monkeypatch.setattr(training.PhotoTraining, "_turn_weights", lambda self: (0, 0, 1, 0, 0, 0))
    plan = BatchPlan(seed=3, side=64, images=1, longest=(64, 96))
    recipe = training.PhotoRecipe(
        0.1, plan, box_share=1.0, box_alone_share=1.0, box_again_share=again
    )
    trained, seen = training.PhotoTraining(recipe, tmp_path, training.WorkerGroup()), []
    trained.net.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    trained.step(Sampler(load_photos(photos, "train")).batch(plan, 0))
    counts = [(prompts.points[..., 2] >= 0).sum(1) for prompts in seen]
    assert (counts[0] == 0).all()
    assert (counts[1] == clicks).all()
    assert (counts[2] > 0).all()
    assert seen[1].prior.any()


def test_rounded_weights_are_those_of_the_export_and_do_not_stay():
    layer = torch.nn.Conv2d(3, 4, 3)
    exact = layer.weight.detach().clone()
    with rounded_weights(layer):
        steps = layer.weight / layer.weight.abs().amax((1, 2, 3), keepdim=True) * MOST
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        layer(torch.ones(1, 3, 3, 3)).sum().backward()
    assert torch.equal(layer.weight, exact)
    assert layer.weight.grad is not None


@pytest.fixture(scope="module")
def shipped():
    return open_bundle("photo")


def test_a_bundles_weights_compute_in_torch_what_its_graph_computes(shipped):
    """What a training with --init begins with."""
    part = shipped.part("segmenter")
    net, prompts = photo_net_from_part(part), example_prompts(512)
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "coarse": (64, 64, 64), "fine": (128, 128, 32),
        "coarse_keys": (32, 64, 64), "fine_keys": (24, 128, 128),
    }  # fmt: skip
    maps = {name: torch.randn(1, *shape, generator=draw) for name, shape in shapes.items()}
    feeds = {name: value.numpy() for name, value in {**maps, **prompts}.items()}
    found = part.session("decoder", CPU, "cpu-w8").run(feeds, ("logits", "iou"))
    with torch.no_grad():
        logits, iou = PhotoDecoderGraph(net)(*maps.values(), *prompts.values())
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-3)
    np.testing.assert_allclose(found["iou"], iou.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def begun(photos, shipped, tmp_path_factory):
    """The folder of a training that began with the shipped bundle, and its moving average."""
    folder = tmp_path_factory.mktemp("begun")
    plan = BatchPlan(seed=3, side=64, images=1, longest=(64, 96))
    recipe = training.photo_recipe(0.1, plan, shipped)
    batch = Sampler(load_photos(photos, "train")).batch(plan, 0)
    net = photo_net_from_part(shipped.part("segmenter"))
    first = training.PhotoTraining(recipe, folder, training.WorkerGroup(), net)
    first.step(batch)
    assert first.progress.means["loss"] > 0
    first.save()
    return folder, first.average.state_dict()


def test_a_training_that_begins_with_a_bundle_goes_on_where_it_stopped(begun, shipped):
    folder, average = begun
    net, about = training.trained_photo_net(folder)
    assert about["runs"][0]["recipe"]["init"] == shipped.digest
    for name, value in average.items():
        torch.testing.assert_close(net.state_dict()[name], value)


def test_weights_can_lie_between_a_bundle_and_a_training_that_began_with_it(begun, shipped):
    """What one does better on boxes and the other on clicks stays in part; both are told of."""
    folder, average = begun
    name = "decoder.last8.0.body.0.weight"
    before = photo_net_from_part(shipped.part("segmenter")).state_dict()[name]
    mixed = mixed_weights(folder, shipped, 0.25)
    expected = 0.75 * before + 0.25 * average[name]
    torch.testing.assert_close(mixed.net.state_dict()[name], expected)
    assert mixed.origin["runs"][-1]["recipe"]["init"] == shipped.digest
    assert mixed.origin["runs"][:-1] == shipped_weights(shipped).origin["runs"]


def test_a_training_is_not_mixed_with_a_bundle_that_it_did_not_begin_with(
    shipped, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "load_imagenet_weights", lambda encoder: None)
    recipe = training.PhotoRecipe(0.1, BatchPlan(seed=3, side=64))
    training.PhotoTraining(recipe, tmp_path, training.WorkerGroup()).save()
    with pytest.raises(CheckpointInvalid, match="did not begin with"):
        mixed_weights(tmp_path, shipped, 0.5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["photo-bundle", "--mix", "0.5"], "--init"),
        (["photo", "--longest", "600", "240"], "--longest"),
        (["photo", "--longest", "0", "240"], "--longest"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_a_sentence(options, reason):
    command = [sys.executable, "-m", "segagent_rt_training", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_activations_are_rounded_to_the_levels_of_the_export_only_where_asked_for():
    net = fold_norms(PhotoSegmenterNet())
    layer, seen = net.pyramid.smooth8[0], []
    rounded = RoundedActivations(net)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 64, 64)).float()
    exact = net.encode(image)
    with rounded.active(measured=True):
        net.encode(image)
    torch.testing.assert_close(net.encode(image), exact)
    assert len(seen[1].unique()) <= LEVELS + 1 < len(seen[0].unique())
    seen[1].sum().backward()
    assert net.pyramid.lateral8[0].weight.grad is not None
