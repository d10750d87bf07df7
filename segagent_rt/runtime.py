"""The doorway: a bundle becomes a runtime, an image a canvas, an expression a mask."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segagent_rt import loop, search
from segagent_rt.annotators.mllm import (
    MllmAnnotator,
    MllmCodec,
    MllmSettings,
    PromptCodec,
    prompt_codec,
)
from segagent_rt.backends.cores import crowded
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.bundle.bundle import Bundle, Part, open_bundle
from segagent_rt.bundle.placement import Placement
from segagent_rt.errors import ClickOutside, ManifestInvalid
from segagent_rt.image import load_image
from segagent_rt.lazy_future import LazyFuture
from segagent_rt.loop import StoppingRules
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.vision_encoder import Tower
from segagent_rt.search import SearchConfig
from segagent_rt.timing import Stopwatch
from segagent_rt.types import (
    Annotator,
    Box,
    Click,
    Prediction,
    RgbImage,
    Segmenter,
    Session,
    Step,
    Trajectory,
    Turn,
    View,
)

if TYPE_CHECKING:
    from segagent_rt.annotators.endpoint import Endpoint


def load(
    bundle: str | Path | None = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    endpoint: Endpoint | None = None,
) -> Runtime:
    """Open a bundle for use; the shipped one if none is named. Graphs are loaded when first used.

    With an endpoint, the MLLM is asked there and its graphs are not loaded; with an endpoint that
    has a preset, the bundle needs no MLLM.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
    """
    opened = open_bundle(bundle)
    elsewhere = endpoint is not None and endpoint.preset is not None
    for part in opened.parts.values():
        if not (elsewhere and part.manifest.kind == "mllm"):
            part.verify_once()
    return Runtime(opened, Where(backend, threads), endpoint)


@dataclass
class Runtime:
    """A bundle with its graphs: `open` images, then close it or use it in a `with` block."""

    bundle: Bundle
    where: Where
    endpoint: Endpoint | None = None
    placements: dict[str, Placement] = field(default_factory=dict)
    """Where each graph that was loaded runs, by part and role."""
    watch: Callable[[str, Session], Session] | None = None
    """Puts a meter around each session that is loaded, given part and role."""
    _sessions: list[Session] = field(default_factory=list)

    @cached_property
    def segmenter(self) -> Segmenter:
        """The bundle's segmenter."""
        return open_segmenter(self.bundle.part("segmenter"), self._open)

    @cached_property
    def annotator(self) -> Annotator:
        """The bundle's MLLM, here or behind the endpoint."""
        if self.endpoint is None:
            return open_mllm(self.bundle.part("mllm"), self._open)
        from segagent_rt.annotators.endpoint import EndpointAnnotator
        from segagent_rt.annotators.preset_codec import preset_codec

        if self.endpoint.preset is None:
            codec: PromptCodec = open_prompt_codec(self.bundle.part("mllm"))
        else:
            codec = preset_codec(self.endpoint.preset)
        return EndpointAnnotator(codec, self.endpoint)

    @property
    def _crowded(self) -> bool:
        """Whether the graphs that are loaded have too few cores to run two at a time."""
        backends = {placement.backend for placement in self.placements.values()}
        return self.endpoint is None and backends <= {"cpu"} and crowded(self.where.threads)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="segmenter")

    def _open(self, part: Part, role: str) -> Session:
        opened = part.open(role, self.where)
        self._sessions.append(opened.session)
        name = f"{part.manifest.kind} {role}"
        self.placements[name] = opened.placement
        return opened.session if self.watch is None else self.watch(name, opened.session)

    def open(self, image: Any, *, value_range: tuple[float, float] | None = None) -> Canvas:
        """Put an image on a canvas.

        Args:
            image: a path, `-`, bytes, a Pillow image, or an array; see `load_image`.
            value_range: the values that stand for black and white in float and 16-bit images.

        Raises:
            ImageUnreadable: no picture can be read from it.
        """
        return Canvas(self, load_image(image, value_range=value_range))

    def close(self) -> None:
        """Release the graphs."""
        if "_pool" in self.__dict__:
            self._pool.shutdown()
        while self._sessions:
            self._sessions.pop().close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Canvas:
    """One image and all that is computed of it once, however many expressions are asked."""

    runtime: Runtime
    image: RgbImage

    @cached_property
    def embedding(self) -> Future[Any]:
        """The segmenter's embedding, computed in another thread from now on; where that would only
        slow the MLLM down, when it is asked for."""
        runtime = self.runtime
        encode = partial(runtime.segmenter.encode, self.image)
        if runtime._crowded:
            return LazyFuture(encode)
        return runtime._pool.submit(contextvars.copy_context().run, encode)

    @cached_property
    def view(self) -> View:
        """The image as the annotator sees it."""
        return self.runtime.annotator.look(self.image)

    def annotate(
        self,
        expression: str,
        *,
        rules: StoppingRules | None = None,
        prior: Prediction | None = None,
    ) -> Trajectory:
        """Segment what the expression says.

        Args:
            expression: the object in words.
            rules: when to stop.
            prior: a mask to start from.

        Returns:
            All steps; its `prediction` is the best-rated mask.

        Raises:
            ExpressionRefused: the annotator cannot take the expression.
        """
        return Trajectory(expression, tuple(self.iter_steps(expression, rules=rules, prior=prior)))

    def iter_steps(
        self,
        expression: str,
        *,
        rules: StoppingRules | None = None,
        prior: Prediction | None = None,
    ) -> Iterator[Step]:
        """As `annotate`, but yield each step as soon as its mask is rated."""
        embedding, segmenter = self.embedding, self.runtime.segmenter
        return loop.iter_steps(
            expression, self.view, segmenter, embedding, rules=rules, prior=prior
        )

    def search_steps(
        self, expression: str, *, config: SearchConfig, prior: Prediction | None = None
    ) -> Iterator[Step]:
        """As `iter_steps`, trying several clicks at each step; see `search.search_steps`."""
        embedding, segmenter = self.embedding, self.runtime.segmenter
        return search.search_steps(
            expression, self.view, segmenter, embedding, config=config, prior=prior
        )

    def annotate_all(
        self, expression: str, *, rules: StoppingRules | None = None
    ) -> list[Trajectory]:
        """Segment every object that the expression matches.

        Args:
            expression: the objects in words.
            rules: when to stop.

        Returns:
            A trajectory for each box that the annotator listed at its first look, in its order;
            only one if it does not list boxes.

        Raises:
            ExpressionRefused: the annotator cannot take the expression.
        """
        first = self.annotate(expression, rules=rules)
        return [first, *self.further_objects(first)]

    def further_objects(self, found: Trajectory) -> list[Trajectory]:
        """Segment the boxes that the annotator listed behind the one that `found` is about."""
        turn, boxes = found.steps[0].turn, found.further_boxes
        return [self._one_shot(found.expression, turn, box) for box in boxes]

    def _one_shot(self, expression: str, turn: Turn | None, box: Box) -> Trajectory:
        watch = Stopwatch()
        with watch("segment"):
            made = self.segment(box=box)
        step = Step(prediction=made, turn=turn, box=box, seconds=watch.seconds, stop="one-shot")
        return Trajectory(expression, (step,))

    def segment(
        self,
        clicks: Sequence[Click] = (),
        *,
        box: Box | None = None,
        prior: Prediction | None = None,
    ) -> Prediction:
        """Segment what clicks and a box show, without an MLLM.

        Args:
            clicks: in pixels of the image; they are applied one after the other.
            box: in pixels of the image.
            prior: a mask to start from.

        Returns:
            The mask after the last click, or of the box alone.

        Raises:
            ClickOutside: there is neither a click nor a box, or one does not lie in the image.
        """
        corners = [(box.x0, box.y0), (box.x1, box.y1)] if box else []
        points = [*corners, *((click.x, click.y) for click in clicks)]
        if not points:
            raise ClickOutside("there is no click", hint="give at least one: --click +120,80")
        height, width = self.image.shape[:2]
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise ClickOutside(
                    f"the point ({x}, {y}) is outside the image",
                    hint=f"x goes from 0 to {width - 1}, y from 0 to {height - 1}",
                )
        embedding, decode = self.embedding.result(), self.runtime.segmenter.decode
        for count in range(min(1, len(clicks)), len(clicks) + 1):
            prior = decode(embedding, clicks[:count], prior=prior, box=box)
        assert prior is not None
        return prior


OpenSession = Callable[[Part, str], Session]

SAMS = ("sam", "sam_hq", "mobile_sam", "sam2", "edgetam")
"""Families of segmenters that are used as SAM is; their settings tell them apart."""

MLLMS = ("qwen_vl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava")
"""Families of MLLMs."""


def open_segmenter(part: Part, open_session: OpenSession) -> Segmenter:
    """The segmenter of a part, by its family; only that family's module is imported."""
    family = part.manifest.family
    if family == "click_net":
        from segagent_rt.segmenters.click_net import ClickNet, ClickNetSettings

        encoder, decoder = open_session(part, "encoder"), open_session(part, "decoder")
        return ClickNet(encoder, decoder, part.settings(ClickNetSettings))
    if family == "photo_net":
        from segagent_rt.segmenters.photo_net import PhotoNet, PhotoNetSettings

        encoder, decoder = open_session(part, "encoder"), open_session(part, "decoder")
        return PhotoNet(encoder, decoder, part.settings(PhotoNetSettings))
    if family == "simple_click":
        from segagent_rt.segmenters.simple_click import SimpleClick, SimpleClickSettings

        return SimpleClick(open_session(part, "net"), part.settings(SimpleClickSettings))
    if family in SAMS:
        from segagent_rt.segmenters.sam import Sam, SamSettings

        encoder, decoder = open_session(part, "encoder"), open_session(part, "decoder")
        return Sam(encoder, decoder, part.settings(SamSettings))
    raise _unknown(part)


def open_mllm(part: Part, open_session: OpenSession) -> MllmAnnotator:
    """The MLLM of a part. One class serves every family; the settings tell them apart."""
    codec = open_prompt_codec(part)
    settings = codec.settings
    table = np.load(part.file("embed.npy"), mmap_mode="r", allow_pickle=False)
    head = open_session(part, "head") if settings.decoding == "free" else None
    decoder = open_session(part, "decoder")
    return MllmAnnotator(
        tower=Tower(open_session(part, "vision"), settings.vision),
        model=LanguageModel(decoder, table, settings.language, head),
        encode=codec.encode,
        decode=codec.decode,
        settings=settings,
        specials=codec.specials,
    )


def open_prompt_codec(part: Part) -> MllmCodec:
    """The prompt codec of the MLLM of a part; it needs no weights."""
    from tokenizers import Tokenizer

    if part.manifest.family not in MLLMS:
        raise _unknown(part)
    tokenizer = Tokenizer.from_str(part.file("tokenizer.json").read_text("utf-8"))
    return prompt_codec(tokenizer, part.settings(MllmSettings))


def _unknown(part: Part) -> ManifestInvalid:
    return ManifestInvalid(
        f"{part.folder} is of the family `{part.manifest.family}`, unknown to this version",
        hint="install a newer version of segagent-rt",
    )
