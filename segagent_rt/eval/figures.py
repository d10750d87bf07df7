"""The results of `eval`. In JSON each class is an object with its attributes as keys.

IoUs and shares are in 0..1. `docs/data.md` explains the figures for readers of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segagent_rt.choices import Ablation, Rule
from segagent_rt.io import attributes


@dataclass(frozen=True, slots=True)
class IouFigures:
    """Cumulative IoU, that of all pixels together, and generalised IoU, the mean of the masks'."""

    ciou: float
    giou: float


@dataclass(frozen=True, slots=True)
class OneShotFigures(IouFigures):
    """Of the masks after the first click, or after the first box; `boxes` were boxes."""

    boxes: int


@dataclass(frozen=True, slots=True)
class EarlyFigures(IouFigures):
    """What stopping at the first mask rated `accept` or better would have returned."""

    accept: float
    clicks_mean: float | None


@dataclass(frozen=True, slots=True)
class RefinedFigures:
    """Of runs that began with a mask.

    Attributes:
        start: of those masks.
        gain: mean IoU of the chosen mask minus that of the mask at the start.
        worse: share of masks that lost more than 0.02 IoU.
    """

    start: IouFigures
    gain: float
    worse: float


@dataclass(frozen=True, slots=True)
class DataSetFigures(IouFigures):
    """Of the chosen masks of a data set.

    Attributes:
        samples: expressions.
        select: the rule that chooses a mask of each run.
        click_id: the click whose mask counts instead, from 0.
        left_out: runs without a mask, which the rule `ref` leaves out as SegAgent does; under the
            other rules they count as empty masks.
        loop_gain: mean IoU of the chosen masks minus that of the one-shot masks.
        truth_best: of the truly best mask of each run.
        by_click: of the masks after each click.
        noc: mean clicks needed for an IoU of 80, 85 and 90 points.
        clicks_mean: mean clicks used.
        refined: None unless runs began with a mask.
        predicted_iou_mae: mean error of the rating, in points of 100; None without ratings.
        stops: how many runs ended for which reason.
    """

    samples: int
    select: Rule
    click_id: int | None
    left_out: int
    one_shot: OneShotFigures
    loop_gain: float | None
    truth_best: IouFigures
    early: EarlyFigures
    by_click: tuple[IouFigures, ...]
    noc: Mapping[str, float | None]
    clicks_mean: float | None
    refined: RefinedFigures | None
    predicted_iou_mae: float | None
    stops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The result of `eval` on one data set.

    Attributes:
        data: its title.
        heading: bundle, annotator and rules of runs that were made now; empty for recorded ones.
        skipped, missing, refused: bad entries, images that are not there, and expressions that the
            annotator did not take.
        milliseconds: percentiles by stage.
        not_drawn: why some pictures could not be drawn.
    """

    data: str
    figures: DataSetFigures
    heading: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    milliseconds: Mapping[str, Any] = field(default_factory=dict)
    not_drawn: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The content of `T.figures.json`: the same however often the run was interrupted."""
        about = {name: getattr(self, name) for name in ("skipped", "missing", "refused")}
        document = {"data": self.data, **attributes(self.figures), **self.heading}
        return document | (about if self.heading else {})

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: the document, and what only this run can say."""
        of_run = {"milliseconds": self.milliseconds, "not_drawn": self.not_drawn}
        return self.document() | (of_run if self.heading else {})


@dataclass(frozen=True, slots=True)
class RandomMaskFigures:
    """Ratings of masks made by random clicks: error in points of 100, and rank correlation."""

    mae: float | None
    spearman: float | None
    count: int


@dataclass(frozen=True, slots=True)
class SceneFigures:
    """Of generated scenes.

    Attributes:
        first_click_hit: share of first clicks inside the target.
        hit_by_rules: the same for a reader who follows the language's rules and else guesses.
        first_click_hit_by_type: by the kind of expression.
        miou: mean IoU of the returned masks.
        one_shot_miou: that of the first clicks' masks.
        miou_by_turn: that of the masks after each click.
        oracle_miou_by_click: the same if the simulated annotator made all clicks.
        gain: mean IoU of the returned mask minus that of the first click's mask.
        oracle_gain: the same if the simulated annotator made all clicks after the first.
        recovery: mean gain where the first click missed.
        missed_first_clicks: number of those scenes.
        returned_worse: share of returned masks worse than the first one by more than 0.05 IoU.
        clicks_mean: mean clicks per expression.
        looks_mean: mean looks per expression: how many pictures the MLLM was shown.
        negative_start_negative: share of negative clicks as answers to a mask that leaks.
        negative_start_hit: share of those answers that lie inside the leak.
        predicted_iou_mae: mean error of the rating, in points of 100.
    """

    first_click_hit: float | None
    hit_by_rules: float | None
    first_click_hit_by_type: Mapping[str, float | None]
    miou: float | None
    one_shot_miou: float | None
    miou_by_turn: tuple[float | None, ...]
    oracle_miou_by_click: tuple[float | None, ...]
    gain: float | None
    oracle_gain: float | None
    recovery: float | None
    missed_first_clicks: int
    returned_worse: float | None
    clicks_mean: float | None
    looks_mean: float | None
    negative_start_negative: float | None
    negative_start_hit: float | None
    predicted_iou_mae: float | None
    random_masks: RandomMaskFigures


@dataclass(frozen=True, slots=True)
class SceneSuiteResult:
    """The result of `eval` on generated scenes. In JSON the figures stand beside the rest.

    Attributes:
        scenes, seed, ablate: which scenes, and what was done to their expressions.
        generator: version of what draws them.
        bundle: name and digest.
        rules: budget of clicks, the rating that is accepted, and from where on a mask is accepted
            unrated.
    """

    figures: SceneFigures
    scenes: int
    seed: int
    ablate: Ablation
    generator: str
    bundle: Mapping[str, str]
    rules: Mapping[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document that is printed."""
        document = attributes(self)
        return attributes(document.pop("figures")) | document
