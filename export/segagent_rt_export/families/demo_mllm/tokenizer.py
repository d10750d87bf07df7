"""The tokenizer that ships with our MLLM: byte-level BPE as in Qwen2, trained on the few words that
the model knows."""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from segagent_rt.reply import ReplyProtocol
from segagent_rt.scenes.reading import VOCABULARY

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2's splitting rule: every digit alone, a word with at most one character before it, runs of
# punctuation.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Segment {expression}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Qwen's chat form without a system turn; `<|image_pad|>` stands for all visual tokens."""

PROTOCOL = ReplyProtocol()
"""The model answers as SegAgent's does."""

_WORDS = ("Current", "IOU", "Positive", "Negative", "point", "Segment", "user", "assistant")


def build_tokenizer() -> Tokenizer:
    """Every known word, piece of a reply, and digit is one token."""
    words = sorted(VOCABULARY) + list(_WORDS)
    corpus = [f" {word}" for word in words] + ["user\nassistant\n", "Segment", " (1, 2)"]
    return train_byte_level_bpe(_SPLIT, 4096, corpus, SPECIAL)


def train_byte_level_bpe(
    split: str, size: int, corpus: Iterable[str], special: Iterable[str]
) -> Tokenizer:
    """A byte-level BPE as Qwen2's.

    Args:
        split: the regular expression of what is never merged across.
        size: most tokens of the vocabulary.
        corpus: texts whose frequent pairs are merged.
        special: control tokens, which follow the vocabulary.
    """
    tokenizer = Tokenizer(BPE())
    apart = Split(Regex(split), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([apart, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return tokenizer
