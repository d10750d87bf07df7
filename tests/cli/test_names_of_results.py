"""Names of results: nothing of the user's is overwritten, and equal names are told apart."""

from __future__ import annotations

import hashlib
import json

import pytest

from segagent_rt.draw import png
from segagent_rt.scenes import make_scene

pytestmark = pytest.mark.usefixtures("kept_open")

SCENE, OTHER = make_scene(7, 96), make_scene(8, 96)
TEXTS = [expression.text for expression in SCENE.expressions[:3]]
QUICK = ("--max-clicks", 1)


def content(folder):
    """Names of files, hidden ones left out, with a hash of each."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """In the current folder, beside a labelme file of its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(png(SCENE.image))
    (tmp_path / "photo.json").write_text('{"shapes": "drawn by hand"}')
    return tmp_path / "photo.png"


def test_run_touches_no_annotation_beside_the_image(terminal, photo, tmp_path):
    before = content(tmp_path)
    done = terminal("run", photo, TEXTS[0], *QUICK)
    assert done.code == 0, done.err
    after = content(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) == {
        "photo.segagent.json", "photo.segagent.mask.png", "photo.segagent.overlay.png",
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["json", "mask.png", "overlay.png"])
def test_a_file_of_somebody_else_is_kept_unless_overwriting_is_asked(
    terminal, photo, tmp_path, ending
):
    foreign = tmp_path / f"photo.segagent.{ending}"
    foreign.write_bytes(b"precious")
    before = content(tmp_path)
    done = terminal("run", photo, TEXTS[0], *QUICK)
    assert done.code == 1
    assert "--overwrite" in done.err
    assert content(tmp_path) == before
    assert terminal("run", photo, TEXTS[0], *QUICK, "--overwrite").code == 0
    assert foreign.read_bytes() != b"precious"


def test_pictures_of_fewer_expressions_do_not_linger(terminal, photo, tmp_path):
    terminal("run", photo, *TEXTS, *QUICK)
    assert (tmp_path / "photo.segagent.3.mask.png").exists()
    (tmp_path / "photo.segagent.4.mask.png").write_bytes(b"precious")
    terminal("run", photo, TEXTS[0], *QUICK)
    assert {name for name in content(tmp_path) if "mask" in name} == {
        "photo.segagent.mask.png", "photo.segagent.4.mask.png",
    }  # fmt: skip


def test_equal_names_of_two_images_are_told_apart(terminal, tmp_path):
    for place, scene in (("a/img.png", SCENE), ("b/img.png", OTHER), ("a/img.bmp", OTHER)):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(png(scene.image))
    out = tmp_path / "out"
    named = {}
    for place in ("a/img.png", "b/img.png", "a/img.bmp", "b/img.png"):
        done = terminal("run", tmp_path / place, "--click=+9,9", "-o", out, "-q")
        assert done.code in (0, 5), done.err
        named[place] = done.out.split("\t")[0]
    assert [path.rsplit("/")[-1] for path in named.values()] == [
        "img.segagent.mask.png", "img-2.segagent.mask.png", "img-3.segagent.mask.png",
    ]  # fmt: skip
    images = [json.loads(path.read_text())["image"] for path in sorted(out.glob("*.json"))]
    assert len(set(images)) == 3


def commands(folder):
    """Commands that write, with one file of each that is foreign when they begin."""
    data = folder / "scenes" / "scenes.json"
    return {
        "scene": (("scene", "-o", "s.png"), "s.png"),
        "scenes": (("scene", "--count", 2, "-o", "many"), "many/000001.png"),
        "coco": (("convert", data, "--to", "coco", "-o", "o"), "o/scenes.coco.json"),
        "labelme": (("convert", data, "--to", "labelme", "-o", "o"), "o/000008.json"),
        "eval": (("eval", data, "-o", "o", *QUICK), "o/scenes.figures.json"),
        "tables": (("eval", data, "-o", "o", *QUICK), "o/scenes.full_clicknew2None.csv"),
        "trajectories": (("trajectories", data, "-o", "o", *QUICK), "o/scenes.trajectories.json"),
        "demo": (("demo", "-o", "o"), "o/scene.png"),
        "refine": (("refine", "photo.png", "mask.png", TEXTS[0]), "photo.refined.segagent.json"),
    }


@pytest.mark.parametrize(
    "name",
    ["scene", "scenes", "coco", "labelme", "eval", "tables", "trajectories", "demo", "refine"],
)
def test_every_command_that_writes_keeps_what_it_did_not_write(terminal, photo, tmp_path, name):
    terminal("scene", "--count", 2, "--seed", 7, "--side", 96, "--expressions", 1, "-o", "scenes")
    (tmp_path / "mask.png").write_bytes(png(SCENE.mask(0)))
    arguments, path = commands(tmp_path)[name]
    foreign = tmp_path / path
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"precious")
    done = terminal(*arguments)
    assert done.code == 1, done.out
    assert f"{foreign.name} exists, and" in done.err
    assert foreign.read_bytes() == b"precious"
    assert terminal(*arguments, "--overwrite").code == 0
    assert foreign.read_bytes() != b"precious"
    assert terminal(*arguments).code == 0, "our own files are replaced"


def test_scores_do_not_replace_the_annotations(terminal, photo, tmp_path):
    terminal("scene", "--count", 1, "--seed", 7, "--side", 96, "--expressions", 1, "-o", "scenes")
    terminal("convert", "scenes/scenes.json", "--to", "coco", "-o", "o")
    path = tmp_path / "o" / "scenes.coco.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    before = path.read_bytes()
    done = terminal("score", "--annotations", path, "--images", "scenes", "-o", path)
    assert done.code == 1
    assert path.read_bytes() == before
