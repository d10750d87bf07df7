"""Checkpoints to export that are damaged, absurd or no checkpoints: needs the extra `export`."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.hostile.case import (
    DEEP,
    ODD_VALUES,
    REFUSED,
    Case,
    damaged_bytes,
    damaged_json,
    nodes,
)
from tests.hostile.data_files import PROGRAMS

CODES = (0, 1, 3)
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4000000000\n"
)
LAYERS = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj")


@lru_cache(maxsize=1)
def good() -> Path:
    """Small checkpoints with random weights, made once for a process: `qwen2_5_vl`, `sam`, ..."""
    import torch

    from tests.export.command import checkpoints

    torch.set_num_threads(1)
    root = Path(mkdtemp(dir=Path(os.environ["SEGAGENT_CACHE"]).parent))
    for family in ("qwen2_5_vl", "qwen_vl", "sam", "mobile_sam"):
        checkpoints.save(family, root)
    return root


def _copied(folder: Path, family: str) -> Path:
    return Path(shutil.copytree(good() / family, folder / family))


def _export_mllm(folder: Path, checkpoint: Path, adapter: Path | None = None) -> None:
    """What `export` does with an MLLM before anything is compared."""
    from segagent_rt_export.families.mllm_export import export_mllm_graphs, export_mllm_tables
    from segagent_rt_export.families.mllm_source import Choices, read_source
    from segagent_rt_export.variants import MLLM_VARIANTS, REFERENCE

    source, kind = read_source(checkpoint, Choices(adapter=adapter)), MLLM_VARIANTS[REFERENCE]
    (folder / "out").mkdir()
    export_mllm_graphs(source, folder / "out", kind.arithmetic, kind.dialect)
    export_mllm_tables(source, folder / "out")


def _export_segmenter(folder: Path, family: Any, checkpoint: Path) -> None:
    """What `export` does with a segmenter before anything is compared."""
    from segagent_rt_export.families.segmenters import export_segmenter
    from segagent_rt_export.recipe import SegmenterRecipe

    (folder / "out").mkdir()
    recipe = SegmenterRecipe(family, str(checkpoint), ("reference",))
    export_segmenter(recipe, checkpoint, folder / "out")


def _mllm(name: str, change: Callable[[Path], object], codes: Any = CODES, of: str = "qwen2_5_vl"):
    def action(folder: Path) -> None:
        checkpoint = _copied(folder, of)
        change(checkpoint)
        _export_mllm(folder, checkpoint)

    return Case(f"{of}: {name}", action, codes)


def _segmenter(name: str, change: Callable[[Path], object], codes: Any = CODES) -> Case:
    def action(folder: Path) -> None:
        checkpoint = _copied(folder, "sam")
        change(checkpoint)
        _export_segmenter(folder, "sam", checkpoint)

    return Case(f"sam: {name}", action, codes, seconds=40.0)  # tracing a good one takes 11 s


def _pickled(name: str, content: bytes | Callable[[Path], object], codes: Any = REFUSED) -> Case:
    """A `.pt` file, as `export` with a recipe."""

    def action(folder: Path) -> list[object]:
        path = folder / "model.pt"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        recipe = (
            '[segmenter]\nfamily = "mobile_sam"\nsource = "model.pt"\nvariants = ["reference"]\n'
        )
        (folder / "mine.toml").write_text(recipe)
        return ["export", "mine.toml", "-o", "out"]

    return Case(f"pickle: {name}", action, codes)


def cases() -> list[Case]:
    return [*_configs(), *_tensors(), *_pickles(), *_adapters(), *_folders(), *_recipes()]


def _rewrite(path: str, work: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / path).write_bytes(work((folder / path).read_bytes()))


def _configs() -> Iterator[Case]:
    for number in range(16):
        rng = random.Random(f"config {number}")
        damage = _rewrite("config.json", lambda c, r=rng: damaged_json(r, c))
        make = _segmenter if number % 4 == 3 else _mllm
        yield make(f"config {number}", damage)
    for name, value in (
        ("num_hidden_layers", 10**9), ("num_attention_heads", 10**9), ("hidden_size", 2**31),
        ("num_key_value_heads", 0), ("rope_theta", float("nan")),
        ("num_hidden_layers", 1e308), ("rms_norm_eps", float("inf")), ("head_dim", "x"),
        ("max_position_embeddings", 10**400),
    ):  # fmt: skip

        def change(folder: Path, name: str = name, value: Any = value) -> None:
            path = folder / "config.json"
            config = json.loads(path.read_text())
            place = config.get("text_config", config)
            place[name] = config[name] = value
            if name == "rope_theta":
                place.setdefault("rope_parameters", {})["rope_theta"] = value
            path.write_text(json.dumps(config))

        yield _mllm(f"{name} {str(value)[:9]}", change, CODES if name == "head_dim" else REFUSED)
    for at, (name, content) in enumerate(DEEP.items()):
        path = ("config.json", "tokenizer.json", "preprocessor_config.json")[at % 3]
        yield _mllm(
            f"{path} of {name}",
            lambda f, p=path, c=content: (f / p).write_bytes(c),
            CODES if name == "nan" else REFUSED,
        )
    for path in ("tokenizer.json", "preprocessor_config.json"):
        for number in range(6):
            rng = random.Random(f"{path} {number}")
            yield _mllm(f"{path} {number}", _rewrite(path, lambda c, r=rng: damaged_json(r, c)))
    for number in range(3):
        rng = random.Random(f"tiktoken {number}")
        damage = _rewrite("qwen.tiktoken", lambda c, r=rng: damaged_bytes(r, c))
        yield _mllm(f"tiktoken {number}", damage, CODES, "qwen_vl")


def _header(work: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        work(header)
        packed = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + size :])

    return change


def _tensors() -> Iterator[Case]:
    def first(header: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = next(v for k, v in header.items() if k != "__metadata__")
        return entry

    for name, work in {
        "offsets beyond the end": lambda h: first(h).update(data_offsets=[0, 2**60]),
        "negative offsets": lambda h: first(h).update(data_offsets=[-8, 8]),
        "offsets the wrong way": lambda h: first(h).update(data_offsets=[8, 0]),
        "offsets of texts": lambda h: first(h).update(data_offsets=["0", "8"]),
        "a huge shape": lambda h: first(h).update(shape=[2**62, 2**62]),
        "a negative shape": lambda h: first(h).update(shape=[-1, -1]),
        "a shape of numbers with a point": lambda h: first(h).update(shape=[1.5]),
        "a shape of 10,000 axes": lambda h: first(h).update(shape=[1] * 10_000),
        "an unknown type": lambda h: first(h).update(dtype="F3"),
        "no type": lambda h: first(h).pop("dtype"),
        "an empty name": lambda h: h.update({"": first(h)}),
        "no tensors": lambda h: h.clear(),
    }.items():
        yield _mllm(f"tensors with {name}", _header(work), CODES if name[0:2] == "an" else REFUSED)
    for name, content in {
        "a header of 2^63": b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        "a header of nothing": bytes(8),
        "a deep header": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "no header": b"{}",
        "nothing": b"",
        "a pointer": POINTER,
    }.items():
        yield _mllm(
            f"tensors of {name}", lambda f, c=content: (f / "model.safetensors").write_bytes(c),
            REFUSED,
        )  # fmt: skip
    for number in range(4):
        rng = random.Random(f"tensors {number}")
        damage = _rewrite(
            "model.safetensors", lambda c, r=rng: damaged_bytes(r, c[:4000]) + c[4000:]
        )
        yield (_segmenter if number % 2 else _mllm)(f"tensors damaged {number}", damage)
    index = {
        "a map of nothing": {"weight_map": {}},
        "a map of a list": {"weight_map": []},
        "a map out of the folder": {"weight_map": {"a": "../../etc/passwd"}},
        "a map to an absolute path": {"weight_map": {"a": "/dev/zero"}},
        "a map to numbers": {"weight_map": {"a": 5}},
    }
    for name, content in index.items():

        def change(folder: Path, content: Any = content) -> None:
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text(json.dumps(content))

        yield _mllm(f"tensors with {name}", change, REFUSED)


def _archive(program: bytes, **others: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            file.writestr("model/data.pkl", program)
            for name, content in others.items():
                file.writestr(f"model/{name}", content)

    return write


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", bytes(300 << 20))


def _pickles() -> Iterator[Case]:
    for at, (name, program) in enumerate(PROGRAMS.items()):
        yield _pickled(name, program if at % 2 else _archive(program))
    yield _pickled("a zip bomb", _bomb)
    yield _pickled("a zip of nothing", b"PK\5\6" + bytes(18))
    yield _pickled("a pointer", POINTER)
    yield _pickled("a dictionary of lists", pickle.dumps({"model": [1, 2, 3]}))
    yield _pickled("a named pipe", os.mkfifo)
    yield _pickled("an endless device", lambda path: path.symlink_to("/dev/zero"))
    for number in range(6):
        yield _damaged_pickle(number)


def _damaged_pickle(number: int) -> Case:
    """Damage at the start or at the end, where the directory is; the weights are in between."""
    rng = random.Random(f"mobile_sam {number}")

    def action(folder: Path) -> None:
        from segagent_rt_export.sources.segmenter import read_original

        content = (good() / "mobile_sam" / "mobile_sam.pt").read_bytes()
        at = 3000 if number % 2 else len(content) - 20_000
        first, last = content[:at], content[at:]
        path = folder / "model.pt"
        path.write_bytes(
            damaged_bytes(rng, first) + last if number % 2 else first + damaged_bytes(rng, last)
        )
        read_original(path)

    return Case(f"pickle: mobile_sam damaged {number}", action, CODES)


def _adapters() -> Iterator[Case]:
    def make(folder: Path, base: Path) -> None:
        from segagent_rt_export.sources.shards import open_shards
        from tests.export.mllm.test_lora import write_adapter

        write_adapter(folder, open_shards(base), LAYERS)

    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False}
    changes: dict[str, Callable[[Path], object]] = {}
    for number, place in enumerate(nodes(config)):
        value = ODD_VALUES[(5 * number + 7) % len(ODD_VALUES)]

        def field(folder: Path, key: Any = place[0], value: Any = value) -> None:
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

        changes[f"{place[0]} {number}"] = field
    for name, more in {
        "alpha of infinity": {"lora_alpha": float("inf")},
        "rank 0": {"r": 0},
        "a rank of 2^63": {"r": 2**63},
        "ranks of NaN": {"rank_pattern": {".*": float("nan")}},
        "a pattern that takes for ever": {"alpha_pattern": {"(a+)+$": 3, "(.*a){20}": 4}},
        "odd starts": {"init_lora_weights": [[1]]},
        "modules to save of numbers": {"modules_to_save": [1, None]},
    }.items():

        def update(folder: Path, more: Any = more) -> None:
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | more))

        changes[name] = update
    for name, content in list(DEEP.items())[:4]:
        changes[name] = lambda f, c=content: (f / "adapter_config.json").write_bytes(c)
    changes["a pointer"] = lambda f: (f / "adapter_model.safetensors").write_bytes(POINTER)
    changes["no tensors"] = lambda f: (f / "adapter_model.safetensors").unlink()
    for name, change in changes.items():

        def action(folder: Path, change: Any = change) -> None:
            make(folder / "adapter", good() / "qwen2_5_vl")
            change(folder / "adapter")
            _export_mllm(folder, good() / "qwen2_5_vl", folder / "adapter")

        yield Case(f"adapter: {name}", action, CODES)


def _folders() -> Iterator[Case]:
    def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return change

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield _mllm(f"{name} is missing", lambda f, n=name: (f / n).unlink(), REFUSED)
        yield _mllm(f"{name} is a folder", replace(name, Path.mkdir), REFUSED)
        yield _mllm(f"{name} is a named pipe", replace(name, os.mkfifo), REFUSED)
        device = replace(name, lambda path: path.symlink_to("/dev/zero"))
        yield _mllm(f"{name} is an endless device", device, REFUSED)


def _recipes() -> Iterator[Case]:
    part = '[mllm]\nfamily = "{}"\nsource = "{}"\nvariants = ["{}"]\n'
    texts = {
        "nothing": "",
        "no TOML": "[[[",
        "deep": "a = " + "[" * 50_000,
        "another family": part.format("gpt", "x", "reference"),
        "another variant": part.format("qwen3_vl", "x", "cpu-w1"),
        "a source of NUL": part.format("qwen3_vl", "a\\u0000b", "reference"),
        "a blank source": part.format("qwen3_vl", " ", "reference"),
        "an endless source": part.format("qwen3_vl", "/dev/zero", "reference"),
        "a hub's model that leads out": part.format("qwen3_vl", "hf:../../x/y", "reference"),
        "a hub's model that is not here": part.format("qwen3_vl", "hf:a/b", "reference"),
        "an unknown user": part.format("qwen3_vl", "~nobody-here/x", "reference"),
        "pixels of NaN": part.format("qwen3_vl", "x", "reference") + "most_pixels = nan\n",
        "negative pixels": part.format("qwen3_vl", "x", "reference") + "most_pixels = -5\n",
        "escape sequences": '"\\u001b[2J" = 1\n',
        "a long line": "a = '" + "x" * 200_000 + "'",
    }
    for name, text in texts.items():

        def action(folder: Path, text: str = text) -> list[object]:
            (folder / "mine.toml").write_text(text)
            return ["export", "mine.toml", "-o", "out"]

        yield Case(f"recipe: {name}", action, REFUSED)
