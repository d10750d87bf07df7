"""Qwen-VL's rank file as a tokenizer: the same tokens as tiktoken's rule gives, for any text."""

from __future__ import annotations

import base64
import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.qwen_vl_v1.tiktoken import (
    SPECIALS,
    SPLIT,
    build_tokenizer,
    read_ranks,
)
from tests.export.mllm.conftest import v1_ranks

pytestmark = pytest.mark.export

TEXTS = (
    "", " ", "\n", "a", " a", "the red mug", "  two  spaces  ", "x\n\n y\r\n", "I'll can't THE'RE",
    "0123456789", " 7, 42 and 1000.", "(200, 534)", "Füße, 狗 和 猫", "e\u0301\u0301", "🦆🦆",
    "\x00\x7f",
    "semi-transparent green mask", "\u00a0nbsp", "tab\tand\ttab", "<|im_start", "<ref", "a<b>c",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "qwen.tiktoken"
    path.write_bytes(v1_ranks(tokenizer))
    return read_ranks(path)


@pytest.fixture(scope="module")
def built(ranks):
    return build_tokenizer(ranks)


def words(text: str) -> list[str]:
    """Pieces that are encoded on their own: special tokens, and what the rule cuts between them."""
    splitter = Tokenizer(BPE())
    splitter.pre_tokenizer = Split(Regex(SPLIT), behavior="isolated")
    pattern = "|".join(re.escape(s) for s in SPECIALS)
    found: list[str] = []
    for piece in re.split(f"({pattern})", text):
        if piece in SPECIALS:
            found.append(piece)
        elif piece:
            piece = unicodedata.normalize("NFC", piece)
            found += [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(piece)]
    return found


def by_rule(text: str, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule: whole words first, else the lowest-ranked neighbours, leftmost first."""
    tokens = []
    for word in words(text):
        if word in SPECIALS:
            tokens.append(len(ranks) + SPECIALS.index(word))
            continue
        content = word.encode()
        parts = [content] if content in ranks else [bytes([b]) for b in content]
        while True:
            joined = [a + b for a, b in pairwise(parts)]
            pairs = [(ranks[text], at) for at, text in enumerate(joined) if text in ranks]
            if not pairs:
                break
            _, at = min(pairs)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        tokens += [ranks[part] for part in parts]
    return tokens


@pytest.mark.parametrize("text", TEXTS)
def test_golden_texts(ranks, built, text):
    ids = built.encode(text, add_special_tokens=False).ids
    assert ids == by_rule(text, ranks)
    assert built.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.text() | st.sampled_from(SPECIALS) | st.sampled_from(TEXTS)).map("".join))
def test_any_text(ranks, built, text):
    ids = built.encode(text, add_special_tokens=False).ids
    assert ids == by_rule(text, ranks)
    assert built.decode(ids, skip_special_tokens=False) == "".join(words(text))


def test_digits_stand_alone_and_specials_follow_the_ranks(ranks, built):
    assert len(built.encode("1234567890").ids) == 10
    assert built.token_to_id("<|endoftext|>") == len(ranks)
    assert built.token_to_id("<|im_end|>") - len(ranks) == 2
    assert built.token_to_id("<imgpad>") - len(ranks) == 151859 - 151643
    assert built.token_to_id("<ref>") - len(ranks) == 151851 - 151643
    assert built.get_vocab_size() - len(ranks) == 151860 - 151643


def test_a_word_that_is_a_token_needs_no_merges():
    """Such words exist in rank files: their parts are no tokens, or merge in another order."""
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {b"bc": 256, b"abc": 257, b"xyz": 258}
    built = build_tokenizer(ranks)
    assert built.encode("xyz").ids == [258]
    assert built.encode("abc").ids == [257]
    assert built.encode("xyzq").ids == [*b"xyzq"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"???? 0", "not a tiktoken rank file"),
        (b"YQ== zero", "not a tiktoken rank file"),
        (b"YQ==", "not a tiktoken rank file"),
        (b"YQ== 0\nYg== 2", "ranks or single bytes are missing"),
        (b"", "ranks or single bytes are missing"),
        (b"\n".join(base64.b64encode(bytes([v])) + b" %d" % v for v in range(255)), "are missing"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=said):
        read_ranks(path)
