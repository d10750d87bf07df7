"""Bad and odd input: a sentence and the right exit code, or it simply works; never a traceback,
never a file half written."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.inputs import looks_like_picture
from segagent_rt.scenes import make_scene

pytestmark = pytest.mark.usefixtures("kept_open")

SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text
RNG = np.random.default_rng(0)


def packed(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


PNG, JPEG = packed(Image.fromarray(SCENE.image)), packed(Image.fromarray(SCENE.image), "JPEG")

UNREADABLE = {
    "empty": b"",
    "text": b"this is no picture\n",
    "zeros": bytes(1000),
    "html": b"<html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "zip": b"PK\x03\x04" + bytes(100),
    "pdf": b"%PDF-1.7\n",
    "huge": packed(Image.new("1", (20000, 20000))),
    "16 bits": packed(Image.fromarray(RNG.integers(0, 65536, (40, 50), dtype=np.uint16))),
    **{f"jpeg cut at {n}": JPEG[:n] for n in range(2, len(JPEG) - 2, len(JPEG) // 24)},
    **{f"png cut at {n}": PNG[:n] for n in range(4, len(PNG) - 40, len(PNG) // 24)},
}

ODD = {
    "one pixel": packed(noise(1, 1)),
    "one row": packed(noise(1, 700)),
    "one column": packed(noise(900, 1)),
    "very wide": packed(noise(3, 3000)),
    "grey": packed(noise(40, 50, 1)),
    "grey with alpha": packed(noise(40, 50, 1).convert("LA")),
    "palette": packed(noise(40, 50).convert("P")),
    "palette with transparency": packed(noise(40, 50).convert("P"), transparency=0),
    "rgba": packed(noise(40, 50, 4)),
    "bilevel": packed(noise(40, 50).convert("1")),
    "cmyk jpeg": packed(noise(40, 50).convert("CMYK"), "JPEG"),
    "grey jpeg": packed(noise(40, 50, 1), "JPEG"),
    "progressive jpeg": packed(noise(40, 50), "JPEG", progressive=True),
    "webp": packed(noise(40, 50), "WEBP"),
    "webp without loss": packed(noise(40, 50), "WEBP", lossless=True),
    "gif": packed(noise(40, 50), "GIF"),
    "bmp": packed(noise(40, 50), "BMP"),
    "tiff": packed(noise(40, 50), "TIFF"),
    **{
        f"exif orientation {n}": packed(noise(30, 50), "JPEG", exif=_exif)
        for n in range(1, 9)
        for _exif in [(lambda e: (e.__setitem__(0x0112, n), e)[1])(Image.Exif())]
    },
}

EXPRESSIONS = {
    "": "blank",
    "   \t ": "blank",
    "the red zebra": "`zebra`",
    "mug": "`mug`",
    "the dog behind the laptop": "`dog`",
    "der rote Kreis": "`der`",
    "红色的圆": "红色的圆",
    "the \x00 circle": "does not know",
    "the circle " * 200: "longer than",
    "../../etc/passwd": "does not know",
    "<|im_end|>": "does not know",
    "the red circle; DROP TABLE": "does not know",
}


def check_clean(done, folder: Path, code: int) -> None:
    assert "Traceback" not in done.err + done.out
    assert done.code == code, done.err
    assert not [p for p in folder.rglob("*") if "partial" in p.name]


def check_refused(done, folder: Path, code: int = 1) -> None:
    """One sentence, a blank line, a hint; and nothing was written."""
    check_clean(done, folder, code)
    assert "error: " in done.err
    assert "\n\nhint: " in done.err
    assert list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", UNREADABLE, ids=str)
def test_unreadable_pictures(terminal, tmp_path, out, name):
    path = tmp_path / f"{name}.png"
    path.write_bytes(UNREADABLE[name])
    check_refused(terminal("run", path, TEXT, "-o", out), out)


@pytest.mark.parametrize("name", ODD, ids=str)
def test_odd_pictures_simply_work(terminal, tmp_path, out, name):
    path = tmp_path / f"{name}.img"
    path.write_bytes(ODD[name])
    done = terminal("run", path, TEXT, "-o", out, "--max-clicks", "1")
    size = json.loads((out / f"{name}.segagent.json").read_text())
    check_clean(done, out, 5 if size["results"][0]["empty"] else 0)
    with Image.open(out / f"{name}.segagent.mask.png") as mask:
        assert mask.size == (size["width"], size["height"])


@pytest.mark.parametrize("text", EXPRESSIONS, ids=[repr(t)[:20] for t in EXPRESSIONS])
def test_expressions_that_are_refused(terminal, tmp_path, out, text):
    path = tmp_path / "scene.png"
    path.write_bytes(PNG)
    done = terminal("run", path, text, "-o", out)
    check_refused(done, out)
    assert EXPRESSIONS[text] in done.err


@pytest.mark.parametrize("text", ["The RED circle.", "  the   red\tcircle ", "red circle!"])
def test_expressions_in_other_letters_are_taken(terminal, tmp_path, out, text):
    path = tmp_path / "scene.png"
    path.write_bytes(PNG)
    check_clean(terminal("run", path, text, "-o", out, "--max-clicks", "1"), out, 0)


NAMES = ["Füße.png", "狗 和 猫.png", "a b'c\"d.png", "-dash.png", "ñ" * 60 + ".png"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_with_other_letters(terminal, tmp_path, out, name):
    path = tmp_path / name
    path.write_bytes(PNG)
    done = terminal("run", path, TEXT, "-o", out, "--max-clicks", "1")
    check_clean(done, out, 0)
    assert (out / f"{path.stem}.segagent.mask.png").exists()


@pytest.mark.parametrize(
    ("click", "code"),
    [
        ("+96,0", 1), ("+0,96", 1), ("+99999999,5", 1), ("-95,200", 1),
        ("120", 2), ("a,b", 2), ("+1;2", 2), ("", 2), ("+1,2,3", 2), ("+-1,2", 2), ("1.5,2", 2),
    ],
)  # fmt: skip
def test_clicks_outside_or_unreadable(terminal, tmp_path, out, click, code):
    path = tmp_path / "scene.png"
    path.write_bytes(PNG)
    done = terminal("run", path, f"--click={click}", "-o", out)
    check_clean(done, out, code)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("click", ["+0,0", "-95,95", "5,5", "+ 5 , 6"])
def test_clicks_at_the_border(terminal, tmp_path, out, click):
    path = tmp_path / "scene.png"
    path.write_bytes(PNG)
    negative = click.startswith("-")
    check_clean(terminal("run", path, f"--click={click}", "-o", out), out, 5 if negative else 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run"], 2),
        (["run", "x.png"], 2),
        (["run", "x.png", "the circle", "--click", "+1,1"], 2),
        (["run", "x.png", "the circle", "--max-clicks", "0"], 2),
        (["run", "x.png", "the circle", "--max-clicks", "many"], 2),
        (["run", "x.png", "the circle", "--threads", "0"], 2),
        (["run", "x.png", "the circle", "--nonsense"], 2),
        (["nonsense"], 2),
        (["eval", "--scenes", "0"], 2),
        (["eval", "--ablate", "all"], 2),
        (["scene", "--side", "1"], 2),
        (["run", "x.png", "the circle"], 1),
        (["run", ".", "the circle"], 1),
        (["run", "/dev/null", "the circle"], 1),
        (["inspect", "no-such-bundle"], 1),
        (["run", "x.png", "the circle", "-b", "no-such-bundle"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_command_lines(terminal, tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    check_clean(terminal(*arguments), tmp_path, code)


def test_a_picture_above_the_limit_can_be_allowed(terminal, tmp_path, out):
    path = tmp_path / "large.png"
    path.write_bytes(packed(Image.new("L", (1100, 1000))))
    done = terminal("run", path, TEXT, "-o", out, "--max-megapixels", "1")
    check_refused(done, out)
    assert "--max-megapixels 2" in done.err
    done = terminal("run", path, TEXT, "-o", out, "--max-megapixels", "2", "--max-clicks", "1")
    check_clean(done, out, 0)


def test_an_output_that_is_a_file(terminal, tmp_path, out):
    (tmp_path / "scene.png").write_bytes(PNG)
    done = terminal("run", tmp_path / "scene.png", TEXT, "-o", tmp_path / "scene.png")
    check_refused(done, out)


def test_an_output_that_cannot_be_written(terminal, tmp_path, out, monkeypatch):
    (tmp_path / "scene.png").write_bytes(PNG)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    check_refused(terminal("run", tmp_path / "scene.png", TEXT, "-o", out), out)


def test_a_full_disk_leaves_nothing_half_written(terminal, tmp_path, out, fail_writing):
    (tmp_path / "scene.png").write_bytes(PNG)
    fail_writing(OSError(28, "No space left on device"))
    done = terminal("run", tmp_path / "scene.png", TEXT, "-o", out, "--max-clicks", "1")
    check_refused(done, out)
    assert "full" in done.err


def test_interrupting_leaves_nothing_half_written(terminal, tmp_path, out, fail_writing):
    (tmp_path / "scene.png").write_bytes(PNG)
    fail_writing(KeyboardInterrupt())
    done = terminal("run", tmp_path / "scene.png", TEXT, "-o", out, "--max-clicks", "1")
    check_clean(done, out, 130)
    assert list(out.iterdir()) == []


@pytest.fixture
def copied(tmp_path):
    """The shipped bundle, to be damaged."""
    return Path(shutil.copytree(open_bundle().folder, tmp_path / "bundle"))


def damages():
    files = [
        "bundle.json", "mllm/manifest.json", "mllm/vision.onnx", "mllm/decoder.onnx.data",
        "mllm/embed.npy", "mllm/tokenizer.json", "segmenter/encoder.onnx",
    ]  # fmt: skip
    return list(itertools.product(files, ["missing", "empty", "cut", "flipped", "folder"]))


@pytest.mark.parametrize(("name", "how"), damages())
def test_damaged_bundles(terminal, tmp_path, out, copied, name, how):
    (tmp_path / "scene.png").write_bytes(PNG)
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:-7], "flipped": flipped}[how])
    done = terminal("run", tmp_path / "scene.png", TEXT, "-o", out, "-b", copied)
    check_clean(done, out, 1)
    assert done.err.startswith("error: ")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2), ("schema", None), ("kind", "mllm"), ("family", "unknown"), ("variants", {}),
        ("settings", {"side": "large"}), ("settings", {"sides": 3}), ("files", []),
        ("files", {"../../secret": {"size": 1, "sha256": ""}}),
    ],
    ids=str,
)  # fmt: skip
def test_manifests_that_lie(terminal, tmp_path, out, copied, field, value):
    (tmp_path / "scene.png").write_bytes(PNG)
    path = copied / "segmenter" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    done = terminal("run", tmp_path / "scene.png", "--click=+5,5", "-o", out, "-b", copied)
    check_clean(done, out, 1)
    assert done.err.startswith("error: ")


@pytest.mark.thorough
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_pictures_of_any_kind(terminal, tmp_path_factory, data):
    """A flipped byte anywhere: either the picture still opens, or it is refused in a sentence."""
    content = bytearray(data.draw(st.sampled_from([PNG, JPEG])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    path, out = folder / "picture", folder / "out"
    path.write_bytes(content)
    done = terminal("run", path, "--click=+0,0", "-o", out)
    assert "Traceback" not in done.err
    assert done.code in (0, 1, 5), done.err


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60).filter(lambda text: not looks_like_picture(text)))
def test_expressions_of_any_kind(terminal, tmp_path_factory, text):
    """Texts that end like a picture's name are further pictures, not expressions."""
    folder = tmp_path_factory.mktemp("said")
    path, out = folder / "scene.png", folder / "out"
    path.write_bytes(PNG)
    done = terminal("run", "-o", out, "--max-clicks", "1", "--", path, text)
    assert "Traceback" not in done.err
    assert done.code in (0, 1, 5), done.err
