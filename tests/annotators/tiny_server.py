"""The MLLM that ships, behind OpenAI's chat API: a process of its own, which knows no more than a
real server would.

It frames the conversation itself, takes the picture as it comes, decodes one token at a time, and
answers with what vLLM would: a reply of the form asked for, and the likelihoods of its tokens. The
form may also come in the field of TensorRT Edge-LLM.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np

import segagent_rt
from segagent_rt.image import decode_image
from segagent_rt.mllm.grammar import compile_grammar

FIELDS = {
    "model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs",
    "structured_outputs", "guided_decoding", "seed",
}  # fmt: skip
FRAME = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class Model:
    def __init__(self) -> None:
        self.annotator = segagent_rt.load(backend="cpu", threads=1).annotator

    def reply(
        self, picture: np.ndarray, text: str, form: str, dice: np.random.Generator | None
    ) -> tuple[str, list[Any]]:
        """Held to the grammar, which must be the form that was asked for; greedy without dice."""
        a = self.annotator
        rows = list(a.settings.head_rows)
        grammar = compile_grammar(a.settings.reply, a.encode, "", picture.shape[:2])
        tokens = a.encode(FRAME.format(text))
        at = tokens.index(a.encode("<|image_pad|>")[0])
        seen = a.vision_encoder.embed(picture)
        lead, tail = tokens[:at], tokens[at + 1 :]
        x = np.concatenate([a.model.embed(lead), seen.embeddings, a.model.embed(tail)], axis=1)
        positions = a.settings.language.rope.before_text(len(lead), seen.grid)
        cache = a.model.new_cache(x.shape[1] + 40)
        state, said, places = grammar.start, [], []
        logits = a.model.forward(cache, x, positions)[0]
        while not grammar.ended(state):
            chances = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
            token = self._pick(chances, rows, list(grammar.edges(state)), dice)
            places.append(self._place(token, rows, chances))
            said.append(token)
            state = grammar.edges(state)[token]
            logits = a.model.forward(cache, a.model.embed([token]))[0]
        reply = a.decode(said)
        assert re.fullmatch(form, reply), (form, reply)
        return reply, places

    @staticmethod
    def _pick(
        chances: np.ndarray, rows: list[int], allowed: list[int], dice: np.random.Generator | None
    ) -> int:
        found = chances[[rows.index(token) for token in allowed]]
        if dice is None:
            return allowed[int(found.argmax())]
        shares = np.exp(found - found.max())
        return int(dice.choice(allowed, p=shares / shares.sum()))

    def _place(self, token: int, rows: list[int], chances: np.ndarray) -> dict[str, Any]:
        spelt = [self.annotator.decode([row]) for row in rows]
        best = sorted(zip(chances.tolist(), spelt, strict=True), reverse=True)
        return {
            "token": self.annotator.decode([token]),
            "logprob": float(chances[rows.index(token)]),
            "top_logprobs": [{"token": text, "logprob": chance} for chance, text in best],
        }


def answer(model: Model, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if unknown := set(question) - FIELDS:
        return 422, {"error": {"message": f"unknown fields {sorted(unknown)}"}}
    if question["model"] != "tiny":
        return 404, {"error": {"message": f"The model `{question['model']}` does not exist."}}
    (message,) = question["messages"]
    picture, text = message["content"]
    kind, _, content = picture["image_url"]["url"].partition(";base64,")
    if (message["role"], kind, text["type"]) != ("user", "data:image/png", "text"):
        return 400, {"error": {"message": "one picture, then one text"}}
    pixels = decode_image(base64.b64decode(content, validate=True))
    form = question.get("structured_outputs", question.get("guided_decoding"))["regex"]
    if question["temperature"] not in (0, 1):
        return 422, {"error": {"message": "the temperature is neither 0 nor 1"}}
    dice = np.random.default_rng(question.get("seed")) if question["temperature"] else None
    reply, places = model.reply(pixels, text["text"], form, dice)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply},
        "logprobs": {"content": places},
        "finish_reason": "stop",
    }
    return 200, {"object": "chat.completion", "model": "tiny", "choices": [choice]}


def main() -> None:
    model = Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/chat/completions":
                status, content = answer(model, question)
            else:
                status, content = 404, {"detail": "Not Found"}
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    sys.stdin.close()
    server.serve_forever()


if __name__ == "__main__":
    main()
