"""The main interface: `load` a bundle, `open` an image, `annotate` an expression."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar

from segagent_rt import loop, search
from segagent_rt.annotators.mllm import (
    MllmAnnotator,
    MllmCodec,
    MllmSettings,
    PromptCodec,
    prompt_codec,
)
from segagent_rt.backends.checked_session import CheckedSession, Shape
from segagent_rt.backends.cores import oversubscribed
from segagent_rt.backends.registry import get_backend
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.bundle.bundle import Bundle, Part, open_bundle, open_photo_bundle
from segagent_rt.bundle.integrity import unusable
from segagent_rt.bundle.manifest import PartName
from segagent_rt.bundle.placement import Placement
from segagent_rt.errors import BundleError, ClickOutside, InputError, ManifestInvalid, RuntimeClosed
from segagent_rt.families import mllm_family, segmenter_family
from segagent_rt.image import load_image
from segagent_rt.lazy_future import LazyFuture
from segagent_rt.loop import StoppingRules, UnratedLimits
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.vision_encoder import VisionEncoder
from segagent_rt.results import Result, about_run
from segagent_rt.search import SearchConfig
from segagent_rt.timing import Stopwatch
from segagent_rt.types import (
    AnnotationItem,
    Annotator,
    Box,
    Click,
    ObjectPrompt,
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


WrapSession: TypeAlias = Callable[[str, Session], Session]
"""Given the part and role of a session ("mllm decoder"), and the session: the one to use."""

Loaded = TypeVar("Loaded")


def load(
    bundle: str | Path | None = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    endpoint: Endpoint | None = None,
    parts: Collection[PartName] | None = None,
    wrap: WrapSession | None = None,
) -> Runtime:
    """Open a bundle and load its graphs.

    Args:
        bundle: a folder or a name, such as "photo" for the shipped segmenter of photos; if None,
            the demo bundle, or, with an endpoint, the segmenter of photos.
        backend: where graphs run; `auto` takes the best one that works here.
        threads: CPU threads of each graph; None for all cores.
        endpoint: a server that runs the MLLM; its graphs are not loaded here then. If it has a
            preset, the bundle needs no MLLM.
        parts: what to load; None for all parts of the bundle.
        wrap: puts a wrapper around every session, for instance to measure it.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        BackendError: the backend does not work here.
    """
    preset = endpoint is not None and endpoint.preset is not None
    if bundle is None and endpoint is not None:
        opened = open_photo_bundle(with_mllm=not preset)
    else:
        opened = open_bundle(bundle)
    for part in opened.parts.values():
        if not (preset and part.manifest.kind == "mllm"):
            part.verify_once()
    return Runtime(opened, Where(backend, threads), endpoint, parts=parts, wrap=wrap)


class Runtime:
    """A bundle with its graphs: `open` images, then close it or use it in a `with` block.

    Threads may share one. It belongs to the process that loaded it; others load their own.

    Attributes:
        bundle: the bundle that it was loaded from.
        where: backend and threads.
        endpoint: the server that runs the MLLM, if one does.
        placements: where each graph runs, by part and role.
    """

    def __init__(
        self,
        bundle: Bundle,
        where: Where,
        endpoint: Endpoint | None = None,
        *,
        parts: Collection[PartName] | None = None,
        wrap: WrapSession | None = None,
    ) -> None:
        self.bundle, self.where, self.endpoint = bundle, where, endpoint
        self.placements = dict[str, Placement]()
        self._wrap, self._sessions = wrap, list[Session]()
        self._process, self._closed = os.getpid(), False
        self._segmenter: Segmenter | None = None
        self._annotator: Annotator | None = None
        there = {*bundle.parts, *(() if endpoint is None else ("mllm",))}
        wanted = there if parts is None else parts
        try:
            if "segmenter" in wanted:
                self._segmenter = open_segmenter(bundle.part("segmenter"), self._open)
            if "mllm" in wanted:
                self._annotator = self._open_annotator()
        except BaseException:
            self._close_sessions()
            raise
        self._encoder_thread = self._spare_thread()

    def check_usable(self) -> None:
        """Find out whether images can be opened.

        Raises:
            RuntimeClosed: the runtime is closed, or was loaded before a fork.
        """
        if self._process != os.getpid():
            raise RuntimeClosed(
                "a runtime that was loaded before a fork does not work after it",
                hint="call segagent_rt.load in each process, or start processes with `spawn`",
            )
        if self._closed:
            raise RuntimeClosed("the runtime is closed", hint="load the bundle again")

    @property
    def segmenter(self) -> Segmenter:
        """The bundle's segmenter.

        Raises:
            BundleError: the bundle has none, or it was not loaded.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        return self.loaded("segmenter", self._segmenter)

    @property
    def annotator(self) -> Annotator:
        """The bundle's MLLM, here or behind the endpoint.

        Raises:
            BundleError: the bundle has none, or it was not loaded.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        return self.loaded("mllm", self._annotator)

    @property
    def clicks_help(self) -> bool:
        """Whether `eval --record` found that clicks after the first mask improve it."""
        gain = self.bundle.loop_gain
        own_mllm = self.endpoint is None or self.endpoint.preset is None
        return own_mllm and gain is not None and gain > 0

    def completed_rules(self, rules: StoppingRules | None) -> StoppingRules:
        """The rules with what they leave to the bundle."""
        rules = rules or StoppingRules()
        if rules.stop_after_box is None:
            rules = replace(rules, stop_after_box=not self.clicks_help)
        if rules.accept_unrated is None:
            rules = replace(rules, accept_unrated=self._unrated_limits(rules.accept_above))
        return rules

    def _unrated_limits(self, accept_above: float | None) -> UnratedLimits | Literal[False]:
        """Those of the bundle, for its own MLLM here and ratings that are no stricter."""
        known, usual = self.bundle.accept_unrated, StoppingRules().accept_above
        if known is None or self.endpoint is not None or accept_above is None or usual is None:
            return False
        if accept_above > usual:
            return False
        return UnratedLimits(known.stability, known.confidence, known.later_stability, known.rating)

    def open(self, image: Any, *, value_range: tuple[float, float] | None = None) -> Canvas:
        """Put an image on a canvas, and start to encode it.

        Args:
            image: a path, `-`, bytes, a Pillow image, or an array; see `load_image`.
            value_range: the values that stand for black and white in float and 16-bit images.

        Raises:
            ImageUnreadable: no image can be read from it.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        self.check_usable()
        pixels = load_image(image, value_range=value_range)
        embedding = None if self._segmenter is None else self._encode(self._segmenter, pixels)
        view = None if self._annotator is None else self._annotator.look(pixels)
        return Canvas(self, pixels, embedding, view)

    def _encode(self, segmenter: Segmenter, pixels: RgbImage) -> Future[Any]:
        """The embedding, computed in the spare thread from now on; without one, by the first who
        asks for it."""
        encode = partial(segmenter.encode, pixels)
        if self._encoder_thread is None:
            return LazyFuture(encode)
        return self._encoder_thread.submit(contextvars.copy_context().run, encode)

    def _spare_thread(self) -> ThreadPoolExecutor | None:
        """A thread that encodes while the MLLM looks; None where both would share too few cores."""
        backends = {placement.backend for placement in self.placements.values()}
        if self.endpoint is None and backends <= {"cpu"} and oversubscribed(self.where.threads):
            return None
        return ThreadPoolExecutor(1, thread_name_prefix="segmenter")

    def _open_annotator(self) -> Annotator:
        if self.endpoint is None:
            annotator = open_mllm(self.bundle.part("mllm"), self._open)
            if get_backend(self.placements["mllm decoder"].backend).nvidia:
                # A GPU waits for the weights, which a call reads once for all of its tokens.
                annotator.model.allow_branches()
            return annotator
        from segagent_rt.annotators.endpoint import EndpointAnnotator
        from segagent_rt.annotators.preset_codec import preset_codec

        if self.endpoint.preset is None:
            codec: PromptCodec = open_prompt_codec(self.bundle.part("mllm"))
        else:
            codec = preset_codec(self.endpoint.preset)
        return EndpointAnnotator(codec, self.endpoint)

    def _open(self, part: Part, role: str) -> Session:
        opened = part.open(role, self.where)
        self._sessions.append(opened.session)
        name = f"{part.manifest.kind} {role}"
        self.placements[name] = opened.placement
        return opened.session if self._wrap is None else self._wrap(name, opened.session)

    def loaded(self, part: PartName, what: Loaded | None) -> Loaded:
        """What was made from a part, if it was loaded.

        Raises:
            BundleError: the bundle does not have the part, or it was not loaded.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        self.check_usable()
        if what is None:
            self.bundle.part(part)
            raise BundleError(f"the {part} was not loaded", hint="name it in `parts` of load")
        return what

    def _close_sessions(self) -> None:
        while self._sessions:
            self._sessions.pop().close()

    def annotate_many(
        self,
        items: Iterable[AnnotationItem | tuple[Any, str]],
        *,
        config: SearchConfig | None = None,
        all_objects: bool = False,
        on_error: Callable[[Any, InputError], object] | None = None,
    ) -> Iterator[Result]:
        """Segment objects in many images, one image after the other.

        Args:
            items: images with what is asked of each; a pair of an image and an expression will do.
                They are taken one at a time, so a generator may make them.
            config: how widely to search and when to stop; one candidate if left out.
            all_objects: a result for every object that an expression matches, if the annotator
                lists several.
            on_error: called with the image and the error if an image cannot be read or a prompt is
                refused; the next image follows. Without it the error is raised.

        Yields:
            A result for each object, also if it has no mask, as soon as its image is done.

        Raises:
            InputError: an image cannot be read, or a prompt is refused, and there is no `on_error`.
        """
        for number, item in enumerate(items, 1):
            if not isinstance(item, AnnotationItem):
                item = AnnotationItem(item[0], (ObjectPrompt(item[1]),))
            try:
                canvas = self.open(item.image)
                found = canvas.annotate_prompts(
                    item.prompts, config=config, all_objects=all_objects
                )
            except InputError as error:
                if on_error is None:
                    raise
                on_error(item.image, error)
                continue
            named = isinstance(item.image, (str, Path))
            source = str(item.image) if named else f"image-{number}"
            about = about_run(source, canvas.image, self)
            for at, trajectory in enumerate(found, 1):
                yield Result(canvas.image, trajectory, source, at, about)

    def close(self) -> None:
        """Release the graphs; once more does nothing, nor does it in another process."""
        if self._process != os.getpid() or self._closed:
            return
        self._closed = True
        if self._encoder_thread is not None:
            self._encoder_thread.shutdown()
        self._close_sessions()

    def __reduce__(self) -> NoReturn:
        raise RuntimeClosed(
            "a runtime cannot be sent to another process",
            hint="send the bundle's path, and call segagent_rt.load there",
        )

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Canvas:
    """One image, encoded once for all expressions and clicks.

    Attributes:
        runtime: the runtime that opened it.
        image: uint8 [H, W, 3], RGB.
    """

    def __init__(
        self, runtime: Runtime, image: RgbImage, embedding: Future[Any] | None, view: View | None
    ) -> None:
        self.runtime, self.image = runtime, image
        self._embedding, self._view = embedding, view

    @property
    def embedding(self) -> Future[Any]:
        """The segmenter's embedding of the image; it may still be computed.

        Raises:
            BundleError: no segmenter was loaded.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        return self.runtime.loaded("segmenter", self._embedding)

    @property
    def view(self) -> View:
        """The image as the annotator sees it.

        Raises:
            BundleError: no MLLM was loaded.
            RuntimeClosed: the runtime is closed, or belongs to another process.
        """
        return self.runtime.loaded("mllm", self._view)

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
        rules = self.runtime.completed_rules(rules)
        return loop.iter_steps(
            expression, self.view, segmenter, embedding, rules=rules, prior=prior
        )

    def search_steps(
        self, expression: str, *, config: SearchConfig, prior: Prediction | None = None
    ) -> Iterator[Step]:
        """As `iter_steps`, trying several clicks at each step; see `search.search_steps`."""
        embedding, segmenter = self.embedding, self.runtime.segmenter
        config = replace(config, rules=self.runtime.completed_rules(config.rules))
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

    def annotate_prompts(
        self,
        prompts: Iterable[ObjectPrompt],
        *,
        config: SearchConfig | None = None,
        all_objects: bool = False,
        priors: Sequence[Prediction | None] = (),
        watch: Callable[[Iterator[Step]], Iterable[Step]] = iter,
    ) -> list[Trajectory]:
        """Segment several objects, each by words or by hand.

        Args:
            prompts: what says which objects are meant.
            config: how widely to search and when to stop; one candidate if left out.
            all_objects: also segment the further objects that the first look lists.
            priors: masks to start from, one for each prompt.
            watch: passes the steps of each prompt on as they are made, for instance to show them.

        Returns:
            A trajectory for each prompt, followed by those of its further objects.

        Raises:
            ExpressionRefused: the annotator cannot take an expression.
            ClickOutside: a click or a box does not lie in the image.
        """
        asked = [
            each if each.by_hand else self.runtime.annotator.check(each.expression)
            for each in prompts
        ]
        found = list[Trajectory]()
        for number, prompt in enumerate(asked):
            prior = priors[number] if priors else None
            if isinstance(prompt, ObjectPrompt):
                steps = watch(self._steps_by_hand(prompt, prior))
                found.append(Trajectory(prompt.expression, tuple(steps)))
                continue
            how = config or SearchConfig(candidates=1)
            steps = watch(self.search_steps(prompt, config=how, prior=prior))
            found.append(Trajectory(prompt, tuple(steps)))
            if all_objects:
                found += self.further_objects(found[-1])
        return found

    def _steps_by_hand(self, prompt: ObjectPrompt, prior: Prediction | None) -> Iterator[Step]:
        """The clicks as steps, each with the mask after it; or one step for a box alone."""
        masks = self._masks(prompt.clicks, prompt.box, prior)
        for click in prompt.clicks or (None,):
            watch = Stopwatch()
            with watch("segment"):
                made = next(masks)
            yield Step(click, made, box=prompt.box, seconds=watch.seconds)

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
        *_, last = self._masks(clicks, box, prior)
        return last

    def check_points(self, points: Sequence[tuple[int, int]]) -> None:
        """Check that there are points, and that they lie in the image.

        Args:
            points: x and y of clicks and corners, in pixels of the image.

        Raises:
            ClickOutside: there is none, or one does not.
        """
        if not points:
            raise ClickOutside("there is no click", hint="give at least one, or a box")
        height, width = self.image.shape[:2]
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise ClickOutside(
                    f"the point ({x}, {y}) is outside the image",
                    hint=f"x goes from 0 to {width - 1}, y from 0 to {height - 1}",
                )

    def _masks(
        self, clicks: Sequence[Click], box: Box | None, prior: Prediction | None
    ) -> Iterator[Prediction]:
        """The mask after each click, or the mask of the box alone; see `segment`."""
        corners = [(box.x0, box.y0), (box.x1, box.y1)] if box else []
        self.check_points([*corners, *((click.x, click.y) for click in clicks)])
        embedding, decode = self.embedding.result(), self.runtime.segmenter.decode
        for count in range(min(1, len(clicks)), len(clicks) + 1):
            prior = decode(embedding, clicks[:count], prior=prior, box=box)
            yield prior


OpenSession = Callable[[Part, str], Session]


def open_segmenter(part: Part, open_session: OpenSession) -> Segmenter:
    """The segmenter of a part, by its family; only that family's module is imported.

    Raises:
        BundleError: no installed package has the family, or the settings are not the family's.
    """
    family = segmenter_family(part.manifest.family)
    if family is None:
        raise _unknown(part)
    settings = part.settings(family.settings)
    return family.build(*(open_session(part, role) for role in family.roles), settings)


def open_mllm(part: Part, open_session: OpenSession) -> MllmAnnotator:
    """The MLLM of a part. One class serves every family; the settings tell them apart.

    Raises:
        BundleError: the part's files do not fit each other.
    """
    codec = open_prompt_codec(part)
    settings, name = codec.settings, f"{part.folder} {{}}".format
    hidden, table = settings.language.hidden, part.array("embed.npy")
    if table.ndim != 2 or table.shape[1] != hidden:
        raise ManifestInvalid(f"{name('embed.npy')} is {list(table.shape)}, not tokens x {hidden}")
    rows, deepstack = len(settings.head_rows), settings.vision.deepstack
    if deepstack != settings.language.deepstack:
        raise ManifestInvalid(
            f"{name('manifest.json')} has {deepstack} deepstack layers of vision and "
            f"{settings.language.deepstack} of language"
        )
    head = None
    if settings.decoding == "free":
        head = CheckedSession(open_session(part, "head"), name("head"), {"logits": (1, len(table))})
    shapes: dict[str, Shape] = {"logits": ("tokens", rows), "hidden": ("tokens", hidden)}
    decoder = CheckedSession(open_session(part, "decoder"), name("decoder"), shapes)
    shapes = {"image_embeds": ("tokens", hidden), "deepstack_embeds": (deepstack, "tokens", hidden)}
    vision = CheckedSession(open_session(part, "vision"), name("vision"), shapes)
    return MllmAnnotator(
        vision_encoder=VisionEncoder(vision, settings.vision),
        model=LanguageModel(decoder, table, settings.language, head),
        encode=codec.encode,
        decode=codec.decode,
        settings=settings,
        specials=codec.specials,
    )


def open_prompt_codec(part: Part) -> MllmCodec:
    """The prompt codec of the MLLM of a part; it needs no weights.

    Raises:
        BundleError: its tokenizer does not fit its settings.
    """
    from segagent_rt.mllm.tokenizer import parse_tokenizer

    if mllm_family(part.manifest.family) is None:
        raise _unknown(part)
    settings, text = part.settings(MllmSettings), part.text("tokenizer.json")
    with unusable(part.folder / "tokenizer.json"):
        codec = prompt_codec(parse_tokenizer(text), settings)
        codec.prompt("")  # the picture has a place in it
        codec.grammar("x", (1, 1))
    return codec


def _unknown(part: Part) -> ManifestInvalid:
    return ManifestInvalid(
        f"{part.folder} is of the family `{part.manifest.family}`, unknown to this version",
        hint="install a newer version of segagent-rt",
    )
