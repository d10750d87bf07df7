"""Qwen-VL's `qwen.tiktoken` as a tokenizer of the `tokenizers` library.

A rank file lists byte strings by rank; the lowest-ranked neighbours merge first. The same as
byte-pair merges needs, for each string, the two parts that it is made of: merging its bytes with
all lower ranks leaves exactly those two.
"""

from __future__ import annotations

import base64
import binascii
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.files import read_bounded

LARGEST = 64_000_000
"""Bytes of a rank file; Qwen's has 2.6 million."""

LONGEST_WORK = 50_000_000
"""Sum of the squared lengths of all byte strings, which is how long it takes to merge them; that of
Qwen's is 9 million."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's rule: every digit alone, a word with at most one character before it."""

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>",
)  # fmt: skip
"""In the order of their ids, which follow the last rank."""


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint's folder; None if it has no rank file.

    Raises:
        CheckpointInvalid: the file is damaged.
    """
    path = folder / "qwen.tiktoken"
    return build_tokenizer(read_ranks(path)) if path.is_file() else None


def read_ranks(path: Path) -> dict[bytes, int]:
    """The byte strings of a rank file.

    Raises:
        CheckpointInvalid: it is not one, or single bytes are missing.
    """
    ranks = {}
    content = read_bounded(path, LARGEST)
    try:
        for line in content.split(b"\n"):
            if line:
                text, rank = line.split()
                ranks[base64.b64decode(text, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        raise CheckpointInvalid(f"{path} is not a tiktoken rank file") from None
    if sum(len(text) ** 2 for text in ranks) > LONGEST_WORK:
        raise CheckpointInvalid(f"{path} is damaged: its byte strings are absurdly long")
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([value]) not in ranks for value in range(256)):
        raise CheckpointInvalid(f"{path} is damaged: ranks or single bytes are missing")
    return ranks


def build_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """A tokenizer with Qwen-VL's rules and special tokens over these ranks."""
    letters = _byte_letters()

    def spell(text: bytes) -> str:
        return "".join(letters[value] for value in text)

    merges = []
    for text, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _merge(text, ranks, rank)
        if len(parts) == 2:
            merges.append((spell(parts[0]), spell(parts[1])))
    vocabulary = {spell(text): rank for text, rank in ranks.items()}
    # A word that is a token is that token, however its parts would merge; so does tiktoken.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = NFC()
    split = Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIALS]
    )
    return tokenizer


def _merge(text: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """What is left of a string once all neighbours of ranks under `below` have merged."""
    parts = [text[at : at + 1] for at in range(len(text))]
    while len(parts) > 1:
        pairs = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[at] >= below:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level vocabularies (GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, others = [], 0
    for value in range(256):
        if value in plain:
            letters.append(chr(value))
        else:
            letters.append(chr(256 + others))
            others += 1
    return letters
