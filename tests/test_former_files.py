"""Files that earlier versions wrote still open, under the present names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segagent_rt.bench.report import page, percentiles_page, read_results
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.bundle.manifest import FORMER_VARIANTS, Manifest, parse, variant_name
from segagent_rt.errors import OutputError
from segagent_rt.io import check_replaceable

RESULT = (
    b'{"segagent_rt": "sha256:3c6bff6ea23430ca2016fff17ca7830a41e4045a712cf838c868b97053356bfe",'
    b'"expression": "the mug", "steps": '
    b'[{"click": [3, 4], "anew": true, "predicted_iou": 0.8}]}\n'
)
"""Of `run`, before steps owned their ratings."""


def test_variants_of_a_former_manifest_have_their_present_names():
    graphs = {name: {"device": "cpu", "precision": "x", "graphs": {}} for name in FORMER_VARIANTS}
    former = {
        "kind": "mllm", "family": "qwen3_vl", "settings": {}, "files": {}, "variants": graphs,
    }  # fmt: skip
    manifest: Manifest = parse(former, Manifest, "manifest.json")
    assert list(manifest.variants) == ["cpu-w8", "cpu-w8a8-dynamic", "cpu-w8a8-static", "cpu-w4"]
    assert variant_name("reference") == "reference"


def test_the_order_of_variants_stays():
    """The first that suits a device is used."""
    part = open_bundle().part("segmenter")
    on_disk = json.loads((part.folder / "manifest.json").read_text("utf-8"))
    assert [variant_name(name) for name in on_disk["variants"]] == list(part.manifest.variants)


def test_a_former_result_is_ours_and_may_be_replaced(tmp_path: Path):
    path = tmp_path / "mug.segagent.json"
    path.write_bytes(RESULT)
    check_replaceable([path])
    path.write_bytes(RESULT.replace(b"mug", b"jug"))
    with pytest.raises(OutputError, match="did not write it"):
        check_replaceable([path])


@pytest.mark.parametrize("scenario", ["levers", "one"])
def test_a_former_benchmark_makes_a_page(tmp_path: Path, scenario: str):
    spread = {"p50": 1.5, "p90": 2.0, "p99": 2.0, "max": 2.0, "mean": 1.6, "n": 3}
    figures = {"kind": scenario, "scenes": 3, "seed": 1, "total": spread, "miou": 0.9}
    document = {
        "schema": 1, "machine": {"processor": "x", "cores": 2}, "scenarios": {scenario: figures},
        "bundle": {"name": "tiny", "digest": "0"}, "backend": "auto", "threads": 2,
    }  # fmt: skip
    (tmp_path / "former.json").write_text(json.dumps(document))
    results = read_results(tmp_path)
    assert "| total | 1.5 | 2.0 | 2.0 | 2.0 | 3 |" in percentiles_page(results)
    assert page(results).startswith("# Benchmarks")
