"""The study: train, choose on photos of the training split, measure on validation photos."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segagent_rt.annotators.oracle import next_click
from segagent_rt.eval.statistics import spearman
from segagent_rt.io import atomic_write, json_bytes
from segagent_rt.runtime import load
from segagent_rt.types import Segmenter
from segagent_rt_training.photo.photos import IGNORED
from segagent_rt_training.words.clicking import (
    MaskRater,
    Method,
    PhotoLook,
    considered_masks,
    first_clicks,
    fit_rater,
    mask_numbers,
    masks_of,
    returned_mask,
)
from segagent_rt_training.words.expressions import EverydayExpression
from segagent_rt_training.words.features import PhotoView
from segagent_rt_training.words.gallery import write_gallery
from segagent_rt_training.words.material import AskedPhoto, MaterialPlan, StudyMaterial
from segagent_rt_training.words.net import WordsNet
from segagent_rt_training.words.training import WordsRecipe, train_words
from segagent_rt_training.words.vocabulary import NOUNS

METHODS: tuple[Method, ...] = ("classes", "nouns", "selector", "rule")
ROWS = ("only_of_its_category", "position_size_ordinal")
"""What first clicks are reported for."""

RATED = 4
"""Expressions of each training photo whose masks the rating is fitted to."""

RESAMPLES = 1000
FALSE_REFUSALS = 0.12
"""Share of present nouns that are refused on the photos for choices; the bar is 0.15."""

GAINS = (0.0, 0.03, 0.06, 0.1, 0.2)
"""By how much a mask must be rated better to replace the first one: chosen among these."""


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What the study trains and how long."""

    material: MaterialPlan = field(default_factory=MaterialPlan)
    recipe: WordsRecipe = field(default_factory=WordsRecipe)
    seeds: int = 2
    """Nets of each kind, which answer together; their seeds follow that of the recipe."""
    longer: int = 2
    """How many times as many steps the kind `longer` is trained."""
    rater_steps: int = 1500

    def recipes(self) -> dict[str, WordsRecipe]:
        """The kinds of nets that are compared."""
        photos_only = replace(self.recipe, shares=(*self.recipe.shares[:3], 0.0))
        return {
            "with-collages": self.recipe,
            "without-collages": photos_only,
            "longer": replace(self.recipe, steps=self.longer * self.recipe.steps),
            "trained-stages": replace(self.recipe, trained_stages=True),
        }


@dataclass(frozen=True, slots=True)
class AnsweredExpression:
    """An expression with what came of it: whether the first click hit, and of all masks that the
    loop considered (rating, true IoU), beginning with that of the first click."""

    photo: str
    said: EverydayExpression
    hit: bool
    masks: tuple[tuple[float, float], ...]

    @property
    def first(self) -> tuple[float, float]:
        """Rating and true IoU of the first mask."""
        return self.masks[0]

    def looped(self, gain: float) -> tuple[float, float]:
        """Rating and true IoU of the mask that the loop returns."""
        return returned_mask(self.masks, gain)


def answer(
    looks: Iterable[PhotoLook], method: Method, rater: MaskRater | None
) -> list[AnsweredExpression]:
    """Click for every expression; with a rater, make masks and try others, too."""
    found = []
    for look in looks:
        for said in look.asked.expressions:
            (click,) = first_clicks(look, said, method)
            rated: tuple[tuple[float, float], ...] = ()
            if rater is not None:
                masks = considered_masks(look, said, method, rater)
                rated = tuple((rating, look.iou(mask, said)) for rating, mask in masks)
            name, hit = look.asked.photo.entry["name"], look.hits(click, said)
            found.append(AnsweredExpression(name, said, hit, rated))
    return found


def rating_examples(looks: Iterable[PhotoLook], seed: int) -> list[tuple[list[float], float]]:
    """Masks of first clicks, of corrections, and of clicks on other objects, with their IoU."""
    rows, rng = [], random.Random(f"words-rating/{seed}")
    for look in looks:
        some = list(look.asked.expressions)
        for said in rng.sample(some, min(RATED, len(some))):
            masks = masks_of(look, said, "selector")
            for cover in rng.sample(
                list(look.asked.view.cover), min(2, len(look.asked.view.cover))
            ):
                row, column = divmod(int(cover.argmax()), cover.shape[1])
                masks.append(look.segment((look.click_at((row, column)),)))
            rows += [(mask_numbers(look, said, m), look.iou(m, said)) for m in masks]
    return rows


def figures(answers: Sequence[AnsweredExpression], gain: float | None) -> dict[str, Any]:
    """First clicks inside the object, and with masks also their IoU and ratings: means with 95 %
    ranges over resampled photos."""
    kinds = {
        "only_of_its_category": [a for a in answers if a.said.kind == "bare"],
        "position_size_ordinal": [a for a in answers if a.said.kind != "bare"],
    }
    out: dict[str, Any] = {}
    for name, some in kinds.items():
        out[name] = _mean([(a.photo, float(a.hit)) for a in some])
    for kind in ("position", "size", "ordinal"):
        hits = [(a.photo, float(a.hit)) for a in answers if a.said.kind == kind]
        out["position_size_ordinal"][kind] = _mean(hits)
    if gain is not None:
        out["first_miou"] = _mean([(a.photo, a.first[1]) for a in answers])
        out["loop_miou"] = _mean([(a.photo, a.looped(gain)[1]) for a in answers])
        gained = [(a.photo, a.looped(gain)[1] - a.first[1]) for a in answers]
        out["loop_gain"] = _mean(gained)
        out["best_of_considered_miou"] = _mean(
            [(a.photo, max(i for _, i in a.masks)) for a in answers]
        )
        pairs = [a.looped(gain) for a in answers]
        out["rating_spearman"] = _rounded(spearman(*zip(*pairs, strict=True)))
        every = [pair for a in answers for pair in a.masks]
        out["rating_spearman_all_masks"] = _rounded(spearman(*zip(*every, strict=True)))
    return out


def by_category(answers: Sequence[AnsweredExpression]) -> dict[str, list[int]]:
    """Row 1 by category: hits and expressions."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for a in answers:
        if a.said.kind == "bare":
            row = found[NOUNS[a.said.noun].category]
            row[0] += a.hit
            row[1] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _mean(pairs: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Mean of values, its 95 % range over resampled photos, and how many there are."""
    if not pairs:
        return {"n": 0}
    groups: dict[str, list[float]] = defaultdict(list)
    for photo, value in pairs:
        groups[photo].append(value)
    sums = np.array([(sum(v), len(v)) for v in groups.values()])
    draw = np.random.default_rng(0)
    some = sums[draw.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)
    low, high = np.quantile(some[:, 0] / some[:, 1], (0.025, 0.975))
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return {"mean": round(float(mean), 3), "range": [round(float(low), 3), round(float(high), 3)],
            "n": len(pairs), "photos": len(groups)}  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def presences(looks: Sequence[PhotoLook], *, trained: bool) -> tuple[Any, Any]:
    """How present the nouns are that photos show, and those that they do not, as (photo, value)."""
    there, missing = [], []
    for look in looks:
        values = look.presence if trained else look.class_evidence
        name = look.asked.photo.entry["name"]
        there += [
            (name, float(values[n])) for n in sorted({e.noun for e in look.asked.expressions})
        ]
        missing += [(name, float(values[e.noun])) for e in look.asked.absent]
    return there, missing


def absence(
    looks: Sequence[PhotoLook], choosing: Sequence[PhotoLook], *, trained: bool
) -> dict[str, Any]:
    """Row 4, with the threshold from the photos for choices."""
    present, _ = presences(choosing, trained=trained)
    threshold = float(np.quantile([value for _, value in present], FALSE_REFUSALS))
    there, missing = presences(looks, trained=trained)
    return {
        "said_so": _mean([(name, float(value < threshold)) for name, value in missing]),
        "false_refusals": _mean([(name, float(value < threshold)) for name, value in there]),
        "threshold": round(threshold, 3),
    }


def oracle_figures(looks: Sequence[PhotoLook]) -> dict[str, Any]:
    """Mean IoU of the segmenter's masks if the oracle annotator makes the first click."""
    rows = []
    for look in looks:
        labels = look.asked.photo.content.labels
        for said in look.asked.expressions:
            target = labels == said.target
            click = next_click(target, np.zeros_like(target), ignored=labels == IGNORED)
            if click is not None:
                name = look.asked.photo.entry["name"]
                rows.append((name, look.iou(look.segment((click,)), said)))
    return _mean(rows)


def seed_figures(looks: Iterable[PhotoLook]) -> dict[str, float]:
    """Means of rows 1 and 2 of one net."""
    found = figures(answer(looks, "selector", None), None)
    return {row: found[row].get("mean", 0.0) for row in ROWS}


class WordsStudy:
    """All that one run of the study needs; every step keeps its result in a folder."""

    def __init__(
        self,
        photos: Path,
        folder: Path,
        plan: StudyPlan,
        segmenter: Segmenter,
        report_progress: Callable[[str], None],
    ) -> None:
        self._folder, self._plan, self._report = folder, plan, report_progress
        self._segmenter = segmenter
        material = StudyMaterial(photos, folder / "cache", plan.material, report_progress)
        self._choosing, self._validation = material.choosing(), material.validation()
        self._measured = material.measured()
        self._views: dict[str, list[PhotoView]] = material.training()
        self._views["collage"] = material.collages()

    def _looks(self, photos: Sequence[AskedPhoto], nets: Sequence[WordsNet]) -> list[PhotoLook]:
        return [PhotoLook(photo, nets, self._segmenter) for photo in photos]

    def train(self, kind: str, seed: int) -> WordsNet:
        """The net of a kind and a seed, trained now or by an earlier run."""
        recipe = replace(self._plan.recipes()[kind], seed=seed)
        path = self._folder / f"{kind}-{seed}.pt"
        return train_words(recipe, self._views, path, self._report)

    def run(self, gallery: Path) -> dict[str, Any]:
        """Train nets, choose a kind and a method, and measure them on validation photos.

        Args:
            gallery: the JPEG file for a picture of results drawn at random.

        Returns:
            The result, ready for JSON.
        """
        first = self._plan.recipe.seed
        nets = {
            kind: [self.train(kind, seed) for seed in range(first, first + self._plan.seeds)]
            for kind in self._plan.recipes()
        }
        # 1. Choose between the nets and the methods on photos of the training split.
        choices: dict[str, Any] = {}
        for name, some in nets.items():
            looks = self._looks(self._choosing, some)
            for method in METHODS:
                if name == "with-collages" or method != "classes":
                    choices[f"{method} {name}"] = figures(answer(looks, method, None), None)
                    self._report(f"{method} {name}: {choices[f'{method} {name}']}")
        best, method = self._best(choices)
        choosing = self._looks(self._choosing, nets[best])
        # 2. Fit the rating to masks of training photos, and choose when the loop takes another one.
        rows = rating_examples(self._looks(self._measured, nets[best]), first)
        rater = fit_rater(rows, first, self._plan.rater_steps)
        chosen = answer(choosing, method, rater)
        gain = max(GAINS, key=lambda g: sum(a.looped(g)[1] for a in chosen))
        self._report(f"chose {method} of {best}, gain {gain}")
        # 3. Measure on validation photos.
        looks = self._looks(self._validation, nets[best])
        answers = answer(looks, method, rater)
        shown = write_gallery(gallery, looks, method, rater, gain)
        others: dict[str, Any] = {}
        for name, kind in nets.items():
            seen = self._looks(self._validation, kind)
            for m in METHODS:
                if name == "with-collages" or m != "classes":
                    others[f"{m} {name}"] = figures(answer(seen, m, None), None)
        return {
            "plan": asdict(self._plan),
            "counts": self._counts(),
            "chosen": {"net": best, "method": method, "gain": gain, "rating_rows": len(rows)},
            "validation": {
                **figures(answers, gain),
                "by_category": by_category(answers),
                "by_source": _by_source(answers),
                "absence": absence(looks, choosing, trained=True),
                "absence_by_classes": absence(looks, choosing, trained=False),
                "perfect_first_click_miou": oracle_figures(looks),
            },
            "validation_of_all": others,
            "validation_of_single_seeds": {
                kind: [seed_figures(self._looks(self._validation, [net])) for net in some]
                for kind, some in nets.items()
            },
            "gallery": shown,
            "choosing": {**figures(chosen, gain), "all": choices,
                         "perfect_first_click_miou": oracle_figures(choosing),
                         "absence": absence(choosing, choosing, trained=True)},
        }  # fmt: skip

    @staticmethod
    def _best(choices: dict[str, Any]) -> tuple[str, Method]:
        """Net and method with the best mean of rows 1 and 2."""

        def value(name: str) -> float:
            return float(sum(choices[name][row].get("mean", 0.0) for row in ROWS))

        method, net = max(choices, key=value).split()
        return net, method  # type: ignore[return-value]

    def _counts(self) -> dict[str, Any]:
        instances = Counter(
            item.category for photo in self._measured for item in photo.view.objects
        )
        return {
            "views": {name: len(views) for name, views in self._views.items()},
            "fully_labelled_training_photos": len(self._measured),
            "choosing_photos": len(self._choosing),
            "validation_photos": len(self._validation),
            "training_instances": {n.category: instances[n.category] for n in NOUNS},
        }


def _by_source(answers: Sequence[AnsweredExpression]) -> dict[str, Any]:
    sources = sorted({a.photo.split("_")[0] for a in answers})
    out = {}
    for source in sources:
        some = [a for a in answers if a.photo.startswith(source)]
        found = figures(some, None)
        out[source] = {k: found[k] for k in ("only_of_its_category", "position_size_ordinal")}
    return out


def run_study(
    photos: Path,
    folder: Path,
    output: Path,
    plan: StudyPlan,
    report_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run the study, or the rest of it, and write its result as JSON and as a picture.

    Args:
        photos: the folder of the training photos.
        folder: where encoded views and weights are kept; an earlier run continues.
        output: the result file; a picture of results drawn at random lies beside it.
        plan: what is trained and how long.
        report_progress: hears what has been done.

    Returns:
        The result.

    Raises:
        CheckpointInvalid: the folder holds no training photos, or the ImageNet weights are missing.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder.mkdir(parents=True, exist_ok=True)
    picture = output.with_suffix(".jpg")
    with load("photo", threads=1) as runtime:
        result = WordsStudy(photos, folder, plan, runtime.segmenter, report_progress).run(picture)
    atomic_write(output, json_bytes(result, indent=1))
    return result
