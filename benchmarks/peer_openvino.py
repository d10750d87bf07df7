"""OpenVINO, asked from outside: runs in an environment of its own with optimum-intel and nncf.

python peer_openvino.py reply MODEL THREADS    then a line `[prompt, count]` of JSON on stdin for
                                               every reply

MODEL is what `optimum-cli export openvino` wrote. It is run as openvino-genai runs it, with the key
and value cache inside and the plugin's own settings. Answers each line with the seconds of reading
the prompt and of writing `count` tokens greedily, and with the logits behind the prompt.
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
    model = ov.Core().compile_model(Path(sys.argv[2]) / "openvino_model.xml", "CPU", settings)
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
