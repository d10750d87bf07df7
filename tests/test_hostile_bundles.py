"""Bundles whose hashes fit and whose content does not: one sentence, in time, never a traceback."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segagent_rt
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import BundleError, FileChanged, ManifestInvalid, SegagentError
from segagent_rt.scenes import make_scene
from segagent_rt.types import Trajectory

SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text


class Copied:
    """A copy of the shipped bundle that may be changed, and is hashed again."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(shutil.copytree(open_bundle().folder, folder))
        self.manifests = {
            part: json.loads((self.folder / part / "manifest.json").read_text())
            for part in ("segmenter", "mllm")
        }

    def put(self, part: str, name: str, content: bytes) -> None:
        (self.folder / part / name).write_bytes(content)
        record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.manifests[part]["files"][name] = record

    def read(self, part: str, name: str) -> bytes:
        return (self.folder / part / name).read_bytes()

    def save(self) -> Path:
        for part, manifest in self.manifests.items():
            (self.folder / part / "manifest.json").write_text(json.dumps(manifest))
        return self.folder


def use(folder: Path) -> Trajectory:
    """One expression, as `run` does it."""
    with segagent_rt.load(folder, backend="cpu", threads=1) as runtime:
        return runtime.open(SCENE.image).annotate(TEXT)


@pytest.fixture
def bundle(tmp_path):
    return Copied(tmp_path / "bundle")


def refused(bundle: Copied) -> BundleError:
    """The error, which is one line of printable text with a hint."""
    with pytest.raises(BundleError) as caught:
        use(bundle.save())
    assert str(caught.value).isprintable(), str(caught.value)
    return caught.value


# Settings: every number and text in turn takes values that it must not have.

ODD = (0, -1, 10**9, 10**40, 1e308, True, "x", None, [], {}, float("nan"), float("-inf"))


def leaves(settings: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from leaves(value, (*path, key))
    elif isinstance(settings, list):
        if settings and path[-1] not in ("vocabulary",):
            yield from leaves(settings[0], (*path, 0))
        yield path
    else:
        yield path


def settings_cases() -> list[Any]:
    """Two values for every setting; the second one takes its turn in `.ci/run`."""
    cases = []
    for part in ("segmenter", "mllm"):
        manifest = json.loads((open_bundle().folder / part / "manifest.json").read_text())
        for at, path in enumerate(leaves(manifest["settings"])):
            first, second = (ODD[(at + shift) % len(ODD)] for shift in (0, 5))
            cases.append(pytest.param(part, path, first))
            cases.append(pytest.param(part, path, second, marks=pytest.mark.thorough))
    return cases


def change(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = copy.deepcopy(value)


@pytest.mark.parametrize(
    ("part", "path", "value"),
    settings_cases(),
    ids=lambda x: str(x)[:40].replace(" ", ""),
)
def test_settings_that_cannot_be_are_refused_or_harmless(bundle, part, path, value):
    change(bundle.manifests[part]["settings"], path, value)
    said = ""
    try:
        use(bundle.save())
    except BundleError as error:
        said = str(error)
    assert not said or said.isprintable()
    assert len(said) < 1000


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(text: str, more: bytes = b"") -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + more


def shaped(kind: str, rows: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, 256), }}"
    return header(text, b"0" * 4096)


def swap(part: str, one: str, other: str) -> Callable[[Copied], None]:
    def work(bundle: Copied) -> None:
        bundle.put(part, one, bundle.read(part, other))

    return work


def put(part: str, name: str, content: bytes) -> Callable[[Copied], None]:
    return lambda bundle: bundle.put(part, name, content)


def edit(part: str, name: str, work: Callable[[bytes], bytes]) -> Callable[[Copied], None]:
    return lambda bundle: bundle.put(part, name, work(bundle.read(part, name)))


def vary(part: str, work: Callable[[dict[str, Any]], object]) -> Callable[[Copied], None]:
    return lambda bundle: (work(bundle.manifests[part]), None)[1]


def tokenizer(work: Callable[[dict[str, Any]], object]) -> Callable[[Copied], None]:
    def change(content: bytes) -> bytes:
        found = json.loads(content)
        work(found)
        return json.dumps(found).encode()

    return edit("mllm", "tokenizer.json", change)


def table(content: bytes) -> Callable[[Copied], None]:
    return put("mllm", "embed.npy", content)


def mllm(**changes: Any) -> Callable[[Copied], None]:
    return vary("mllm", lambda manifest: manifest["settings"].update(changes))


def vision(**changes: Any) -> Callable[[Copied], None]:
    return vary("mllm", lambda manifest: manifest["settings"]["vision"].update(changes))


def resize(**rule: Any) -> Callable[[Copied], None]:
    return vision(resize=rule)


def language(**changes: Any) -> Callable[[Copied], None]:
    return vary("mllm", lambda manifest: manifest["settings"]["language"].update(changes))


def reply(**changes: Any) -> Callable[[Copied], None]:
    return vary("mllm", lambda manifest: manifest["settings"]["reply"].update(changes))


def head_rows(work: Callable[[list[int]], list[int]]) -> Callable[[Copied], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["settings"]["head_rows"] = work(manifest["settings"]["head_rows"])

    return vary("mllm", change)


def vocabulary(work: Callable[[dict[str, int]], dict[str, int]]) -> Callable[[Copied], None]:
    def change(found: dict[str, Any]) -> None:
        found["model"]["vocab"] = work(found["model"]["vocab"])

    return tokenizer(change)


def rename(name: str) -> Callable[[Copied], None]:
    """The vision graph is called something that no file can be called."""

    def work(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"]["vision.onnx"]
        manifest["variants"]["cpu-int8"]["graphs"]["vision"] = name

    return vary("mllm", work)


FILES: dict[str, Callable[[Copied], None]] = {
    "encoder for decoder": swap("segmenter", "decoder.int8.onnx", "encoder.int8.onnx"),
    "decoder for encoder": swap("segmenter", "encoder.int8.onnx", "decoder.int8.onnx"),
    "vision for decoder": swap("mllm", "decoder.onnx", "vision.onnx"),
    "decoder for vision": swap("mllm", "vision.onnx", "decoder.onnx"),
    "other weights": swap("mllm", "vision.onnx.data", "decoder.onnx.data"),
    "empty graph": put("mllm", "vision.onnx", b""),
    "no graph": put("mllm", "vision.onnx", b"\0" * 100),
    "text for a graph": put("mllm", "vision.onnx", b"hello, this is a graph"),
    "half a graph": edit("mllm", "vision.onnx", lambda c: c[: len(c) // 2]),
    "half the weights": edit("mllm", "vision.onnx.data", lambda c: c[: len(c) // 2]),
    "no weights": put("segmenter", "encoder.onnx.data", b""),
    "long field": put("mllm", "decoder.onnx", b":\xff\xff\xff\xff\x7f"),
    "endless number": put("mllm", "decoder.onnx", b"\xff" * 64),
    "nan table": edit("mllm", "embed.npy", lambda c: npy(np.load(io.BytesIO(c)) * np.nan)),
    "inf table": edit("mllm", "embed.npy", lambda c: npy(np.load(io.BytesIO(c)) * np.inf)),
    "nan weights": edit("mllm", "vision.onnx.data", lambda c: b"\xff" * len(c)),
    "short table": edit("mllm", "embed.npy", lambda c: npy(np.load(io.BytesIO(c))[:30])),
    "narrow table": edit("mllm", "embed.npy", lambda c: npy(np.load(io.BytesIO(c))[:, :8])),
    "flat table": table(npy(np.zeros(256, np.float32))),
    "whole numbers": table(npy(np.zeros((1000, 256), np.int64))),
    "texts": table(npy(np.zeros((464, 256), "U1"))),
    "objects": table(shaped("|O", "464")),
    "huge shape": table(shaped("<f4", "1000000000000")),
    "negative shape": table(shaped("<f4", "-1")),
    "absurd shape": table(shaped("<f4", "1{}".format("0" * 50))),
    "columns first": table(npy(np.asfortranarray(np.zeros((464, 256), np.float32)))),
    "no header": table(header("__import__('os').abort()")),
    "deep header": table(b"\x93NUMPY\x02\x00" + (9000).to_bytes(4, "little") + b"(" * 9000),
    "future npy": table(b"\x93NUMPY\x09\x00" + b" " * 100),
    "a zip": table(b"PK\x03\x04" + b"0" * 100),
    "empty table": table(b""),
    "empty tokenizer": put("mllm", "tokenizer.json", b""),
    "no object": put("mllm", "tokenizer.json", b"[]"),
    "binary tokenizer": put("mllm", "tokenizer.json", b"\xff\xfe\x00"),
    "deep tokenizer": put("mllm", "tokenizer.json", b"[" * 100000),
    "no model": tokenizer(lambda t: t.pop("model")),
    "no words": tokenizer(lambda t: t["model"].update(vocab={}, merges=[])),
    "no added tokens": tokenizer(lambda t: t.update(added_tokens=[])),
    "words without digits": vocabulary(lambda v: {k: n for k, n in v.items() if not k.isdigit()}),
    "no pieces": tokenizer(lambda t: t.update(pre_tokenizer=None)),
    "odd decoder": tokenizer(lambda t: t.update(decoder={"type": "Strip", "start": 9**18})),
    "numbers far off": vocabulary(lambda v: {k: n + 10**6 for k, n in v.items()}),
    "a prompt without words": mllm(prompt="<|image_pad|>Segment it"),
    "one word for both signs": reply(signs=["Positive", "Positive"]),
    "no rows of digits": head_rows(lambda rows: rows[:4]),
    "rows twice": head_rows(lambda rows: rows * 2),
    "no picture": mllm(prompt="Segment {expression}"),
    "no template": reply(template=""),
    "no point": reply(template="Current IOU: {iou}"),
    "odd signs": reply(signs=["", ""]),
    "long template": reply(template="{sign}{row}{column}" + "1{iou}" * 50),
    "layers that are not there": language(layers=9),
    "fewer layers": language(layers=2),
    "more heads": language(kv_heads=4),
    "another width": language(hidden=128),
    "deepstack": language(deepstack=2),
    "deepstack of the vision encoder": vision(deepstack=2),
    "few tokens": language(most_tokens=3),
    "other patches": vision(patch=14),
    "large patches": vision(patch=1000),
    "merge of three": vision(merge=3),
    "no window": vision(window=2),
    "another grid": vision(grid=[3, 3]),
    "free": mllm(decoding="free"),
    "another side": vary("segmenter", lambda m: m["settings"].update(side=512)),
    "another family": vary("segmenter", lambda m: m.update(family="simple_click", settings={})),
    "sam": vary("segmenter", lambda m: m.update(family="sam", settings={})),
    "llava": resize(side=336, colour=[1, 2, 3], rule="pad"),
    "odd colour": resize(side=256, colour=[-1, 999, 3], rule="pad"),
    "crop": resize(edge=8, side=256, rule="crop"),
    "smart": resize(unit=32, least=9, most=1, rule="smart"),
    "no variants": vary("mllm", lambda m: m.update(variants={})),
    "no roles": vary("mllm", lambda m: [v.update(graphs={}) for v in m["variants"].values()]),
    "a graph that is not listed": vary("mllm", lambda m: m["files"].pop("vision.onnx")),
    "weights that are not listed": vary("mllm", lambda m: m["files"].pop("vision.onnx.data")),
    "nul": rename("a\0b"),
    "an overlong name": rename("a" * 5000),
    "an overlong path": rename("a/" * 5000 + "b"),
    "no name": rename(""),
    "a folder": rename("."),
    "a steering name": rename("\x1b]0;title\x07"),
    "half a character": rename("\ud800"),
}  # fmt: skip


HARMLESS = (
    "rows twice",
    "no pieces",
    "odd decoder",
    "fewer layers",
    "no added tokens",
)
"""What may also work, or be seen later."""


@pytest.mark.parametrize("case", [name for name in FILES if name not in HARMLESS])
def test_files_that_do_not_fit_are_refused(bundle, case):
    FILES[case](bundle)
    refused(bundle)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("a prompt without words", "the prompt of the MLLM lacks `{expression}`"),
        ("no picture", "the prompt of the MLLM lacks `<|image_pad|>`"),
        ("whole numbers", "it holds int64"),
    ],
)
def test_the_error_names_the_cause(bundle, case, said):
    FILES[case](bundle)
    assert said in str(refused(bundle))


def test_what_a_library_says_of_a_graph_is_not_printed(bundle, capfd):
    """ONNX Runtime's own log has names from the graph as they are: they could steer a terminal."""
    language(layers=3)(bundle)
    refused(bundle)
    assert capfd.readouterr() == ("", "")


@pytest.mark.thorough
@pytest.mark.parametrize("case", HARMLESS)
def test_files_that_may_fit_end_in_a_mask_or_one_sentence(bundle, case):
    FILES[case](bundle)
    with suppress(SegagentError):
        use(bundle.save())


# The files themselves: what a path may lead to beside a regular file.


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(target: str) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return work


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "a folder": replace_by_folder,
    "a named pipe": replace_by_pipe,
    "an endless device": replace_by_link("/dev/zero"),
    "a link in a circle": lambda path: replace_by_link(path.name)(path),
    "a link out of the bundle": replace_by_link("/etc/passwd"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name",
    ["bundle.json", "mllm/manifest.json", "mllm/embed.npy", "mllm/vision.onnx.data"],
)
def test_only_regular_files_are_opened(bundle, place, name):
    folder = bundle.save()
    PLACES[place](folder / name)
    with pytest.raises(BundleError) as caught:
        use(folder)
    assert str(caught.value).isprintable()


TEXTS = {
    "deep": '{"schema": 1, "provenance": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "deep objects": '{"a":' * 200_000,
    "nan": '{"schema": 1, "name": NaN}',
    "many digits": '{"schema": 1' + "0" * 10_000 + "}",
    "not utf-8": b"\xff\xfe{}",
    "a list": "[]",
    "a steering name": '{"schema": 1, "\\u001b[2J": 1}',
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["bundle.json", "segmenter/manifest.json"])
def test_manifests_that_are_none_are_refused(bundle, text, name):
    folder, content = bundle.save(), TEXTS[text]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BundleError) as caught:
        use(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_manifest_is_read_up_to_a_bound(bundle):
    folder = bundle.save()
    with (folder / "mllm" / "manifest.json").open("ab") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BundleError, match="more than"):
        use(folder)


# The places where graphs keep weights.


def field(number: int, content: bytes) -> bytes:
    length = len(content)
    size = bytes([length & 127 | 128, length >> 7]) if length > 127 else bytes([length])
    return (
        bytes([number << 3 & 127 | 2 | (128 if number > 15 else 0)])
        + (bytes([number >> 4]) if number > 15 else b"")
        + size
        + content
    )


def graph_with(place: bytes, nested: str) -> bytes:
    """More of a graph: a tensor whose weights lie in a place."""
    entry = field(1, b"location") + field(2, place)
    tensor = field(1, b"") + field(13, entry)
    found = {
        "initializer": field(5, tensor),
        "sparse": field(15, field(1, tensor)),
        "constant": field(1, field(4, b"Constant") + field(5, field(5, tensor))),
        "branch": field(1, field(4, b"If") + field(5, field(6, field(5, tensor)))),
        "branches": field(1, field(4, b"If") + field(5, field(11, field(5, tensor)))),
    }
    if nested == "function":
        return field(25, field(7, field(5, field(5, tensor))))
    return field(7, found[nested])


NESTED = ("initializer", "sparse", "constant", "branch", "branches", "function")


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize(
    "place",
    [
        b"/etc/passwd",
        b"../segmenter/encoder.onnx.data",
        b"unlisted.data",
        b"./../mllm/vision.onnx.data",
        b"",
        b"vision.onnx.data\0",
        b"*/_ORT_MEM_ADDR_/*",
        b"..\\x",
    ],
    ids=lambda place: repr(place),
)
def test_weights_lie_only_in_files_of_the_manifest(bundle, nested, place):
    """Seen before a session is made: older versions of ONNX Runtime open any path."""
    (bundle.folder / "mllm" / "unlisted.data").write_bytes(b"0" * 64)
    content = bundle.read("mllm", "vision.onnx") + graph_with(place, nested)
    bundle.put("mllm", "vision.onnx", content)
    part = open_bundle(bundle.save()).part("mllm")
    with pytest.raises(ManifestInvalid, match="which the manifest does not list"):
        part.graphs("vision", "cpu-w8a8-static")
    with pytest.raises(ManifestInvalid, match="which the manifest does not list"):
        part.verify()


def test_graphs_that_hold_engines_of_other_libraries_are_refused(bundle):
    """They name files, too."""
    graph = field(7, field(1, field(4, b"EPContext")))
    bundle.put("mllm", "vision.onnx", bundle.read("mllm", "vision.onnx") + graph)
    assert "engine of another library" in str(refused(bundle))


def test_listed_weights_of_any_name_are_allowed_and_found(bundle):
    bundle.put("mllm", "more.bin", b"0" * 64)
    graph = bundle.read("mllm", "vision.onnx") + graph_with(b"./more.bin", "constant")
    bundle.put("mllm", "vision.onnx", graph)
    part = open_bundle(bundle.save()).part("mllm")
    assert part.weights("vision.onnx") == ["more.bin", "vision.onnx.data"]


# Between the check and the use.


def test_a_file_that_changes_after_the_check_is_not_opened(bundle):
    part = open_bundle(bundle.save()).part("mllm")
    part.verify()
    for name in ("vision.onnx", "vision.onnx.data", "embed.npy", "tokenizer.json"):
        path = part.folder / name
        about = path.stat()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    for use_file in (
        lambda: part.open("vision", Where("cpu", 1), "cpu-w8a8-static"),
        lambda: part.array("embed.npy"),
        lambda: part.text("tokenizer.json"),
    ):
        with pytest.raises(FileChanged, match="was changed while it was in use"):
            use_file()
