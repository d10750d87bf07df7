"""Nothing is sent anywhere unasked: no socket is opened, and no number of this device is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RECORDED = ("unshare", "-rn", "strace", "-f", "-qq", "--seccomp-bpf")
"""Without a network, and with a recorder of system calls."""


def isolated(*command: str, home: Path, trace: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without a network, and write down its calls for one."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    recorded = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=socket,connect,sendto",
        "-o",
        str(trace),
    ]
    return subprocess.run(
        ["unshare", "-rn", *recorded, sys.executable, *command],
        env={**kept, "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )


def namespaces() -> bool:
    tools = shutil.which("unshare") and shutil.which("strace")
    if not tools:
        return False
    tried = subprocess.run(
        ["unshare", "-rn", "strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"],
        capture_output=True,
    )
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not namespaces(), reason="network namespaces or strace are not available"
)

COMMANDS = {
    "run": ["run", "scene.png", "the largest object", "-o", "out"],
    "run with clicks": ["run", "scene.png", "--click", "+50,50", "-o", "out"],
    "demo": ["demo", "-o", "out"],
    "doctor": ["doctor"],
    "inspect": ["inspect", "--verify"],
    "eval": ["eval", "--limit", "1", "-o", "out"],
    "score": ["score", "scene.png", "--help"],
    "bench": ["bench", "--help"],
    "export": ["export", "--list"],
}


@needs_namespaces
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_opens_a_socket(tmp_path, name, scene_of_this_folder):
    home = tmp_path / "home"
    shutil.copytree(scene_of_this_folder, home)
    trace = tmp_path / "trace"
    done = isolated("-m", "segagent_rt", *COMMANDS[name], home=home, trace=trace)
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
    assert calls == []
    assert not list(home.rglob("*icrosoft*"))
    assert not list(home.rglob("deviceid"))


@needs_namespaces
def test_the_library_keeps_quiet_after_it_is_imported(tmp_path):
    """The telemetry of ONNX Runtime waits before it sends."""
    program = (
        "import time, segagent_rt; r = segagent_rt.load();"
        "from segagent_rt.scenes import make_scene;"
        "r.open(make_scene(7, 96).image).annotate('the largest object'); time.sleep(3)"
    )
    trace = tmp_path / "trace"
    done = isolated("-c", program, home=tmp_path, trace=trace)
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in trace.read_text()
    assert not list(tmp_path.rglob("*icrosoft*"))


def test_telemetry_is_off_before_its_libraries_are_imported():
    program = (
        "import os, segagent_rt;"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    clean = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and "USAGE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0"]


@pytest.fixture(scope="session")
def scene_of_this_folder(tmp_path_factory):
    from segagent_rt.draw import png
    from segagent_rt.scenes import make_scene

    folder = tmp_path_factory.mktemp("scene")
    (folder / "scene.png").write_bytes(png(make_scene(7, 96).image))
    return folder
