"""What GPUs can do: as published, and as measured in a second on this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from segagent_rt.backends.driver import gpu
from segagent_rt.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's published figures.

    Attributes:
        gbytes_per_second: bandwidth of its memory.
        tflops: matrix products in 16 bits that add up in 32, without sparsity.
        source: where both are from.
    """

    gbytes_per_second: float
    tflops: float
    source: str


CARDS = {
    "NVIDIA H200": Card(4800, 989.4, "NVIDIA H200 datasheet, SXM"),
    "NVIDIA H100 80GB HBM3": Card(3350, 989.4, "NVIDIA H100 datasheet, SXM"),
    "NVIDIA A100-SXM4-80GB": Card(2039, 312, "NVIDIA A100 datasheet, SXM"),
    "NVIDIA L4": Card(300, 121, "NVIDIA L4 datasheet"),
    "NVIDIA GeForce RTX 4090": Card(1008, 165.2, "NVIDIA Ada architecture whitepaper"),
}
"""By the name that the driver gives. Of a rate that holds only with sparsity it is half."""


def describe_gpu(device: str) -> dict[str, Any]:
    """Name, driver and memory of the GPU, its published figures, and those measured now."""
    found: dict[str, Any] = {"name": "none"}
    try:
        known = gpu()
    except BackendUnavailable:
        pass
    else:
        found = {
            "name": known.name,
            "capability": known.sm,
            "memory_gb": round(known.memory / 1e9, 1),
            "driver_cuda": ".".join(map(str, known.cuda)),
        }
    card = CARDS.get(found["name"])
    return found | {"published": card, "measured": measure_card(device)}


def measure_card(device: str) -> dict[str, float]:
    """The best of several large copies and large products."""
    large = device == "cuda"
    side = 8192 if large else 256
    source = torch.ones(side * side * (8 if large else 1), device=device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    copied = _best(device, lambda: target.copy_(source))
    product = _best(device, lambda: a @ b)
    # Digits, not decimals: a slow CPU's rate must not become 0, since shares are divided by it.
    return {
        "gbytes_per_second": float(f"{2 * source.nbytes / copied / 1e9:.4g}"),
        "tflops": float(f"{2 * side**3 / product / 1e12:.4g}"),
    }


def share_of_card(
    about: dict[str, Any], seconds: float, *, read: float = 0.0, flops: float = 0.0
) -> dict[str, Any]:
    """Percent of the card's bandwidth and of its matrix rate that a call reaches.

    Args:
        about: what `describe_gpu` returned.
        seconds: of one call.
        read: bytes that the call must read.
        flops: its floating-point operations.
    """
    found: dict[str, Any] = {}
    card: Card | None = about.get("published")
    ceilings = {"measured": about.get("measured")}
    if card is not None:
        published = {"gbytes_per_second": card.gbytes_per_second, "tflops": card.tflops}
        ceilings["published"] = published
    for kind, ceiling in ceilings.items():
        if ceiling is None:
            continue
        if read:
            rate = read / seconds / 1e9
            found[f"percent_of_{kind}_bandwidth"] = round(
                100 * rate / ceiling["gbytes_per_second"], 2
            )
        if flops:
            found[f"percent_of_{kind}_flops"] = round(
                100 * flops / seconds / 1e12 / ceiling["tflops"], 2
            )
    return found


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: str, work: Callable[[], object]) -> float:
    """Of one call, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def _best(device: str, work: Callable[[], object]) -> float:
    return min(seconds_of(device, work) for _ in range(8))
