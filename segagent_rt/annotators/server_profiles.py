"""The table of servers: what each kind takes beside the chat that all of them speak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from segagent_rt.annotators import structured_output
from segagent_rt.errors import AnnotatorError
from segagent_rt.reply import AnyReplyProtocol
from segagent_rt.types import Size

FORM = "<form>"
"""Stands for the form of the reply in a row's `fields`."""

LIKELIEST = 20
"""Tokens whose likelihood is asked for at each place; the API allows no more."""


@dataclass(frozen=True, slots=True)
class Server:
    """A row of the table.

    Attributes:
        fields: what asks for a reply of a given form; nothing if it cannot be asked for.
        language: in which language the form is written.
        likelihoods: whether replies come with the chances of each token's alternatives.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    language: Literal["regex", "gbnf"] = "regex"
    likelihoods: bool = False

    def asks(
        self, protocol: AnyReplyProtocol | None, expression: str, frame: Size
    ) -> dict[str, Any]:
        """Fields of a request: for a reply in the protocol's form, if one is given."""
        more: dict[str, Any] = {}
        if self.likelihoods:
            more |= {"logprobs": True, "top_logprobs": LIKELIEST}
        if protocol is not None and self.fields:
            write = structured_output.gbnf if self.language == "gbnf" else structured_output.regex
            more |= _filled(self.fields, write(protocol, expression, frame))
        return more


SERVERS: Mapping[str, Server] = {
    "any": Server(),
    "openai": Server(),
    "ollama": Server(),
    "sglang": Server({"regex": FORM}),
    "vllm": Server({"structured_outputs": {"regex": FORM}}, likelihoods=True),
    "trtllm": Server({"response_format": {"type": "regex", "regex": FORM}}),
    "edge-llm": Server({"guided_decoding": {"regex": FORM}}),
    "llama.cpp": Server({"grammar": FORM}, "gbnf", likelihoods=True),
}
"""By kind. `any` is a server with nothing but what all have in common; that of transformers is one,
and the only one that has been run with this client. `openai` is the same, and may be sent OpenAI's
key. Ollama's chat API has no form for a reply but JSON schemas, which fence no list. The others are
from documentation: structured outputs of vLLM (0.12 and newer) and SGLang, guided decoding of
TensorRT-LLM (started with a guided_decoding_backend) and of TensorRT Edge-LLM, grammars of
llama.cpp."""


def get_profile(kind: str) -> Server:
    """The row of a kind of server.

    Raises:
        AnnotatorError: there is none of that name.
    """
    if kind not in SERVERS:
        raise AnnotatorError(
            f"`{kind}` is not a kind of server", hint="choose " + ", ".join(SERVERS)
        )
    return SERVERS[kind]


def _filled(fields: Any, form: str) -> Any:
    if isinstance(fields, Mapping):
        return {name: _filled(value, form) for name, value in fields.items()}
    return form if fields == FORM else fields
