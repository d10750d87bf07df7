"""Packages that a host without a network is given: unpacked, checked, and before its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/usr/bin/env bash
case "$1" in
    */gpu_session.py) shift; exec "{python}" -c 'import brought, sys; print(brought.WHO, sys.argv[1:])' "$@" ;;
    *) exec "{python}" "$@" ;;
esac
"""  # noqa: E501

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the session runs on Linux")


@pytest.fixture
def packed(tmp_path):
    """A tree of packages in two pieces."""
    (tmp_path / "brought.py").write_text("WHO = 'brought along'")
    archive = tmp_path / "site.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "brought.py", "brought.py")
    content, folder = archive.read_bytes(), tmp_path / "packages"
    folder.mkdir()
    (folder / "part.00").write_bytes(content[:100])
    (folder / "part.01").write_bytes(content[100:])
    (folder / "sum").write_text(f"{hashlib.sha256(content).hexdigest()}  site.tar.xz\n")
    return folder


def session(tmp_path: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with a Python that only says what it was given."""
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks" / "gpu_session.sh")]
    return subprocess.run(
        [*command, "--packages", str(packages), "--dry-run"], capture_output=True, text=True,
        env=os.environ | {"PYTHON": str(python)},
    )  # fmt: skip


def test_packages_in_pieces_come_before_those_of_the_host(tmp_path, packed):
    done = session(tmp_path, packed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "brought along ['--dry-run']\n"


def test_a_piece_that_is_damaged_is_noticed(tmp_path, packed):
    (packed / "part.01").write_bytes(b"other")
    done = session(tmp_path, packed)
    assert done.returncode != 0
    assert "brought" not in done.stdout
