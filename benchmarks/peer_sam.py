"""samexporter's graphs of SAM ViT-B with random weights: runs in an environment of its own.

python peer_sam.py FOLDER    writes sam_vit_b.pth, encoder.onnx and decoder.onnx

segment-anything imports torchvision for things that an export does not use; an empty one will do.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path

import torch


class Names(type):
    """A class whose every attribute is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return Names(name, (), {"__init__": lambda self, *args, **kwargs: None})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every part of torchvision."""

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Empty:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


def main(folder: Path) -> None:
    """Write the checkpoint, then both graphs by samexporter's own functions."""
    sys.meta_path.insert(0, Finder())
    from segment_anything import sam_model_registry

    net = sam_model_registry["vit_b"]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2 and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.ndim >= 2 and name.endswith("weight") and "embed" not in name:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            elif "pixel_" not in name:
                tensor.copy_(0.5 * noise)
    checkpoint = folder / "sam_vit_b.pth"
    torch.save(net.state_dict(), checkpoint)

    from samexporter import export_decoder, export_encoder

    export_encoder.run_export(
        "vit_b", str(checkpoint), str(folder / "encoder.onnx"), use_preprocess=False, opset=18
    )
    export_decoder.run_export(
        "vit_b", str(checkpoint), str(folder / "decoder.onnx"), opset=18, return_single_mask=False
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
