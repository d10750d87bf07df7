"""ONNX Runtime against PyTorch on a GPU: the large nets at true size, with random weights.

python benchmarks/gpu.py                       every net in fp16; writes benchmarks/results/gpu.json
python benchmarks/gpu.py --net vit-l --dtype bf16 -o mine.json
python benchmarks/gpu.py --dry -o dry.json     small nets on the CPU: that all of it runs

Needs torch, onnx and an onnxruntime, whose CUDA build is used where there is one; no network. What
the nets are is said in gpu_nets.py; those of the SAM family need transformers, and their graphs and
SimpleClick's need onnxscript. ONNX Runtime runs what `export` writes: in fp16 the variant
`gpu-fp16`, in fp32 `reference`, in bf16 nothing, as no variant is in it. A way whose output is not
that of PyTorch in fp32 gets no time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_nets import DRY, NETS, Net
from gpu_ways import WAYS, Call, Unsuited, in_onnx_runtime, tensors
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segagent_rt.bench.machine import describe_machine
from segagent_rt.errors import SegagentError

RESULT = Path(__file__).parent / "results" / "gpu.json"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Length of the difference from PyTorch in fp32, over the length of its output."""

WARM_UP, FEWEST = 5, 10
"""Calls before the clock counts, and for which it counts at least."""

HALVED = ("sam", "decoder-write")
"""Small nets that go through 16 bits, too."""

BROKEN = (Unsuited, ImportError, RuntimeError, SegagentError)
"""Too large for the GPU, no compiler, a package that the host lacks, ..."""


@dataclass(frozen=True)
class Terms:
    """On what is measured, for how long, and which ways of PyTorch."""

    dtype: str
    device: str
    seconds: float
    ways: Collection[str]


@dataclass(frozen=True)
class Truth:
    """What PyTorch computes in fp32 on the CPU, and the floating point operations that it takes."""

    outputs: list[Tensor]
    flops: int


def reference(net: Net) -> Truth:
    """Run the net as it was made."""
    net.fused = False
    with FlopCounterMode(display=False) as counted:
        output = net(*(x.clone() for x in net.inputs))
    return Truth(tensors(output), counted.get_total_flops())


def measure(net: Net, truth: Truth, terms: Terms) -> dict[str, Any]:
    """Error and time of each way; the net is left on the device, in its type."""
    ways: dict[str, Any] = {}
    try:
        with in_onnx_runtime(net, terms.dtype, terms.device) as call:
            ways["onnxruntime"] = judged(call, truth, terms)
    except BROKEN as reason:
        ways["onnxruntime"] = why(reason)
    net.to(terms.device, DTYPES[terms.dtype])
    inputs = tuple(x.to(terms.device, DTYPES[terms.dtype]) for x in net.inputs)
    for name in terms.ways:
        try:
            ways[name] = judged(WAYS[name](net, inputs), truth, terms)
        except BROKEN as reason:
            ways[name] = why(reason)
    return ways


def why(reason: Exception) -> dict[str, str]:
    """What stands where there is no time."""
    return {"why": str(reason).strip().partition("\n")[0]}


def judged(call: Call, truth: Truth, terms: Terms) -> dict[str, Any]:
    """The error of a way, of its worst output, and its time if the error is small enough."""
    found, limit = tensors(call()), LIMITS[terms.dtype]
    pairs = zip(found, truth.outputs, strict=True)
    error = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    if not error <= limit:
        return {"error": error, "why": f"the error is above {limit}"}
    return {"error": error, **timed(call, terms.seconds)}


def timed(call: Call, seconds: float) -> dict[str, Any]:
    """Milliseconds of a call, median and 90th percentile."""
    for _ in range(WARM_UP):
        call()
    taken, stop = list[float](), time.perf_counter() + seconds
    while len(taken) < FEWEST or time.perf_counter() < stop:
        taken.append(once(call))
    p90 = statistics.quantiles(taken, n=10, method="inclusive")[-1]
    return {"ms": round(statistics.median(taken), 4), "p90": round(p90, 4), "n": len(taken)}


def once(call: Call) -> float:
    """Milliseconds of one call, by the GPU's own clock if there is one."""
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def ceilings(terms: Terms) -> dict[str, float]:
    """What the device does at best, measured now: GB/s of copying, TFLOP/s of a matrix product."""
    side = 8192 if terms.device == "cuda" else 512
    a = torch.randn(side, side, device=terms.device).to(DTYPES[terms.dtype])
    b = torch.empty_like(a)
    copy, product = (
        timed(call, terms.seconds)["ms"] for call in (lambda: b.copy_(a), lambda: a @ a)
    )
    moved = 2 * a.numel() * a.element_size()
    return {"gbytes_per_second": moved / copy / 1e6, "tflops": 2 * side**3 / product / 1e9}


def shares(net: Net, flops: int, ways: dict[str, Any], ceiling: dict[str, float]) -> None:
    """Add to each way what it reaches of both ceilings, by bytes of weights and by operations."""
    weights = sum(weight.numel() for weight in net.parameters())
    size = next(net.parameters()).element_size()
    for way in ways.values():
        if "ms" in way:
            bandwidth, work = weights * size / way["ms"] / 1e6, flops / way["ms"] / 1e9
            way["percent_of_bandwidth"] = round(100 * bandwidth / ceiling["gbytes_per_second"], 1)
            way["percent_of_product"] = round(100 * work / ceiling["tflops"], 1)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="small nets on the CPU, mostly in fp32")
    parser.add_argument("--net", action="append", help="only this one; may be repeated")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="of PyTorch; likewise")
    parser.add_argument("--dtype", choices=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    if not given.dry and not torch.cuda.is_available():
        parser.error("there is no GPU; --dry shows that all of it runs")
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "gpu": None if given.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dry": given.dry,
        "ceilings": {},
        "nets": {},
    }
    nets = DRY if given.dry else NETS
    for name, dtype in cases(given, nets):
        terms = Terms(dtype, "cpu" if given.dry else "cuda", given.seconds, given.way or WAYS)
        if dtype not in document["ceilings"]:
            document["ceilings"][dtype] = ceilings(terms)
        ways = of_net(nets[name], terms, document["ceilings"][dtype])
        document["nets"].setdefault(name, {})[dtype] = ways
        print(name, dtype, json.dumps(ways))
    given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def cases(given: argparse.Namespace, nets: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Which nets are measured, and in which types."""
    for name in nets:
        if given.net and name not in given.net:
            continue
        if given.dtype or not given.dry:
            yield name, given.dtype or "fp16"
            continue
        yield name, "fp32"
        if name in HALVED:
            yield name, "fp16"


@torch.inference_mode()
def of_net(maker: Callable[[], Net], terms: Terms, ceiling: dict[str, float]) -> dict[str, Any]:
    """Make a net and measure it, with its shares of what a GPU can do at best."""
    try:
        net = make(maker)
    except ImportError as reason:
        return why(reason)
    truth = reference(net)
    ways = measure(net, truth, terms)
    if terms.device == "cuda":  # small nets lie in the processor's cache
        shares(net, truth.flops, ways, ceiling)
    return ways


@torch.inference_mode(mode=False)
def make(maker: Callable[[], Net]) -> Net:
    """A net, the same whenever it is made."""
    torch.manual_seed(0)
    return maker().eval()


if __name__ == "__main__":
    main()
