"""Data sets that are damaged: COCO, labelme, RefCOCO, SegAgent's JSON, trajectories, folders."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.data import datasets
from tests.hostile.case import (
    DEEP,
    REFUSED,
    Case,
    damaged_bytes,
    damaged_json,
)

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "coco": ("instances.json", ("convert", "--to", "coco", "-o", "out")),
    "labelme": ("labelled/meadow.json", ("convert", "--to", "segagent", "-o", "out")),
    "segagent": ("objects.json", ("convert", "--to", "labelme", "-o", "out")),
    "trajectories": ("clicks.json", ("convert", "--to", "llama-factory", "-o", "out")),
}
"""By kind of data: the document that is damaged, and a command that reads it."""
FURTHER: dict[str, tuple[tuple[str, ...], ...]] = {
    "coco": (
        ("eval", "--annotator", "oracle", "--max-clicks", "1", "-o", "out"),
        ("score", "--annotations"),
        ("convert", "--to", "coco", "--skip-bad", "-o", "out"),
    ),
    "labelme": (("trajectories", "--max-clicks", "1", "-o", "out"),),
    "segagent": (
        ("eval", "--annotator", "oracle", "--max-clicks", "1", "--visualize", "-o", "out"),
        ("trajectories", "--max-clicks", "1", "-o", "out", "--skip-bad"),
    ),
    "trajectories": (
        ("trajectories", "--check"),
        ("convert", "--to", "qwen-vl", "-o", "out"),
        ("eval", "-o", "out"),
    ),
}
MAKE: dict[str, Callable[[Path], str]] = {
    "coco": datasets.coco, "labelme": datasets.labelme, "segagent": datasets.segagent,
    "trajectories": datasets.trajectories, "refer": datasets.refer, "dis": datasets.dis,
    "thin": datasets.thin, "beside": datasets.beside,
}  # fmt: skip

CODES = (0, 1, 3, 4, 5)


def _case(
    name: str,
    kind: str,
    change: Callable[[Path], object],
    command: tuple[str, ...],
    codes: Any = CODES,
) -> Case:
    def action(folder: Path) -> list[object]:
        named = MAKE[kind](folder)
        change(folder)
        root = ["--root", folder] if kind == "refer" else []
        if command[-1] == "--annotations":
            return [*command, named]
        return [command[0], named, *command[1:], *root]

    return Case(name, action, codes)


def cases() -> list[Case]:
    return [*_documents(), *_deep(), *_references(), *_pictures(), *_places()]


def _documents() -> Iterator[Case]:
    for kind, (path, command) in KINDS.items():
        commands = (command, *FURTHER[kind])
        for number in range(14):
            rng = random.Random(f"{kind} {number}")

            def change(folder: Path, path: str = path, rng: Any = rng) -> None:
                content = (folder / path).read_bytes()
                (folder / path).write_bytes(damaged_json(rng, content))

            yield _case(f"{kind} {number}", kind, change, commands[number % len(commands)])


def _deep() -> Iterator[Case]:
    for at, (name, content) in enumerate(DEEP.items()):
        kind = list(KINDS)[at % len(KINDS)]
        path, command = KINDS[kind]

        def change(folder: Path, path: str = path, content: bytes = content) -> None:
            (folder / path).write_bytes(content)

        yield _case(f"{kind} of {name}", kind, change, command, REFUSED)


PROGRAMS = {
    "nothing": b"",
    "a stop": b".",
    "text": b"hello",
    "a call": b"cos\nsystem\n(S'touch stolen'\ntR.",
    "a call of builtins": b"c__builtin__\neval\n(S'1'\ntR.",
    "a new call": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Px\n.",
    "100,000 tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "doubling tuples": b"\x80\x02)" + b"q\0h\0\x86" * 64 + b".",
    "a doubling key": b"\x80\x02})" + b"q\0h\0\x86" * 64 + b"K\1s.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "a memo of a billion": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "bytes of 2^63": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a frame of 2^63": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a long number of digits": b"I" + b"9" * 100_000 + b"\n.",
    "protocol 200": b"\x80\xc8N.",
    "a dict": pickle.dumps({"a": 1}),
    "a list of numbers": pickle.dumps([1, 2]),
    "references of nothing": pickle.dumps([{}]),
}


def _references() -> Iterator[Case]:
    command = ("convert", "--to", "coco", "-o", "out")
    path = Path("refcocog", "refs(umd).p")
    for name, program in PROGRAMS.items():

        def change(folder: Path, program: bytes = program) -> None:
            (folder / path).write_bytes(program)

        yield _case(f"refer: {name}", "refer", change, command, REFUSED)
    for number in range(12):
        rng = random.Random(f"refer {number}")

        def damage(folder: Path, rng: Any = rng) -> None:
            (folder / path).write_bytes(damaged_bytes(rng, (folder / path).read_bytes()))

        yield _case(f"refer damaged {number}", "refer", damage, command)


def _pictures() -> Iterator[Case]:
    """Good documents, and pictures that are none."""
    contents = {"nothing": b"", "text": b"hello", "half a PNG": b"\x89PNG\r\n\x1a\n" + bytes(30)}
    for kind in ("segagent", "trajectories", "coco"):
        _, command = KINDS[kind]
        for at, (name, content) in enumerate(contents.items()):
            commands = (command, *FURTHER[kind])

            def change(folder: Path, content: bytes = content) -> None:
                (folder / "meadow.jpg").write_bytes(content)

            for number, each in enumerate(commands):
                if number % len(contents) == at or number > 2:
                    yield _case(f"{kind} with a picture of {name}, {number}", kind, change, each)
    for kind in ("dis", "thin", "beside"):

        def masks(folder: Path) -> None:
            for path in sorted(folder.rglob("*.png")):
                path.write_bytes(b"\x89PNG")

        yield _case(
            f"{kind} with masks of nothing", kind, masks, ("convert", "--to", "coco", "-o", "out")
        )


def _places() -> Iterator[Case]:
    for at, (name, make) in enumerate(
        {
            "a named pipe": os.mkfifo,
            "a folder": Path.mkdir,
            "an endless device": lambda path: path.symlink_to("/dev/zero"),
            "a link in a circle": lambda path: path.symlink_to(path.name),
        }.items()
    ):
        for kind in ("coco", "segagent", "trajectories"):
            path, command = KINDS[kind]

            def change(folder: Path, path: str = path, make: Any = make) -> None:
                (folder / path).unlink()
                make(folder / path)

            yield _case(f"{kind} is {name}", kind, change, command, REFUSED)

            def picture(folder: Path, make: Any = make) -> None:
                (folder / "meadow.jpg").unlink()
                make(folder / "meadow.jpg")

            commands = (command, *FURTHER[kind])
            each = commands[at % len(commands)]
            yield _case(f"a picture of {kind} is {name}", kind, picture, each)
