"""Examples that end the help of each command. Each fits on one line of a terminal."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "segagent-rt demo --photo",
        "segagent-rt run photo.jpg --click +120,80",
    ),
    "demo": (
        "segagent-rt demo",
        "segagent-rt demo --photo -o first-masks",
    ),
    "run": (
        "segagent-rt run photo.jpg --click +120,80 --click -30,40",
        "segagent-rt run photo.jpg --box 40,30,200,180 --save mask,cutout",
        'segagent-rt run photo.jpg "the mug" -b qwen3-vl-2b-edgetam',
        'segagent-rt run photos/ "the mug" -b qwen3-vl-2b-edgetam -o masks',
    ),
    "serve": (
        "segagent-rt serve",
        "segagent-rt serve -b photo --root photos --port 8080",
    ),
    "refine": ('segagent-rt refine photo.jpg mask.png "the red circle"',),
    "score": (
        'segagent-rt score photo.jpg mask.png "the red circle"',
        "segagent-rt score --annotations coco.json --images photos --below 0.7",
    ),
    "eval": (
        "segagent-rt eval --scenes 100",
        "segagent-rt eval refcoco --split val --root DATA --images IMAGES -o out",
    ),
    "convert": (
        "segagent-rt convert refcoco_val --root DATA --to coco",
        "segagent-rt convert val.trajectories.json --to llama-factory --images DIR",
    ),
    "trajectories": (
        "segagent-rt trajectories coco.json --images photos --start empty",
        "segagent-rt trajectories t.trajectories.json --check --images photos",
    ),
    "bench": (
        "segagent-rt bench --scenario one --output one.json",
        "segagent-rt bench tiny --against reference",
    ),
    "bench report": (
        "segagent-rt bench report benchmarks",
        "segagent-rt bench report benchmarks --check",
    ),
    "scene": (
        "segagent-rt scene --seed 3 -o scene.png",
        "segagent-rt scene --seed 1000 --count 500 -o scenes",
    ),
    "export": (
        "segagent-rt export --list",
        "segagent-rt export qwen3-vl-2b-edgetam",
        "segagent-rt export mine.toml -o engines/mine --calibration photos",
    ),
    "pull": ("segagent-rt pull hf:owner/name",),
    "push": ("segagent-rt push engines/mine --upload hf:owner/name",),
    "bundles": ("segagent-rt bundles",),
    "build": (
        "segagent-rt build engines/mine --backend tensorrt",
        "segagent-rt build engines/mine --dry-run",
    ),
    "pack": ("segagent-rt pack engines/mine --variant gpu-fp16 -o mine.segagent",),
    "unpack": ("segagent-rt unpack mine.segagent -o engines/mine",),
    "inspect": (
        "segagent-rt inspect tiny --all",
        "segagent-rt inspect engines/mine --board orin-nx-16",
    ),
    "doctor": ("segagent-rt doctor",),
}
"""Examples by command; those of "" are for the program itself."""


def epilog(command: str) -> str | None:
    """The last paragraphs of a command's help, one for each example."""
    examples = EXAMPLES.get(command, ())
    return "\n\n".join(["Examples:", *examples]) if examples else None
