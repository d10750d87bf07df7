"""`segagent-rt export --target`: a folder that a server loads, whole or not there; and sentences.

The exporter of TensorRT Edge-LLM is played by `fake_edge.py`, a program in an environment of its
own; the last test runs the real one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import bfloat16, float16, float32
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from segagent_rt_export.families.mllm_source import read_source
from segagent_rt_export.sources.shards import open_shards
from segagent_rt_export.targets.edge_llm import READY, VERSION
from tests.export.command import fake_edge
from tests.export.mllm.test_lora import ALPHA, LAYERS, RANK, write_adapter

pytestmark = pytest.mark.export

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{{ c.get('text', '<|vision_start|><|image_pad|><|vision_end|>') }}"
    "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
ENVIRONMENT = f"tensorrt-edgellm-{VERSION}-py{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def checkpoint(sources: Any, tmp_path: Path) -> Any:
    """A family's small checkpoint with a chat template, in a type."""

    def make(family: str, dtype: Any = float16) -> Path:
        place = tmp_path / f"{family}-{str(dtype)[6:]}"
        shutil.copytree(sources(family), place)
        (place / "chat_template.jinja").write_text(CHAT)
        tensors = load_file(place / "model.safetensors")
        save_file({n: t.to(dtype) for n, t in tensors.items()}, place / "model.safetensors")
        return place

    return make


@pytest.fixture
def recipe_file(tmp_path: Path) -> Any:
    def write(family: str, source: Path, more: str = "") -> Path:
        path = tmp_path / "mine.toml"
        text = f'[mllm]\nfamily = "{family}"\nsource = "{source}"\nvariants = ["cpu-w8"]\n{more}'
        path.write_text(text)
        return path

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setenv("SEGAGENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(cache: Path, version: str = VERSION) -> Path:
    """An environment that holds the fake under the real one's names."""
    place = cache / "tools" / ENVIRONMENT
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = Path(
        sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)})
    )
    scripts = packages / "tensorrt_edgellm" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copyfile(fake_edge.__file__, scripts / "export.py")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    record = packages / f"tensorrt_edgellm-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tensorrt-edgellm\nVersion: {version}\n"
    )
    (place / READY).write_text("")
    return place


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_edge_llm_gets_graphs_a_checkpoint_and_a_record(
    checkpoint, recipe_file, cache, terminal, tmp_path
):
    install(cache)
    source, out = checkpoint("qwen2_5_vl", float32), tmp_path / "out"
    done = terminal("export", recipe_file("qwen2_5_vl", source), "--target", "edge-llm", "-o", out)
    assert done.code == 0, done.err
    record = json.loads((out / "manifest.json").read_text())
    assert set(record["files"]) == files(out) - {"manifest.json"}
    assert {"onnx/llm/model.onnx", "onnx/visual/model.onnx", "checkpoint/model.safetensors"} <= set(
        record["files"]
    )
    assert record["tools"]["tensorrt-edgellm"]["tensorrt-edgellm"] == VERSION
    settings = read_source(source).settings
    assert record["vocabulary"] == len({*settings.head_rows, *settings.stops})
    assert record["graphs"]["llm"]["outputs"]["logits"][-1] == record["vocabulary"]
    lines = dict(line.split("\t") for line in done.out.splitlines())
    assert lines["serve"].startswith(f"tensorrt-edgellm-serve {out}/checkpoint --host 127.0.0.1")
    assert "--server edge-llm" in lines["ask"]
    assert f"--onnxDir {out}/onnx/llm" in lines["build the language model from its ONNX"]
    assert list(tmp_path.glob(".out*")) == []
    again = terminal("export", recipe_file("qwen2_5_vl", source), "--target", "edge-llm", "-o", out)
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("exit", r"\(exit code 1\): RuntimeError: \[31mno such operator"),
        ("nothing", "llm/model.onnx is not a whole graph: it was not written"),
        ("cut graph", "llm/model.onnx is not a whole graph"),
        ("cut weights", "its weights model.onnx.data end too early"),
        ("no vision", "visual/model.onnx is not a whole graph: it was not written"),
        ("other version", "the exporter calls itself 0.10.1"),
        ("whole head", "has not the .* rows of the click grammar"),
    ],
)
def test_what_the_exporter_does_wrong_is_a_sentence_and_leaves_nothing(
    broken, said, checkpoint, recipe_file, cache, terminal, tmp_path, monkeypatch
):
    install(cache)
    monkeypatch.setenv("FAKE_EDGE", broken)
    recipe = recipe_file("qwen3_vl", checkpoint("qwen3_vl"))
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert done.code == 1
    assert re.search(said, done.err), done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*")) == []
    assert (tmp_path / "out.log").is_file()


def test_an_environment_of_another_version_or_without_python_is_refused(
    checkpoint, recipe_file, cache, terminal, tmp_path
):
    place = install(cache, "0.10.0")
    recipe = recipe_file("qwen3_vl", checkpoint("qwen3_vl"))
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert (done.code, "holds tensorrt-edgellm 0.10.0, not" in done.err) == (1, True)
    (place / "bin" / "python").unlink()
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert (done.code, "holds nothing that works, not" in done.err) == (1, True)


def test_an_environment_that_cannot_be_made_leaves_nothing(
    checkpoint, recipe_file, cache, terminal, tmp_path, monkeypatch
):
    """pip itself, without an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    recipe = recipe_file("qwen3_vl", checkpoint("qwen3_vl"))
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert done.code == 1
    assert "No matching distribution found for tensorrt-edgellm" in done.err
    assert not (cache / "tools" / ENVIRONMENT).exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [float16, bfloat16, float32])
def test_trtllm_gets_a_checkpoint_with_the_adapter_merged(
    dtype, checkpoint, recipe_file, terminal, tmp_path
):
    source, adapter = checkpoint("qwen2_5_vl", dtype), tmp_path / "adapter"
    changes = write_adapter(adapter, open_shards(source), LAYERS["qwen2_5_vl"])
    recipe = recipe_file("qwen2_5_vl", source, f'adapter = "{adapter}"\n')
    done = terminal("export", recipe, "--target", "trtllm", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    place = tmp_path / "out" / "checkpoint"
    before, after = (load_file(p / "model.safetensors") for p in (source, place))
    assert before.keys() == after.keys()
    wanted_type = bfloat16 if dtype is bfloat16 else float16
    for name, tensor in after.items():
        assert tensor.dtype == wanted_type
        change = changes.get(name.removesuffix(".weight"), np.float32(0)) * np.float32(ALPHA / RANK)
        wanted = before[name].float().numpy() + change
        assert np.allclose(tensor.float().numpy(), wanted, rtol=2**-8, atol=1e-6)
    assert "float32" not in json.dumps(json.loads((place / "config.json").read_text())) or (
        dtype is not float32
    )
    assert (tmp_path / "out" / "trtllm.yaml").read_text() == "guided_decoding_backend: xgrammar\n"
    lines = dict(line.split("\t") for line in done.out.splitlines())
    assert lines["serve"].startswith(f"trtllm-serve {place} ")
    words = shlex.split(lines["serve"])
    most = {name: words[words.index(name) + 1] for name in ("--max_num_tokens", "--max_seq_len")}
    assert len(set(most.values())) == 1, "a prompt that the model reads is one that it takes"


def test_weights_that_nobody_changes_are_copied_byte_by_byte(
    checkpoint, recipe_file, terminal, tmp_path
):
    source = checkpoint("qwen2_vl", bfloat16)
    done = terminal(
        "export", recipe_file("qwen2_vl", source), "--target", "trtllm", "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    copied = tmp_path / "out" / "checkpoint"
    for name in files(source):
        assert (copied / name).read_bytes() == (source / name).read_bytes()


def test_a_server_makes_pictures_as_large_as_a_bundle_would(
    checkpoint, recipe_file, terminal, tmp_path
):
    source = checkpoint("qwen2_vl", bfloat16)
    recipe = recipe_file("qwen2_vl", source, "most_pixels = 50000\n")
    done = terminal("export", recipe, "--target", "trtllm", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out" / "checkpoint")
    assert theirs.size["longest_edge"] == 50000
    assert theirs.size["shortest_edge"] == 56 * 56


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("llava", "trtllm", "trtllm does not serve models of the family llava"),
        ("qwen2_vl", "edge-llm", "edge-llm does not serve models of the family qwen2_vl"),
    ],
)
def test_families_that_a_server_does_not_take(
    family, target, said, sources, recipe_file, terminal, tmp_path
):
    recipe = recipe_file(family, sources(family))
    done = terminal("export", recipe, "--target", target, "-o", tmp_path / "out")
    assert (done.code, said in done.err) == (1, True)


def test_refusals_before_any_work(checkpoint, recipe_file, sources, terminal, tmp_path, cache):
    source = checkpoint("qwen3_vl", bfloat16)
    recipe = recipe_file("qwen3_vl", source)
    strange = tmp_path / "strange"
    strange.mkdir()
    done = terminal("export", recipe, "--target", "trtllm", "-o", strange)
    assert "exists and was not made for a server" in done.err
    for options in (["--target", "gguf"], ["--target", "trtllm", "--only", "mllm"]):
        assert terminal("export", recipe, *options).code == 2
    (source / "chat_template.jinja").unlink()
    done = terminal("export", recipe, "--target", "trtllm", "-o", tmp_path / "out")
    assert "holds no chat template" in done.err
    (source / "chat_template.jinja").write_text(CHAT)
    install(cache)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.bias"] = next(iter(tensors.values())).new_full((4,), 1e6)
    save_file(tensors, source / "model.safetensors")
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert "`lm_head.bias` has values that 16 bits do not hold" in done.err
    assert not (tmp_path / "out").exists()


def index_answers() -> bool:
    """Whether the real exporter's package can be had here."""
    look = [sys.executable, "-m", "pip", "index", "versions", "tensorrt-edgellm"]
    return subprocess.run(look, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_real_exporter_writes_both_graphs(
    family, checkpoint, recipe_file, terminal, tmp_path, monkeypatch, tmp_path_factory
):
    """tensorrt-edgellm in an environment that the command makes; no GPU, no TensorRT."""
    if not index_answers():
        pytest.skip("the package index has no tensorrt-edgellm, or cannot be reached")
    kept = os.environ.get("EDGE_LLM_CACHE") or str(tmp_path_factory.getbasetemp() / "edge-llm")
    monkeypatch.setenv("SEGAGENT_CACHE", kept)
    recipe = recipe_file(family, checkpoint(family, float32))
    done = terminal("export", recipe, "--target", "edge-llm", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["tools"]["tensorrt-edgellm"]["tensorrt-edgellm"] == VERSION
    assert min(len(file["sha256"]) for file in record["files"].values()) == 64
    language, vision = (record["graphs"][part] for part in ("llm", "visual"))
    assert min(language["nodes"], vision["nodes"]) > 50
    assert "inputs_embeds" in language["inputs"]
    assert language["outputs"]["logits"][-1] == record["vocabulary"] < 512
