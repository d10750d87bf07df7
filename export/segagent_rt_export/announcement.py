"""What an export will download and take, said before anything is downloaded.

The figures are those that a recipe names: a hub is asked only after somebody agreed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segagent_rt.bench.progress import duration
from segagent_rt.hub.repository import HubRepository
from segagent_rt.memory import check_disk_space
from segagent_rt.types import ProgressReporter
from segagent_rt_export.recipe import MllmRecipe, PublishedFacts, Recipe, SegmenterRecipe
from segagent_rt_export.sources.downloads import fetch_model, list_model

SECONDS_PER_MILLION, MEASURED_AT = 1.0, 200.0
"""How long an export takes for each million weights, on a machine of so many GFLOP/s. Measured:
1.5 for two variants of 3.8 billion weights and 0.7 for one of 9.7 billion
(`benchmarks/results/real-size-*.json`)."""

LEAST_SECONDS = 60.0
"""However small a model is, graphs are traced and compared."""

SIDE = 1024
"""Of the square matrices whose product measures this machine."""


def announce(recipe: Recipe, missing: Sequence[HubRepository], target: Path) -> Iterator[str]:
    """What the export of a recipe downloads and takes, a line for each part and one for the whole.

    Args:
        recipe: what is exported.
        missing: its models that are not on this machine.
        target: the bundle's folder.
    """
    for name, part in recipe.parts.items():
        yield f"{name}: {part.family}, {part.source}" + _facts_text(part.published)
    for model in _unpinned(recipe, missing):
        yield (
            f"the recipe pins no commit of {model}: this takes the newest, and the manifest "
            f"records which; --pin {model}@COMMIT takes another"
        )
    needed = [fact for part, fact in _facts(recipe) if part.source in map(str, missing)]
    models = ", ".join(map(str, missing))
    if len(needed) < len(missing):
        yield f"downloads {models}; the recipe does not say how large that is"
        return
    yield f"downloads {models}: {_gigabytes(sum(fact.download_mb for fact in needed))}"
    facts = [fact for _, fact in _facts(recipe)]
    if len(facts) == len(recipe.parts):
        seconds = estimate_seconds(sum(fact.parameters_m for fact in facts))
        yield (
            f"writes {_gigabytes(sum(fact.bundle_mb for fact in facts))} into {target}, with "
            f"{_gigabytes(max(fact.memory_mb for fact in facts))} of memory, in about "
            f"{duration(seconds)} on this machine"
        )


def _unpinned(recipe: Recipe, missing: Sequence[HubRepository]) -> list[HubRepository]:
    """The models whose content may change from one download to the next."""
    segmenter = recipe.segmenter
    known = segmenter.source if segmenter and segmenter.sha256 else None
    return [model for model in missing if model.revision is None and str(model) != known]


def _facts(recipe: Recipe) -> list[tuple[SegmenterRecipe | MllmRecipe, PublishedFacts]]:
    return [(part, part.published) for part in recipe.parts.values() if part.published]


def _facts_text(facts: PublishedFacts | None) -> str:
    if facts is None:
        return ""
    return f", {facts.parameters_m:,.0f} M parameters, licence {facts.licence}"


def _gigabytes(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def estimate_seconds(parameters_m: float) -> float:
    """About how long this machine exports a model of so many million weights.

    It is a guess from the speed of a product of matrices, so other programs make it longer.
    """
    square = np.ones((SIDE, SIDE), np.float32)
    fastest = float("inf")
    for _ in range(4):  # the first also starts threads
        start = time.perf_counter()
        square @ square
        fastest = min(fastest, time.perf_counter() - start)
    gigaflops = 2 * SIDE**3 / max(fastest, 1e-6) / 1e9
    return max(parameters_m * SECONDS_PER_MILLION * MEASURED_AT / gigaflops, LEAST_SECONDS)


def fetch_missing(
    missing: Sequence[HubRepository], report_progress: ProgressReporter, *, show_bars: bool
) -> None:
    """Download models. All are asked for before the first is fetched.

    Args:
        missing: the models.
        report_progress: is told what is fetched, and under which licence.
        show_bars: whether the hub's client may draw its progress bars on stderr.

    Raises:
        HubError: one cannot be had.
        TooLittleRoom: the disk does not hold one.
    """
    listed = [list_model(model) for model in missing]
    for listing, files in listed:
        size = sum(file.size for file in files)
        licence = f", licence {listing.licence}" if listing.licence else ""
        report_progress(f"{listing.repository}: {size / 1e6:.0f} MB{licence}")
    for listing, files in listed:
        fetch_model(listing, files, report_progress, show_bars=show_bars)


def check_disk(recipe: Recipe, missing: Sequence[HubRepository], target: Path) -> None:
    """Refuse to download what the disk of the bundle cannot hold beside the bundle.

    Raises:
        TooLittleRoom: by the figures that the recipe names, it cannot.
    """
    names = set(map(str, missing))
    needed = sum(
        1e6 * (fact.bundle_mb + (fact.download_mb if part.source in names else 0))
        for part, fact in _facts(recipe)
    )
    hint = "free some space; -o names another folder for the bundle"
    check_disk_space(needed, target, "the download and the bundle take about", hint)
