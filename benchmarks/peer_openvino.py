"""OpenVINO, asked from outside: runs in an environment of its own with optimum-intel and nncf.

python peer_openvino.py reply MODEL THREADS    then a line `[prompt, count]` of JSON on stdin for
                                               every reply
python peer_openvino.py encode MODEL THREADS   then a line `[picture, result]` for every picture

MODEL is what `optimum-cli export openvino` wrote. It is run with the plugin's own settings, which
choose bfloat16 where the processor has it.

`reply` runs a language model as openvino-genai does, with the key and value cache inside, and
answers each line with the seconds of reading the prompt and of writing `count` tokens greedily, and
with the logits behind the prompt. `encode` runs the vision encoder of a Qwen2.5-VL as
optimum-intel does: it reads patches and their grid from a file of NumPy's, writes the tokens'
embeddings to another, and answers with the seconds.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov


def main() -> None:
    """Answer until stdin ends."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": sys.argv[3]}
    {"reply": reply, "encode": encode}[sys.argv[1]](Path(sys.argv[2]), settings)


def encode(folder: Path, settings: dict[str, str]) -> None:
    """Embed pictures."""
    import torch
    from optimum.intel import OVModelForVisualCausalLM

    model = OVModelForVisualCausalLM.from_pretrained(folder, ov_config=settings)
    for line in sys.stdin:
        picture, result = json.loads(line)
        given = np.load(picture)
        patches, grid = (torch.from_numpy(given[name]) for name in ("patches", "grid"))
        start = time.perf_counter()
        found = model.get_vision_embeddings(patches, grid)
        seconds = time.perf_counter() - start
        np.save(result, found)
        print(json.dumps({"seconds": seconds}), flush=True)


def reply(folder: Path, settings: dict[str, str]) -> None:
    """Read prompts and write replies."""
    model = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", settings)
    request = model.create_infer_request()
    for line in sys.stdin:
        prompt, count = json.loads(line)[:2]
        request.reset_state()
        start = time.perf_counter()
        logits = forward(request, prompt, 0)
        read = time.perf_counter()
        behind = logits.tolist()
        again = time.perf_counter()
        for number in range(count):
            logits = forward(request, [int(logits.argmax())], len(prompt) + number)
        wrote = time.perf_counter()
        answer = {"read": read - start, "write": wrote - again, "logits": behind}
        print(json.dumps(answer), flush=True)


def forward(request: ov.InferRequest, tokens: list[int], before: int) -> np.ndarray:
    """Logits [V] behind tokens that follow `before` others."""
    length = before + len(tokens)
    feeds = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(before, length, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    logits: np.ndarray = request.infer(feeds)["logits"][0, -1].copy()
    return logits


if __name__ == "__main__":
    main()
