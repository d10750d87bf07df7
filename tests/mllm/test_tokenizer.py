"""A tokenizer's file decides how text is split, not how much memory a sentence takes."""

from __future__ import annotations

import json

import pytest

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.mllm.tokenizer import parse_tokenizer

SHIPPED = json.loads((open_bundle().folder / "mllm" / "tokenizer.json").read_text("utf-8"))


def replace(pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def parsed(**changes: object):
    return parse_tokenizer(json.dumps(SHIPPED | changes))


def test_padding_and_truncation_are_not_used():
    padding = {
        "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    plain, odd = parsed(), parsed(padding=padding, truncation=cut)
    assert odd.encode("the red circle").ids == plain.encode("the red circle").ids


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_steps_that_lengthen_texts_without_measure_are_refused(part):
    steps = {f"{part}s": [replace("e", "e" * 9)] * 6, "type": "Sequence"}
    with pytest.raises(ValueError, match=f"its {part} lengthens texts"):
        parsed(**{part: steps})


def test_steps_of_published_tokenizers_are_read():
    llama = [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]
    assert parsed(normalizer={"type": "Sequence", "normalizers": llama}).encode("a b").ids
    assert parsed(normalizer={"type": "NFC"}).encode("a b").ids


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"model": NaN}'])
def test_what_is_no_tokenizer_is_one_error(content):
    with pytest.raises(ValueError):  # noqa: PT011 (the library's own words)
        parse_tokenizer(content)
