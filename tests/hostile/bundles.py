"""Bundles whose hashes fit, and whose manifests, graphs, tables and tokenizers do not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.draw import png
from segagent_rt.scenes import make_scene
from tests.hostile.case import (
    DEEP,
    EITHER,
    ODD_VALUES,
    REFUSED,
    Case,
    at,
    damaged_bytes,
    damaged_json,
    flipped,
    nodes,
)

SHIPPED = open_bundle().folder
SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text
RUN = ("run", "scene.png", TEXT, "--max-clicks", "2", "-o", "out")
LOOKING = (
    RUN, RUN, RUN, ("inspect",), ("inspect", "--json", "--all"), ("inspect", "--verify"),
    ("inspect", "--board", "orin-nx-16"), ("run", "scene.png", "--click=+20,20", "-o", "out"),
    ("eval", "--scenes", "1", "--json"),
)  # fmt: skip
GRAPHS = {
    "mllm": ("vision.onnx", "decoder.onnx"),
    "segmenter": ("encoder.int8.onnx", "decoder.int8.onnx"),
}

Change: Any = Callable[[Path], object]


def cases() -> list[Case]:
    found = [*_manifests(), *_indices(), *_graphs(), *_tables(), *_tokenizers(), *_places()]
    return [*found, *_external()]


def _case(name: str, change: Change, codes: Any = EITHER, command: Any = RUN) -> Case:
    def action(folder: Path) -> list[object]:
        (folder / "scene.png").write_bytes(png(SCENE.image))
        shutil.copytree(SHIPPED, folder / "bundle")
        change(folder / "bundle")
        words = list(command)
        named = [folder / "bundle"] if words[0] == "inspect" else ["-b", folder / "bundle"]
        return [*words, *named]

    return Case(name, action, codes)


def put(bundle: Path, part: str, name: str, content: bytes) -> None:
    """Write a file, and its hash and size into the manifest."""
    (bundle / part / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    path = bundle / part / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"size": len(content), "sha256": digest}
    path.write_text(json.dumps(manifest))


def change_file(part: str, name: str, work: Callable[[bytes], bytes]) -> Change:
    return lambda bundle: put(bundle, part, name, work((bundle / part / name).read_bytes()))


def _manifests() -> Iterator[Case]:
    """Anywhere in a manifest, and at every setting once."""
    for part, count in (("mllm", 40), ("segmenter", 24)):
        path = f"{part}/manifest.json"
        for number in range(count):
            rng = random.Random(f"{part} {number}")
            places = 1 + number // 20

            def change(bundle: Path, path: str = path, rng: Any = rng, most: int = places) -> None:
                (bundle / path).write_bytes(damaged_json(rng, (bundle / path).read_bytes(), most))

            command = LOOKING[number % len(LOOKING)]
            yield _case(f"{part} manifest {number}", change, EITHER, command)
        settings = json.loads((SHIPPED / path).read_text())["settings"]
        for number, place in enumerate(nodes(settings, most=1)):
            value = ODD_VALUES[(7 * number + 3) % len(ODD_VALUES)]

            def change(bundle: Path, path: str = path, place: Any = place, value: Any = value):
                manifest = json.loads((bundle / path).read_text())
                at(manifest["settings"], place[:-1])[place[-1]] = value
                (bundle / path).write_text(json.dumps(manifest))

            yield _case(f"{part} setting {'.'.join(map(str, place))}", change)


def _indices() -> Iterator[Case]:
    for number in range(10):
        rng = random.Random(f"index {number}")

        def change(bundle: Path, rng: Any = rng) -> None:
            path = bundle / "bundle.json"
            path.write_bytes(damaged_json(rng, path.read_bytes()))

        yield _case(f"index {number}", change)
    for name, content in DEEP.items():
        for path in ("bundle.json", "segmenter/manifest.json"):
            yield _case(
                f"{path} of {name}", lambda b, p=path, c=content: (b / p).write_bytes(c), REFUSED
            )
        yield _case(
            f"tokenizer of {name}",
            lambda b, c=content: put(b, "mllm", "tokenizer.json", c),
            REFUSED,
        )


def _graphs() -> Iterator[Case]:
    """Bytes of the graphs that run here, and of their weights."""
    for part, names in GRAPHS.items():
        for name in names:
            for number in range(7):
                rng = random.Random(f"{name} {number}")
                work = damaged_bytes if number % 2 else lambda r, c: flipped(r, c, 5)
                yield _case(
                    f"{name} damaged {number}",
                    change_file(part, name, lambda c, r=rng, w=work: w(r, c)),
                )
    for part, name in (("mllm", "vision.onnx.data"), ("mllm", "decoder.onnx.data")):
        for number in range(3):
            rng = random.Random(f"{name} {number}")
            yield _case(
                f"{name} damaged {number}",
                change_file(part, name, lambda c, r=rng: flipped(r, c, 20_000)),
            )
        for title, value in (("NaN", b"\xff"), ("zeros", b"\0"), ("large", b"\x7f")):
            yield _case(
                f"{name} of {title}", change_file(part, name, lambda c, v=value: v * len(c))
            )


def _header(text: str, more: bytes = b"", version: bytes = b"\1\0") -> bytes:
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(body)) + body + more


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _described(kind: str, shape: str, order: str = "False") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return _header(text, bytes(464 * 256))


def _tables() -> Iterator[Case]:
    refused = {
        "of objects": _described("'|O'", "(464, 256)"),
        "of a code": _header("__import__('os').abort()"),
        "of a huge shape": _described("'<f2'", "(464, 256, 99999999999)"),
        "of a negative shape": _described("'<f2'", "(-464, -256)"),
        "of a shape of text": _described("'<f2'", "('464', 256)"),
        "of True": _described("'<f2'", "(True, True)"),
        "of no shape": _described("'<f2'", "()"),
        "of empty items": _described("'V0'", "(464, 256)"),
        "of long items": _described("'V2147483647'", "(464, 256)"),
        "of fields": _described("[('a', '<f2')]", "(464, 256)"),
        "of fields within fields": _described("[('a', " * 40 + "'<f2'" + ")]" * 40, "(464, 256)"),
        "of complex": _npy(np.zeros((464, 256), np.complex64)),
        "of half the rows": _npy(np.zeros((232, 256), np.float16)),
        "of deep brackets": b"\x93NUMPY\2\0" + struct.pack("<I", 60_000) + b"(" * 60_000,
        "of a 4 GB header": b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(100),
        "of a key twice": _header("{'descr': '<f2', 'descr': '<f4'}"),
        "of version 200": _header("{}", version=b"\xc8\0"),
        "of six bytes": b"\x93NUMPY",
    }
    for name, content in refused.items():
        yield _case(f"table {name}", lambda b, c=content: put(b, "mllm", "embed.npy", c), REFUSED)
    for number in range(8):
        rng = random.Random(f"table {number}")
        yield _case(
            f"table damaged {number}",
            change_file("mllm", "embed.npy", lambda c, r=rng: damaged_bytes(r, c[:128]) + c[128:]),
        )


def _tokenizers() -> Iterator[Case]:
    for number in range(30):
        rng = random.Random(f"tokenizer {number}")
        command = LOOKING[number % len(LOOKING)]
        yield _case(
            f"tokenizer {number}",
            change_file("mllm", "tokenizer.json", lambda c, r=rng: damaged_json(r, c, 2)),
            EITHER,
            RUN if number % 3 else command,
        )
    for name, change in {
        "of a pattern that takes for ever": {
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$|(\\w+\\s?)*$"},
                              "behavior": "Isolated", "invert": False}},
        "that repeats without an end": {
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "e"}, "content": "ee" * 50}] * 6}},
        "that throws all away": {
            "normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}},
        "that pads to a billion": {
            "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right",
                        "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                        "pad_token": "x"}},
        "that cuts to nothing": {
            "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst",
                           "stride": 0}},
        "with a template of a thousand pieces": {
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
                               "pair": [], "special_tokens": {}}},
    }.items():  # fmt: skip
        yield _case(
            f"tokenizer {name}",
            change_file(
                "mllm", "tokenizer.json",
                lambda c, x=change: json.dumps(json.loads(c) | x).encode(),
            ),
        )  # fmt: skip


def _replaced(name: str, make: Callable[[Path], object]) -> Change:
    def change(bundle: Path) -> None:
        path = bundle / name
        path.unlink()
        make(path)

    return change


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        listening.bind(path.name)
        os.chdir(here)


def _places() -> Iterator[Case]:
    """What may lie where a file should."""
    kinds: dict[str, Callable[[Path], object]] = {
        "a folder": Path.mkdir,
        "a named pipe": os.mkfifo,
        "a socket": _listen,
        "an endless device": lambda path: path.symlink_to("/dev/zero"),
        "a link in a circle": lambda path: path.symlink_to(path.name),
        "a link out": lambda path: path.symlink_to("/etc/passwd"),
    }
    names = ["bundle.json", "segmenter/manifest.json", "mllm/embed.npy", "mllm/decoder.onnx"]
    for name in [*names, "mllm/tokenizer.json", "segmenter/encoder.onnx.data"]:
        for kind, make in kinds.items():
            yield _case(f"{name} is {kind}", _replaced(name, make), REFUSED)


def _external() -> Iterator[Case]:
    """Files and parts outside the bundle, by manifest and by graph."""
    for name in (
        "/etc/passwd",
        "../x",
        "a\0b",
        "a" * 5000,
        "",
        ".",
        "\\x",
        "C:x",
        "\ud800",
        "\x1b[2J",
    ):

        def graph(bundle: Path, name: str = name) -> None:
            path = bundle / "mllm/manifest.json"
            manifest = json.loads(path.read_text())
            manifest["files"][name] = manifest["files"]["vision.onnx"]
            manifest["variants"]["cpu-int8"]["graphs"]["vision"] = name
            path.write_text(json.dumps(manifest))

        def part(bundle: Path, name: str = name) -> None:
            path = bundle / "bundle.json"
            index = json.loads(path.read_text())
            index["parts"]["segmenter"] = name
            path.write_text(json.dumps(index))

        yield _case(f"graph {name[:20]!a}", graph, REFUSED)
        yield _case(f"part {name[:20]!a}", part, REFUSED)
        yield _case(
            f"weights {name[:20]!a}",
            change_file("mllm", "vision.onnx", lambda c, n=name: _renamed_weights(c, n)),
            REFUSED,
        )


def _renamed_weights(graph: bytes, name: str) -> bytes:
    """A graph with one more tensor, whose weights lie in the place named."""

    def field(number: int, content: bytes) -> bytes:
        size, left = b"", len(content)
        while left > 127:
            size, left = size + bytes([left & 127 | 128]), left >> 7
        return bytes([number << 3 | 2]) + size + bytes([left]) + content

    place = field(1, b"location") + field(2, name.encode("utf-8", "surrogatepass"))
    return graph + field(7, field(5, field(8, b"more") + field(13, place)))
