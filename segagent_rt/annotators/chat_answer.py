"""What a chat server answered: the reply, in the variants that servers are documented to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segagent_rt.errors import AnnotatorError

LONGEST_REPLY = 4096
"""Characters of a reply that are read; a server may not have been told when to end."""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A reply and what is known of its tokens.

    Attributes:
        reply: the text, at most `LONGEST_REPLY` characters.
        likelihoods: an entry for each token with the likeliest alternatives; empty if not sent.
    """

    reply: str
    likelihoods: Sequence[Any] = ()


def read_answer(content: Any, server: str) -> ChatAnswer:
    """Read the JSON of a chat completion.

    The reply may be a text or a list of parts. A reasoning model may leave it empty and put all it
    wrote into `reasoning_content` or `reasoning`; that text is then the reply. Some servers report
    an error in an answer with status 200.

    Args:
        content: the parsed JSON.
        server: the server's address, for messages.

    Raises:
        AnnotatorError: it holds an error, or no reply.
    """
    if isinstance(content, Mapping) and content.get("error"):
        raise AnnotatorError(
            f"{server} answers with an error: {error_text(content['error'])}",
            hint="the server's own log says more",
        )
    try:
        choice = content["choices"][0]
        message = choice["message"]
        reply = _text(message.get("content"))
        reply = reply or _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
        likelihoods = (choice.get("logprobs") or {}).get("content") or ()
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        reply, refusal, likelihoods = None, None, ()
    if reply is None and isinstance(refusal, str):
        raise AnnotatorError(
            f"{server} refuses to answer: {error_text(refusal)}", hint="ask another model"
        )
    if reply is None:
        raise AnnotatorError(
            f"{server} answers without a reply", hint="check that it serves chats with images"
        )
    # A server may send half of a character, which could not be written to a file.
    whole = reply[:LONGEST_REPLY].encode("utf-8", "replace").decode("utf-8")
    return ChatAnswer(whole, likelihoods if isinstance(likelihoods, Sequence) else ())


def _text(content: Any) -> str | None:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if texts else None


def error_text(error: Any) -> str:
    """One line of a server's error that cannot steer a terminal."""
    if isinstance(error, Mapping):
        error = error.get("message", error.get("detail", ""))
    line = " ".join("".join(c if c.isprintable() else " " for c in str(error)[:1000]).split())
    return line.rstrip(".")[:200]
