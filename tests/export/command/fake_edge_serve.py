"""Stands for `tensorrt-edgellm-serve` 0.11.0 where there is no GPU.

It takes the same options, reads the same files of a checkpoint, and refuses requests that are not
of its documented form. Where the real package is installed, that package reads the options and
each request; else the same rules stand here. Only the engine is missing: every reply is `REPLY`,
which must have the form that was asked for.

`python fake_edge_serve.py CHECKPOINT OPTIONS` prints its port; `--port 0` chooses one.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPLY = os.environ.get("FAKE_REPLY", "")

FIELDS = {
    "messages", "model", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs",
    "top_logprobs", "max_tokens", "max_completion_tokens", "n", "seed", "stop", "stream",
    "stream_options", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "guided_decoding", "modalities",
    "audio", "apply_chat_template", "add_generation_prompt", "enable_thinking", "reasoning_effort",
    "chat_template_kwargs", "disable_spec_decode", "reuse_context", "cache_generated_tokens",
}  # fmt: skip
"""Of a request; any other is refused."""

GUIDES = {"json_object", "json_schema", "regex", "ebnf", "structural_tag", "choice"}
BETWEEN = {"temperature": (0, 2), "max_tokens": (1, 1 << 31), "seed": (0, (1 << 64) - 1)}


class Refused(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name", default="")
    sizes = ("input-len", "kv-cache-capacity", "image-tokens", "image-tokens-per-image")
    for name in sizes:
        parser.add_argument(f"--max-{name}", type=int)
    found = parser.parse_args(words)
    assert min(getattr(found, f"max_{name.replace('-', '_')}") or 1 for name in sizes) > 0
    return found


def by_rules(question: dict[str, Any], name: str) -> None:
    """The rules of its documentation that bear on what this project sends."""
    if unknown := set(question) - FIELDS:
        raise Refused(400, f"Extra inputs are not permitted: {sorted(unknown)}")
    for field, (least, most) in BETWEEN.items():
        if field in question and not least <= question[field] <= most:
            raise Refused(400, f"{field} is out of range")
    if question.get("model", name) != name:
        raise Refused(404, f"model '{question['model']}' is not served by this process")
    if not question.get("messages"):
        raise Refused(400, "messages must not be empty")
    guide = question.get("guided_decoding") or {}
    if unknown := set(guide) - GUIDES:
        raise Refused(400, f"'guided_decoding' has unknown field(s): {sorted(unknown)}")
    if len(guide) > 1 or not all(isinstance(value, str) for value in guide.values()):
        raise Refused(400, "'guided_decoding' sets more than one mode, or none that is text")
    if guide and question.get("response_format"):
        raise Refused(400, "response_format and guided_decoding cannot be used together")


def by_package(words: list[str]) -> Callable[[dict[str, Any], str], None]:
    """The real package's own reading of options, configuration and requests."""
    from experimental.builder.core import bundle, contracts
    from experimental.server.api.errors import ServerError
    from experimental.server.api.protocol import ChatCompletionRequest
    from experimental.server.api.serving_chat import OpenAIServingChat
    from experimental.server.config import parse_server_config
    from experimental.server.runtime import engine
    from pydantic import ValidationError

    config = parse_server_config(words)
    found = bundle.BundleConfig.from_pretrained(words[0])
    parts = contracts.resolve_components(
        found.root_model_type, ("all",), available=found.components
    )
    assert {part.value for part in parts} == {"llm", "visual"}, parts
    for part in parts:
        assert found.component_dict(part)

    def valid(guide: Any) -> tuple[bool, str]:
        import xgrammar

        xgrammar.Grammar.from_regex(guide.guide)
        return True, ""

    runtime = SimpleNamespace(
        GuideType=SimpleNamespace(REGEX="regex"),
        GuidedDecodingParams=lambda kind, guide: SimpleNamespace(kind=kind, guide=guide),
        validate_guided_decoding_params=valid,
    )
    engine._import_runtime = lambda: runtime
    able = SimpleNamespace(chat=True, speech=False, input_modalities=("text", "image"))
    model = SimpleNamespace(model_dir=words[0])
    name = config.api.served_model_name
    client = SimpleNamespace(llm=model, capabilities=able, model_name=name)
    chat = OpenAIServingChat(client, config.api)

    def check(question: dict[str, Any], _: str) -> None:
        try:
            chat.prepare_request(ChatCompletionRequest(**question))
        except ValidationError as error:
            raise Refused(400, error.errors()[0]["msg"]) from None
        except ServerError as error:
            raise Refused(error.status_code, str(error)) from None

    return check


class Checkpoint:
    """What the server reads of a checkpoint before it builds engines."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        vision = config["vision_config"]
        assert config["model_type"] in ("qwen2_5_vl", "qwen3_vl")
        assert json.loads((folder / "tokenizer.json").read_text())["model"]
        assert (folder / "chat_template.jinja").read_text()
        resize = json.loads((folder / "preprocessor_config.json").read_text())
        self.unit = vision["patch_size"] * vision["spatial_merge_size"]
        if "size" in resize:
            self.pixels = resize["size"]["shortest_edge"], resize["size"]["longest_edge"]
        else:
            self.pixels = resize["min_pixels"], resize["max_pixels"]
        for path in folder.glob("*.safetensors"):
            content = path.read_bytes()
            start = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:start])
            ends = [at["data_offsets"][1] for key, at in header.items() if key != "__metadata__"]
            assert start + max(ends) == len(content), f"{path} is not whole"


def size_of(url: str) -> tuple[int, int]:
    """Width and height of a PNG in a data URL."""
    kind, _, content = url.partition(";base64,")
    data = base64.b64decode(content, validate=True)
    if kind != "data:image/png" or data[:8] != b"\x89PNG\r\n\x1a\n":
        raise Refused(400, "the picture is no PNG in a data URL")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise Refused(400, "the picture is damaged")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def answer(question: dict[str, Any], checkpoint: Checkpoint, most: int, name: str) -> Any:
    """A reply in the form asked for, to a question about one picture that the engine can hold."""
    (message,) = question["messages"]
    picture, text = message["content"]
    width, height = size_of(picture["image_url"]["url"])
    least, largest = checkpoint.pixels
    if (
        width % checkpoint.unit
        or height % checkpoint.unit
        or not least <= width * height <= largest
    ):
        raise Refused(400, f"the server would resize a picture of {width} x {height}")
    if (width // checkpoint.unit) * (height // checkpoint.unit) > most:
        raise Refused(400, f"a picture of {width} x {height} has more than {most} tokens")
    form = question["guided_decoding"]["regex"]
    if message["role"] != "user" or not text["text"] or not re.fullmatch(form, REPLY):
        raise Refused(400, f"{REPLY!r} has not the form {form[:300]}")
    choice = {"index": 0, "message": {"role": "assistant", "content": REPLY},
              "finish_reason": "stop", "logprobs": None}  # fmt: skip
    return {"object": "chat.completion", "model": name, "choices": [choice]}


def main() -> None:
    words = sys.argv[1:]
    chosen, check = options(words), by_rules
    if os.environ.get("EDGE_LLM") == "package":
        check = by_package(words)
    checkpoint, name = Checkpoint(Path(chosen.model)), chosen.served_model_name

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                if self.path != "/v1/chat/completions":
                    raise Refused(404, "Not Found")
                check(question, name)
                status = 200
                content = answer(question, checkpoint, chosen.max_image_tokens_per_image, name)
            except Refused as refused:
                status, content = refused.status, {"error": {"message": str(refused)}}
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer((chosen.host, chosen.port), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
