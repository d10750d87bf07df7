"""The engine cache: a wrong or half-written engine is never loaded."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segagent_rt.backends.engine_library import load_library
from segagent_rt.bundle.manifest import Range
from segagent_rt.engine_cache.key import EngineKey, engine_key
from segagent_rt.engine_cache.store import EngineCache, EngineRecord
from segagent_rt.errors import EngineRefused, OutputError
from tests.backends.bundles import segmenter, write_bundle

ROOT = Path(__file__).parents[1]

KEY = EngineKey(
    graph="0" * 64, recipe="recipe", library="tensorrt 10.13.2.6", platform="linux-aarch64",
    gpu="Orin", capability="sm_87", driver=12,
)  # fmt: skip
RECORD = EngineRecord(KEY, "segmenter encoder (gpu-fp16)", None, {"fine: error": 0.001}, 12.5)
FILES = {"plan": b"plan" * 1000, "npz": b"examples"}


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def test_an_engine_is_found_as_it_was_put(cache):
    put = cache.put(RECORD, FILES)
    assert cache.find(KEY) == put
    assert cache.read(put, "plan") == FILES["plan"]
    assert put.passed


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EngineKey)])
def test_every_field_of_the_key_tells_engines_apart(cache, field):
    cache.put(RECORD, FILES)
    other = dataclasses.replace(KEY, **{field: 13 if field == "driver" else "f" * 64})
    assert other.digest != KEY.digest
    assert cache.find(other) is None


def test_the_key_of_a_graph_covers_its_bytes_its_weights_its_shapes_and_the_machine(
    tmp_path, machine
):
    part = segmenter(write_bundle(tmp_path / "b", ["fast"]))
    graph, here = part.graphs("decoder")[0], load_library("tensorrt").machine()
    key = engine_key(graph, here)
    wider = dataclasses.replace(
        graph.variant,
        profiles={"decoder": ({"points": Range((1, 1, 3), (1, 4, 3), (1, 99, 3))},)},
    )
    assert engine_key(dataclasses.replace(graph, variant=wider), here).recipe != key.recipe
    assert part.graphs("encoder")[0].digest != graph.digest
    for field in dataclasses.fields(here):
        value = 99 if field.name == "driver" else "other"
        changed = dataclasses.replace(here, **{field.name: value})
        assert engine_key(graph, changed).digest != key.digest, field.name


def test_weights_beside_a_graph_are_part_of_its_digest(tmp_path, machine):
    part = segmenter(write_bundle(tmp_path / "b", ["fast"]))
    path = part.file("encoder.fast.onnx")
    before = part.graphs("encoder")[0].digest
    # A second graph (field 7 of the model) that keeps a weight in a file of any name.
    place = b"\n\x08location\x12\x0cencoder.more"
    tensor = b"j" + bytes([len(place)]) + place
    graph = b"*" + bytes([len(tensor)]) + tensor
    path.write_bytes(path.read_bytes() + b":" + bytes([len(graph)]) + graph)
    (part.folder / "encoder.more").write_bytes(b"weights")
    record = part.manifest.files["encoder.fast.onnx"]
    digests = set()
    for sha in ("a" * 64, "b" * 64):
        files = {**part.manifest.files, "encoder.more": dataclasses.replace(record, sha256=sha)}
        manifest = dataclasses.replace(part.manifest, files=files)
        changed = dataclasses.replace(part, manifest=manifest)
        assert changed.weights("encoder.fast.onnx") == ["encoder.more", "encoder.onnx.data"]
        assert changed.weights("decoder.fast.onnx") == ["decoder.onnx.data"]
        digests.add(changed.graphs("encoder")[0].digest)
    assert len(digests | {before}) == 3


def test_an_engine_for_another_driver_is_not_taken_and_the_difference_is_named(cache):
    cache.put(RECORD, FILES)
    newer = dataclasses.replace(KEY, driver=13)
    assert cache.find(newer) is None
    assert cache.explain_mismatch(newer) == "it was built for the driver 12, here it is 13"
    assert cache.explain_mismatch(dataclasses.replace(KEY, graph="1" * 64)) is None


@pytest.mark.parametrize("kind", ["plan", "npz"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_engine_is_refused_and_forgotten(cache, kind, damage):
    record = cache.put(RECORD, FILES)
    path = cache.path(KEY, kind)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[1:-1])
    with pytest.raises(EngineRefused, match="damaged") as caught:
        cache.read(record, kind)
    assert "segagent-rt build" in caught.value.hint
    assert cache.find(KEY) is None


@pytest.mark.parametrize("text", ["", "{", '{"schema": 99}', '{"schema": 1}', "[]"])
def test_a_record_that_cannot_be_read_is_no_engine(cache, text):
    cache.put(RECORD, FILES)
    cache.path(KEY, "json").write_text(text)
    assert cache.find(KEY) is None


def test_a_record_moved_to_another_key_is_no_engine(cache):
    cache.put(RECORD, FILES)
    other = dataclasses.replace(KEY, gpu="Thor")
    cache.path(KEY, "json").rename(cache.path(other, "json"))
    assert cache.find(other) is None


@pytest.mark.parametrize("full_after", [0, 1, 2])
def test_a_full_disk_leaves_no_engine_and_no_litter(cache, fail_writing, monkeypatch, full_after):
    fail_writing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), after=full_after)
    with pytest.raises(OutputError, match="disk is full"):
        cache.put(RECORD, FILES)
    monkeypatch.undo()
    assert cache.find(KEY) is None
    assert not list(cache.path(KEY, "json").parent.glob(".*"))
    assert cache.put(RECORD, FILES).passed


BUILDER = """
import sys
import pytest
from pathlib import Path
from segagent_rt.backends.engine_library import load_library
from segagent_rt.engine_cache.store import EngineCache
from segagent_rt.engine_cache.selection import EngineSelector
from tests.backends import fake_tensorrt
from tests.backends.bundles import segmenter
from tests.backends.fake_driver import FakeDriver
from tests.backends.machine import plug_in

plug_in(pytest.MonkeyPatch(), FakeDriver())
fake_tensorrt.trouble.slow_seconds = {slow}
fake_tensorrt.trouble.dies_in_build = {dies}
selector = EngineSelector(load_library("tensorrt"), EngineCache(Path({cache!r})))
rungs = segmenter(Path({bundle!r})).graphs("encoder")
print("begin", flush=True)
record, _ = selector.build(rungs, [], lambda phase: print(phase, flush=True))
print("builds", len(fake_tensorrt.trouble.builds), record.passed, flush=True)
"""


@pytest.fixture
def builder(tmp_path):
    """Starts another process that builds the same engine."""
    bundle = write_bundle(tmp_path / "b", ["fast"])
    started = []

    def start(slow=0.0, dies=False):
        text = BUILDER.format(
            slow=slow, dies=dies, cache=str(tmp_path / "engines"), bundle=str(bundle)
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.chaos
def test_two_builders_at_once_build_once(builder):
    first, second = builder(slow=1.5), builder(slow=1.5)
    said = sorted(
        process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)
    )
    assert said == ["builds 0 True", "builds 1 True"]


@pytest.mark.chaos
def test_a_builder_killed_in_the_middle_leaves_no_engine_and_no_lock(builder, tmp_path):
    killed = builder(dies=True)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    left = [path for path in (tmp_path / "engines").rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".lock"}
    after = builder()
    assert after.communicate(timeout=60)[0].splitlines()[-1] == "builds 1 True"


@pytest.mark.chaos
def test_a_builder_killed_while_it_writes_leaves_nothing_that_loads(tmp_path):
    """Killed again and again at other moments, between the plan and the record too."""
    program = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r});"
        f"from tests.test_engine_cache import *; cache = EngineCache(Path({str(tmp_path)!r}));"
        "print('go', flush=True)\n"
        "while True: cache.put(RECORD, {'plan': os.urandom(1 << 22), 'npz': b'x'})"
    )
    cache = EngineCache(tmp_path)
    for number in range(8):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.01 + 0.013 * number)
        process.kill()
        process.wait()
        process.stdout.close()
        record = cache.find(KEY)
        if record is None:
            continue
        try:
            assert len(cache.read(record, "plan")) == 1 << 22
        except EngineRefused:
            assert cache.find(KEY) is None
    with cache.building(KEY):
        assert not list(cache.path(KEY, "json").parent.glob(".*.partial"))
