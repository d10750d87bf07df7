"""ONNX Runtime against PyTorch on a GPU: the large nets at true size, with random weights.

python benchmarks/gpu.py                       every net in fp16; writes benchmarks/results/gpu.json
python benchmarks/gpu.py --net vit-l --dtype bf16 -o mine.json
python benchmarks/gpu.py --dry -o dry.json     small nets in fp32 on the CPU: that all of it runs

Needs torch, onnx and an onnxruntime, whose CUDA build is used where there is one; no network. What
the nets are is said in gpu_nets.py. A way whose output is not that of PyTorch in fp32 gets no time.
Graphs are in fp32: in other types ONNX Runtime is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from gpu_nets import DRY, NETS, Decoder, Vit, VitSize
from torch import Tensor

from segagent_rt.backends import Runtime, open_session
from segagent_rt.backends.onnxruntime import OrtBuffer
from segagent_rt.bench.machine import describe_machine
from segagent_rt_export.graph import new_graph

RESULT = Path(__file__).parent / "results" / "gpu.json"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Length of the difference from PyTorch in fp32, over the length of its output."""

WARM_UP, FEWEST = 5, 10
"""Calls before the clock counts, and for which it counts at least."""

Net = Vit | Decoder
Call = Callable[[], Any]


class Unsuited(Exception):
    """A way that is not for this machine or type; the words go into the document."""


def eager(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """PyTorch as it is written, attention spelt out."""
    net.fused = False
    return lambda: net(*inputs)


def sdpa(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """PyTorch with its fused attention."""
    net.fused = True
    return lambda: net(*inputs)


def compiled(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """The same, through torch.compile."""
    net.fused = True
    fast = torch.compile(net)
    return lambda: fast(*inputs)


def cuda_graph(net: Net, inputs: tuple[Tensor, ...]) -> Call:
    """The same as `sdpa`, captured once and replayed."""
    if not inputs[0].is_cuda:
        raise Unsuited("there is no GPU")
    net.fused = True
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            net(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = net(*inputs)

    def call() -> Tensor:
        graph.replay()
        return output

    return call


WAYS = {"eager": eager, "sdpa": sdpa, "compile": compiled, "cuda graph": cuda_graph}


@contextmanager
def in_onnx_runtime(net: Net, device: str) -> Iterator[Call]:
    """The runtime's own session; buffers of keys and values stay on the device."""
    backend = "cuda" if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "net.onnx"
        with new_graph(path) as g:
            net.write(g)
        session = open_session(path, Runtime(backend))
        feeds: dict[str, Any] = net.feeds()
        kept = {
            name: OrtBuffer(
                ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), device, 0)
            )
            for name, value in feeds.items()
            if name.startswith("past.")
        }
        into = {name.replace("past", "present", 1): buffer for name, buffer in kept.items()}
        feeds |= kept
        yield lambda: session.run(feeds, [net.output], into=into)[net.output]
        session.close()


def measure(
    net: Net, dtype: str, device: str, seconds: float, chosen: Collection[str]
) -> dict[str, Any]:
    """Error and time of each way; the net is left on the device, in its type."""
    ways: dict[str, Any] = {}
    expected = net(*(x.clone() for x in net.inputs)).double()
    if dtype == "fp32":
        with in_onnx_runtime(net, device) as call:
            ways["onnxruntime"] = judged(call, expected, dtype, seconds)
    else:
        ways["onnxruntime"] = {"why": f"graphs in {dtype} are not made here"}
    net.to(device, DTYPES[dtype])
    inputs = tuple(x.to(device, DTYPES[dtype]) for x in net.inputs)
    for name in chosen:
        try:
            ways[name] = judged(WAYS[name](net, inputs), expected, dtype, seconds)
        except (Unsuited, RuntimeError) as reason:  # too large for the GPU, no compiler, ...
            ways[name] = {"why": str(reason).strip().partition("\n")[0]}
    return ways


def judged(call: Call, expected: Tensor, dtype: str, seconds: float) -> dict[str, Any]:
    """The error of a way, and its time if the error is small enough."""
    found = torch.as_tensor(call()).double().cpu()
    error = float((found - expected).norm() / expected.norm())
    if not error <= LIMITS[dtype]:
        return {"error": error, "why": f"the error is above {LIMITS[dtype]}"}
    return {"error": error, **timed(call, seconds)}


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


def ceilings(dtype: str, device: str, seconds: float) -> dict[str, float]:
    """What the device does at best, measured now: GB/s of copying, TFLOP/s of a matrix product."""
    side = 8192 if device == "cuda" else 512
    a = torch.randn(side, side, device=device).to(DTYPES[dtype])
    b = torch.empty_like(a)
    copy, product = (timed(call, seconds)["ms"] for call in (lambda: b.copy_(a), lambda: a @ a))
    moved = 2 * a.numel() * a.element_size()
    return {"gbytes_per_second": moved / copy / 1e6, "tflops": 2 * side**3 / product / 1e9}


def shares(net: Net, ways: dict[str, Any], ceiling: dict[str, float]) -> None:
    """Add to each way what it reaches of both ceilings, counting weights only."""
    weights = sum(weight.numel() for weight in net.parameters())
    size = next(net.parameters()).element_size()
    for way in ways.values():
        if "ms" in way:
            bandwidth, work = weights * size / way["ms"] / 1e6, 2 * weights * net.tokens / way["ms"]
            way["percent_of_bandwidth"] = round(100 * bandwidth / ceiling["gbytes_per_second"], 1)
            way["percent_of_product"] = round(100 * work / 1e9 / ceiling["tflops"], 1)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="small nets, fp32, on the CPU")
    parser.add_argument("--net", action="append", help="only this one; may be repeated")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="of PyTorch; likewise")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    given = parser.parse_args()
    if not given.dry and not torch.cuda.is_available():
        parser.error("there is no GPU; --dry shows that all of it runs")
    device, dtype = ("cpu", "fp32") if given.dry else ("cuda", given.dtype)
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "gpu": None if given.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dtype": dtype,
        "dry": given.dry,
        "ceilings": ceilings(dtype, device, given.seconds),
        "nets": {},
    }
    for name, size in (DRY if given.dry else NETS).items():
        if given.net and name not in given.net:
            continue
        torch.manual_seed(0)
        net: Net = Vit(size) if isinstance(size, VitSize) else Decoder(size)
        with torch.inference_mode():
            ways = measure(net.eval(), dtype, device, given.seconds, given.way or WAYS)
        if not given.dry:  # small nets lie in the processor's cache
            shares(net, ways, document["ceilings"])
        document["nets"][name] = ways
        print(name, json.dumps(ways))
    given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
