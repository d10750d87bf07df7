"""Nothing is sent anywhere unasked: no socket is opened, and no number of this device is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    "eval": ["eval", "--scenes", "2"],
    "score": ["score", "scene.png", "mask.png", "the largest object"],
    "convert": ["convert", "objects.json", "--to", "coco", "-o", "out"],
    "bench": ["bench", "--help"],
    "export": ["export", "--list"],
}


@pytest.mark.thorough
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


RECORDER = """
import json, sys
calls = []
sys.addaudithook(lambda name, _: calls.append(name) if name.startswith("socket.") else None)
from segagent_rt.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["segagent-rt", *words]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(json.dumps([codes, calls]), file=sys.stderr)
"""


@pytest.mark.thorough
def test_no_command_asks_python_for_a_socket(tmp_path, scene_of_this_folder):
    """As above, for machines without namespaces: Python tells of every socket and name."""
    home = tmp_path / "home"
    shutil.copytree(scene_of_this_folder, home)
    words = json.dumps(list(COMMANDS.values()))
    done = subprocess.run(
        [sys.executable, "-c", RECORDER, words],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    codes, calls = json.loads(done.stderr.splitlines()[-1])
    assert codes == [0] * len(COMMANDS), done.stderr
    assert calls == []


@pytest.mark.thorough
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
    from tests.data import datasets

    folder, scene = tmp_path_factory.mktemp("scene"), make_scene(7, 96).image
    (folder / "scene.png").write_bytes(png(scene))
    (folder / "mask.png").write_bytes(png(scene[..., 0] > 128))
    datasets.segagent(folder)
    return folder
