"""`segagent-rt build`: engines in the cache, lines on stdout, progress on stderr."""

from __future__ import annotations

import json

import pytest

from segagent_rt import memory
from segagent_rt.backends import driver
from segagent_rt.bundle.store import cache_folder
from segagent_rt.errors import BackendUnavailable
from tests.backends import fake_tensorrt
from tests.backends.bundles import write_bundle


@pytest.fixture
def bundle(tmp_path, monkeypatch, machine):
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    return write_bundle(tmp_path / "b", ["fast", "safe"])


def engines():
    return sorted(path.suffix for path in (cache_folder() / "engines").rglob("*.*"))


@pytest.mark.thorough
def test_a_bundle_is_built_and_then_runs_on_its_engines(bundle, terminal, scene_file, tmp_path):
    done = terminal("build", bundle, "--backend", "tensorrt")
    lines = [line.split("\t")[:2] for line in done.out.splitlines()]
    assert done.code == 0
    assert lines == [["segmenter encoder (fast)", "ready"], ["segmenter decoder (fast)", "ready"]]
    assert "building the segmenter encoder" in done.err
    masks = {}
    for backend in ("tensorrt", "cpu", "auto"):
        folder = tmp_path / backend
        arguments = ("run", scene_file, "--click", "+120,80", "-b", bundle, "--json", "-o", folder)
        found = json.loads(terminal(*arguments, "--backend", backend).out)
        masks[backend] = found["results"][0]["mask"]
        taken = "tensorrt" if backend == "auto" else backend
        assert found["backends"]["segmenter decoder"]["backend"] == taken
    assert masks["tensorrt"] == masks["cpu"] == masks["auto"]


@pytest.mark.thorough
def test_a_second_build_finds_everything_there(bundle, terminal):
    terminal("build", bundle, "--backend", "tensorrt")
    before = list(fake_tensorrt.trouble.builds)
    assert terminal("build", bundle, "--backend", "tensorrt").code == 0
    assert fake_tensorrt.trouble.builds == before


@pytest.mark.thorough
def test_a_variant_that_computes_wrong_is_named_with_the_figure(bundle, terminal):
    fake_tensorrt.trouble.overflows.add("encoder.fast.onnx")
    done = terminal("build", bundle, "--backend", "tensorrt")
    assert done.code == 0
    assert "segmenter encoder (fast)\tnot used\tkeys: not finite" in done.out
    assert "segmenter encoder (safe)\tready" in done.out


def test_if_no_variant_computes_right_the_gate_fails_and_the_rest_is_built(bundle, terminal):
    fake_tensorrt.trouble.overflows |= {"encoder.fast.onnx", "encoder.safe.onnx"}
    done = terminal("build", bundle, "--backend", "tensorrt")
    assert done.code == 3
    assert "no engine of segmenter encoder can be used" in done.err
    assert "segmenter decoder (fast)\tready" in done.out


def test_a_dry_run_tries_every_graph_and_keeps_nothing(bundle, terminal):
    done = terminal("build", bundle, "--backend", "tensorrt", "--dry-run")
    assert done.code == 0
    assert [line.split("\t")[1] for line in done.out.splitlines()] == ["accepted"] * 4
    assert engines() == []


def test_a_dry_run_needs_no_gpu(bundle, terminal, machine):
    machine(None)
    assert terminal("build", bundle, "--backend", "tensorrt", "--dry-run").code == 0
    done = terminal("build", bundle, "--backend", "tensorrt")
    assert done.code == 1
    assert done.err.startswith("error: there is no NVIDIA driver")


def test_a_refused_graph_fails_the_dry_run_after_all_were_tried(bundle, terminal):
    fake_tensorrt.trouble.refuses.add("encoder.safe.onnx")
    done = terminal("build", bundle, "--dry-run")
    assert done.code == 4
    assert "segmenter encoder (safe)\trefused\ttensorrt 10.13.2.6 does not take" in done.out
    assert "refused 1 of 4 graphs" in done.err


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_bundle_without_graphs_for_gpus_says_how_to_get_some(
    tmp_path, terminal, machine, options
):
    bundle = write_bundle(tmp_path / "cpu", ["plain"], device="cpu")
    done = terminal("build", bundle, "--backend", "tensorrt", *options)
    assert done.code == 1
    line = (
        "segmenter encoder (plain)\tnot for tensorrt" if options else "segmenter\tnothing to build"
    )
    assert done.out.startswith(line)
    assert "has no encoder for tensorrt" in done.err
    assert "`segagent-rt export RECIPE --variant gpu-fp16` writes one" in done.err
    assert fake_tensorrt.trouble.builds == []


def test_a_layer_may_use_half_of_the_gpus_memory(bundle, terminal, machine):
    terminal("build", bundle, "--backend", "tensorrt", "--dry-run")
    assert set(fake_tensorrt.trouble.workspaces) == {driver.gpu().memory // 2}
    fake_tensorrt.trouble.workspaces.clear()
    machine(None)  # only a trial, so the library's own limit
    terminal("build", bundle, "--backend", "tensorrt", "--dry-run")
    assert fake_tensorrt.trouble.workspaces == []


def test_a_graph_that_needs_too_much_memory_has_a_hint_of_its_own(bundle, terminal):
    fake_tensorrt.trouble.refuses.add("encoder.safe.onnx")
    fake_tensorrt.trouble.reason = (
        "Error Code 2: OutOfMemory (Requested size was 2454951360 bytes.)"
    )
    done = terminal("build", bundle, "--dry-run")
    assert done.code == 4
    assert "hint: a layer needs more memory than this GPU has to spare" in done.err


def test_too_little_memory_is_said_before_the_build(bundle, terminal, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 100 << 20)
    done = terminal("build", bundle, "--backend", "tensorrt")
    assert done.code == 1
    assert "takes about 0.6 GB of memory, 0.1 GB are free" in done.err
    assert "hint: close other programs" in done.err
    assert fake_tensorrt.trouble.builds == []


@pytest.mark.thorough
def test_a_spare_variant_that_memory_cannot_hold_does_not_keep_the_first_from_being_built(
    bundle, terminal, monkeypatch
):
    """As fp32 below fp16 may not."""

    def check(weights, what, precision):
        if "(safe)" in what:
            raise BackendUnavailable("it is too large")

    monkeypatch.setattr(memory, "check_build", check)
    done = terminal("build", bundle, "--backend", "tensorrt")
    assert done.code == 0, done.err
    assert "segmenter encoder (safe)\tleft out\tit is too large" in done.out
    assert "segmenter encoder (fast)\tready" in done.out


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_nothing_is_built_for_backends_that_run_onnx(bundle, terminal, backend):
    done = terminal("build", bundle, "--backend", backend)
    assert (done.code, done.out) == (2, "")
    assert "--backend" in done.err
