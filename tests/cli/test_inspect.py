"""`segagent-rt inspect --board`: whether a bundle fits."""

from __future__ import annotations

import json
import shutil

from segagent_rt.bench.boards import GIB
from segagent_rt.bundle.bundle import open_bundle


def test_the_command_says_it(terminal):
    done = terminal("inspect", "--board", "orin-nx-16")
    assert done.code == 0, done.err
    assert "it fits" in done.out.splitlines()
    assert "more than there is" not in done.out
    found = json.loads(terminal("inspect", "--board", "orin-nx-16", "--json").out)
    assert found["fits"]
    assert found["left"] < found["memory"] - found["kept"]
    assert terminal("inspect", "--board", "nothing").code == 1


def test_the_command_says_that_it_does_not_fit(terminal, tmp_path):
    folder = shutil.copytree(open_bundle().folder, tmp_path / "large")
    path = folder / "mllm" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["decoder.onnx.data"] = {"size": 4 * GIB, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    done = terminal("inspect", folder, "--board", "orin-nx-16")
    assert "it does not fit" in done.out.splitlines()
    assert done.out.endswith("of the system's memory, more than there is\n")
