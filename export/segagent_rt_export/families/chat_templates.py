"""The frame of a conversation's first turn: the checkpoint's chat template, or its family's frame.

One token stands for the whole picture, `{instruction}` for the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.files import read_bounded
from segagent_rt_export.registry import MllmExporter
from segagent_rt_export.sources.shards import read_object

LONGEST = 1_000_000
"""Bytes of a chat template; published ones have a few thousand."""

HOLE = "{instruction}"


def frame_of(folder: Path, family: MllmExporter, tokenizer: Tokenizer) -> str:
    """The frame that a checkpoint is asked in.

    Args:
        folder: the checkpoint's.
        family: whose frame is used if the checkpoint has no chat template.
        tokenizer: the checkpoint's; templates leave it to add a token at the very beginning.

    Returns:
        The text of the first turn up to the reply, with one picture token and `{instruction}`.

    Raises:
        CheckpointInvalid: the template cannot be rendered, leaves the picture or the text out, or
            makes the model think before it answers.
    """
    template = read_template(folder)
    if template is None or family.image_processor is None:
        return family.chat
    begun = tokenizer.decode(tokenizer.encode("").ids, skip_special_tokens=False)
    user = family.chat.partition(family.picture)[2].partition(HOLE)[0]
    plain = f"{_opening(family)}{family.picture}{user}{HOLE}"
    pieces = [{"type": "image"}, {"type": "text", "text": HOLE}]
    failures: list[CheckpointInvalid] = []
    for content in (pieces, plain):
        try:
            frame = _render(folder, template, content)
        except CheckpointInvalid as error:
            failures.append(error)
            continue
        if frame.count(family.picture) == frame.count(HOLE) == 1:
            return _checked(folder, frame if frame.startswith(begun) else begun + frame)
    if len(failures) == 2:
        raise failures[0]
    raise CheckpointInvalid(
        f"{folder}: the chat template does not show one picture and one text",
        hint="copy the chat template of the model that this one was trained from",
    )


def _opening(family: MllmExporter) -> str:
    """What stands between the beginning of the user's turn and the picture token."""
    before = family.chat.partition(family.picture)[0]
    return "<|vision_start|>" if before.endswith("<|vision_start|>") else ""


def _checked(folder: Path, frame: str) -> str:
    reply = frame.partition(HOLE)[2]
    if reply.rfind("<think>") > reply.rfind("</think>"):
        raise CheckpointInvalid(
            f"{folder}: the chat template opens the reply with <think>: the model thinks before it "
            "answers, and replies here are answers alone",
            hint="export the Instruct edition of the model",
        )
    return frame


def read_template(folder: Path) -> str | None:
    """A checkpoint's chat template, from the first of the places where transformers looks.

    Raises:
        CheckpointInvalid: it is damaged or too long.
    """
    own, legacy = folder / "chat_template.jinja", folder / "chat_template.json"
    found: Any = None
    if own.is_file():
        found = read_bounded(own, LONGEST).decode("utf-8", "replace")
    elif legacy.is_file():
        found = read_object(legacy).get("chat_template")
    elif (folder / "tokenizer_config.json").is_file():
        found = read_object(folder / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):
            named = {str(e.get("name")): e.get("template") for e in found if isinstance(e, dict)}
            found = named.get("default")
    if found is None or found == "":
        return None
    if not isinstance(found, str) or len(found) > LONGEST:
        raise CheckpointInvalid(f"{folder}: the chat template is no text, or is too long")
    return found


def _render(folder: Path, template: str, content: str | list[dict[str, str]]) -> str:
    """The first turn, rendered in transformers' sandbox."""
    from transformers.utils.chat_template_utils import render_jinja_template

    described = folder / "tokenizer_config.json"
    settings = read_object(described) if described.is_file() else {}
    tokens = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    turns = [[{"role": "user", "content": content}]]
    try:
        rendered, _ = render_jinja_template(
            turns,
            chat_template=template,
            add_generation_prompt=True,
            enable_thinking=False,
            **tokens,
        )
    except Exception as error:  # whatever a template of somebody else raises
        raise CheckpointInvalid(
            f"{folder}: the chat template cannot be rendered: {' '.join(str(error).split())[:120]}"
        ) from None
    return str(rendered[0])


def _token(described: Any) -> str:
    """A special token's text, which configurations hold plainly or within an object."""
    text = described.get("content") if isinstance(described, dict) else described
    return text if isinstance(text, str) else ""
