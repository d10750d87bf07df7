"""One case as HTML: what came out, its picture, and every step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segagent_rt.html_report.case import ReportCase, ReportStep, step_milliseconds
from segagent_rt.html_report.page import text
from segagent_rt.html_report.picture import Photo, photos_of, picture_of
from segagent_rt.types import Click, Mask

REPLY_LETTERS = 2000
"""Longer replies are cut."""


def case_html(case: ReportCase, name: str, longest: int) -> str:
    """A case, as a `section`.

    Args:
        case: with or without an image.
        name: its anchor in the page.
        longest: pixels of the longer side of its photos.
    """
    photos = None if case.image is None else photos_of(case, name, longest)
    parts = [
        f'<section class="case" id="{name}"><h2>{text(title_of(case))}</h2>',
        f'<ul class="badges">{"".join(f"<li>{badge}</li>" for badge in _badges(case))}</ul>',
        f'<p class="source">{text(case.source)}</p>',
    ]
    if case.note:
        parts.append(f'<p class="note">{text(case.note)}</p>')
    if photos is not None:
        definitions = "".join(photo.definition() for photo in dict.fromkeys(photos))
        parts.append(f'<svg class="photos" aria-hidden="true"><defs>{definitions}</defs></svg>')
        parts.append(_result(case, *photos))
    steps = "".join(_steps(case, None if photos is None else photos[1]))
    parts.append(f'<ol class="steps">{steps}</ol></section>')
    return "".join(parts)


def title_of(case: ReportCase) -> str:
    """The expression, or what stands for one."""
    return f"“{case.expression}”" if case.expression else "object shown by hand"


def score_of(step: ReportStep | None) -> str:
    """`IoU 0.81, rated 0.92`; how good a step's mask is, as far as it is known."""
    if step is None or step.mask is None:
        return "no mask"
    words = [] if step.iou is None else [f"IoU {step.iou:.2f}"]
    words += [] if step.rating is None else [f"rated {step.rating:.2f}"]
    if step.rating is None and step.estimate is not None:
        words.append(f"estimated {step.estimate:.2f}")
    return ", ".join(words) or "unrated"


def _badges(case: ReportCase) -> Iterator[str]:
    result = case.result
    empty = result is None or result.mask is None or not result.mask.any()
    yield f'<span class="{"bad" if empty else "good"}">{text(score_of(result))}</span>'
    if result is not None and result.mask is not None:
        yield f"{100 * result.mask.mean():.1f} % of the image"
    clicks = sum(step.click is not None for step in case.steps)
    yield f"{clicks} click{'' if clicks == 1 else 's'}"
    if (spent := case.milliseconds) is not None:
        yield f"{spent:.0f} ms"
    if case.stop is not None:
        yield text(case.stop)


def _result(case: ReportCase, whole: Photo, window: Photo) -> str:
    """The returned mask on the whole photo."""
    result = ReportStep() if case.result is None else case.result
    clicks = _clicks_until(case, len(case.steps) - 1 if case.returned is None else case.returned)
    frame = None if window is whole else window.window
    picture = picture_of(
        whole, text(f"Result: {score_of(case.result)}"), result, clicks,
        target=case.target, frame=frame,
    )  # fmt: skip
    return f'<div class="result">{picture}</div>'


def _steps(case: ReportCase, photo: Photo | None) -> Iterator[str]:
    before: Mask | None = None
    for at, step in enumerate(case.steps):
        clicks = _clicks_until(case, at)
        action = _action(step, len(clicks))
        picture = ""
        if photo is not None:
            shown = step if step.mask is not None or before is None else _with(step, before)
            picture = picture_of(photo, text(action), shown, clicks, target=case.target)
        returned = at == case.returned
        badge = '<span class="badge good">result</span>' if returned else ""
        score = f'<span class="badge">{text(score_of(step))}</span>'
        lines = [f"<h3>{text(action)} {score}{badge}</h3>"]
        if step.reply is not None:
            lines.append(f'<p class="reply">{text(_cut(step.reply))}</p>')
        if step.problem is not None:
            lines.append(f'<p class="bad">{text(step.problem)}</p>')
        if step.mask is not None and before is not None:
            lines.append(f'<p class="change">{_change(before, step.mask)}</p>')
        if times := _times(step):
            lines.append(f'<p class="time">{times}</p>')
        kind = "step returned" if returned else "step"
        yield f'<li class="{kind}">{picture}<div>{"".join(lines)}</div></li>'
        before = before if step.mask is None else step.mask


def _with(step: ReportStep, mask: Mask) -> ReportStep:
    """A step without a mask, shown with the mask that the annotator looked at."""
    return ReportStep(step.click, step.box, mask)


def _clicks_until(case: ReportCase, at: int) -> list[Click]:
    """The clicks that led to the mask of a step; a restart discards the earlier ones."""
    clicks = list[Click]()
    for step in case.steps[: at + 1]:
        if step.restarted:
            clicks = []
        clicks += [] if step.click is None else [step.click]
    return clicks


def _action(step: ReportStep, number: int) -> str:
    restarted = ", all earlier clicks discarded" if step.restarted else ""
    if step.click is not None:
        kind = "positive" if step.click.positive else "negative"
        return f"Click {number}: {kind} at ({step.click.x}, {step.click.y}){restarted}"
    if step.box is not None and step.mask is not None:
        box = step.box
        return f"Box ({box.x0}, {box.y0}) to ({box.x1}, {box.y1}){restarted}"
    return "Given mask" if step.mask is not None else "End of the loop"


def _change(before: Mask, after: Mask) -> str:
    """How many pixels a step added and removed."""
    added = int(np.count_nonzero(after & ~before))
    removed = int(np.count_nonzero(before & ~after))
    return f"+{added:,} / −{removed:,} pixels" if added or removed else "mask unchanged"  # noqa: RUF001


def _times(step: ReportStep) -> str:
    total = step_milliseconds(step)
    if total is None:
        return ""
    stages = sorted(step.seconds.items(), key=lambda stage: -stage[1])
    listed = " · ".join(f"{text(name)} {1000 * spent:.1f}" for name, spent in stages)
    return f"<strong>{total:.1f} ms</strong> {listed}"


def _cut(reply: str) -> str:
    return reply if len(reply) <= REPLY_LETTERS else f"{reply[:REPLY_LETTERS]} …"
