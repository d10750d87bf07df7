"""`segagent-rt pack`, `unpack`, and commands that take a packed bundle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segagent_rt.bundle.bundle import open_bundle


def test_a_bundle_is_packed_run_and_unpacked(terminal, scene_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = terminal("pack", "-q")
    assert done.code == 0, done.err
    assert done.out.startswith("tiny.segagent\t")
    assert terminal("pack").code == 1
    run = terminal("run", scene_file, "--click", "+80,80", "-b", "tiny.segagent", "-o", "masks")
    assert run.code == 0, run.err
    done = terminal("unpack", "tiny.segagent")
    assert done.code == 0, done.err
    assert open_bundle("engines/tiny").digest == open_bundle("tiny.segagent").digest
    assert "already" in terminal("unpack", "tiny.segagent").err


def test_what_is_no_packed_bundle_is_refused_in_a_sentence(terminal, scene_file, tmp_path):
    (tmp_path / "x.segagent").write_bytes(b"nothing")
    for done in (
        terminal("unpack", tmp_path / "x.segagent", "-o", tmp_path / "out"),
        terminal("run", scene_file, "--click", "+80,80", "-b", tmp_path / "x.segagent"),
    ):
        assert done.code == 1
        assert "no packed bundle" in done.err
        assert "hint:" in done.err


NOBODY = 65534
RUN = """
import os, sys
from segagent_rt.cli import main
assert os.getuid() == 65534 and not os.access("/root", os.R_OK)
sys.argv = ["segagent-rt", *sys.argv[1:]]
main()
"""


def as_another_user(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder and with a home of another user, in a process of that user."""
    paths = [path for path in sys.path if path]
    home = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, "-B", "-c", RUN, *arguments], cwd=folder, env=home, text=True,
        capture_output=True, check=False, user=NOBODY, group=NOBODY, extra_groups=[],
    )  # fmt: skip


@pytest.fixture
def elsewhere():
    """A folder of another user, outside of this user's folders, and the packed bundle in it."""
    if os.name != "posix" or os.getuid() != 0:
        pytest.skip("only root can start a process of another user")
    folder = Path(tempfile.mkdtemp(prefix="another-user-"))
    try:
        os.chown(folder, NOBODY, NOBODY)
        try:
            done = as_another_user(folder, "--help")
        except PermissionError:
            pytest.skip("another user may not run this Python")
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.thorough
def test_another_user_runs_a_packed_bundle_in_another_folder(
    terminal, scene_file, tmp_path, elsewhere
):
    """Nothing in it leads back to where it was made, and nobody else's cache is used."""
    done = terminal("pack", "-o", tmp_path / "mine.segagent")
    assert done.code == 0, done.err
    packed = Path(shutil.copy(tmp_path / "mine.segagent", elsewhere))
    for path in (packed, Path(shutil.copy(scene_file, elsewhere))):
        path.chmod(0o444)
    run = ("run", scene_file.name, "--click", "+80,80", "-b", packed.name, "-o", "masks")
    found = as_another_user(elsewhere, *run)
    assert found.returncode == 0, found.stderr
    here = terminal("run", scene_file, "--click", "+80,80", "-b", "tiny", "-o", tmp_path / "masks")
    assert here.code == 0, here.err
    (theirs,), (ours,) = ((f / "masks").glob("*.mask.png") for f in (elsewhere, tmp_path))
    assert theirs.read_bytes() == ours.read_bytes()
    assert theirs.stat().st_uid == NOBODY
    packed.chmod(0o644)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    found = as_another_user(elsewhere, *run)
    assert found.returncode == 1
    assert ".onnx" in found.stderr, "the file with the flipped byte"
