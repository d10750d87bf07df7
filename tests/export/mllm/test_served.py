"""`transformers serve`, a real server of others, with a small LLaVA: through our client it says
what our runtime says with the same weights in this process.

LLaVA, because transformers' processors of Qwen's models want torchvision.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from segagent_rt.annotators.endpoint import Endpoint, EndpointAnnotator
from segagent_rt.errors import AnnotatorError
from segagent_rt.types import Request
from segagent_rt_export.families.mllm_source import Choices, read_source
from tests.export.mllm import small_models
from tests.export.mllm.conftest import open_exported

for package in ("fastapi", "uvicorn", "openai", "accelerate", "multipart"):
    pytest.importorskip(package, reason="needs what `transformers serve` needs")

pytestmark = [pytest.mark.export, pytest.mark.slow]

CHAT = (
    "<s>{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if 'text' in c %}{{ c['text'] }}{% else %}<image>\n{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A checkpoint as LLaVA's are published: with a processor and a chat."""
    place = tmp_path_factory.mktemp("served")
    small_models.save_family(small_models.FAMILIES["llava"], place, tokenizer)
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "pad_token": "</s>", "extra_special_tokens": {"image_token": "<image>"},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 14,
            "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
        },
    }  # fmt: skip
    for name, content in files.items():
        (place / name).write_text(json.dumps(content))
    (place / "chat_template.jinja").write_text(CHAT)
    pixels = json.loads((place / "preprocessor_config.json").read_text())
    pixels["image_processor_type"] = "CLIPImageProcessor"
    (place / "preprocessor_config.json").write_text(json.dumps(pixels))
    return place


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stream, subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=stream, stderr=subprocess.STDOUT, env=environment,
    ) as server:  # fmt: skip
        try:
            deadline = time.monotonic() + 180
            while b"Uvicorn running" not in log.read_bytes():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def test_the_same_reply_from_a_server_of_others(folder, url, photo, tmp_path):
    """Freely decoded; the server takes special tokens out and goes on for longer."""
    source = read_source(folder, Choices(decoding="free"))
    here = open_exported(source, tmp_path).annotator
    there = EndpointAnnotator(source.codec, Endpoint(url, str(folder)))
    for size in ((200, 200), (120, 300)):
        image, request = photo(*size), [Request(None, "the red circle")]
        ours = here.look(image).propose(request)[0][0].reply
        theirs = there.look(image).propose(request)[0][0].reply
        for special in small_models.SPECIALS:
            ours = ours.replace(special, "")
        ours = ours.rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(ours) > 50
        assert theirs.startswith(ours)


def test_a_field_that_it_does_not_have_is_refused_with_a_sentence(folder, url, photo):
    source = read_source(folder)
    there = EndpointAnnotator(source.codec, Endpoint(url, str(folder), "vllm"))
    with pytest.raises(AnnotatorError, match=r"answers 4\d\d: .*structured_outputs") as caught:
        there.look(photo(100, 100)).propose([Request(None, "the red circle")])
    assert "--server" in caught.value.hint
