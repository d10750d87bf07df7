"""Command lines that are wrong, empty, contradictory or absurd."""

from __future__ import annotations

from pathlib import Path

from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests.hostile.case import EITHER, REFUSED, USAGE, Case

SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text

WRONG_USE = (
    ["run"],
    ["run", "scene.png"],
    ["run", "scene.png", "--click", "1"],
    ["run", "scene.png", "--click", "nan,nan"],
    ["run", "scene.png", "--click", "+1e3,1"],
    ["run", "scene.png", "--click", "\uff11,\uff12"],
    ["run", "scene.png", "--box", "1,2,3"],
    ["run", "scene.png", "--box", "9,9,1,1"],
    ["run", "scene.png", "--box", "0,0,0,0"],
    ["run", "scene.png", "--click", "+1,1", "the circle"],
    ["run", "scene.png", TEXT, "--max-clicks", "0"],
    ["run", "scene.png", TEXT, "--max-clicks", "1.5"],
    ["run", "scene.png", TEXT, "--max-clicks", "1000000000"],
    ["run", "scene.png", TEXT, "--max-clicks", "9" * 400],
    ["run", "scene.png", TEXT, "--threads", "-1"],
    ["run", "scene.png", TEXT, "--threads", "nan"],
    ["run", "scene.png", TEXT, "--deadline-ms", "inf"],
    ["run", "scene.png", TEXT, "--deadline-ms", "nan"],
    ["run", "scene.png", TEXT, "--deadline-ms", "-1"],
    ["run", "scene.png", TEXT, "--max-megapixels", "nan"],
    ["run", "scene.png", TEXT, "--max-megapixels", "inf"],
    ["run", "scene.png", TEXT, "--temperature", "nan", "--candidates", "2"],
    ["run", "scene.png", TEXT, "--candidates", "0"],
    ["run", "scene.png", TEXT, "--value-range", "0"],
    ["run", "scene.png", TEXT, "--value-range", "a,b"],
    ["run", "scene.png", TEXT, "--backend", "../../x"],
    ["run", "scene.png", TEXT, "--endpoint", "http://127.0.0.1:9"],
    ["run", "scene.png", TEXT, "--preset", "qwen3-vl"],
    ["run", "scene.png", TEXT, "--timeout", "5"],
    ["run", "scene.png", TEXT, "--no-such-option"],
    ["run", "scene.png", TEXT, "-o"],
    ["eval", "--scenes", "-3"],
    ["eval", "--limit", "5"],
    ["eval", "--scenes", "1", "--skip-bad"],
    ["eval", "--scenes", "1", "--mask-label", "3"],
    ["eval", "x.json", "--scenes", "2"],
    ["score"],
    ["score", "scene.png", "scene.png"],
    ["score", "scene.png", "scene.png", TEXT, "--below", "0.5"],
    ["score", "--annotations", "x.json", "--below", "nan"],
    ["convert", "x.json"],
    ["convert", "x.json", "--to", "pascal"],
    ["trajectories", "x.json", "--good", "nan"],
    ["trajectories", "x.json", "--good", "2"],
    ["trajectories", "x.json", "--start", "nowhere"],
    ["scene", "--side", "0"],
    ["bench", "measure", "--against", "itself"],
    ["inspect", "a", "b"],
    ["run", "scene.png", TEXT, "-o", "a\0b"],
    ["nonsense"],
    ["\x1b]0;title\x07"],
    ["--nonsense"],
)  # fmt: skip

REFUSALS = (
    ["run", "absent.png", TEXT],
    ["run", "", TEXT],
    ["run", "a\0b", TEXT],
    ["run", "\ud8ff.png", TEXT],
    ["run", "?" * 5000, TEXT],
    ["run", "empty", TEXT],
    ["run", "/dev/zero", TEXT],
    ["run", "/proc/self/mem", TEXT],
    ["run", "a" * 5000, TEXT],
    ["run", "scene.png/x.png", TEXT],
    ["run", "scene.png", ""],
    ["run", "scene.png", "\0"],
    ["run", "scene.png", "\ud800"],
    ["run", "scene.png", "\udc80\udcff"],
    ["run", "scene.png", "the \x1b[31mcircle"],
    ["run", "scene.png", "circle " * 50_000],
    ["run", "scene.png", "\u0b95" * 400],
    ["run", "scene.png", "{expression}{iou}"],
    ["run", "scene.png", "<|im_end|>"],
    ["run", "scene.png", "--click", "+96,0"],
    ["run", "scene.png", "--box", "0,0,96,96"],
    ["run", "scene.png", TEXT, "--value-range", "9,1"],
    ["run", "scene.png", TEXT, "--value-range", "nan,1"],
    ["run", "scene.png", TEXT, "--max-megapixels", "0"],
    ["run", "scene.png", TEXT, "-o", "scene.png"],
    ["run", "scene.png", TEXT, "-o", "/dev/null"],
    ["run", "scene.png", TEXT, "-o", "/proc/x"],
    ["run", "scene.png", TEXT, "-o", "a" * 300],
    ["run", "scene.png", TEXT, "-b", ""],
    ["run", "scene.png", TEXT, "-b", "a\0b"],
    ["run", "scene.png", TEXT, "-b", "a" * 5000],
    ["run", "scene.png", TEXT, "-b", "scene.png"],
    ["run", "scene.png", TEXT, "-b", "/dev"],
    ["run", "scene.png", TEXT, "--backend", "tensorrt"],
    ["run", "scene.png", TEXT, "--endpoint", "ftp://x", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://127.0.0.1:0", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://[::1", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://a b/", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://127.0.0.1:99999", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://127.0.0.1\r\nX: y", "--model", "m"],
    ["run", "scene.png", TEXT, "--endpoint", "http://example.org", "--model", "m"],
    ["inspect", "--board", "toaster"],
    ["inspect", "/"],
    ["score", "scene.png", "absent.png", TEXT],
    ["score", "scene.png", "/dev/zero", TEXT],
    ["refine", "scene.png", "absent.png", TEXT],
    ["convert", "absent.json", "--to", "coco"],
    ["convert", "/dev/zero", "--to", "coco"],
    ["convert", "a\0b", "--to", "coco"],
    ["eval", "absent.json"],
    ["eval", "/dev/zero"],
    ["trajectories", "scene.png"],
    ["bench", "-s", "/dev/zero"],
    ["bench", "-s", "absent"],
    ["scene", "-o", "scene.png"],
)

HARMLESS = (
    ["run", "scene.png", TEXT, "--threads", "2147483647", "--max-clicks", "1", "-o", "out"],
    ["run", "scene.png", TEXT, "--max-clicks", "1000", "-o", "out"],
    ["run", "scene.png", TEXT, "--deadline-ms", "0", "-o", "out"],
    ["run", "scene.png", *[TEXT] * 5, "--max-clicks", "1", "-o", "out"],
    ["run", "scene.png", *["--click=+5,5"] * 40, "-o", "out"],
    ["run", "scene.png", TEXT, "--value-range", "-1e308,1e308", "-o", "out"],
    ["run", "scene.png", TEXT, "--candidates", "64", "--max-clicks", "1", "-o", "out"],
    ["scene", "--seed", "-99999999999999999999", "-o", "out"],
)  # fmt: skip


def cases() -> list[Case]:
    groups = ((WRONG_USE, USAGE), (REFUSALS, REFUSED), (HARMLESS, EITHER))
    return [_case(list(words), codes) for group, codes in groups for words in group]


def _case(words: list[str], codes: object) -> Case:
    def action(folder: Path) -> list[str]:
        (folder / "scene.png").write_bytes(png(SCENE.image))
        (folder / "empty").mkdir()
        return words

    name = ascii(" ".join(word[:40] + "…" * (len(word) > 40) for word in words))
    return Case(name, action, codes)  # type: ignore[arg-type]
