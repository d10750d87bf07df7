"""The MLLM in this process: it looks at the image with the mask over it, and writes a click."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from segagent_rt.bounds import Token, Tokens
from segagent_rt.errors import ExpressionRefused, ManifestInvalid
from segagent_rt.image import jpeg_round_trip, overlay
from segagent_rt.mllm.decoder import (
    ConstrainedDecoder,
    DecodedReply,
    DraftReply,
    Prompt,
    Sampler,
    Scores,
    greedy,
)
from segagent_rt.mllm.free_decoder import FreeDecoder
from segagent_rt.mllm.grammar import Automaton, compile_grammar
from segagent_rt.mllm.language_model import Floats, KVCache, LanguageModel, LanguageSettings
from segagent_rt.mllm.preprocess import Resize
from segagent_rt.mllm.rating import click_confidence, expected_iou
from segagent_rt.mllm.rope import Positions
from segagent_rt.mllm.vision_encoder import VisionEncoder, VisionOutput, VisionSettings
from segagent_rt.reply import AnyReplyProtocol, Reading
from segagent_rt.timing import Stopwatch
from segagent_rt.types import GREEDY, Prediction, Rating, Request, RgbImage, Sampling, Size, Turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Encode = Callable[[str], list[int]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class MllmSettings:
    """An MLLM's manifest settings.

    Attributes:
        prompt: template with the token `picture` and `{expression}`.
        picture: the token that stands for all visual tokens in the template.
        head_rows: token ids that the rows of the decoder's logits stand for.
        decoding: within the reply grammar, or free up to one of the tokens `stops`.
        paint: whether the mask is painted over the image and then resized with it, as SegAgent
            does, or painted over the resized picture.
        jpeg: whether the painted image passes through a JPEG file, as in SegAgent's own code.
        vocabulary: every word that the model knows; None for models of open language.
    """

    language: LanguageSettings
    vision: VisionSettings
    prompt: str
    reply: AnyReplyProtocol
    head_rows: tuple[Token, ...]
    picture: str = "<|image_pad|>"
    decoding: Literal["grammar", "free"] = "grammar"
    stops: tuple[Token, ...] = ()
    paint: Literal["image", "picture"] = "image"
    jpeg: bool = False
    longest_expression: Tokens = 256
    vocabulary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for needed in ("{expression}", self.picture):
            if not needed or needed not in self.prompt:
                raise ManifestInvalid(f"the prompt of the MLLM lacks `{needed}`")

    @property
    def resize(self) -> Resize:
        """How images are resized for the vision encoder."""
        return self.vision.resize


@dataclass(frozen=True, slots=True)
class PresetSettings:
    """What a codec has to know of a model that no bundle describes; see `MllmSettings`."""

    prompt: str
    reply: AnyReplyProtocol
    resize: Resize
    picture: str = "<|image_pad|>"
    decoding: str = "grammar"
    paint: str = "image"
    jpeg: bool = False
    longest_expression: int = 1024
    vocabulary: tuple[str, ...] | None = None


PromptSettings: TypeAlias = MllmSettings | PresetSettings


@dataclass(slots=True, kw_only=True)
class PromptCodec:
    """Turns expressions and masks into an MLLM's prompts, and its replies into actions.

    It needs no weights, so it serves a model behind a server too. `specials` are the control tokens
    of the model; expressions may not contain them.
    """

    encode: Encode
    decode: Decode
    settings: PromptSettings
    specials: frozenset[int] = frozenset()
    _grammars: dict[str, Automaton] = field(default_factory=dict)

    def check(self, expression: str) -> str:
        """The expression in the form that the model takes.

        Raises:
            ExpressionRefused: it is blank, too long, or has words that the model does not know.
        """
        known = self.settings.vocabulary
        cleaned = " ".join(expression.split())
        if known is not None:
            cleaned = cleaned.lower().rstrip(".!?")
        if not cleaned:
            raise ExpressionRefused(
                "the expression is blank", hint='say what to cut out: "the red circle"'
            )
        tokens = self.encode(cleaned)
        if len(tokens) > self.settings.longest_expression:
            raise ExpressionRefused(
                f"the expression is longer than {self.settings.longest_expression} tokens",
                hint="describe the object in one sentence",
            )
        if known is not None:
            _refuse_unknown(cleaned, known)
        if steering := self.specials.intersection(tokens):
            raise ExpressionRefused(
                f"the expression contains `{self.decode([min(steering)])}`, which steers the model",
                hint="describe the object in plain words",
            )
        return cleaned

    def prompt(self, expression: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the image."""
        tokens = self.encode(self.settings.prompt.replace("{expression}", expression))
        at = tokens.index(self.encode(self.settings.picture)[-1])
        return tokens[:at], tokens[at + 1 :]

    def room(self, visual: int) -> int:
        """Cache rows that the longest conversation about an image of `visual` tokens needs."""
        longest = self.settings.longest_expression
        asked = visual + sum(map(len, self.prompt(""))) + longest
        return asked + self.settings.reply.longest_reply(longest)

    def grammar(self, expression: str, frame: Size) -> Automaton | None:
        """The reply grammar, compiled; one for all expressions unless replies repeat them. None if
        decoding is free."""
        if self.settings.decoding == "free":
            return None
        pixels = self.settings.reply.unit == "pixels"
        repeated = expression if self.settings.reply.repeats_expression else ""
        key = f"{repeated}|{frame if pixels else ''}"
        if key not in self._grammars:
            reply = self.settings.reply
            self._grammars[key] = compile_grammar(reply, self.encode, expression, frame)
        return self._grammars[key]

    def picture(self, image: RgbImage, clean: RgbImage, prediction: Prediction | None) -> RgbImage:
        """The image that the model is shown: with the mask painted over it, at the model's size.

        `clean` is the image without a mask at that size.
        """
        settings = self.settings
        if settings.paint == "picture":
            if prediction is None:
                return clean
            return overlay(clean, prediction.mask(clean.shape[:2]))
        painted = image if prediction is None else overlay(image, prediction.mask())
        return settings.resize.resize(jpeg_round_trip(painted) if settings.jpeg else painted)

    def understand(self, reply: str, size: Size, frame: Size) -> Reading:
        """Read a reply about an image shown at size `frame`, in pixels of the original `size`."""
        window = self.settings.resize.window(size)
        reading = self.settings.reply.read(reply, window.size, frame=frame)
        return Reading(
            action=window.action(reading.action, size),
            iou=reading.iou,
            box=window.box(reading.box, size),
            boxes=tuple(window.box(box, size) for box in reading.boxes),
        )


@dataclass(slots=True, kw_only=True)
class MllmCodec(PromptCodec):
    """The codec of a model whose settings a manifest holds."""

    settings: MllmSettings


def prompt_codec(tokenizer: Tokenizer, settings: MllmSettings) -> MllmCodec:
    """The codec of a model with this tokenizer."""
    added = tokenizer.get_added_tokens_decoder()

    @lru_cache(maxsize=256)  # every click of a trajectory asks the same
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    return MllmCodec(
        encode=lambda text: list(encoded(text)),
        decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=False)),
        settings=settings,
        specials=frozenset(number for number, token in added.items() if token.special),
    )


@dataclass(slots=True, kw_only=True)
class MllmAnnotator(MllmCodec):
    """Chooses clicks with a vision encoder and a language model.

    `writing` is the decoder of replies within the grammar.
    """

    vision_encoder: VisionEncoder
    model: LanguageModel
    decoder_class: type[ConstrainedDecoder] = ConstrainedDecoder
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, image: RgbImage) -> ImageContext:
        return ImageContext(self, image)


def _refuse_unknown(expression: str, known: Sequence[str]) -> None:
    words = dict.fromkeys(re.findall(r"[^\s,]+", expression))
    unknown = [word for word in words if word not in known]
    if unknown:
        named = ", ".join(f"`{word}`" for word in unknown[:5])
        raise ExpressionRefused(
            f"the shipped model does not know {named}: it knows coloured shapes, not the world",
            hint="try words like: red, circle, largest, left of, second; "
            "on photos, use --click or --box, a server (--endpoint), or a checkpoint "
            "(`segagent-rt export --list`)",
        )


class ImageContext:
    """One image in front of the MLLM, with the prompt prefixes that are cached of it.

    A prompt begins with the image. Without a mask this prefix is the same for every expression, so
    it is read into a KV cache once and kept. A mask changes the image and needs a prefix of its
    own; the prefixes of the masks asked about last are kept, so that more can be asked about each.
    """

    def __init__(self, annotator: MllmAnnotator, image: RgbImage) -> None:
        self._annotator, self._image = annotator, image
        self._size: Size = (image.shape[0], image.shape[1])
        self._lead = annotator.model.embed(annotator.prompt("")[0])
        self._decoder = annotator.decoder_class(annotator.model, annotator.settings.head_rows)
        self._clean_prefix: _PromptPrefix | None = None
        self._painted: list[_PromptPrefix] = []
        self._spare_caches: list[KVCache] = []

    @cached_property
    def _clean(self) -> RgbImage:
        """The image at the size that the model takes, resized when first needed."""
        return self._annotator.vision_encoder.resize(self._image)

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        self._evict(requests)
        pick = _picker(sampling)
        return [[self._turn(request, pick) for _ in range(sampling.count)] for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        if not self._annotator.settings.reply.rates:
            return [Rating(None) for _ in requests]
        self._evict(requests)
        return [self._rating(request) for request in requests]

    def _turn(self, request: Request, pick: Sampler) -> Turn:
        annotator, watch = self._annotator, Stopwatch()
        written, grammar = self._reply(request, pick, watch, rate_only=False)
        reply = annotator.decode(written.tokens)
        reading = annotator.understand(reply, self._size, self._frame)
        rating, confidence = reading.iou, None
        if grammar is not None:
            rates = annotator.settings.reply.rates
            rating = expected_iou(written, grammar) if rates else None
            if rates and pick is greedy:
                confidence = click_confidence(written, grammar)
        return Turn(
            reply, reading.action, rating, reading.box, watch.seconds, reading.boxes, confidence
        )

    def _rating(self, request: Request) -> Rating:
        annotator, watch = self._annotator, Stopwatch()
        written, grammar = self._reply(request, greedy, watch, rate_only=True)
        reply = annotator.decode(written.tokens)
        if grammar is not None:
            return Rating(expected_iou(written, grammar), reply, watch.seconds)
        value = annotator.understand(reply, self._size, self._frame).iou
        return Rating(value, reply, watch.seconds)

    @property
    def _frame(self) -> Size:
        return (self._clean.shape[0], self._clean.shape[1])

    def _reply(
        self, request: Request, pick: Sampler, watch: Stopwatch, *, rate_only: bool
    ) -> tuple[DecodedReply, Automaton | None]:
        """Decode the reply to a request, with the grammar that it follows."""
        annotator = self._annotator
        expression = annotator.check(request.expression)
        grammar = annotator.grammar(expression, self._frame)
        with annotator._lock:
            prefix = self._prefix_for(request.prediction, watch)
            with watch("language"):
                return self._write(prefix, expression, grammar, pick, rate_only), grammar

    def _write(
        self,
        prefix: _PromptPrefix,
        expression: str,
        grammar: Automaton | None,
        pick: Sampler,
        rate_only: bool,
    ) -> DecodedReply:
        """Decode a reply, or resume the one that the cache holds."""
        draft = prefix.draft if prefix.cached_expression == expression else None
        prefix.draft = None
        try:
            if draft is None or (grammar is None and pick is not greedy):
                draft, written = self._begin(prefix, expression, grammar, pick, rate_only)
            elif grammar is None:
                written = draft.written
            else:
                stop_at = grammar.past_rating if rate_only else grammar.ended
                written = self._decoder.resume(prefix.cache, draft, grammar, pick, stop_at)
        except BaseException:
            prefix.cache.rewind(0)
            raise
        prefix.cached_expression, prefix.draft = expression, draft
        return written

    def _begin(
        self,
        prefix: _PromptPrefix,
        expression: str,
        grammar: Automaton | None,
        pick: Sampler,
        rate_only: bool,
    ) -> tuple[DraftReply | None, DecodedReply]:
        """Decode a reply from its beginning; there is a draft of it unless it was sampled."""
        annotator, cache = self._annotator, prefix.cache
        prompt = self._prompt_rest(expression, prefix)
        if grammar is not None:
            guess = grammar.opening if prefix.prediction is None else grammar.praise
            prompt = replace(prompt, guess=guess)
        start = cache.length + prompt.embeddings.shape[1]
        if grammar is None:
            free = FreeDecoder(annotator.model, annotator.settings.stops)
            written = free.write(cache, prompt, pick)
        else:
            stop_at = grammar.past_rating if rate_only else grammar.ended
            written = self._decoder.write(cache, prompt, grammar, pick, stop_at)
        kept = cache.length - start
        return (DraftReply(start, written, kept) if pick is greedy else None), written

    def _prefix_for(self, prediction: Prediction | None, watch: Stopwatch) -> _PromptPrefix:
        """The prefix of the image with this mask, or without one; made unless it is cached."""
        known = [] if self._clean_prefix is None else [self._clean_prefix]
        for prefix in (*known, *self._painted):
            if prefix.prediction is prediction:
                return prefix
        with watch("paint"):
            picture = self._annotator.picture(self._image, self._clean, prediction)
        with watch("vision"):
            seen = self._annotator.vision_encoder.embed(picture)
        cache = self._spare_caches.pop() if self._spare_caches else None
        prefix = self._new_prefix(prediction, seen, cache)
        if prediction is None:
            self._clean_prefix = prefix
        else:
            self._painted.append(prefix)
        return prefix

    def _evict(self, requests: Sequence[Request]) -> None:
        """Free the caches of masks that are not asked about.

        Requests about the clean image free none: they are a detour after which the loop may return
        to the mask that it has rated.
        """
        asked = {id(request.prediction) for request in requests if request.prediction is not None}
        if not asked:
            return
        with self._annotator._lock:
            for prefix in [p for p in self._painted if id(p.prediction) not in asked]:
                self._painted.remove(prefix)
                self._spare_caches.append(prefix.cache)

    def _new_prefix(
        self, prediction: Prediction | None, seen: VisionOutput, cache: KVCache | None
    ) -> _PromptPrefix:
        annotator, lead = self._annotator, self._lead
        embeddings = np.concatenate([lead, seen.embeddings], axis=1)
        positions = annotator.settings.language.rope.before_text(lead.shape[1], seen.grid)
        room = annotator.room(seen.embeddings.shape[1])
        if cache is None or cache.capacity < room:
            cache = annotator.model.new_cache(room)
        cache.rewind(min(cache.length, lead.shape[1]))  # it began alike, whatever it held
        return _PromptPrefix(prediction, cache, embeddings, positions)

    def _prompt_rest(self, expression: str, prefix: _PromptPrefix) -> Prompt:
        """The prompt after the prefix, preceded by the part of the prefix that the cache lacks."""
        _, tokens = self._annotator.prompt(expression)
        embeddings = self._annotator.model.embed(tokens)
        held = min(prefix.cache.length, prefix.positions.shape[1])
        prefix.cache.rewind(held)
        if held == prefix.positions.shape[1]:
            return Prompt(embeddings)
        before = prefix.embeddings[:, held:]
        return Prompt(np.concatenate([before, embeddings], axis=1), prefix.positions[:, held:])


@dataclass(slots=True, eq=False)
class _PromptPrefix:
    """A prompt up to the end of its image, with the KV cache that it is read into.

    Behind the prefix the cache holds the reply about `cached_expression`; `draft` is that reply,
    unless it was sampled.
    """

    prediction: Prediction | None
    cache: KVCache
    embeddings: Floats
    positions: Positions
    cached_expression: str = ""
    draft: DraftReply | None = None


def _picker(sampling: Sampling) -> Sampler:
    if sampling.temperature == 0.0:
        return greedy
    draw = sampling.rng or np.random.default_rng()

    def pick(logits: Scores) -> int:
        scaled = logits.astype(np.float64) / sampling.temperature
        weights = np.exp(scaled - scaled.max())
        return int(draw.choice(len(weights), p=weights / weights.sum()))

    return pick
