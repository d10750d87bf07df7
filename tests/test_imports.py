"""Layering: what the runtime must never import, checked in a process where importing it fails."""

import re
import subprocess
import sys
from pathlib import Path

EXPORT = Path(__file__).parents[1] / "export" / "segagent_rt_export"

FORBIDDEN = (
    "torch", "transformers", "onnx", "onnxscript", "tensorrt", "tensorrt_rtx", "cuda",
    "segagent_rt_export", "ray",
)  # fmt: skip

PROGRAM = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ImportError(name + " must not be imported by the runtime")

sys.meta_path.insert(0, Wall())
import numpy as np
import segagent_rt
from segagent_rt.scenes import make_scene
scene = make_scene(1, 128)
with segagent_rt.load() as runtime:
    found = runtime.open(scene.image).annotate(scene.expressions[0].text)
print(found.prediction.mask().shape, found.stop)
"""


def test_the_loop_runs_without_torch_and_without_any_vendor_library():
    program = PROGRAM.format(forbidden=FORBIDDEN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(128, 128)")


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, segagent_rt; print([m for m in ('numpy', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_family_of_the_exporter_imports_another():
    """What two of them share lies beside their folders. The demo MLLM is a small Qwen3-VL."""
    folders = {p.parent.name for p in (EXPORT / "families").glob("*/__init__.py")}
    found = set()
    for path in (EXPORT / "families").glob("*/*.py"):
        others = "|".join(folders - {path.parent.name})
        pattern = rf"import(?:_module)? .*\bfamilies\.({others})\b|from \S+\.families\.({others})\b"
        for match in re.finditer(pattern, path.read_text("utf-8")):
            found.add((path.parent.name, match[1] or match[2]))
    assert found <= {("demo_mllm", "qwen_vl")}
