"""Weights on disk: every way in which they are stored, and files that must be refused."""

from __future__ import annotations

import base64
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_export import export_mllm_tables
from segagent_rt_export.families.mllm_source import Choices, read_source
from segagent_rt_export.families.qwen_vl_v1.tiktoken import read_ranks
from segagent_rt_export.gate.streaming import MmapBuffer
from segagent_rt_export.sources.shards import open_safetensors, open_shards
from segagent_rt_export.sources.weights import Checkpoint, RowSlice, row_pieces, take
from tests.export.mllm.conftest import NAMES, open_exported
from tests.export.mllm.measuring import CLOSE, distance_of_logits

pytestmark = pytest.mark.export

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Any:
    return torch.randn(*shape, generator=GENERATOR)


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_are_those_that_were_saved(tmp_path, dtype):
    saved = {
        "a.weight": random(7, 5).to(dtype),
        "b": random(3).to(dtype),
        "c": random(1)[0].to(dtype),
    }
    save_file(saved, tmp_path / "model.safetensors")
    opened = open_shards(tmp_path)
    for name, tensor in saved.items():
        assert np.array_equal(opened[name].read(), tensor.float().numpy())
        assert opened[name].shape == tuple(tensor.shape)
    rows = opened["a.weight"].read([4, 0, 4])
    assert np.array_equal(rows, saved["a.weight"].float()[[4, 0, 4]].numpy())
    pieces = list(row_pieces(opened["a.weight"], 3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    assert np.array_equal(np.concatenate(pieces), saved["a.weight"].float().numpy())
    part = RowSlice(opened["a.weight"], 2, 6)
    assert np.array_equal(part.read(slice(1, 3)), saved["a.weight"].float()[3:5].numpy())
    assert part.shape == (4, 5)


def test_torch_files_hold_the_same(tmp_path):
    saved = {"a.weight": random(7, 5).bfloat16(), "b": random(3)}
    torch.save(saved, tmp_path / "pytorch_model.bin")
    opened = open_shards(tmp_path)
    assert {name: t.width for name, t in opened.items()} == {"a.weight": 2, "b": 4}
    for name, tensor in saved.items():
        assert np.array_equal(opened[name].read(), tensor.float().numpy())


def test_a_file_is_not_read_when_it_is_opened(tmp_path):
    """Sixteen gigabytes that the disk does not hold: a hole of zeros."""
    header = {"big": {"dtype": "BF16", "shape": [1 << 21, 1 << 12], "data_offsets": [0, 1 << 34]}}
    path = raw(tmp_path / "model.safetensors", header)
    start = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(start + (1 << 34))
    tensor = open_safetensors(path)["big"]
    assert tensor.read([0, (1 << 21) - 1]).shape == (2, 1 << 12)
    assert not tensor.read([5]).any()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_shards_and_names_of_either_age_give_the_same_model(small, photo, tmp_path, name):
    """Once as `save_pretrained` writes it, in shards, once by the names that modules have."""
    made = small(name)
    model = made.reference._model
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for extra in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / extra).write_bytes((made.folder / extra).read_bytes())
    for folder, tensors in (("sharded", None), ("memory", model.state_dict())):
        if tensors is not None:  # the names that the modules have in memory
            for shard in tmp_path.glob("model*"):
                shard.unlink()
            tied = {"lm_head.weight"} if name == "qwen3_vl" else set()
            kept = {k: v.clone() for k, v in tensors.items() if k not in tied}
            save_file(kept, tmp_path / "model.safetensors")
        source = read_source(tmp_path, Choices(decoding="free", preset="segagent-rated"))
        target = tmp_path / folder
        target.mkdir()
        annotator = open_exported(source, target).annotator
        assert distance_of_logits(annotator, made.reference, photo(97, 130)) < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_a_checkpoint_is_used(exported, name):
    source = exported(name).source
    unread = {n for n in source.weights.tensors if n not in source.weights.read}
    layers = {n for n in unread if ".tower.encoder.layers.2." in n or "post_layernorm" in n}
    assert unread == (layers if name.startswith("llava") else set())


FAULTS = {
    "shorter than its header": lambda p: raw(p, {}, length=1 << 20),
    "an absurd header": lambda p: raw(p, {}, length=1 << 62),
    "seven bytes": lambda p: p.write_bytes(b"1234567"),
    "no JSON": lambda p: raw(p, b"{" * 100),
    "deep JSON": lambda p: raw(p, b"[" * 100_000),
    "a list": lambda p: raw(p, []),
    "no offsets": lambda p: raw(p, {"a": {"dtype": "F32", "shape": [1]}}),
    "an unknown type": lambda p: raw(
        p, {"a": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}, b"1234"
    ),
    "a negative size": lambda p: raw(
        p, {"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"
    ),
    "a shape of a million axes": lambda p: raw(
        p, {"a": {"dtype": "F32", "shape": [1] * 1_000_000, "data_offsets": [0, 4]}}, b"1234"
    ),
    "another size than its place": lambda p: raw(
        p, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"
    ),
    "a place before the file": lambda p: raw(
        p, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-8, -4]}}, b"1234"
    ),
    "a place behind the file": lambda p: raw(
        p, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, fault):
    path = tmp_path / "model.safetensors"
    FAULTS[fault](path)
    with pytest.raises(CheckpointInvalid) as caught:
        open_shards(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_e4m3_without_a_scale_is_not_read(tmp_path):
    raw(
        tmp_path / "model.safetensors",
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}},
        b"1234",
    )
    with pytest.raises(CheckpointInvalid, match="F8_E4M3 without its scale"):
        open_shards(tmp_path)["a"].read()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_change_of_a_header_reads_beyond_the_file(tmp_path_factory, data):
    """Any byte of the header may be anything: the file is refused, or every tensor lies in it."""
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 150))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = open_safetensors(path)
    except CheckpointInvalid:
        return
    for tensor in tensors.values():
        assert tensor.read().size * tensor.width <= len(content)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "a\\b.safetensors", "config.json", "", ".."]
)
def test_an_index_names_only_shards_beside_it(tmp_path, shard):
    folder = tmp_path / "inside"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"a": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointInvalid, match="no shard beside it"):
        open_shards(folder)


def test_an_index_must_fit_its_shards(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for content, said in (
        ({"weight_map": {"a": "model-1.safetensors"}}, "is missing"),
        ({"weight_map": []}, "no `weight_map`"),
        ([], "no JSON object|not a JSON object"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointInvalid, match=said):
            open_shards(tmp_path)
    save_file({"b": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(CheckpointInvalid, match="does not hold `a`"):
        open_shards(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_builds_nothing_but_tensors(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointInvalid):
        open_shards(tmp_path)
    assert capsys.readouterr().out == ""


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointInvalid, match="holds no weights"):
        open_shards(tmp_path)


def changed(small: Any, folder: Path, change: Any) -> Path:
    """A small Qwen2.5-VL with its tensors changed."""
    made = small("qwen2_5_vl")
    tensors = {n: torch.from_numpy(t.read()) for n, t in open_shards(made.folder).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_bytes((made.folder / name).read_bytes())
    return folder


CHANGES = {
    "no tensor `visual.blocks.1.norm1.weight`": lambda t: t.pop("visual.blocks.1.norm1.weight"),
    "no tensor `head.weight`": lambda t: t.pop("lm_head.weight"),
    "is 64 x 63, where": lambda t: t.update(
        {"model.layers.1.self_attn.q_proj.weight": random(64, 63)}
    ),
    "two names": lambda t: t.update({"model.language_model.norm.weight": random(64)}),
    "does not use, `extra.module`": lambda t: t.update({"extra.module": random(4)}),
    "table of embeddings": lambda t: t.update({"model.embed_tokens.weight": random(100, 64)}),
}


@pytest.mark.parametrize("said", CHANGES)
def test_weights_that_do_not_fit_are_refused(small, tmp_path, said):
    (tmp_path / "out").mkdir()
    folder = changed(small, tmp_path, CHANGES[said])
    with pytest.raises(CheckpointInvalid, match=said):
        open_exported(read_source(folder), tmp_path / "out")


def test_shapes_are_named_in_words():
    tensors = {"a": RowSlice(None, 0, 1)}  # type: ignore[arg-type]
    with pytest.raises(CheckpointInvalid, match="no tensor `b`"):
        take(Checkpoint(tensors), "b", (1,))


def test_a_full_disk_is_an_error_and_no_signal(small, tmp_path, monkeypatch):
    """A file that is written through a memory map would end the process when the disk is full."""
    source = read_source(small("qwen2_vl").folder)
    export_mllm_tables(source, tmp_path)
    table = np.load(tmp_path / "embed.npy")
    assert np.array_equal(table, source.weights.stored("language.embed_tokens.weight").read())
    (tmp_path / "embed.npy").unlink()
    (tmp_path / "embed.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        export_mllm_tables(source, tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        MmapBuffer((4, 5), np.float32, tmp_path)


def test_a_rank_file_of_one_endless_token_is_refused(tmp_path):
    """Merging it would take hours."""
    path = tmp_path / "qwen.tiktoken"
    lines = [base64.b64encode(bytes([value])) + b" %d" % value for value in range(256)]
    path.write_bytes(b"\n".join([*lines, base64.b64encode(b"ab" * 100_000) + b" 256"]))
    with pytest.raises(CheckpointInvalid, match="absurdly long"):
        read_ranks(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_with_a_pipe_is_not_waited_for(small, tmp_path, name):
    for path in small("qwen2_vl").folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointInvalid):
        read_source(tmp_path)


def test_a_shard_that_git_lfs_left_behind_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointInvalid, match="pointer of Git LFS") as caught:
        open_shards(tmp_path)
    assert "git lfs pull" in caught.value.hint
