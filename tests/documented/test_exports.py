"""Every printed command that needs PyTorch runs as it is printed, against a hub on this machine.

The checkpoints have the files and tensors of the published ones. EdgeTAM has its published size for
the README, the others are small; all weights are random. So 8 and 4 bits cost more than in a
trained model, and the gate, which has tests of its own, may not stop these exports. Its scenes are
few.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import float16

from segagent_rt.bench import packaged
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.cli import console
from segagent_rt_export import pipeline
from segagent_rt_export.gate.verdict import Gate
from segagent_rt_export.recipe import find_recipe, read_recipe
from tests.documented.pages import ROOT, commands
from tests.documented.test_pages import MEASURED, is_benchmark, name_of, with_commands
from tests.documented.workspace import filled_in, make_room, written_by
from tests.export.command import checkpoints, test_targets
from tests.export.command.test_fine_tunes import trained
from tests.export.command.test_one_command import files_of
from tests.export.published import save_edgetam
from tests.hub.server import HubServer

pytestmark = [
    pytest.mark.export,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:hf_xet:DeprecationWarning"),
]

RECIPE = """
[segmenter]
family = "sam2"
source = "checkpoints/sam2"
variants = ["cpu-w8"]
[mllm]
family = "qwen3_vl"
source = "checkpoints/mine"
variants = ["cpu-w8"]
"""
NO_MASK = 5
TRAINING_DATA = ("scene", "trajectories", "convert")
"""Commands that write what a fine-tune is trained on, and the recipe of its export."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints: a stock MLLM, a fine-tune of it, and two segmenters."""
    folder = tmp_path_factory.mktemp("saved")
    save_edgetam(folder / "whole")
    checkpoints.save("edgetam", folder)
    checkpoints.save("sam2", folder)
    stock = checkpoints.save("qwen3_vl", folder)
    weights = {name: tensor.to(float16) for name, tensor in load_file(tensors(stock)).items()}
    save_file(weights, tensors(stock))
    (stock / "chat_template.jinja").write_text(test_targets.CHAT)
    tuned = trained(folder / "tuned", stock)
    for name in ("config.json", "chat_template.jinja", tensors(stock).name):
        shutil.copy(stock / name, tuned)
    return folder


def tensors(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.fixture
def exporting(
    page: Path,
    saved: Path,
    workspace: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub with what the recipe needs, checkpoints where the pages have theirs, and consent."""
    segmenter = "whole" if page == ROOT / "README.md" else "edgetam"
    parts = read_recipe(find_recipe("qwen3-vl-2b-edgetam")).parts.values()
    for part, name in zip(parts, (segmenter, "qwen3_vl"), strict=True):
        model, _, commit = part.source.removeprefix("hf:").partition("@")
        hub.models[model] = files_of(saved / name)
        hub.revisions += (commit,)
    for name in ("checkpoints/mine", "saves/mine", "saves/qwen3-vl-segagent"):
        shutil.copytree(saved / "tuned", workspace / name)
    shutil.copytree(saved / "sam2", workspace / "checkpoints" / "sam2")
    for name in ("my.toml", "mine.toml"):
        (workspace / name).write_text(RECIPE)
    test_targets.install(tmp_path / "cache")
    monkeypatch.setattr(console, "ask", lambda question: True)
    quick = partial(pipeline.GatePolicy, Gate(scenes=2))
    monkeypatch.setattr(pipeline, "GatePolicy", quick)
    monkeypatch.setattr(packaged, "packaged", lambda name: quick_reference(tmp_path))


def quick_reference(folder: Path) -> Path:
    """The reference loop, which looks at one scene, not six, before it begins."""
    text = (ROOT / "benchmarks" / "reference" / "loop.py").read_text("utf-8")
    assert "PROBE_SCENES, PROBE_SEED, PROBE_CLICKS = 6, " in text
    (folder / "loop.py").write_text(text.replace("PROBE_CLICKS = 6, ", "PROBE_CLICKS = 1, "))
    return folder


@pytest.mark.usefixtures("exporting")
@pytest.mark.parametrize("page", with_commands(["torch"]), ids=name_of)
def test_printed_exports_work(terminal: Any, page: Path) -> None:
    written = set[str]()
    for command in commands(page):
        words = filled_in(command.line, "")
        if is_benchmark(words):
            if command.kind == "torch" and tuple(words) not in MEASURED:
                done = terminal(*words)
                assert done.code == 0, f"{command.line}: {done.err}"
                MEASURED.add(tuple(words))
        elif command.kind == "torch":
            make_room(words)
            folder = written_by(words)
            forgiven = ["--allow-below-gate"] if folder is not None else []
            done = terminal(*words, *forgiven)
            assert done.code == 0, f"{command.line}: {done.err}"
            if folder is not None:
                open_bundle(folder)
                written |= {str(folder), folder.name}
        elif words[0] in TRAINING_DATA and "--star" not in words and page.stem == "data":
            assert terminal(*words).code == 0
        elif command.kind == "terminal" and words[0] == "run" and written & set(words):
            done = terminal(*words)
            assert done.code in (0, NO_MASK), f"{command.line}: {done.err}"
