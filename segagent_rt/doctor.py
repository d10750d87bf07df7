"""What this machine can do: facts that a bug report needs, and what to do about them."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import TYPE_CHECKING, Any

from segagent_rt import __version__, jetson
from segagent_rt.backends.cores import usable_cores
from segagent_rt.backends.driver import gpu
from segagent_rt.backends.session import probe_backends
from segagent_rt.errors import BackendUnavailable

if TYPE_CHECKING:
    from segagent_rt.bundle.bundle import Bundle

PACKAGES = (
    "numpy", "opencv-python-headless", "opencv-python", "pillow", "tokenizers", "onnxruntime",
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "torch", "transformers", "onnx",
)  # fmt: skip


JETSON_KEPT, CARD_KEPT = 2 << 30, 1 << 30
"""Bytes of a GPU's memory that are left to others, as in the table of boards."""


def examine_variants(bundle: Bundle) -> list[dict[str, Any]]:
    """Which variants of a bundle suit the GPU of this machine, as plain data; none without one."""
    from segagent_rt.bench.boards import DeviceBoard
    from segagent_rt.bench.budget import suitable_variants
    from segagent_rt.bundle.manifest import to_json

    try:
        card = gpu()
    except BackendUnavailable:
        return []
    kept = JETSON_KEPT if card.integrated else CARD_KEPT
    where = DeviceBoard(card.memory, card.integrated, kept)
    return [to_json(fit) for fit in suitable_variants(bundle, where, _version("tensorrt"))]


def examine() -> dict[str, Any]:
    """Machine, packages, backends (each tried for real) and advice, as plain data."""
    packages = {name: version for name in PACKAGES if (version := _version(name))}
    backends = [
        {"name": name, "works": problem is None, "why": problem or ""}
        for name, problem in probe_backends().items()
    ]
    machine = {
        "segagent-rt": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": usable_cores(),
        **_nvidia(),
    }
    return {
        "machine": machine,
        "packages": packages,
        "backends": backends,
        "advice": list(_advice(packages, machine)),
    }


def _nvidia() -> dict[str, str]:
    """GPU, driver, and what a Jetson says of itself; nothing where there is none."""
    found = {"jetson": jetson.release(), "power mode": jetson.power_mode()}
    try:
        card = gpu()
    except BackendUnavailable:  # the backends say why
        return {name: value for name, value in found.items() if value}
    shared = ", shared with the processor" if card.integrated else ""
    found["gpu"] = f"{card.name}, {card.sm}, {card.memory / 1e9:.1f} GB{shared}"
    found["driver"] = f"for CUDA {card.cuda[0]}.{card.cuda[1]}"
    return {name: value for name, value in found.items() if value}


def _advice(packages: dict[str, str], machine: dict[str, Any]) -> Any:
    if "jetson" in machine and "onnxruntime-gpu" in packages:
        yield (
            "pip's onnxruntime-gpu has no code for the GPU of a Jetson; unless yours is built for "
            "it: pip uninstall -y onnxruntime-gpu && pip install onnxruntime"
        )
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield (
            "onnxruntime and onnxruntime-gpu are both installed, and the CPU build wins: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        )
    if "opencv-python" in packages and "opencv-python-headless" in packages:
        yield (
            "two OpenCV wheels share the module cv2: "
            "pip uninstall -y opencv-python opencv-python-headless && "
            "pip install opencv-python-headless"
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
