"""The GPU build of ONNX Runtime on a machine without CUDA, where it would use the CPU silently."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path

import pytest

from segagent_rt.draw import png
from segagent_rt.scenes import make_scene

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WHEEL = "onnxruntime-gpu==1.31.1" if sys.version_info >= (3, 11) else "onnxruntime-gpu==1.23.2"
BASE = ("numpy", "opencv-python-headless", "pillow", "tokenizers", "typer", "filelock", "tomli")


def has_driver() -> bool:
    try:
        CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Of an environment with the GPU build alone, 256 MB to download."""
    if has_driver():
        pytest.skip("this machine has an NVIDIA driver")
    place = tmp_path_factory.mktemp("gpu-build") / "env"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    program = place / "bin" / "python"
    asked = [program, "-m", "pip", "install", "--quiet", WHEEL, *BASE]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{WHEEL} cannot be had: {done.stderr.splitlines()[-1][:120]}")
    return program


@pytest.fixture
def run(python, tmp_path):
    (tmp_path / "photo.png").write_bytes(png(make_scene(3, 300).image))

    def call(backend: str):
        command = [python, "-m", "segagent_rt", "run", tmp_path / "photo.png", "--click", "+60,60"]
        here = {**os.environ, "PYTHONPATH": str(ROOT)}
        command += ["--backend", backend, "-o", tmp_path / backend]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=here)

    return call


def test_cuda_by_name_is_refused_and_runs_nowhere(run, tmp_path):
    done = run("cuda")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no NVIDIA driver here")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cuda").exists()


def test_auto_runs_and_says_what_it_took(run, tmp_path):
    done = run("auto")
    assert done.returncode == 0, done.stderr
    assert "auto takes cpu; not cuda: there is no NVIDIA driver" in done.stderr
    assert (tmp_path / "auto" / "photo.segagent.mask.png").is_file()
