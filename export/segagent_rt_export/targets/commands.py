"""What to run where the model is served: the servers' own tools, by their documentation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt_export.families.mllm_model import LONGEST_TEXT
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.targets.edge_llm import NAME, VERSION

Target: TypeAlias = Literal["edge-llm", "trtllm"]

PORT, REPLY, FEWEST_TOKENS = 8000, 128, 4
"""Of the server; tokens kept for a reply; tokens of the smallest picture."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens that an engine must have room for: of a picture, of a prompt, of prompt and reply."""

    picture: int
    prompt: int
    total: int


def sizes_of(source: MllmSource) -> Sizes:
    """The largest picture that the recipe allows, and the longest text beside it."""
    resize = source.settings.vision.resize
    picture = resize.most // resize.unit**2 if isinstance(resize, SmartResize) else 0
    return Sizes(picture, picture + LONGEST_TEXT, picture + LONGEST_TEXT + REPLY)


def commands(target: Target, name: str, folder: Path, sizes: Sizes) -> dict[str, list[str]]:
    """Command lines by what they are for; paths are within the prepared folder, which may be
    copied to the machine that serves."""
    here, port = folder.as_posix(), str(PORT)
    asks = ["segagent-rt", "run", "photo.jpg", "the mug", "-b", name, "--endpoint",
            f"http://127.0.0.1:{port}", "--model", name, "--server", target]  # fmt: skip
    if target == "trtllm":
        # It names a model by its folder's last part, or by --served_model_name where it has that.
        asks[asks.index("--model") + 1] = "checkpoint"
        # A prompt must fit into one step: it refuses those of more than --max_num_tokens.
        serve = ["trtllm-serve", f"{here}/checkpoint", "--host", "127.0.0.1", "--port", port,
                 "--max_num_tokens", str(sizes.total), "--max_seq_len", str(sizes.total),
                 "--extra_llm_api_options", f"{here}/trtllm.yaml"]  # fmt: skip
        return {"serve": serve, "ask": asks}
    return {
        "install": ["pip", "install", f"{NAME}[server]=={VERSION}"],
        "serve": [
            "tensorrt-edgellm-serve", f"{here}/checkpoint", "--host", "127.0.0.1", "--port", port,
            "--served-model-name", name, "--max-input-len", str(sizes.prompt),
            "--max-kv-cache-capacity", str(sizes.total), "--max-image-tokens", str(sizes.picture),
            "--max-image-tokens-per-image", str(sizes.picture),
        ],
        "ask": asks,
        "build the language model from its ONNX": [
            "llm_build", "--onnxDir", f"{here}/onnx/llm", "--engineDir", "engines/llm",
            "--maxBatchSize", "1", "--maxInputLen", str(sizes.prompt), "--maxKVCacheCapacity",
            str(sizes.total),
        ],
        "build the vision encoder from its ONNX": [
            "visual_build", "--onnxDir", f"{here}/onnx/visual", "--engineDir", "engines/visual",
            "--minImageTokens", str(FEWEST_TOKENS), "--maxImageTokens", str(sizes.picture),
            "--maxImageTokensPerImage", str(sizes.picture),
        ],
    }  # fmt: skip


def as_text(command: list[str]) -> str:
    """A command as it is typed into a shell."""
    return shlex.join(command)
