"""A torch model without its weights: each module reads its own when it runs, and forgets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from segagent_rt_export.errors import CheckpointInvalid

Read: TypeAlias = Callable[[str], Tensor]


def unloaded(build: Callable[[], nn.Module], read: Read) -> nn.Module:
    """The model that `build` makes, for inference; `read` is given the names of its parameters.

    Buffers are not on disk, they are as `build` computes them.
    """
    with _no_parameters():
        model = build()
    for prefix, module in model.named_modules():
        names = [name for name, held in module.named_parameters(recurse=False) if held is not None]
        if names:
            whole = {name: f"{prefix}.{name}".lstrip(".") for name in names}
            module.register_forward_pre_hook(partial(_load, whole, read))
            module.register_forward_hook(
                partial(_forget, dict(module.named_parameters(recurse=False)))
            )
    return model.eval()


@contextmanager
def _no_parameters() -> Iterator[None]:
    """Parameters that modules register meanwhile have a shape and no memory."""
    register = nn.Module.register_parameter

    def hollow(self: nn.Module, name: str, held: nn.Parameter | None) -> None:
        register(self, name, None if held is None else _hollow(held))

    nn.Module.register_parameter = hollow  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _hollow(held: Tensor) -> nn.Parameter:
    return nn.Parameter(held.detach().to("meta"), requires_grad=False)


def _load(full: dict[str, str], read: Read, module: nn.Module, _: Any) -> None:
    for name, stored in full.items():
        shape, found = getattr(module, name).shape, read(stored)
        if found.shape != shape:
            raise CheckpointInvalid(
                f"the tensor `{stored}` is {list(found.shape)}, config.json says {list(shape)}",
                hint="do config.json and the weights belong together?",
            )
        setattr(module, name, nn.Parameter(found, requires_grad=False))


def _forget(hollow: dict[str, nn.Parameter], module: nn.Module, *_: Any) -> None:
    for name, empty in hollow.items():
        setattr(module, name, empty)
