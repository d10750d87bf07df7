"""What a Jetson says of itself: its release of Linux, the JetPack that this belongs to, its power
mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

RELEASE = Path("/etc/nv_tegra_release")

JETPACKS: Mapping[int, str] = {35: "5", 36: "6", 38: "7", 39: "7"}
"""By the first number of the release (NVIDIA's archive of JetPacks)."""

_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
_MODE = re.compile(r"NV Power Mode:\s*(\S+)")
_PATIENCE = 5.0
"""Seconds that the tool for power modes may take."""


def release() -> str | None:
    """`L4T 36.4.3 (JetPack 6)`; None if this is no Jetson."""
    try:
        match = _RELEASE.match(RELEASE.read_text("utf-8", "replace"))
    except OSError:
        return None
    if match is None:
        return None
    jetpack = JETPACKS.get(int(match[1]))
    return f"L4T {match[1]}.{match[2]}" + (f" (JetPack {jetpack})" if jetpack else "")


def power_mode() -> str | None:
    """The name of the power mode, such as `MAXN`; None where no tool tells."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, "-q"], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _MODE.search(done.stdout)
    return match[1] if match else None
