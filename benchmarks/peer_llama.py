"""llama.cpp, asked from outside: runs in an environment of its own with xllamacpp and gguf.

python peer_llama.py convert CHECKPOINT TARGET TYPE    a Qwen2 checkpoint as GGUF: Q8_0 or Q4_0
python peer_llama.py reply MODEL THREADS               then a line `[prompt, count, probable]` of
                                                       JSON on stdin for every reply

Answers each line with llama.cpp's own seconds of reading the prompt and of writing `count` tokens
greedily; and if `probable` is above 0, with the logits of so many tokens behind the prompt, up to a
constant.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TEMPERATURE = 20.0
"""High enough that the probability of no token becomes 0."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Tensors of a Qwen2 checkpoint, as GGUF names them."""


def main() -> None:
    """Convert, or answer until stdin ends."""
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        reply(sys.argv[2], int(sys.argv[3]))


def convert(checkpoint: Path, target: Path, kind: str) -> None:
    """Write GGUF: matrices in blocks of 32 weights, norms and biases in fp32."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    _add_tokenizer(writer, checkpoint, config["vocab_size"])
    for name, values in _tensors(checkpoint / "model.safetensors"):
        stem, _, ending = name.rpartition(".")
        if stem.startswith("model.layers."):
            _, _, number, part = stem.split(".", 3)
            written = f"blk.{number}.{NAMES[part]}.{ending}"
        else:
            written = f"{NAMES[stem]}.{ending}"
        if values.ndim == 2:
            packed = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(written, gguf.quants.quantize(values, packed), raw_dtype=packed)
        else:
            writer.add_tensor(written, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, checkpoint: Path, size: int) -> None:
    """The checkpoint's byte-level BPE; numbers without a token get a name of their own."""
    import gguf

    described = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, number in described["model"]["vocab"].items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for item in described["added_tokens"]:
        tokens[item["id"]], kinds[item["id"]] = item["content"], gguf.TokenType.CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(size - 1)
    writer.add_add_bos_token(False)


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Names and fp32 values of a safetensors file in bfloat16 or fp32."""
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    for name, about in header.items():
        if name == "__metadata__":
            continue
        first, last = about["data_offsets"]
        raw = np.array(data[start + first : start + last])
        if about["dtype"] == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            assert about["dtype"] == "F32"
            values = raw.view("<f4")
        yield name, values.reshape(about["shape"])


def reply(model: str, threads: int) -> None:
    """Read prompts from stdin, and answer them on stdout."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = 1024, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt = False
    server = xllamacpp.Server(params)
    for line in sys.stdin:
        prompt, count, probable = json.loads(line)
        asked = {"prompt": prompt, "max_tokens": count, "ignore_eos": True, "temperature": 0}
        found = server.handle_completions(asked | {"cache_prompt": False})
        times = found["timings"]
        assert (times["prompt_n"], times["predicted_n"]) == (len(prompt), count)
        answer = {"read": times["prompt_ms"] / 1000, "write": times["predicted_ms"] / 1000}
        if probable:
            answer["by_token"] = logits(server, prompt, probable)
        print(json.dumps(answer), flush=True)


def logits(server: Any, prompt: list[int], count: int) -> list[tuple[int, float]]:
    """Tokens and logits up to a constant, of probabilities at a high temperature.

    With random weights the prompt's last token is so probable that all others would be 0, so it is
    left out.
    """
    asked = {
        "prompt": prompt, "max_tokens": 1, "cache_prompt": False, "ignore_eos": True,
        "temperature": TEMPERATURE, "samplers": ["temperature"], "n_probs": count,
        "post_sampling_probs": True, "logit_bias": [[prompt[-1], False]],
    }  # fmt: skip
    first = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]
    return [
        (token["id"], TEMPERATURE * math.log(token["prob"]))
        for token in first["top_probs"]
        if token["prob"] > 0
    ]


if __name__ == "__main__":
    main()
