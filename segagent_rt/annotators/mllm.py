"""The MLLM in this process: looks at the picture with the mask over it, and writes a click."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from segagent_rt.errors import ExpressionRefused
from segagent_rt.image import jpeg_round_trip, overlay
from segagent_rt.mllm.constrained import Draft, Pick, Prompt, Scores, Writer, Written, greedy
from segagent_rt.mllm.free import FreeWriter
from segagent_rt.mllm.grammar import Automaton, compile_grammar
from segagent_rt.mllm.language import Cache, Floats, LanguageModel, LanguageSettings
from segagent_rt.mllm.rating import rating_of
from segagent_rt.mllm.rope import Positions
from segagent_rt.mllm.vision import Seen, Tower, VisionSettings
from segagent_rt.reply import AnyReplyProtocol, Reading
from segagent_rt.timing import Stopwatch
from segagent_rt.types import Finish, Prediction, Request, RgbImage, Size, Turn

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
    head_rows: tuple[int, ...]
    picture: str = "<|image_pad|>"
    decoding: Literal["grammar", "free"] = "grammar"
    stops: tuple[int, ...] = ()
    paint: Literal["image", "picture"] = "image"
    jpeg: bool = False
    longest_expression: int = 256
    vocabulary: tuple[str, ...] | None = None

    @property
    def echoes(self) -> bool:
        """Whether replies repeat the expression."""
        return self.reply.repeats_expression


@dataclass(slots=True, kw_only=True)
class Asker:
    """How one MLLM is asked and understood, wherever it runs.

    `specials` are the tokens that steer the model; expressions may not contain them.
    """

    encode: Encode
    decode: Decode
    settings: MllmSettings
    specials: frozenset[int] = frozenset()
    _grammars: dict[str, Automaton] = field(default_factory=dict)

    def check(self, expression: str) -> str:
        """The expression as the model is given it.

        Raises:
            ExpressionRefused: blank, too long, or with words that the model does not know.
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
        """The tokens before and behind the picture."""
        tokens = self.encode(self.settings.prompt.replace("{expression}", expression))
        at = tokens.index(self.encode(self.settings.picture)[-1])
        return tokens[:at], tokens[at + 1 :]

    def room(self, visual: int) -> int:
        """Cache rows that the longest conversation about a picture of so many tokens needs."""
        longest = self.settings.longest_expression
        asked = visual + sum(map(len, self.prompt(""))) + longest
        return asked + self.settings.reply.longest_reply(longest)

    def grammar(self, expression: str, frame: Size) -> Automaton | None:
        """The reply grammar, compiled; one for all expressions unless replies repeat them. None if
        decoding is free."""
        if self.settings.decoding == "free":
            return None
        pixels = self.settings.reply.unit == "pixels"
        key = f"{expression if self.settings.echoes else ''}|{frame if pixels else ''}"
        if key not in self._grammars:
            reply = self.settings.reply
            self._grammars[key] = compile_grammar(reply, self.encode, expression, frame)
        return self._grammars[key]

    def picture(self, image: RgbImage, clean: RgbImage, prediction: Prediction | None) -> RgbImage:
        """What the model is shown: the image with the mask over it, at the size that it takes.

        `clean` is the image itself at that size.
        """
        settings = self.settings
        if settings.paint == "picture":
            if prediction is None:
                return clean
            return overlay(clean, prediction.mask(clean.shape[:2]))
        painted = image if prediction is None else overlay(image, prediction.mask())
        resize = settings.vision.resize.resize
        return resize(jpeg_round_trip(painted) if settings.jpeg else painted)

    def understand(self, reply: str, size: Size, frame: Size) -> Reading:
        """A reply about a picture of size `frame`, in pixels of the image of `size`."""
        window = self.settings.vision.resize.window(size)
        reading = self.settings.reply.read(reply, window.size, frame=frame)
        return Reading(
            action=window.action(reading.action, size),
            iou=reading.iou,
            box=window.box(reading.box, size),
            boxes=tuple(window.box(box, size) for box in reading.boxes),
        )


def asker_of(tokenizer: Tokenizer, settings: MllmSettings) -> Asker:
    """How a model with this tokenizer is asked."""
    added = tokenizer.get_added_tokens_decoder()

    @lru_cache(maxsize=256)  # a walk asks the same at every click
    def encoded(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    return Asker(
        encode=lambda text: list(encoded(text)),
        decode=lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=False)),
        settings=settings,
        specials=frozenset(number for number, token in added.items() if token.special),
    )


@dataclass(slots=True, kw_only=True)
class MllmAnnotator(Asker):
    """Chooses clicks with a vision tower and a language model.

    `writing` is how replies are decoded within the grammar.
    """

    tower: Tower
    model: LanguageModel
    writing: type[Writer] = Writer
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, image: RgbImage) -> MllmView:
        return MllmView(self, image)


def _refuse_unknown(expression: str, known: Sequence[str]) -> None:
    words = dict.fromkeys(re.findall(r"[^\s,]+", expression))
    unknown = [word for word in words if word not in known]
    if unknown:
        named = ", ".join(f"`{word}`" for word in unknown[:5])
        raise ExpressionRefused(
            f"the shipped model does not know {named}: it knows coloured shapes, not the world",
            hint="try words like: red, circle, largest, left of, second; "
            "for photos, export a checkpoint: `segagent-rt export --list`",
        )


class MllmView:
    """One image in front of the MLLM.

    Everything up to the end of the picture is the same for every expression as long as there is no
    mask, so it is read once and kept. Later masks change the picture and are read afresh; those of
    the last call are kept, so that more can be asked about one of several.
    """

    def __init__(self, annotator: MllmAnnotator, image: RgbImage) -> None:
        self._annotator, self._image = annotator, image
        self._size: Size = (image.shape[0], image.shape[1])
        self._lead = annotator.model.embed(annotator.prompt("")[0])
        self._writer = annotator.writing(annotator.model, annotator.settings.head_rows)
        self._blank: _Sight | None = None
        self._painted: list[_Sight] = []
        self._spare: list[Cache] = []

    @cached_property
    def _clean(self) -> RgbImage:
        """The image at the size that the model takes, made when it is first asked."""
        return self._annotator.tower.resize(self._image)

    def propose(
        self,
        requests: Sequence[Request],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> list[list[Turn]]:
        self._keep(requests)
        pick = _picker(temperature, rng)
        return [[self._turn(request, pick) for _ in range(samples)] for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Turn]:
        if not self._annotator.settings.reply.rates:
            return [Turn("", Finish()) for _ in requests]
        self._keep(requests)
        return [self._turn(request, greedy, rate_only=True) for request in requests]

    def _turn(self, request: Request, pick: Pick, *, rate_only: bool = False) -> Turn:
        annotator, watch = self._annotator, Stopwatch()
        expression = annotator.check(request.expression)
        frame: Size = (self._clean.shape[0], self._clean.shape[1])
        grammar = annotator.grammar(expression, frame)
        with annotator._lock:
            sight = self._look(request.prediction, watch)
            with watch("language"):
                written = self._write(sight, expression, grammar, pick, rate_only)
        reply = annotator.decode(written.tokens)
        if rate_only and grammar is not None:
            return Turn(reply, Finish(), rating_of(written, grammar), seconds=watch.seconds)
        reading = annotator.understand(reply, self._size, frame)
        action, rating = Finish() if rate_only else reading.action, reading.iou
        if grammar is not None:
            rating = rating_of(written, grammar) if annotator.settings.reply.rates else None
        return Turn(reply, action, rating, reading.box, watch.seconds, reading.boxes)

    def _write(
        self,
        sight: _Sight,
        expression: str,
        grammar: Automaton | None,
        pick: Pick,
        rate_only: bool,
    ) -> Written:
        """Decode a reply, or go on with the one that the cache holds."""
        draft = sight.draft if sight.said == expression else None
        sight.draft = None
        try:
            if draft is None or (grammar is None and pick is not greedy):
                draft, written = self._begin(sight, expression, grammar, pick, rate_only)
            elif grammar is None:
                written = draft.written
            else:
                until = grammar.past_rating if rate_only else grammar.ended
                written = self._writer.go_on(sight.cache, draft, grammar, pick, until)
        except BaseException:
            sight.cache.rewind(0)
            raise
        sight.said, sight.draft = expression, draft
        return written

    def _begin(
        self,
        sight: _Sight,
        expression: str,
        grammar: Automaton | None,
        pick: Pick,
        rate_only: bool,
    ) -> tuple[Draft | None, Written]:
        """Decode a reply from its beginning; a draft of it, unless it was drawn."""
        annotator, cache = self._annotator, sight.cache
        prompt = self._question(expression, sight)
        if grammar is not None:
            guess = grammar.opening if sight.prediction is None else grammar.praise
            prompt = replace(prompt, guess=guess)
        start = cache.length + prompt.embeddings.shape[1]
        if grammar is None:
            free = FreeWriter(annotator.model, annotator.settings.stops)
            written = free.write(cache, prompt, pick)
        else:
            until = grammar.past_rating if rate_only else grammar.ended
            written = self._writer.write(cache, prompt, grammar, pick, until)
        kept = cache.length - start
        return (Draft(start, written, kept) if pick is greedy else None), written

    def _look(self, prediction: Prediction | None, watch: Stopwatch) -> _Sight:
        """The picture, painted or not, as the beginning of a prompt."""
        known = self._painted if self._blank is None else [self._blank, *self._painted]
        for sight in known:
            if sight.prediction is prediction:
                return sight
        with watch("paint"):
            picture = self._annotator.picture(self._image, self._clean, prediction)
        with watch("vision"):
            seen = self._annotator.tower.embed(picture)
        sight = self._sight(prediction, seen, self._spare.pop() if self._spare else None)
        if prediction is None:
            self._blank = sight
        else:
            self._painted.append(sight)
        return sight

    def _keep(self, requests: Sequence[Request]) -> None:
        """Give up the caches of masks that are not asked about."""
        asked = {id(request.prediction) for request in requests}
        with self._annotator._lock:
            for sight in [s for s in self._painted if id(s.prediction) not in asked]:
                self._painted.remove(sight)
                self._spare.append(sight.cache)

    def _sight(self, prediction: Prediction | None, seen: Seen, cache: Cache | None) -> _Sight:
        annotator, lead = self._annotator, self._lead
        embeddings = np.concatenate([lead, seen.embeddings], axis=1)
        positions = annotator.settings.language.rope.before_text(lead.shape[1], seen.grid)
        room = annotator.room(seen.embeddings.shape[1])
        if cache is None or cache.capacity < room:
            cache = annotator.model.new_cache(room)
        cache.rewind(min(cache.length, lead.shape[1]))  # it began alike, whatever it held
        return _Sight(prediction, cache, embeddings, positions)

    def _question(self, expression: str, sight: _Sight) -> Prompt:
        """The rest of the prompt, with as much of the picture before it as the cache lacks."""
        _, tokens = self._annotator.prompt(expression)
        embeddings = self._annotator.model.embed(tokens)
        held = min(sight.cache.length, sight.positions.shape[1])
        sight.cache.rewind(held)
        if held == sight.positions.shape[1]:
            return Prompt(embeddings)
        before = sight.embeddings[:, held:]
        return Prompt(np.concatenate([before, embeddings], axis=1), sight.positions[:, held:])


@dataclass(slots=True, eq=False)
class _Sight:
    """A prompt up to the end of its picture, and the cache that holds it once it has been read, and
    behind it the draft of what was `said` last, if it was not drawn."""

    prediction: Prediction | None
    cache: Cache
    embeddings: Floats
    positions: Positions
    said: str = ""
    draft: Draft | None = None


def _picker(temperature: float, rng: np.random.Generator | None) -> Pick:
    if temperature == 0.0:
        return greedy
    draw = rng or np.random.default_rng()

    def pick(logits: Scores) -> int:
        scaled = logits.astype(np.float64) / temperature
        weights = np.exp(scaled - scaled.max())
        return int(draw.choice(len(weights), p=weights / weights.sum()))

    return pick
