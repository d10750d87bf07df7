"""What the server does, without a word of HTTP: open images, objects in them, clicks and words.

Every request that computes is admitted first:

    with service.admit() as job:
        image = service.open_image(job, content, bundle="photo")
        state = service.click(job, image.id, None, [Click(120, 80, positive=True)])
    mask = state.prediction.mask()

Methods may be called from many threads. Errors are those of `segagent_rt.errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotReady
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segagent_rt.errors import ClickOutside, InputError, Interrupted, NotOpen
from segagent_rt.image import load_image
from segagent_rt.io import open_regular, read_bounded
from segagent_rt.loop import StoppingRules, decode_step
from segagent_rt.runtime import Canvas, Runtime
from segagent_rt.search import SearchConfig
from segagent_rt.serve.bundle_card import bundle_card, takes_words
from segagent_rt.serve.compute_queue import ComputeQueue, Job
from segagent_rt.serve.held_memory import held_bytes
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.object_history import ObjectState
from segagent_rt.serve.open_images import OpenImage, OpenImages, new_id
from segagent_rt.timing import Stopwatch
from segagent_rt.types import Box, Click, ObjectPrompt, Prediction, Request, RgbImage, Seconds, Step


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a model's run goes.

    Attributes:
        max_clicks: the most clicks of the model.
        candidates: clicks tried at every turn; the best-rated one is kept.
    """

    max_clicks: int = 7
    candidates: int = 1


def ignore_seconds(seconds: Seconds) -> None:
    """Nobody counts the stages."""


class SegmentationService:
    """Loaded bundles, and the images that clients have open with them.

    Args:
        bundles: loaded runtimes by the names that clients choose; the first one is the default.
        limits: of everything.
        roots: folders below which images may be opened by path.
        on_seconds: is told the time of each piece of work by stage.
    """

    def __init__(
        self,
        bundles: Mapping[str, Runtime],
        limits: ServeLimits | None = None,
        *,
        roots: Sequence[Path] = (),
        on_seconds: Callable[[Seconds], None] = ignore_seconds,
    ) -> None:
        self.bundles, self.limits = dict(bundles), limits or ServeLimits()
        self.images = OpenImages(self.limits)
        self.queue = ComputeQueue(self.limits.workers, self.limits.waiting)
        self._roots = [root.resolve() for root in roots]
        self._on_seconds = on_seconds

    @property
    def cards(self) -> list[dict[str, Any]]:
        """What people should know of each bundle; see `bundle_card`."""
        return [bundle_card(name, runtime) for name, runtime in self.bundles.items()]

    def runtime(self, bundle: str | None = None) -> tuple[str, Runtime]:
        """A bundle's name and runtime; those of the default one for None.

        Raises:
            NotOpen: no bundle of this name is loaded.
        """
        name = next(iter(self.bundles)) if bundle is None else bundle
        if name not in self.bundles:
            raise NotOpen(
                "no bundle of this name is loaded", hint="loaded are " + ", ".join(self.bundles)
            )
        return name, self.bundles[name]

    def admit(self, seconds: float | None = None) -> Job:
        """Take a request in that will compute; see `ComputeQueue.admit`.

        Args:
            seconds: its time, within the server's limit; None for all of that.

        Raises:
            ServerBusy: too many wait already.
        """
        most = self.limits.work_seconds
        return self.queue.admit(most if seconds is None else min(seconds, most))

    def close(self) -> None:
        """Release all graphs."""
        for runtime in self.bundles.values():
            runtime.close()

    # Images

    def open_image(
        self, job: Job, content: bytes | RgbImage, *, bundle: str | None = None, name: str = "image"
    ) -> OpenImage:
        """Read and encode an image, and keep it open.

        Args:
            job: of the request.
            content: the bytes of a picture, or uint8 [H, W, 3] RGB.
            bundle: the name of a loaded bundle; None for the default one.
            name: of the image's file, for exports.

        Raises:
            NotOpen: there is no such bundle.
            ImageUnreadable: no picture, a damaged one, or one of too many pixels.
            Interrupted: the job was cancelled, or its time was up.
        """
        name_of_bundle, runtime = self.runtime(bundle)
        canvas, seconds = job.run(lambda: self._opened(runtime, content))
        opened = OpenImage(new_id(), name, name_of_bundle, canvas, seconds, self.limits)
        self.images.add(opened)
        return opened

    def open_path(self, job: Job, path: str, *, bundle: str | None = None) -> OpenImage:
        """As `open_image`, from a file below one of the roots.

        Args:
            job: of the request.
            path: absolute, or from a root.
            bundle: the name of a loaded bundle.

        Raises:
            InputError: there is no such file below a root. The message names no file elsewhere.
        """
        content = self.read_path(path)
        return self.open_image(job, content, bundle=bundle, name=Path(path).name)

    def read_path(self, path: str) -> bytes:
        """The content of a file below one of the roots.

        Args:
            path: absolute, or from a root.

        Raises:
            InputError: there is no such file below a root. The message names no file elsewhere.
        """
        file = self._allowed(path)
        with open_regular(file) as stream:
            return read_bounded(stream, self.limits.upload_bytes, file.name)

    def close_image(self, image_id: str) -> None:
        """Close an image.

        Raises:
            NotOpen: it is not open.
        """
        self.images.remove(image_id)

    # Objects, by words

    def segment(
        self,
        job: Job,
        image_id: str,
        expression: str,
        *,
        number: int | None = None,
        settings: RunSettings | None = None,
    ) -> Iterator[ObjectState]:
        """Segment what an expression says, as an object of an open image.

        Args:
            job: of the request; it is held until the iterator ends.
            image_id: of the open image.
            expression: the object in words.
            number: of an object that is to become this; None for a new one.
            settings: how the run goes.

        Returns:
            The state after every step. The last one shows the best mask, and its last step says
            why the run ended. If a person takes over, it ends without such a step.

        Raises:
            NotOpen: there is no such image or object.
            InputError: the bundle takes no words, or not these.
        """
        image = self.images.get(image_id)
        said = self._checked(image, expression)
        with image.lock:
            image.check_room(number)
        return self._run(job, image, number, said, None, settings or RunSettings())

    def refine(
        self,
        job: Job,
        image_id: str,
        number: int,
        expression: str | None = None,
        *,
        settings: RunSettings | None = None,
    ) -> Iterator[ObjectState]:
        """Let the model correct the mask that is shown; arguments and result as of `segment`.

        Args:
            job: of the request.
            image_id: of the open image.
            number: of the object.
            expression: None for the one that the object has.
            settings: how the run goes.

        Raises:
            NotOpen: there is no such image or object.
            InputError: the object has no mask or expression, or the bundle takes no words.
        """
        image = self.images.get(image_id)
        with image.lock:
            state = image.history(number).state
        said = self._checked(image, expression or state.expression)
        prior = shown_mask(state)
        return self._run(job, image, number, said, prior, settings or RunSettings())

    def score(
        self, job: Job, image_id: str, number: int, expression: str | None = None
    ) -> float | None:
        """The model's rating of the mask that is shown: predicted IoU, 0..1.

        Returns:
            None if this model does not rate masks.

        Raises:
            NotOpen: there is no such image or object.
            InputError: the object has no mask or expression, or the bundle takes no words.
        """
        image = self.images.get(image_id)
        with image.lock:
            state = image.history(number).state
        said = self._checked(image, expression or state.expression)
        request = Request(shown_mask(state), said)
        (rating,) = job.run(lambda: image.canvas.view.rate([request]))
        self._on_seconds(rating.seconds)
        return rating.value

    # Objects, by hand

    def click(
        self,
        job: Job,
        image_id: str,
        number: int | None,
        clicks: Sequence[Click],
        *,
        expression: str = "",
        state: int | None = None,
    ) -> ObjectState:
        """Add a person's clicks to an object. A run of the model on it ends.

        Args:
            job: of the request.
            image_id: of the open image.
            number: of the object; None for a new one.
            clicks: in pixels of the image.
            expression: names a new object.
            state: the state that the person saw, by the number of those before it; None for the
                current one.

        Raises:
            NotOpen: there is no such image or object.
            ClickOutside: there is no click, or one is not in the image.
        """
        image = self.images.get(image_id)
        image.canvas.check_points([(click.x, click.y) for click in clicks])
        steps = [Step(click) for click in clicks]
        if number is not None and state is not None:
            self.undo(image_id, number, 0, state=state)
        return self._by_hand(job, image, number, steps, expression, restart=False)

    def box(
        self, job: Job, image_id: str, number: int | None, box: Box, *, expression: str = ""
    ) -> ObjectState:
        """Start an object anew from a person's box. A run of the model on it ends.

        Args:
            job: of the request.
            image_id: of the open image.
            number: of the object; None for a new one.
            box: in pixels of the image.
            expression: names a new object.

        Raises:
            NotOpen: there is no such image or object.
            ClickOutside: the box is empty, or a corner is not in the image.
        """
        image = self.images.get(image_id)
        check_box(image, box)
        return self._by_hand(job, image, number, [Step(box=box)], expression, restart=True)

    def undo(
        self, image_id: str, number: int, count: int = 1, *, state: int | None = None
    ) -> ObjectState:
        """Go back by some states, as far as there are any. A run of the model on the object ends.

        Args:
            image_id: of the open image.
            number: of the object.
            count: of states; a negative one goes forward again.
            state: where to begin; see `click`.

        Raises:
            NotOpen: there is no such image or object.
        """
        image = self.images.get(image_id)
        with image.lock:
            history = image.history(number)
            image.take_over(number)
            begin = history.state.undoable if state is None else state
            return history.move_to(begin - count)

    def state(self, image_id: str, number: int) -> ObjectState:
        """An object as it is.

        Raises:
            NotOpen: there is no such image or object.
        """
        image = self.images.get(image_id)
        with image.lock:
            return image.history(number).state

    def remove_object(self, image_id: str, number: int) -> None:
        """Delete an object.

        Raises:
            NotOpen: there is no such image or object.
        """
        image = self.images.get(image_id)
        image.take_over(number)
        with image.lock:
            image.history(number)
            del image.objects[number]

    # Without an open image

    def segment_once(
        self,
        job: Job,
        content: bytes | RgbImage,
        prompt: ObjectPrompt,
        *,
        bundle: str | None = None,
        prior: Prediction | None = None,
        settings: RunSettings | None = None,
    ) -> tuple[OpenImage, ObjectState]:
        """Segment one object of an image that is not kept open.

        Args:
            job: of the request.
            content: the bytes of a picture, or uint8 [H, W, 3] RGB.
            prompt: the object, in words or by hand.
            bundle: the name of a loaded bundle; None for the default one.
            prior: a mask of the image's size to start from.
            settings: how a model's run goes.

        Returns:
            The image, which is in no list and needs no closing, and the object.

        Raises:
            NotOpen: there is no such bundle.
            InputError: the image cannot be read, there is nothing to segment, a click or a box is
                outside, the mask is not of the image's size, or the bundle takes no such words.
        """
        name, runtime = self.runtime(bundle)
        canvas, seconds = job.run(lambda: self._opened(runtime, content))
        image = OpenImage(new_id(), "image", name, canvas, seconds, self.limits)
        if prior is not None and prior.mask().shape != canvas.image.shape[:2]:
            raise InputError("the mask is not of the image's size", hint="give one that is")
        if prompt.by_hand:
            return image, self._once_by_hand(job, image, prompt, prior)
        said = self._checked(image, prompt.expression)
        *_, last = self._run(job, image, None, said, prior, settings or RunSettings())
        return image, last

    # How it is done

    def _opened(self, runtime: Runtime, content: bytes | RgbImage) -> tuple[Canvas, Seconds]:
        watch = Stopwatch()
        with watch("read"):
            pixels = load_image(content, self.limits.megapixels)
        with watch("encode"):
            canvas = runtime.open(pixels)
            try:
                canvas.embedding.result(self.limits.work_seconds)
            except NotReady:
                raise Interrupted("the image was not encoded in time") from None
        self._on_seconds(watch.seconds)
        return canvas, watch.seconds

    def _allowed(self, path: str) -> Path:
        """A file below a root, links resolved.

        Raises:
            InputError: there is none. The message does not depend on what lies elsewhere.
        """
        refused = InputError(
            "there is no such image below a folder that the server may read"
            if self._roots
            else "this server opens no images by path",
            hint="start it with --root FOLDER, or send the image itself",
        )
        try:
            for root in self._roots:
                place = (root / path).resolve()
                if place.is_relative_to(root) and place.is_file():
                    return place
        except (OSError, ValueError, RuntimeError):
            raise refused from None
        raise refused

    def _checked(self, image: OpenImage, expression: str) -> str:
        """The expression as the model of the image's bundle takes it.

        Raises:
            InputError: the bundle takes no words, or not these.
        """
        runtime = image.canvas.runtime
        if not takes_words(runtime):
            raise InputError(
                f"the bundle {image.bundle} takes clicks and boxes, not words",
                hint="open the image with a bundle that has a language model",
            )
        return runtime.annotator.check(expression)

    def _run(
        self,
        job: Job,
        image: OpenImage,
        number: int | None,
        expression: str,
        prior: Prediction | None,
        settings: RunSettings,
    ) -> Iterator[ObjectState]:
        """A model's run, a piece of work for each step, so that others' clicks go in between."""
        config = SearchConfig(StoppingRules(settings.max_clicks), settings.candidates)
        run, steps = image.canvas.search_steps(expression, config=config, prior=prior), list[Step]()
        with image.lock:
            history = image.history(number)
            number = history.state.number
            image.take_over(number)
            image.runs[number] = job
        try:
            while not steps or steps[-1].stop is None:
                try:
                    steps.append(job.run(lambda: next(run)))
                    self._on_seconds(steps[-1].seconds)
                except Interrupted:
                    if job.cancelled and image.runs.get(number) is not job:
                        return  # a person took over
                    if not steps or job.cancelled:
                        raise
                    steps[-1] = replace(steps[-1], stop="deadline")
                with image.lock:
                    if image.runs.get(number) is not job:
                        return
                    state = history.push(history.state.after_model(expression, steps))
                yield state
        finally:
            with image.lock:
                if image.runs.get(number) is job:
                    del image.runs[number]
                if history.is_blank:
                    image.objects.pop(number, None)
            self.images.grew(image)

    def _by_hand(
        self,
        job: Job,
        image: OpenImage,
        number: int | None,
        added: Sequence[Step],
        expression: str,
        *,
        restart: bool,
    ) -> ObjectState:
        """Segment with further steps of a person, each made of the mask before."""
        if number is not None:
            image.take_over(number)

        def work() -> ObjectState:
            with image.lock:
                image.check_room(number)
                before = ObjectState(0) if number is None else image.history(number).state
                steps = [] if restart else list(before.base)
                for step in added:
                    steps.append(self._decoded(image.canvas, step, steps))
                history = image.history(number)
                named = before.expression or expression
                return history.push(replace(history.state, expression=named).after_person(steps))

        made = job.run(work)
        self.images.grew(image, held_bytes([step.prediction for step in made.steps[-len(added) :]]))
        return made

    def _decoded(self, canvas: Canvas, step: Step, steps: Sequence[Step]) -> Step:
        """A step with its mask, as the loop makes it."""
        watch, embedding = Stopwatch(), canvas.embedding.result()
        with watch("segment"):
            made = decode_step(step, steps, canvas.runtime.segmenter, embedding)
        self._on_seconds(watch.seconds)
        return replace(made, seconds=watch.seconds)

    def _once_by_hand(
        self, job: Job, image: OpenImage, prompt: ObjectPrompt, prior: Prediction | None
    ) -> ObjectState:
        """All clicks and the box in one piece of work."""
        if prompt.box is not None:
            check_box(image, prompt.box)
        if prompt.clicks:
            image.canvas.check_points([(click.x, click.y) for click in prompt.clicks])
        steps = [] if prior is None else [Step(prediction=prior)]

        def work() -> ObjectState:
            if prompt.box is not None:
                steps.append(self._decoded(image.canvas, Step(box=prompt.box), steps))
            for click in prompt.clicks:
                steps.append(self._decoded(image.canvas, Step(click), steps))
            return ObjectState(1, prompt.expression).after_person(steps)

        return job.run(work)


def shown_mask(state: ObjectState) -> Prediction:
    """The mask of an object.

    Raises:
        InputError: it has none.
    """
    if state.prediction is None:
        raise InputError("the object has no mask yet", hint="click it, box it, or name it first")
    return state.prediction


def check_box(image: OpenImage, box: Box) -> None:
    """Check that a box has an area, and lies in the image.

    Raises:
        ClickOutside: it does not.
    """
    if box.x0 >= box.x1 or box.y0 >= box.y1:
        raise ClickOutside("the box is empty", hint="give its left and its top edge first")
    image.canvas.check_points([(box.x0, box.y0), (box.x1, box.y1)])
