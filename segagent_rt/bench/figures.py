"""The results of `bench`. In JSON each class is an object with its attributes as keys.

Times are in milliseconds unless an attribute says otherwise, shares and IoUs in 0..1.
`docs/benchmarks.md` explains the figures for readers of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from segagent_rt.io import attributes

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `n` measurements."""

    p50: float
    p90: float
    p99: float
    max: float
    mean: float
    n: int


@dataclass(frozen=True, slots=True)
class RatioPercentiles:
    """Of the ratios of `n` pairs of measurements made in turn."""

    median: float
    p10: float
    p90: float
    n: int


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """Of runs of the loop.

    Attributes:
        total: of whole runs, masks at full size included.
        per_click: of whole runs by the number of their clicks.
        by_click: of whole steps (propose, segment, rate), by the number of their click, from 1.
        stages, graphs: by name; one that did not occur in a run counts as 0.
        calls_per_click, per_call: calls of each graph, and mean milliseconds of one.
        glue_share: median share of a run in which no graph runs; None if no graph was seen.
        clicks_mean: mean clicks of a run.
        stops: how many runs ended for which reason.
        miou: mean IoU of the returned masks.
    """

    total: Percentiles
    per_click: Percentiles
    by_click: Mapping[str, Percentiles]
    stages: Mapping[str, Percentiles]
    graphs: Mapping[str, Percentiles]
    calls_per_click: Mapping[str, float]
    per_call: Mapping[str, float]
    glue_share: float | None
    clicks_mean: float
    stops: Mapping[str, int]
    miou: float


@dataclass(frozen=True, slots=True)
class OneFigures(LoopFigures):
    """`first` is the first run after the graphs were loaded; it is a warm-up run."""

    first: float


@dataclass(frozen=True, slots=True)
class SequenceFigures(OneFigures):
    """Of a video's frames, one after the other."""

    frames_per_second: float


@dataclass(frozen=True, slots=True)
class EnduranceFigures:
    """Of many images in one process.

    Attributes:
        resident_megabytes: memory over time.
        memory_growth: share by which memory grew after the first images; None if that is unknown.
    """

    total: Percentiles
    resident_megabytes: tuple[float, ...]
    memory_growth: float | None


@dataclass(frozen=True, slots=True)
class SharedCanvasFigures:
    """Several expressions on one canvas (`shared`) and on a fresh canvas each.

    Attributes:
        masks_per_second: on a shared canvas.
        gain: how many times as long fresh canvases take, median.
    """

    shared: Percentiles
    fresh: Percentiles
    masks_per_second: float
    gain: float


@dataclass(frozen=True, slots=True)
class ManyFigures:
    """By the number of expressions."""

    expressions: Mapping[str, SharedCanvasFigures]


@dataclass(frozen=True, slots=True)
class DeadlineShare:
    """Of runs with a deadline.

    Attributes:
        tolerance: by how much a run may exceed the deadline and still count as in time.
        in_time, with_mask: shares of runs that ended in time, and that returned a mask.
        late: by how much runs exceeded it.
    """

    deadline: float
    tolerance: float
    in_time: float
    late: Percentiles
    with_mask: float
    miou: float


@dataclass(frozen=True, slots=True)
class DeadlineFigures:
    """The loop run to its end, and stopped at shares of its median time."""

    whole: LoopFigures
    shares: Mapping[str, DeadlineShare]


@dataclass(frozen=True, slots=True)
class AblationFigures:
    """With all optimisations, and how many times as long the loop takes without each."""

    total: Percentiles
    times_as_long_without: Mapping[str, RatioPercentiles]


@dataclass(frozen=True, slots=True)
class GrowthFigures:
    """Times over four sizes, all else as usual.

    Attributes:
        growth: by size and its value.
        steepest: the most that time grew faster than the size between two neighbours; above 1 it
            is superlinear.
    """

    growth: Mapping[str, Mapping[str, Percentiles]]
    steepest: Mapping[str, float]


KindFigures: TypeAlias = (
    LoopFigures | EnduranceFigures | ManyFigures | DeadlineFigures | AblationFigures | GrowthFigures
)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The result of one scenario. In JSON the figures stand beside the rest.

    Attributes:
        joules: of the whole scenario; None where nothing measures them.
    """

    kind: str
    scenes: int
    seed: int
    joules: float | None
    figures: KindFigures

    def to_json(self) -> dict[str, Any]:
        """What a document holds under the scenario's name."""
        document = attributes(self)
        return document | attributes(document.pop("figures"))


@dataclass(frozen=True, slots=True)
class AccuracyFigures:
    """Of runs that are compared."""

    miou: float
    clicks_mean: float


@dataclass(frozen=True, slots=True)
class ComparedFigures:
    """Speed-ups, and what they rest on.

    Attributes:
        parity: whether both runtimes make the same clicks and masks.
        parity_figures: how alike they are.
        ratios: speed-ups; None where parity or accuracy does not allow one.
        seconds: of whole runs.
    """

    parity: bool
    parity_figures: Mapping[str, Any]
    ratios: Mapping[str, RatioPercentiles | None]
    accuracy: Mapping[str, AccuracyFigures]
    seconds: Mapping[str, Percentiles]


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """Our runs and another runtime's. In JSON the figures of `compared` stand beside the rest.

    Attributes:
        clicks: the budget.
        reference: what the other runtime is.
        decoder_calls_after_prefill, most_decoder_calls_after_prefill: of a reply of ours.
        token_equality: share of our replies equal to one-token-at-a-time masked greedy decoding.
        stages: the figures of each side.
    """

    scenario: str
    clicks: int
    reference: Mapping[str, Any]
    compared: ComparedFigures
    decoder_calls_after_prefill: float | None
    most_decoder_calls_after_prefill: int
    tokens_per_reply: float | None
    token_equality: float | None
    stages: Mapping[str, LoopFigures]

    def to_json(self) -> dict[str, Any]:
        """The part of a document that a comparison makes."""
        document = attributes(self)
        return document | attributes(document.pop("compared"))


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The result of `bench`: scenarios by name with their rooflines, or a comparison.

    Attributes:
        load_ms: time to load the graphs.
        machine, ceilings: what was measured on, and what it can reach.
        bundle: name and digest.
        peak_megabytes: the most memory that the process had.
    """

    load_ms: float
    machine: Mapping[str, Any]
    ceilings: Mapping[str, float]
    bundle: Mapping[str, str]
    backend: str
    threads: int
    peak_megabytes: float
    scenarios: Mapping[str, ScenarioResult]
    roofline: Mapping[str, Mapping[str, Mapping[str, float]]]
    comparison: ComparisonResult | None = None

    def to_json(self) -> dict[str, Any]:
        """The document of the run."""
        document = {"schema": SCHEMA, **attributes(self)}
        del document["comparison"]
        if self.comparison is None:
            named = {name: each.to_json() for name, each in self.scenarios.items()}
            return document | {"scenarios": named}
        for name in ("scenarios", "roofline"):
            del document[name]
        return document | self.comparison.to_json()
