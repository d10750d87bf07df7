"""A wheel holds the scenarios and the reference loop where they are looked for."""

import sys

import pytest

from segagent_rt.bench.packaged import packaged
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("name", ["scenarios", "reference"])
def test_what_a_checkout_has_is_put_into_the_wheel(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    put = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert put[f"benchmarks/{name}"] == f"segagent_rt/benchmarks/{name}"
    assert packaged(name) == ROOT / "benchmarks" / name
    assert any(packaged(name).iterdir())


def test_an_installed_package_comes_first(tmp_path, monkeypatch):
    from segagent_rt.bench import packaged as module

    folder = tmp_path / "segagent_rt" / "benchmarks" / "scenarios"
    folder.mkdir(parents=True)
    here = tmp_path / "segagent_rt" / "bench" / "packaged.py"
    monkeypatch.setattr(module, "__file__", str(here))
    assert packaged("scenarios") == folder
