"""Several single-threaded processes that train one model: on CPUs faster than one process with
several threads."""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as distributed
from torch import Tensor, multiprocessing


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """One process's place in its team."""

    rank: int = 0
    size: int = 1

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the team; all members train the same weights."""
        if self.size == 1:
            return
        weights = [weight for weight in weights if weight.grad is not None]
        if not weights:
            return
        gradients = [cast(Tensor, weight.grad) for weight in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for weight, part in zip(
            weights, torch.split(flat, [w.numel() for w in weights]), strict=True
        ):
            weight.grad = part.view_as(weight)

    def first_value(self, value: float) -> float:
        """The value that the first member has."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return float(shared[0])


def run_workers(work: Callable[[WorkerGroup], None], size: int) -> None:
    """Call `work` in `size` processes with one thread each, and wait for all."""
    if size == 1:
        work(WorkerGroup())
        return
    multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _member, args=(size, _free_port(), work), nprocs=size
    )


def _member(rank: int, size: int, port: int, work: Callable[[WorkerGroup], None]) -> None:
    torch.set_num_threads(1)
    # When the first process is killed, torch interrupts its workers. What a shell started in the
    # background ignores that, and would compute on without an end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=size)
    try:
        work(WorkerGroup(rank, size))
    finally:
        distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
