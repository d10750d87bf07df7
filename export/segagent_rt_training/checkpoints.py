"""What a training folder holds: its stages, and the nets of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from segagent_rt.errors import SegagentError
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.net import TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer

PLAN_FILE = "plan.json"
MEAN = "mean"
"""The stage that ships: the mean of the weights at the ends of the last two rounds."""
TRAJECTORIES = "trajectories"
"""The stage after all others: trained on trajectories."""


class TrainingMissing(SegagentError):
    """A folder does not hold the checkpoints that are asked for."""


def stages_of(folder: Path) -> list[str]:
    """The stages that have a checkpoint in a training folder, in their order."""
    rounds = sorted(int(p.stem.rpartition("-")[2]) for p in folder.glob("self_rollout-*.pt"))
    stages = ["segmenter", "vision_pretrain", "joint", *map(round_name, rounds), MEAN, TRAJECTORIES]
    return [stage for stage in stages if (folder / f"{stage}.pt").exists()]


def last_stage(folder: Path) -> str:
    """The last stage of the MLLM that has a checkpoint in a training folder."""
    found = stages_of(folder)
    if len(found) < 2 or found[0] != "segmenter":
        raise TrainingMissing(
            f"{folder} holds no finished training",
            hint=f"python -m segagent_rt_training all --folder {folder}",
        )
    return found[-1]


def round_name(number: int) -> str:
    """The name of a round's stage; what comes before the first round for -1."""
    return f"self_rollout-{number}" if number >= 0 else "joint"


def trained_nets(training: Path, mllm_stage: str) -> tuple[SegmenterNet, TinyMllm]:
    """Both nets, from the checkpoints in a training folder."""
    segmenter = SegmenterNet()
    segmenter.load_state_dict(load_state(training / "segmenter.pt")["net"])
    net = TinyMllm(tiny_config(build_tokenizer().get_vocab()))
    weights = load_state(training / f"{mllm_stage}.pt")["parts"]
    net.load_state_dict({k[4:]: v for k, v in weights.items() if k.startswith("net.")})
    return segmenter.eval(), net.eval()


def load_state(path: Path) -> dict[str, Any]:
    """A checkpoint of a stage."""
    return dict(torch.load(path, map_location="cpu", weights_only=True))
