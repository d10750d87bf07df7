"""How long a decoder call takes by the tokens that it reads: whether branches pay on this machine.

python benchmarks/decoder_tokens.py     prints one JSON document

The decoder has the width of Qwen3-VL-2B, four layers with random weights, and the precisions of the
exporter's variants. Its cache holds 480 tokens. A call that decides two tokens instead of one must
take less than twice as long.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from in_turn import in_turn

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bench.machine import describe_machine
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.io import dump_json
from segagent_rt.mllm.language_model import LanguageModel, LanguageSettings
from segagent_rt.mllm.rope import RopeSettings
from segagent_rt_export.graphs.attention import Heads
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.language_model import LanguageShape, build_decoder
from segagent_rt_export.recipe import VariantName
from segagent_rt_export.sources.weights import StateDict
from segagent_rt_export.variants import MLLM_VARIANTS

SHAPE = LanguageShape(4, 2048, 6144, Heads(16, 8, 128), head_norms=True)
VARIANTS: tuple[VariantName, ...] = ("reference", "cpu-w8", "cpu-w4")
TOKENS, HELD, ROWS, LAPS = (1, 2, 4, 12, 16, 34), 480, 40, 12


def main() -> None:
    """Measure and print."""
    found = {name: times(name) for name in VARIANTS}
    print(dump_json({"machine": describe_machine(), "tokens": found}, indent=1))


def times(variant: VariantName) -> dict[str, object]:
    """Milliseconds of a call, and how often the time of a call with one token, by its tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        kind = MLLM_VARIANTS[variant]
        head = np.random.default_rng(1).standard_normal((ROWS, SHAPE.hidden), np.float32)
        with new_graph(path, kind.dialect) as graph:
            build_decoder(graph, SHAPE, weights(), head, kind.arithmetic.language)
        session = open_session(path, SessionOptions("cpu", len(os.sched_getaffinity(0))))
        rope = RopeSettings(SHAPE.heads.width, 5e6)
        settings = LanguageSettings(SHAPE.layers, SHAPE.hidden, SHAPE.heads.kv, rope)
        table = np.random.default_rng(2).standard_normal((ROWS, SHAPE.hidden), np.float32)
        model = LanguageModel(session, table, settings)
        cache = model.new_cache(HELD + max(TOKENS))
        model.forward(cache, model.embed([at % ROWS for at in range(HELD)]))

        def call(count: int, lap: int) -> float:
            cache.rewind(HELD)
            embeddings = model.embed([at % ROWS for at in range(count)])
            start = time.perf_counter()
            model.forward(cache, embeddings, rows=min(count, 12))
            return time.perf_counter() - start

        ways: dict[str, Callable[[int], float]] = {str(n): partial(call, n) for n in TOKENS}
        in_turn(ways, 2)
        done = in_turn(ways, LAPS)
        session.close()
    return {
        count: {
            "milliseconds": percentiles(seconds),
            "times_one_token": ratio_percentiles(seconds, done["1"]),
        }
        for count, seconds in done.items()
    }


def weights() -> StateDict:
    """Random weights by the names of transformers."""
    heads, hidden, inner = SHAPE.heads, SHAPE.hidden, SHAPE.inner
    query, kept = heads.count * heads.width, heads.kv * heads.width
    matrices = {
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (kept, hidden),
        "self_attn.v_proj": (kept, hidden), "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    norms = {
        "input_layernorm": hidden, "post_attention_layernorm": hidden,
        "self_attn.q_norm": heads.width, "self_attn.k_norm": heads.width,
    }  # fmt: skip
    rng, state = torch.Generator().manual_seed(0), {"norm.weight": torch.ones(hidden)}
    for layer in range(SHAPE.layers):
        for name, (outputs, inputs) in matrices.items():
            matrix = torch.randn(outputs, inputs, generator=rng) * inputs**-0.5
            state[f"layers.{layer}.{name}.weight"] = matrix
        for name, width in norms.items():
            state[f"layers.{layer}.{name}.weight"] = torch.ones(width)
    return StateDict(state, "")


if __name__ == "__main__":
    main()
