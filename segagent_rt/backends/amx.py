"""OpenVINO and torch beside ONNX Runtime on x86 processors with AMX."""

from __future__ import annotations

import os
import platform

LIMIT = "ONEDNN_MAX_CPU_ISA"


def keep_onednn_off_amx() -> None:
    """Call before OpenVINO or torch compute in a process that also runs integer graphs.

    AMX has tile registers whose shape each thread configures. oneDNN, which both multiply with,
    leaves its own configuration behind, and ONNX Runtime 1.32 does not always load its own again:
    the process then dies of an illegal instruction (`tdpbusd`). A limit that the user has set
    stays.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault(LIMIT, "AVX512_CORE_BF16")
