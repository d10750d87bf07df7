"""Layers that the libraries themselves quantise, and what they make of them again.

`python -m tests.export.mllm.quantised_layers` writes tests/golden/quantised with them, where the
libraries are installed; its README.md says which versions did.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "golden" / "quantised"

BNB = {"quant_method": "bitsandbytes"}
COMPRESSED = {"quant_method": "compressed-tensors"}


def _weight(outputs: int, inputs: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(outputs)
    return torch.randn(outputs, inputs, generator=generator) * 0.05


def _four_bits(outputs: int, inputs: int, kind: str, block: int, nested: bool) -> Any:
    import torch
    from bitsandbytes import functional, nn

    layer = nn.Linear4bit(
        inputs, outputs, bias=False, compress_statistics=nested, quant_type=kind,
        compute_dtype=torch.float32,
    )  # fmt: skip
    layer.weight = nn.Params4bit(
        _weight(outputs, inputs), requires_grad=False, blocksize=block,
        compress_statistics=nested, quant_type=kind,
    )  # fmt: skip
    layer.to("cpu")
    true = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return BNB, layer.state_dict(), true


def nf4_nested() -> Any:
    """Blocks and blocks of blocks are cut, and the number of codes is odd."""
    return _four_bits(71, 117, "nf4", 32, True)


def nf4() -> Any:
    """Blocks divide the rows: bitsandbytes 0.50.2 on a CPU takes wrong factors for [24, 48]."""
    return _four_bits(18, 64, "nf4", 64, False)


def fp4() -> Any:
    return _four_bits(19, 64, "fp4", 64, False)


def int8() -> Any:
    from bitsandbytes import functional, nn

    layer = nn.Linear8bitLt(48, 26, bias=False, has_fp16_weights=False)
    layer.weight = nn.Int8Params(_weight(26, 48).half(), requires_grad=False)
    layer.to("cpu")
    tensors = layer.state_dict()
    if "SCB" not in tensors:  # weights are rounded when they reach a GPU
        codes, scales, _ = functional.int8_vectorwise_quant(_weight(26, 48).half())
        import torch

        tensors = {"weight": codes, "SCB": scales, "weight_format": torch.tensor(0).byte()}
    return BNB, tensors, functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])


def _compressed(outputs: int, inputs: int, kind: str, how: dict[str, Any], scale: Any) -> Any:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": False, **how}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    form = f"{'int' if kind == 'int' else 'float'}-quantized"
    compressor = BaseCompressor.get_value_from_registry(form)
    whole = {"weight": _weight(outputs, inputs), "weight_scale": scale}
    tensors = compressor.compress(whole, scheme)
    described = {"format": form, "config_groups": {"group_0": {"weights": weights}}}
    return COMPRESSED | described, tensors, compressor.decompress(tensors, scheme)["weight"]


def _largest(outputs: int, inputs: int, tile: tuple[int, int]) -> Any:
    """The scale of each tile that makes its largest number 1."""
    import torch

    sizes = _weight(outputs, inputs).abs()
    rows, columns = (
        [slice(start, start + step) for start in range(0, count, step)]
        for count, step in zip((outputs, inputs), tile, strict=True)
    )
    return torch.stack([torch.stack([sizes[r, c].max() for c in columns]) for r in rows])


def fp8_by_tensor() -> Any:
    scale = _largest(27, 48, (27, 48)).reshape(1) / 448
    return _compressed(27, 48, "float", {"strategy": "tensor"}, scale)


def fp8_by_channel() -> Any:
    scale = _largest(28, 48, (1, 48)) / 448
    return _compressed(28, 48, "float", {"strategy": "channel"}, scale)


def fp8_by_block() -> Any:
    scale = _largest(29, 50, (16, 16)) / 448
    return _compressed(29, 50, "float", {"strategy": "block", "block_structure": [16, 16]}, scale)


def int8_by_channel() -> Any:
    scale = _largest(30, 48, (1, 48)) / 127
    return _compressed(30, 48, "int", {"strategy": "channel"}, scale)


def fp8_of_transformers() -> Any:
    """DeepSeek's layout: `weight_scale_inv`, one for each tile."""
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    scale = _largest(32, 64, (16, 32)) / 448
    wide = scale.repeat_interleave(16, 0).repeat_interleave(32, 1)
    codes = (_weight(32, 64) / wide).to(torch.float8_e4m3fn)
    tensors = {"weight": codes, "weight_scale_inv": scale}
    true = Fp8Dequantize(None).convert(dict(tensors), full_layer_name="weight")["weight"]
    return {"quant_method": "fp8", "weight_block_size": [16, 32]}, tensors, true


LAYERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "nf4 with double quantisation": ("bitsandbytes", nf4_nested),
    "nf4": ("bitsandbytes", nf4),
    "fp4": ("bitsandbytes", fp4),
    "int8": ("bitsandbytes", int8),
    "fp8 by tensor": ("compressed_tensors", fp8_by_tensor),
    "fp8 by channel": ("compressed_tensors", fp8_by_channel),
    "fp8 by block": ("compressed_tensors", fp8_by_block),
    "int8 by channel": ("compressed_tensors", int8_by_channel),
    "fp8 of transformers": ("transformers.integrations.finegrained_fp8", fp8_of_transformers),
}
"""The library of each, and a function that makes (quantization_config, tensors, weight)."""


def write_golden() -> None:
    import json

    from safetensors.torch import save_file

    GOLDEN.mkdir(exist_ok=True)
    for name, (_, make) in LAYERS.items():
        described, tensors, true = make()
        content = {f"layer.{key}": value.contiguous() for key, value in tensors.items()}
        content["true"] = true.float().contiguous()
        path = GOLDEN / f"{name.replace(' ', '_')}.safetensors"
        save_file(content, path, {"quantization_config": json.dumps(described)})


if __name__ == "__main__":
    write_golden()
