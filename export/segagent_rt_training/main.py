"""The whole training, stage by stage; each continues where a killed one stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from torch import multiprocessing, nn

from segagent_rt.bundle.bundle import open_bundle
from segagent_rt_export.bundle_writer import write_json
from segagent_rt_export.demo_bundle import write_demo_bundle
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.from_bundle import mllm_from_part
from segagent_rt_export.families.demo_mllm.net import TinyMllm
from segagent_rt_training.checkpoints import (
    MEAN,
    PLAN_FILE,
    TRAJECTORIES,
    last_stage,
    load_state,
    round_name,
    stages_of,
    trained_nets,
)
from segagent_rt_training.distributed import WorkerGroup, run_workers
from segagent_rt_training.initial_segmenter import initial_segmenter
from segagent_rt_training.mllm import (
    MllmTrainingConfig,
    MllmTrainingData,
    new_parts,
    train_joint,
    train_vision,
)
from segagent_rt_training.pool import Pool, load_pool, sloppy_pool
from segagent_rt_training.rollout import roll_out
from segagent_rt_training.segmenter import SegmenterTrainingConfig, train_segmenter
from segagent_rt_training.trajectory_examples import TrajectoryExample, read_trajectory_examples

POOL_SCENES, ROLLOUT_SCENES = 8000, 30_000


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What to train, where, and how much of it.

    `rounds` is how often the MLLM is trained on the masks of its own loop; more of them continue a
    finished training. `init` is a bundle to begin with, for what has no checkpoint in the folder.
    `trajectories` are the files of the stage `trajectories`, `images` the folder of their pictures.
    """

    what: Literal["segmenter", "mllm", "all", "trajectories"]
    folder: Path
    seed: int = 0
    scale: float = 1.0
    processes: int = 2
    rounds: int = 2
    init: Path | None = None
    trajectories: tuple[Path, ...] = ()
    images: Path | None = None

    def count(self, full: int) -> int:
        """A number of samples, scaled, at least one batch."""
        return max(48, int(full * self.scale))

    @property
    def segmenter(self) -> SegmenterTrainingConfig:
        """The segmenter's recipe."""
        recipe = SegmenterTrainingConfig(seed=self.seed)
        return replace(recipe, images=self.count(recipe.images))

    @property
    def mllm(self) -> MllmTrainingConfig:
        """The MLLM's recipe."""
        recipe = MllmTrainingConfig(seed=self.seed)
        return replace(
            recipe,
            vision_images=self.count(recipe.vision_images),
            joint_images=self.count(recipe.joint_images),
            self_rollout_images=self.count(recipe.self_rollout_images),
            trajectory_images=self.count(recipe.trajectory_images),
        )


def train(plan: TrainingPlan) -> None:
    """Train to the end. One training at a time works in a folder.

    Raises:
        BundleError, CheckpointInvalid: the bundle to begin with cannot be used.
        DataInvalid: the trajectories cannot be learnt from.
        TrainingMissing: there is nothing that the stage `trajectories` could go on from.
    """
    examples = (
        read_trajectory_examples(plan.trajectories, plan.images)
        if plan.what == TRAJECTORIES
        else []
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"):
        _remember(plan)
        if plan.init is not None:
            begin(plan.init, plan)
        if examples:
            last_stage(plan.folder)
            run_workers(partial(_trajectories, plan, examples), plan.processes)
            return
        if plan.what == "all":
            _side_by_side(partial(_segmenter_and_pool, plan), partial(_vision, plan))
        elif plan.what == "segmenter":
            _segmenter(plan)
        else:
            _vision(plan)
        if plan.what == "segmenter":
            return
        _make(plan.folder / "pool.npz", partial(_pool, plan))
        run_workers(partial(_joint, plan, "joint"), plan.processes)
        for number in range(plan.rounds):
            _make(plan.folder / f"rollout-{number}.npz", partial(_rollout, plan, number))
            run_workers(partial(_joint, plan, f"self_rollout-{number}"), plan.processes)
        _average(plan.folder, [round_name(number) for number in range(plan.rounds)[-2:]])


def _remember(plan: TrainingPlan) -> None:
    """Keep what decides the weights beside them."""
    recipes = {"segmenter": asdict(plan.segmenter), "mllm": asdict(plan.mllm)}
    about: dict[str, Any] = {
        name: getattr(plan, name) for name in ("seed", "scale", "processes", "rounds")
    }
    about["init"] = None if plan.init is None else open_bundle(plan.init).digest
    write_json(plan.folder / PLAN_FILE, {**about, **recipes})


def begin(init: Path, plan: TrainingPlan) -> None:
    """Write checkpoints that have seen nothing, with a bundle's weights, where there are none.

    The MLLM needs the segmenter too, for the masks that it is trained on.

    Raises:
        BundleError, CheckpointInvalid: the bundle's models are not those that ship.
    """
    bundle, folder = open_bundle(init), plan.folder
    mllm: TinyMllm | None = None
    if plan.what != "segmenter" and set(stages_of(folder)) <= {"segmenter"}:
        mllm = mllm_from_part(bundle.part("mllm"))
    if not (folder / "segmenter.pt").exists():
        segmenter = initial_segmenter(bundle.part("segmenter"))
        train_segmenter(replace(plan.segmenter, images=0), folder, init=segmenter)
    if mllm is not None:
        train_vision(replace(plan.mllm, vision_images=0), folder, init=mllm)


def _segmenter(plan: TrainingPlan) -> None:
    torch.set_num_threads(1)
    train_segmenter(plan.segmenter, plan.folder)


def _segmenter_and_pool(plan: TrainingPlan) -> None:
    _segmenter(plan)
    _make(plan.folder / "pool.npz", partial(_pool, plan))


def _vision(plan: TrainingPlan) -> None:
    torch.set_num_threads(1)
    train_vision(plan.mllm, plan.folder)


def _side_by_side(*works: Callable[[], None]) -> None:
    context: Any = multiprocessing.get_context("spawn")
    members = [context.Process(target=work) for work in works]
    for member in members:
        member.start()
    for member in members:
        member.join()
    if any(member.exitcode for member in members):
        sys.exit("a training process ended early; run the command again to continue")


def _make(path: Path, build: Callable[[], Pool]) -> None:
    if not path.exists():
        build().save(path)


def _pool(plan: TrainingPlan) -> Pool:
    net = SegmenterNet()
    net.load_state_dict(load_state(plan.folder / "segmenter.pt")["net"])
    return sloppy_pool(net, plan.count(POOL_SCENES), plan.seed)


def _average(folder: Path, stages: Sequence[str]) -> None:
    """Write the mean of the stages' weights as the last stage."""
    if not stages:
        return
    states = [load_state(folder / f"{stage}.pt")["parts"] for stage in stages]
    mean = {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}
    partial_file = folder / f"{MEAN}.partial"
    torch.save({"parts": mean}, partial_file)
    partial_file.replace(folder / f"{MEAN}.pt")


def _rollout(plan: TrainingPlan, number: int) -> Pool:
    bundle = plan.folder / "bundle"
    write_demo_bundle(*trained_nets(plan.folder, round_name(number - 1)), bundle)
    return roll_out(bundle, plan.count(ROLLOUT_SCENES), plan.seed, number, plan.processes)


def _joint(plan: TrainingPlan, stage: str, workers: WorkerGroup) -> None:
    recipe, parts = plan.mllm, new_parts(plan.seed)
    before = "vision_pretrain"
    if stage != "joint":
        recipe = replace(
            recipe,
            joint_images=recipe.self_rollout_images,
            rate=recipe.self_rollout_rate,
            frozen_vision_share=0.0,
        )
        before = round_name(int(stage.rpartition("-")[2]) - 1)
    _load(parts, plan.folder / f"{before}.pt")
    train_joint(recipe, plan.folder, parts, MllmTrainingData(_pools(plan)), workers, stage)


def _trajectories(
    plan: TrainingPlan, examples: Sequence[TrajectoryExample], workers: WorkerGroup
) -> None:
    """Learn from trajectories, from where all other stages have led."""
    recipe, parts = plan.mllm, new_parts(plan.seed)
    recipe = replace(
        recipe,
        joint_images=recipe.trajectory_images,
        rate=recipe.trajectory_rate,
        frozen_vision_share=0.0,
    )
    before = [stage for stage in stages_of(plan.folder) if stage != TRAJECTORIES][-1]
    _load(parts, plan.folder / f"{before}.pt")
    train_joint(
        recipe, plan.folder, parts, MllmTrainingData(_pools(plan), examples), workers, TRAJECTORIES
    )


def _pools(plan: TrainingPlan) -> list[Pool]:
    return [load_pool(path) for path in sorted(plan.folder.glob("*.npz"))]


def _load(parts: nn.ModuleDict, path: Path) -> None:
    parts.load_state_dict(load_state(path)["parts"])
