"""Checkpoints from anywhere: tensors come out as torch would load them, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.sources import unpickling  # noqa: E402
from segagent_rt_export.sources.checkpoints import read_checkpoint  # noqa: E402
from segagent_rt_export.sources.locations import source_record  # noqa: E402
from segagent_rt_export.sources.unpickling import Foreign  # noqa: E402

pytestmark = pytest.mark.export

both_layouts = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def archive(path: Path, program: bytes, **others: bytes) -> Path:
    """A zip file laid out as torch.save does, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("model/data.pkl", program)
        for name, content in others.items():
            file.writestr(f"model/{name.replace('_', '/')}", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    return sentence


def samples() -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=rng)
    kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    return {
        "view": base[1:5, ::2],
        "turned": base.T,
        "number": torch.tensor(2.5),
        "nothing": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
        **{kind: (base * 3).to(getattr(torch, kind)) for kind in kinds},
    }


@both_layouts
def test_tensors_are_those_that_torch_loads(tmp_path: Path, zipped: bool) -> None:
    """Every dtype, views, transposed and empty tensors, and two names for one storage."""
    path = save({"model": OrderedDict(samples()), "epoch": 7}, tmp_path / "model.pth", zipped)
    found, expected = read_checkpoint(path), torch.load(path, weights_only=True)
    assert found["epoch"] == 7
    assert list(found["model"]) == list(expected["model"])
    for name, tensor in expected["model"].items():
        assert found["model"][name].dtype == tensor.dtype, name
        assert torch.equal(found["model"][name], tensor), name
    assert found["model"]["view"].stride() == expected["model"]["view"].stride()


@both_layouts
def test_containers_of_all_kinds_hold_tensors(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.arange(3)
    content = {"list": [tensor, (tensor, {"deep": tensor})], "set": {1, 2}, "none": None}
    found = read_checkpoint(save(content, tmp_path / "model.pth", zipped))
    assert torch.equal(found["list"][0], tensor)
    assert torch.equal(found["list"][1][1]["deep"], tensor)
    assert found["set"] == {1, 2}


def test_the_file_is_not_changed_by_writing_to_a_tensor(tmp_path: Path) -> None:
    path = save({"weight": torch.zeros(4)}, tmp_path / "model.pth")
    before = path.read_bytes()
    read_checkpoint(path)["weight"].fill_(1)
    assert path.read_bytes() == before
    assert not read_checkpoint(path)["weight"].any()


def test_the_source_record_names_the_content(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert source_record(path) == {"file": "model.pth", "size": 3, "sha256": digest}


@pytest.fixture
def stranger() -> Iterator[Any]:
    """A class of a module that will be gone when the checkpoint is read."""
    module = types.ModuleType("isegm_of_strangers")

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.rule = torch.ones(2), rule

    def rule() -> None: ...

    class Options(dict):  # type: ignore[type-arg]
        pass

    for thing in (Loss, rule, Options):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@both_layouts
def test_objects_of_unknown_classes_are_inert(tmp_path: Path, stranger: Any, zipped: bool) -> None:
    """Their items and state can be looked at; the module they come from is not imported."""
    content = {"loss": stranger.Loss(), "options": stranger.Options(side=448), "w": torch.ones(1)}
    path = save(content, tmp_path / "model.pth", zipped)
    del sys.modules[stranger.__name__]
    found = read_checkpoint(path)
    assert isinstance(found["loss"], Foreign)
    assert type(found["loss"]).__name__ == "isegm_of_strangers.Loss"
    assert torch.equal(found["loss"].state["weight"], torch.ones(2))
    assert dict(found["options"]) == {"side": 448}
    assert stranger.__name__ not in sys.modules


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


MARK = "code_of_a_checkpoint_ran"


@both_layouts
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, f"{os.system.__module__}.system"), (eval, "builtins.eval"),
     (getattr, "builtins.getattr"), (torch.device, "torch.device"),
     (torch.hub.load, "torch.hub.load"), (pickle.loads, "_pickle.loads")],
)  # fmt: skip
def test_a_call_is_refused(
    tmp_path: Path, zipped: bool, function: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MARK, raising=False)
    code = f"__import__('os').environ.setdefault('{MARK}', '1')"
    content = {"w": torch.ones(2), "bad": Calls(function, code)}
    if not zipped and function is torch.device:
        content["w"] = 1
    path = save(content, tmp_path / "model.pth", zipped)
    sentence = refusal(path)
    assert "would call" in sentence
    assert name.rpartition(".")[2] in sentence
    assert MARK not in os.environ


BOMB = b")" + b"2\x86" * 40
"""Pairs of the pair before: 81 bytes that stand for 2 ** 40 empty tuples."""

PROGRAMS = {
    "a call in the old form": b"cos\nsystem\n(S'true'\ntR.",
    "an instance in the old form": b"(S'true'\nios\nsystem\n.",
    "an object in the old form": b"(cos\nsystem\nS'true'\no.",
    "keyword arguments": b"\x80\x04cos\nsystem\n)}\x92.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of what was just made": b"\x80\x02cos\nX\n)\x81)R.",
    "state for a function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'__call__'\nI1\nsb.",
    "attributes for a class": b"ccollections\nOrderedDict\nN}S'get'\nI1\ns\x86b.",
    "attributes for a foreign class": b"cos\nX\nN}S'__setstate__'\nI1\ns\x86b)R.",
    "a storage that is no storage": b"\x80\x02(X\x07\x00\x00\x00storageI1\nI2\nI3\nI4\ntQ.",
    "a key whose hash takes for ever": b"\x80\x02}" + BOMB + b"K\x01s.",
    "such keys at once": b"\x80\x02}(" + BOMB + b"K\x01u.",
    "such a key in the old form": b"(" + BOMB + b"I1\nd.",
    "a set of such values": b"\x80\x04\x8f(" + BOMB + b"\x90.",
    "a frozen set of such values": b"\x80\x04(" + BOMB + b"\x91.",
    "an ordered dict of such keys": b"ccollections\nOrderedDict\n]" + BOMB + b"K\x01\x86a\x85R.",
    "a set made by calling it": b"cbuiltins\nset\n]" + BOMB + b"a\x85R.",
    "a storage's key whose hash takes for ever": b"\x80\x02(X\x07\x00\x00\x00storage"
    b"ctorch\nFloatStorage\n" + BOMB + b"X\x03\x00\x00\x00cpuK\x06tQ.",
    "a value that no computer can print": b"\x80\x02}X\x01\x00\x00\x00a" + BOMB + b"s.",
    "a key a million deep": b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a value a million deep": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "a list that contains itself": b"\x80\x02]q\x00h\x00a.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x020.",
    "a key that cannot be one": b"\x80\x02}]Ns.",
    "nothing": b"",
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_odd_programs_are_refused(tmp_path: Path, what: str) -> None:
    refusal(archive(tmp_path / "model.pth", PROGRAMS[what]))


def test_a_memo_takes_no_more_memory_than_it_needs(tmp_path: Path) -> None:
    """The entry 2 ** 32 - 1 of an array would take 32 gigabytes."""
    program = b"\x80\x02}X\x01\x00\x00\x00ar\xff\xff\xff\xffK\x01s."
    assert read_checkpoint(archive(tmp_path / "model.pth", program)) == {"a": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """A pipe would wait for somebody who writes, and a device has no end."""
    path = tmp_path / "model.pth"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    assert "cannot be read" in refusal(Path("/dev/zero") if kind == "device" else path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointInvalid, match="pointer of Git LFS") as caught:
        read_checkpoint(path)
    assert "git lfs pull" in str(caught.value.hint)


def test_names_in_a_checkpoint_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """A newline or an escape sequence in a name does not reach the message."""
    program = b"\x80\x04\x8c\x02os\x8c\x0dx\x1b[2J\nall wel\x93)R."
    assert "would call `os.x all wel`" in refusal(archive(tmp_path / "model.pth", program))


def test_refusals_leave_the_reader_as_it_was(tmp_path: Path) -> None:
    """No program above has changed a class or function that the next checkpoint meets."""
    for what, program in PROGRAMS.items():
        refusal(archive(tmp_path / f"{len(what)}.pth", program))
    path = save(OrderedDict(samples()), tmp_path / "model.pth")
    assert torch.equal(read_checkpoint(path)["view"], samples()["view"])
    assert OrderedDict(a=1).get("a") == 1


def rebuilt(
    size: Any, stride: Any, offset: Any = 0, numel: Any = 6, storage: str = "Float"
) -> bytes:
    """A pickle of one float tensor."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if isinstance(thing, Storage):
                return ("storage", getattr(torch, f"{storage}Storage"), "0", "cpu", numel)
            return None

    stream = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    call = Calls(rebuild, Storage(), offset, size, stride, False, OrderedDict())
    Pickler(stream, 2).dump({"w": call})
    return stream.getvalue()


def test_a_tensor_made_by_hand_is_read(tmp_path: Path) -> None:
    numbers = struct.pack("<6f", *range(6))
    path = archive(tmp_path / "m.pth", rebuilt((2, 3), (3, 1)), data_0=numbers)
    assert read_checkpoint(path)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "tensor",
    [dict(size=(3, 3), stride=(3, 1)), dict(size=(2, 3), stride=(3, 1), offset=1),
     dict(size=(2, 3), stride=(4, 1)), dict(size=(1 << 40,), stride=(0,)),
     dict(size=(2,), stride=(-1,)), dict(size=(2, 3), stride=(3, 1), offset=-1),
     dict(size=(2, 3), stride=(1,)), dict(size=("2",), stride=(1,)),
     dict(size=(2.0,), stride=(1,)), dict(size=(6,), stride=(1,), numel=7),
     dict(size=(6,), stride=(1,), numel=1 << 60), dict(size=(6,), stride=(1,), numel=-6),
     dict(size=(6,), stride=(1,), storage="Double")],
)  # fmt: skip
def test_tensors_that_do_not_fit_their_storage_are_refused(
    tmp_path: Path, tensor: dict[str, Any]
) -> None:
    numbers = struct.pack("<6f", *range(6))
    refusal(archive(tmp_path / "model.pth", rebuilt(**tensor), data_0=numbers))


def test_a_missing_storage_is_refused(tmp_path: Path) -> None:
    assert "storage 0" in refusal(archive(tmp_path / "m.pth", rebuilt((2, 3), (3, 1))))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """torch does not write them, and a small one can unpack to gigabytes."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/data.pkl", rebuilt((2, 3), (3, 1)))
        file.writestr("model/data/0", bytes(24))
    assert "compressed" in refusal(path)


def test_pickles_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save({"w": torch.ones(2), "text": ["x"] * 500}, tmp_path / "model.pth")
    monkeypatch.setattr(unpickling, "PICKLE_LIMIT", 100)
    assert "torch.save" in refusal(path)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    numbers = struct.pack(">6f", *range(6))
    program = rebuilt((2, 3), (3, 1))
    path = archive(tmp_path / "model.pth", program, data_0=numbers, byteorder=b"big")
    assert "big-endian" in refusal(path)


@both_layouts
def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path, zipped: bool) -> None:
    whole = save(OrderedDict(samples()), tmp_path / "whole.pth", zipped).read_bytes()
    path = tmp_path / "part.pth"
    for length in [0, 1, 3, 4, 40, *range(60, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)


def test_damaged_numbers_are_noticed(tmp_path: Path) -> None:
    path = save({"w": torch.arange(1000.0)}, tmp_path / "model.pth")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<3f", 500, 501, 502))
    content[at + 2] ^= 1
    path.write_bytes(content)
    assert "storage 0 is damaged" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"hello", bytes(1000), zlib.compress(b"x"), pickle.dumps({"a": 1}),
     b"\x89PNG\r\n\x1a\n", pickle.dumps([1, 2], 0)],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refusal(path)


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    assert "not one of torch.save" in refusal(path)


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "model.pth")
    assert "cannot be read" in refusal(tmp_path)
