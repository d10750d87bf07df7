"""Words that options take, as types. The command line's help reads them, so nothing is imported."""

from __future__ import annotations

from typing import Literal, TypeAlias

AfterLoss: TypeAlias = Literal["end", "discard"]
"""What a click of a demonstration that gains too little does."""

Ablation: TypeAlias = Literal["none", "remove", "shuffle"]
"""How expressions are changed, to test whether a model uses them."""

AnnotatorName: TypeAlias = Literal["mllm", "oracle"]
"""Who clicks: the bundle's MLLM, or the oracle that knows the true mask."""

Rule: TypeAlias = Literal["full", "ref", "last"]
"""Which step's mask counts; see `segagent_rt.eval.selection.select`."""

SaveKind: TypeAlias = Literal["mask", "overlay", "cutout", "json", "coco", "yolo", "labelme"]
"""What `--save` and `Result.save` take. The JSON document is always written."""

StartName: TypeAlias = Literal["nothing", "degraded"]
"""What an evaluated loop starts from: no mask, or the true one degraded."""
