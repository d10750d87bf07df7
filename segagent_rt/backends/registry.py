"""The table of backends: one row says which library runs graphs there, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from segagent_rt.bundle.manifest import Variant
from segagent_rt.errors import BackendUnavailable, install_hint

Kind: TypeAlias = Literal["cpu", "any", "ort", "portable"]
"""What a variant is made for: the CPU, anything, or GPUs, these by the dialect of its graphs."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A row of the table.

    Attributes:
        library: the module that runs graphs.
        source: what brings it; `{}` stands for the command that installs the extra.
        takes: the kinds of variants it runs, best first.
        nvidia: whether an NVIDIA driver must be there.
        provider: what it is called in ONNX Runtime.
        plugin: the module that brings the provider, if it is not built into ONNX Runtime.
        memory: where ONNX Runtime keeps arrays for it.
        learns: whether its builder times kernels on the GPU, and can be told what it learnt before.
        optional: whether `auto` uses it only for graphs that were built for it and are faster so,
            and says nothing of the others.
    """

    library: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
    source: str
    takes: tuple[Kind, ...]
    extra: str = ""
    nvidia: bool = False
    provider: str = ""
    plugin: str | None = None
    memory: Literal["cpu", "cuda"] = "cpu"
    learns: bool = False
    optional: bool = False

    @property
    def install(self) -> str:
        """What brings the library, for a hint."""
        return self.source.format(install_hint(self.extra)) if self.extra else self.source

    @property
    def builds(self) -> bool:
        """Whether it runs engines that are built on this machine, not ONNX files."""
        return self.library != "onnxruntime"


_TENSORRT: tuple[Kind, ...] = ("portable", "any")
_SWAP = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"

BACKENDS = {
    "cpu": Backend(
        "onnxruntime", "pip install onnxruntime", ("cpu", "any", "portable", "ort"),
        provider="CPUExecutionProvider",
    ),
    "openvino": Backend("openvino", "{}", ("any",), "openvino", optional=True),
    "cuda": Backend(
        "onnxruntime", _SWAP, ("ort", "portable", "any"), nvidia=True,
        provider="CUDAExecutionProvider", memory="cuda",
    ),
    "tensorrt": Backend(
        "tensorrt", "{}; a Jetson has it from JetPack", _TENSORRT, "tensorrt",
        nvidia=True, learns=True,
    ),
    "rtx": Backend("tensorrt_rtx", "{}", _TENSORRT, "rtx", nvidia=True),
    "tensorrt-ep": Backend(
        "onnxruntime", _SWAP, _TENSORRT, nvidia=True,
        provider="TensorrtExecutionProvider", memory="cuda",
    ),
    "nv-tensorrt-rtx": Backend(
        "onnxruntime", "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13", _TENSORRT, nvidia=True,
        provider="NvTensorRTRTXExecutionProvider", plugin="onnxruntime_ep_nv_tensorrt_rtx",
    ),
}  # fmt: skip

AUTO = ("tensorrt", "rtx", "cuda", "openvino", "cpu")
"""What `auto` tries, in this order."""


def get_backend(name: str) -> Backend:
    """The row of a backend.

    Raises:
        BackendUnavailable: there is none of that name.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(
            f"there is no backend `{name}`", hint="choose " + ", ".join(["auto", *BACKENDS])
        )
    return BACKENDS[name]


def kind_of(variant: Variant) -> Kind:
    """What a variant is made for."""
    return variant.dialect if variant.device == "gpu" else variant.device
