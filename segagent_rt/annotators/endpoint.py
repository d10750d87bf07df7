"""An MLLM behind a server that speaks OpenAI's chat API with images.

The bundle says what is asked and how replies are read; the server has the weights. It is sent the
picture as the model takes it, so that there is nothing left to resize.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segagent_rt.annotators.chat_answer import read_answer
from segagent_rt.annotators.http_client import find_key, parse_address, post
from segagent_rt.annotators.mllm import PromptCodec, PromptSettings
from segagent_rt.annotators.server_profiles import get_profile
from segagent_rt.draw import png
from segagent_rt.errors import AnnotatorError, ManifestInvalid
from segagent_rt.mllm.decoder import DecodedReply, TokenChoice
from segagent_rt.mllm.grammar import Automaton
from segagent_rt.mllm.rating import expected_iou
from segagent_rt.timing import Stopwatch
from segagent_rt.types import GREEDY, Prediction, Rating, Request, RgbImage, Sampling, Size, Turn

LONGEST_WAIT = 86400.0
"""Seconds that an answer may be waited for."""

_CHATML = re.compile(
    r"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?"
    r"<\|im_start\|>user\n.*<picture>(?:<\|vision_end\|>|</img>\n)(?P<asked>.*)"
    r"<\|im_end\|>\n<\|im_start\|>assistant\n",
    re.DOTALL,
)
_VICUNA = re.compile(r"<s>USER: (?P<system>)<picture>\n(?P<asked>.*) ASSISTANT:", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and how it is spoken to.

    Attributes:
        url: of its API; without a path, of version 1.
        model: the name under which it serves the model.
        server: its kind, a row of the table of servers.
        timeout: seconds for each try of a question.
        allowed: names of other machines that pictures may be sent to.
        preset: what the model is asked and how its replies are read; the bundle's way if None.
    """

    url: str
    model: str
    server: str = "any"
    timeout: float = 120.0
    allowed: tuple[str, ...] = ()
    preset: str | None = None


class EndpointAnnotator:
    """Asks a server for each click.

    Raises:
        AnnotatorError: the endpoint's URL or kind cannot be, or leads to a machine not allowed.
    """

    def __init__(self, codec: PromptCodec, endpoint: Endpoint) -> None:
        if not 0 < endpoint.timeout <= LONGEST_WAIT:
            raise AnnotatorError(
                f"a time-out of {endpoint.timeout:g} seconds cannot be waited for",
                hint=f"give --timeout a number up to {LONGEST_WAIT:g}",
            )
        self.codec, self.endpoint = codec, endpoint
        self.address = parse_address(endpoint.url, endpoint.allowed)
        self.server = get_profile(endpoint.server)
        openai = endpoint.server == "openai"
        self.key = find_key(self.address, endpoint.allowed, for_openai=openai)

    def check(self, expression: str) -> str:
        return self.codec.check(expression)

    def look(self, image: RgbImage) -> EndpointView:
        return EndpointView(self, image)


class EndpointView:
    """One image, of which the server is shown a picture with each question.

    What it answered when it rated masks is kept: it said the next click too.
    """

    def __init__(self, annotator: EndpointAnnotator, image: RgbImage) -> None:
        self._annotator, self._codec = annotator, annotator.codec
        self._image, self._size = image, (image.shape[0], image.shape[1])
        self._clean = self._codec.settings.resize.resize(image)
        self._rated: list[tuple[Request, Turn]] = []

    def propose(self, requests: Sequence[Request], sampling: Sampling = GREEDY) -> list[list[Turn]]:
        def drawing() -> dict[str, Any]:
            rng = sampling.rng
            seed = {} if rng is None else {"seed": int(rng.integers(1 << 31))}
            return {"temperature": sampling.temperature, **seed}

        if sampling == GREEDY:
            return [[self._greedy(request)] for request in requests]
        answers = range(sampling.count)
        return [[self._turn(request, drawing()) for _ in answers] for request in requests]

    def rate(self, requests: Sequence[Request]) -> list[Rating]:
        if not self._codec.settings.reply.rates:
            return [Rating(None) for _ in requests]
        turns = [self._greedy(request) for request in requests]
        self._rated = list(zip(requests, turns, strict=True))
        return [Rating(turn.rating, turn.reply, turn.seconds) for turn in turns]

    def _greedy(self, request: Request) -> Turn:
        for known, turn in self._rated:
            if known.prediction is request.prediction and known.expression == request.expression:
                return replace(turn, seconds={})
        return self._turn(request, {"temperature": 0.0})

    def _turn(self, request: Request, drawing: dict[str, Any]) -> Turn:
        codec, endpoint, watch = self._codec, self._annotator.endpoint, Stopwatch()
        expression = codec.check(request.expression)
        frame: Size = (self._clean.shape[0], self._clean.shape[1])
        grammar = codec.grammar(expression, frame)
        protocol = None if grammar is None else codec.settings.reply
        with watch("paint"):
            question = {
                "model": endpoint.model,
                "messages": self._messages(expression, request.prediction),
                "max_tokens": codec.settings.reply.longest_reply(codec.settings.longest_expression),
                **drawing,
                **self._annotator.server.asks(protocol, expression, frame),
            }
        with watch("server"):
            address = self._annotator.address
            key = self._annotator.key
            answer = post(address, "/chat/completions", question, endpoint.timeout, key)
        answered = read_answer(answer, str(address))
        reply, likelihoods = answered.reply, answered.likelihoods
        reading = codec.understand(reply, self._size, frame)
        rating, rates = reading.iou, codec.settings.reply.rates
        if (
            grammar is not None
            and rates
            and (written := choices_from_logprobs(likelihoods, grammar, codec.decode))
        ):
            rating = expected_iou(written, grammar)
        return Turn(reply, reading.action, rating, reading.box, watch.seconds, reading.boxes)

    def _messages(self, expression: str, prediction: Prediction | None) -> list[dict[str, Any]]:
        system, asked = conversation(self._codec.settings)
        picture = png(self._codec.picture(self._image, self._clean, prediction))
        url = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": asked.replace("{expression}", expression)},
        ]
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": content}]


def conversation(settings: PromptSettings) -> tuple[str, str]:
    """What the system and the user say beside the picture: the server frames it as the family does.

    Raises:
        ManifestInvalid: the bundle's prompt has a frame that no server is known to have.
    """
    prompt = settings.prompt.replace(settings.picture, "<picture>")
    match = _CHATML.fullmatch(prompt) or _VICUNA.fullmatch(prompt)
    if match is None:
        raise ManifestInvalid(
            "the bundle's prompt is not that of a known chat", hint="run it without --endpoint"
        )
    return match["system"] or "", match["asked"]


def choices_from_logprobs(
    likelihoods: Iterable[Any], grammar: Automaton, decode: Callable[[Sequence[int]], str]
) -> DecodedReply | None:
    """The choices behind a reply, as decoding in this process would have seen them.

    None if the reply was not spelt as the grammar spells it, or nothing is known of its tokens.
    """
    state, tokens, choices = grammar.start, list[int](), list[TokenChoice]()
    try:
        for place in likelihoods:
            edges = grammar.edges(state)
            spelt = {decode([token]): token for token in edges}
            known = {entry["token"]: entry["logprob"] for entry in (*place["top_logprobs"], place)}
            # Added to a number, what is none is refused.
            scores = np.array([0.0 + known.get(text, -math.inf) for text in spelt])
            if not 0 < math.exp(scores.max()) < math.inf:
                return None
            if len(edges) > 1:
                choices.append(TokenChoice(state, tuple(spelt.values()), scores))
            tokens.append(spelt[place["token"]])
            state = edges[tokens[-1]]
            if grammar.ended(state):
                return DecodedReply(tuple(tokens), tuple(choices), len(tokens))
    except (KeyError, TypeError, OverflowError):
        pass
    return None
