"""onnxruntime-genai, asked from outside: runs in an environment of its own.

python peer_genai.py MODEL    then a line `[prompt, count]` of JSON on stdin for every reply

Answers each line with the seconds of reading the prompt and of writing `count` tokens greedily, and
with the logits behind the prompt.
"""

import json
import sys
import time

import onnxruntime_genai as og


def main() -> None:
    """Answer until stdin ends."""
    model = og.Model(sys.argv[1])
    for line in sys.stdin:
        prompt, count = json.loads(line)[:2]
        params = og.GeneratorParams(model)
        length = len(prompt) + count
        params.set_search_options(do_sample=False, min_length=length, max_length=length + 1)
        start = time.perf_counter()
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        read = time.perf_counter()
        logits = generator.get_logits().reshape(-1).tolist()
        again = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        wrote = time.perf_counter()
        answer = {"read": read - start, "write": wrote - again, "logits": logits}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
