"""The gate: what was exported is compared with what was published, before it becomes a bundle.

Graphs against torch, the runtime's host rules against the authors', and every variant against the
reference by what it does: clicks and masks over recorded states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from segagent_rt.annotators.mllm import MllmAnnotator, MllmSettings
from segagent_rt.bench.progress import Progress
from segagent_rt.bundle.bundle import Part
from segagent_rt.engine_cache.golden_io import RecordingSession
from segagent_rt.errors import EngineRefused
from segagent_rt.metrics import iou, max_error, meets
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.runtime import open_mllm, open_segmenter
from segagent_rt.types import (
    Array,
    Box,
    Click,
    Mask,
    ProgressReporter,
    Request,
    Segmenter,
    Session,
    Size,
    Turn,
)
from segagent_rt_export.gate.graph_lint import lint
from segagent_rt_export.gate.inputs import (
    ClickedImage,
    GateInputs,
    GateState,
    SceneInputs,
    pictures,
    scenes,
)
from segagent_rt_export.gate.mllm_reference import MllmReference
from segagent_rt_export.gate.processing_error import levels_apart, prompts_apart
from segagent_rt_export.gate.streaming import CPU, LockstepRunner, LockstepSession
from segagent_rt_export.gate.verdict import (
    DAMAGED,
    LEAVE_OUT,
    OVERFLOW,
    Case,
    Failure,
    Gate,
    Verdict,
    shortfalls,
    summarise,
)
from segagent_rt_export.graphs.exported_segmenter import Check
from segagent_rt_export.passes.calibration import range_mismatch
from segagent_rt_export.registry import code, segmenter_exporter
from segagent_rt_export.variants import REFERENCE

SIZES = ((140, 196), (97, 331), (300, 120), (64, 64), (211, 223))
"""Heights and widths of pictures: grids that windows do not divide, enlarged ones, shrunk ones."""

LARGE = ((1000, 1400), (1080, 1920), (4032, 3024), (40, 30), (2000, 90))
"""Sizes that only the rule of resizing is asked about: photos, an icon, a strip."""

STEPS = (slice(0, 5), slice(5, 6), slice(6, 7), slice(7, None))
"""Tokens that are read at once behind a filled cache."""

A = TypeVar("A")
B = TypeVar("B")


class OpenedVariant:
    """A part's graphs, opened once each: some roles of one variant, all others of the reference.

    With a lockstep runner the graph runs partition by partition, and the calls of one `each` are
    batched.
    """

    def __init__(
        self,
        part: Part,
        variant: str = REFERENCE,
        roles: Collection[str] = (),
        runner: LockstepRunner | None = None,
    ) -> None:
        self._part, self._variant, self._roles = part, variant, roles
        self._runner = runner
        self._sessions: list[Session] = []

    def __call__(self, part: Part, role: str) -> Session:
        variant = self._variant if role in self._roles else REFERENCE
        self._sessions.append(self._open(part, role, variant))
        return self._sessions[-1]

    def _open(self, part: Part, role: str, variant: str) -> Session:
        if self._runner is None:
            return part.session(role, CPU, variant)
        return LockstepSession(part.graphs(role, variant)[0].path, self._runner)

    def segmenter(self) -> Segmenter:
        return open_segmenter(self._part, self)

    def each(
        self,
        ask: Callable[[MllmAnnotator, A], B],
        about: Sequence[A],
        progress: Progress | None = None,
    ) -> list[B]:
        """Ask the annotator about many things; a lockstep runner tells its own progress."""
        annotator = open_mllm(self._part, self)
        if self._runner is None:
            answers = []
            for one in about:
                answers.append(ask(annotator, one))
                if progress is not None:
                    progress.step()
            return answers
        # One annotator does one thing at a time.
        return self._runner.run_all([partial(ask, _twin(annotator), one) for one in about])

    def __enter__(self) -> OpenedVariant:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.close()


def _twin(annotator: MllmAnnotator) -> MllmAnnotator:
    """Another annotator with the same graphs."""
    one = annotator
    return MllmAnnotator(
        encode=one.encode, decode=one.decode, settings=one.settings, specials=one.specials,
        vision_encoder=one.vision_encoder, model=one.model,
    )  # fmt: skip


def verify_reference(
    part: Part, checks: Sequence[Check], gate: Gate, report_progress: ProgressReporter
) -> Verdict:
    """Compare a segmenter's reference with torch, and its host rules with the authors'."""
    report_progress("comparing the graphs with torch")
    verdict = Verdict(failures=tuple(f for f in lint(part) if f.variant is None))
    if not verdict.passed:
        return verdict
    verdict = verify_graphs(part, checks, gate)
    if verdict.refused is not None and verdict.refused.hopeless:
        return verdict
    report_progress("comparing what the net is shown")
    numbers, complaints = _host(part, gate)
    return verdict.and_also(Verdict({"host": numbers}, tuple(map(Failure, complaints))))


def verify_graphs(part: Part, checks: Sequence[Check], gate: Gate) -> Verdict:
    """Compare the reference's graphs with torch."""
    errors = graph_errors(part, checks)
    found = {f"graph `{role}`": error for role, error in errors.items()}
    return Verdict({"graphs": errors}, tuple(_away(found, "away", gate)))


def _away(errors: Mapping[str, float], unit: str, gate: Gate) -> Iterator[Failure]:
    """A failure for each comparison with torch that is not within the gate."""
    for what, error in errors.items():
        if np.isinf(error):
            text = f"the {what} is not finite, or of another shape than torch's"
            yield Failure(text, DAMAGED, hopeless=True)
        elif not meets(error, at_most=gate.graph_error):
            yield Failure(
                f"the {what} is {error:.1e} {unit} from torch, {gate.graph_error:.0e} is allowed"
            )


def verify_masks(
    part: Part, gate: Gate, report_progress: ProgressReporter, material: GateInputs
) -> Verdict:
    """Compare the masks of a segmenter's variants with the reference's."""
    found, failures = dict[str, Any](), list(_of_variants(part))
    if variants := _others(part):
        report_progress("recording what the reference draws")
        try:
            with OpenedVariant(part) as opened:
                drawn = list(material.drawn(opened.segmenter()))
        except EngineRefused as error:
            return Verdict(failures=(*failures, _not_finite(part, error)))
    for variant in variants:
        report_progress(f"comparing {variant}")
        found[variant], complaints = _segmenter_variant(part, variant, drawn, gate, report_progress)
        failures += complaints
    return Verdict({"variants": found} | _shown(material, variants), tuple(failures))


def _not_finite(part: Part, error: EngineRefused, variant: str | None = None) -> Failure:
    """What the runtime says when it refuses the outputs of a graph, which no option allows."""
    text = str(error).replace(f"{part.folder} ", "")
    return Failure(text, DAMAGED if variant is None else OVERFLOW, variant, hopeless=True)


def _of_variants(part: Part) -> Iterator[Failure]:
    return (failure for failure in lint(part) if failure.variant is not None)


def _shown(material: GateInputs, variants: Sequence[str]) -> dict[str, Any]:
    """What was compared with it."""
    return {"material": material.record()} if variants else {}


def graph_errors(part: Part, checks: Sequence[Check]) -> dict[str, float]:
    """For each role the worst error of the reference, as a share of the largest magnitude;
    infinite where a number is not finite."""
    errors: dict[str, float] = {}
    for check in checks:
        with OpenedVariant(part) as opened:
            found = opened(part, check.role).run(check.feeds, list(check.expected))
        worst = max(max_error(found[name], wanted) for name, wanted in check.expected.items())
        errors[check.role] = max(errors.get(check.role, 0.0), worst)
    return {role: float(f"{error:.3g}") for role, error in errors.items()}


def _host(part: Part, gate: Gate) -> tuple[dict[str, float], list[str]]:
    """One click on a picture that is larger than what the net sees, and not square."""
    side = part.manifest.settings["side"] * 3 // 2
    image = np.ascontiguousarray(next(scenes(1, side)).image[: side * 3 // 4])
    size, click = (image.shape[0], image.shape[1]), Click(side // 3, side // 5, True)
    watched: dict[str, RecordingSession] = {}
    with OpenedVariant(part) as opened:

        def watch(part: Part, role: str) -> Session:
            watched[role] = RecordingSession(opened(part, role))
            return watched[role]

        segmenter = open_segmenter(part, watch)
        mask = segmenter.decode(segmenter.encode(image), [click]).mask()
    runs = {role: session.examples[0] for role, session in watched.items()}
    host = code(segmenter_exporter(part.manifest.family).preprocessing)(part.manifest.settings)
    shown = runs[host.role][0]["image"][0]
    feeds, outputs = runs[list(runs)[-1]]
    prompt = host.prompt(click, size)
    given = [np.asarray(feeds[name])[: len(value)] for name, value in prompt.items()]
    numbers = {
        "picture_error": round(levels_apart(shown, host.picture(image), host.std), 4),
        "prompt_error": round(prompts_apart(given, list(prompt.values())), 4),
        "mask_iou": round(iou(mask, host.mask(outputs, size)), 4),
    }
    complaints = []
    if not meets(numbers["picture_error"], at_most=gate.picture_error):
        complaints.append("the net is shown another picture than its authors show it")
    if not meets(numbers["prompt_error"], at_most=1e-2):
        complaints.append("the net is shown clicks in other places than its authors show them")
    if not meets(numbers["mask_iou"], at_least=gate.mask_iou):
        complaints.append("masks are drawn otherwise than the net's authors draw them")
    return numbers, complaints


def _replayed(segmenter: Segmenter, drawn: ClickedImage) -> Mask:
    embedding, prediction = segmenter.encode(drawn.image), None
    for count in range(1, len(drawn.clicks) + 1):
        prediction = segmenter.decode(embedding, drawn.clicks[:count], prior=prediction)
    assert prediction is not None
    return prediction.mask()


def _segmenter_variant(
    part: Part,
    variant: str,
    drawn: Sequence[ClickedImage],
    gate: Gate,
    report_progress: ProgressReporter,
) -> tuple[dict[str, Any], list[Failure]]:
    images = list({id(one.image): one.image for one in drawn}.values())

    def measure(roles: Collection[str]) -> dict[str, Any]:
        with OpenedVariant(part, variant, roles) as opened:
            segmenter = opened.segmenter()
            ious, progress = [], Progress(report_progress, f"comparing {variant}", len(drawn))
            for one in drawn:
                ious.append(iou(_replayed(segmenter, one), one.mask))
                progress.step()
        numbers = {
            "states": len(ious),
            "mask_iou_mean": round(float(np.mean(ious)), 4),
            "mask_iou_worst": round(min(ious), 4),
        }
        if set(roles) & set(part.manifest.variants[variant].integers):
            numbers["range_misfit"] = round(range_mismatch(part, variant, images), 2)
        return numbers

    return _judged(part, variant, measure, gate)


def verify_mllm_reference(
    part: Part,
    reference: MllmReference,
    gate: Gate,
    report_progress: ProgressReporter,
    *,
    streamed: bool = False,
) -> Verdict:
    """Compare the reference of an MLLM's part with the published model."""
    report_progress("comparing the graphs with torch")
    found = [f for f in lint(part) if f.variant is None] + list(_resized_otherwise(part, reference))
    if found:
        return Verdict(failures=tuple(found))
    try:
        with OpenedVariant(
            part, runner=LockstepRunner(report_progress) if streamed else None
        ) as opened:
            errors = reference_errors(opened, reference, report_progress)
    except EngineRefused as error:
        return Verdict(failures=(_not_finite(part, error),))
    return Verdict({"graphs": errors}, tuple(_away(errors, "deviations away", gate)))


def _resized_otherwise(part: Part, reference: MllmReference) -> Iterator[Failure]:
    """Sizes, those of large photos among them, that the runtime makes something else of."""
    resize = part.settings(MllmSettings).vision.resize
    if not isinstance(resize, SmartResize):
        return  # every picture becomes equally large, and the comparison of graphs shows how large
    for size in (*LARGE, *SIZES):
        wanted = reference.resized(size)
        if wanted is not None and (found := resize.target(size)) != wanted:
            yield Failure(
                f"a picture of {_by(size)} pixels is resized to {_by(found)}, "
                f"the checkpoint's own processor makes it {_by(wanted)}"
            )
            return


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def verify_replies(
    part: Part,
    segmenter: Segmenter | None,
    gate: Gate,
    report_progress: ProgressReporter,
    material: GateInputs | None = None,
    *,
    streamed: bool = False,
) -> Verdict:
    """Compare what an MLLM's variants answer with what the reference answers.

    Args:
        part: holds the reference and all variants.
        segmenter: turns clicks into the masks that are compared, if there is one.
        gate: where the line is.
        report_progress: is told what is going on.
        material: what is asked about; generated scenes if left out.
        streamed: whether the graphs run in pieces.
    """
    found: dict[str, Any] = {}
    material = material or SceneInputs(gate.scenes)
    failures, runner = (
        list(_of_variants(part)),
        LockstepRunner(report_progress) if streamed else None,
    )
    if variants := _others(part):
        report_progress("recording what the reference answers")
        recorded = list(material.states(segmenter))
        try:
            with OpenedVariant(part, runner=runner) as opened:
                progress = Progress(report_progress, "recording answers", len(recorded))
                answered = opened.each(_answer, recorded, progress)
                answers = list(zip(recorded, answered, strict=True))
        except EngineRefused as error:
            return Verdict(failures=(*failures, _not_finite(part, error)))
    for variant in variants:
        report_progress(f"comparing {variant}")

        def measure(roles: Collection[str], variant: str = variant) -> dict[str, Any]:
            progress = Progress(report_progress, f"comparing {variant}", len(recorded))
            with OpenedVariant(part, variant, roles, runner) as opened:
                turns = opened.each(_answer, recorded, progress)
            pairs = zip(answers, turns, strict=True)
            return summarise([_case(state, said, turn, segmenter) for (state, said), turn in pairs])

        found[variant], complaints = _judged(part, variant, measure, gate)
        failures += complaints
    return Verdict({"variants": found} | _shown(material, variants), tuple(failures))


def reference_errors(
    opened: OpenedVariant, reference: MllmReference, report_progress: ProgressReporter
) -> dict[str, float]:
    """Errors in standard deviations of the published values: of picture embeddings, and of logits
    (prompt at once, then several tokens at once, two alone, the rest at once, and the last ones as
    a branch between two others)."""
    images = list(pictures(SIZES))
    found = opened.each(_outputs_of, images)
    embeddings, logits = 0.0, 0.0
    for number, (image, ours) in enumerate(zip(images, found, strict=True), 1):
        report_progress(f"asking torch, picture {number} of {len(images)}")
        seen = reference.picture(image).numpy(force=True)
        embeddings = max(embeddings, max_error(ours.seen, seen, seen.std()))
        theirs = reference.logits(image, ours.lead, ours.tail)[ours.at]
        logits = max(logits, max_error(ours.logits, theirs[:, ours.rows], theirs.std()))
    return {"picture": float(f"{embeddings:.3g}"), "logits": float(f"{logits:.3g}")}


@dataclass(frozen=True, slots=True)
class ReferenceOutputs:
    """What the graphs make of a picture and a text: embeddings of the picture, and the logits
    [tokens, rows] of those tokens of `tail` that are at `at`; `lead` and `tail` are what surrounds
    the picture, `rows` the tokens that the logits stand for."""

    seen: Array
    logits: Array
    at: list[int]
    lead: list[int]
    tail: list[int]
    rows: list[int]


def _outputs_of(annotator: MllmAnnotator, image: Array) -> ReferenceOutputs:
    model, rope = annotator.model, annotator.settings.language.rope
    lead, tail = annotator.prompt("the mug behind the 2nd laptop")
    more = annotator.encode(" Current IOU: 45  Positive point: (12")
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    x = np.concatenate([model.embed(lead), seen.embeddings, model.embed(tail)], axis=1)
    cache = model.new_cache(x.shape[1] + len(more) + 6)
    logits = [model.forward(cache, x, rope.before_text(len(lead), seen.grid))]
    for step in STEPS:
        logits.append(model.forward(cache, model.embed(more[step]), rows=len(more[step])))
    at = [*range(-1 - len(more), 0)]
    if model.has_branches:
        cache.rewind(cache.length - 4)
        other = more[:3]
        found = model.forward_branches(cache, more[-4:-2], [other, more[-2:], other])
        logits.append(found[[0, 2]])
        at += [-3, -1]
    rows = list(annotator.settings.head_rows)
    return ReferenceOutputs(seen.embeddings[0], np.concatenate(logits), at, lead, tail + more, rows)


def _answer(annotator: MllmAnnotator, state: GateState) -> Turn:
    expression = state.expression
    return annotator.look(state.image).propose([Request(state.prediction, expression)])[0][0]


def _case(state: GateState, wanted: Turn, found: Turn, segmenter: Segmenter | None) -> Case:
    size = state.image.shape[0], state.image.shape[1]
    same: float | None = None
    if segmenter is not None:
        alike = (wanted.action, wanted.box) == (found.action, found.box)
        same = 1.0 if alike else iou(*(_mask(segmenter, state, turn) for turn in (wanted, found)))
    return Case(state.name, wanted, found, size, same)


def _mask(segmenter: Segmenter, state: GateState, turn: Turn) -> Mask:
    """The mask after a turn; without a click or a box it stays as it was."""
    prior, action = state.prediction, turn.action
    if isinstance(action, (Box, Click)):
        clicks = [action] if isinstance(action, Click) else []
        box = action if isinstance(action, Box) else turn.box
        embedding = segmenter.encode(state.image)
        return segmenter.decode(embedding, clicks, prior=prior, box=box).mask()
    return np.zeros(state.image.shape[:2], np.bool_) if prior is None else prior.mask()


def _others(part: Part) -> list[str]:
    return [name for name in part.manifest.variants if name != REFERENCE]


def _judged(
    part: Part, variant: str, measure: Callable[[Collection[str]], dict[str, Any]], gate: Gate
) -> tuple[dict[str, Any], list[Failure]]:
    """Measure a variant; if it falls short, find out which of its graphs is to blame."""
    roles = [role for role in part.roles if role in part.manifest.variants[variant].graphs]
    try:
        numbers = measure(roles)
        short = list(shortfalls(numbers, gate))
        alone = {role: measure([role]) for role in roles} if short else {}
    except EngineRefused as error:
        return {}, [_not_finite(part, error, variant)]
    if not short:
        return numbers, []
    blamed = min(alone, key=lambda role: _goodness(alone[role]))
    numbers["blamed"] = blamed
    advice = f"keep its {blamed} at higher precision"
    return numbers, [Failure(f"{why}; {advice}", LEAVE_OUT, variant) for why in short]


def _goodness(numbers: Mapping[str, Any]) -> tuple[float, float]:
    masks, apart = numbers.get("mask_iou_mean"), numbers.get("distance_median")
    return (
        float(numbers.get("agreement", 1.0)) + (1.0 if masks is None else float(masks)),
        -float(apart or 0.0),
    )
