"""A new family needs one runtime file and one exporter folder, and no line anywhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from segagent_rt.errors import BundleError, InputError  # noqa: E402
from segagent_rt.runtime import load  # noqa: E402
from segagent_rt.types import Click  # noqa: E402
from segagent_rt_export.gate.verdict import Gate  # noqa: E402
from segagent_rt_export.pipeline import GatePolicy, run_export  # noqa: E402
from segagent_rt_export.plan import make_plan  # noqa: E402
from segagent_rt_export.recipe import read_recipe  # noqa: E402

pytestmark = pytest.mark.export

CODE = Path(__file__).parent / "toy_family"
REGISTERED = """\
[segagent_rt.segmenters]
toy_disc = toy_disc:FAMILY

[segagent_rt_export.families]
toy = toy_disc_export:FAMILIES
"""
RECIPE = '[segmenter]\nfamily = "toy_disc"\nsource = "toy.pth"\nvariants = ["reference"]\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe beside the checkpoint of a toy whose discs have a radius of 12 of 64 pixels."""
    torch.save({"radius": torch.tensor([12.0]), "gain": torch.tensor([0.5])}, tmp_path / "toy.pth")
    (tmp_path / "toy.toml").write_text(RECIPE)
    return tmp_path / "toy.toml"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip installs a package with this code and these entry points."""
    record = tmp_path / "site" / "segagent_toy-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: segagent-toy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(REGISTERED)
    monkeypatch.syspath_prepend(CODE)
    monkeypatch.syspath_prepend(record.parent)


def export(recipe: Path, target: Path) -> None:
    plan = make_plan(read_recipe(recipe), target, resume=False, below_gate=False)
    run_export(plan, GatePolicy(Gate(scenes=2)), lambda text: None)


def test_a_family_from_checkpoint_to_mask(installed, recipe, tmp_path, monkeypatch):
    export(recipe, tmp_path / "bundle")
    image = np.full((96, 128, 3), 120, np.uint8)
    with load(tmp_path / "bundle", backend="cpu") as runtime:
        verified = runtime.bundle.part("segmenter").manifest.verified
        mask = runtime.open(image).segment([Click(100, 30, True)]).mask()
    assert verified["gate"] == "passed"
    assert verified["host"]["mask_iou"] >= 0.98
    y, x = np.mgrid[:96, :128]
    wanted = np.hypot((x - 100) / 2, (y - 30) * 64 / 96) < 12
    assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9
    monkeypatch.undo()  # as on a machine without the package
    with pytest.raises(BundleError, match="of the family `toy_disc`, unknown"):
        load(tmp_path / "bundle", backend="cpu")


def test_a_family_that_is_not_installed_is_unknown(recipe, tmp_path):
    with pytest.raises(InputError, match="family `toy_disc` is unknown") as caught:
        export(recipe, tmp_path / "bundle")
    assert "edgetam" in caught.value.hint
