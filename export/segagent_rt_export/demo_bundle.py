"""The demo bundle: a click net and a tiny Qwen3-VL that know coloured shapes."""

from __future__ import annotations

from pathlib import Path

from segagent_rt.bundle.manifest import BundleIndex
from segagent_rt_export.bundle_writer import new_part, write_index
from segagent_rt_export.families.click_net.export import export_segmenter
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.export import LANGUAGE, VISION, export_mllm
from segagent_rt_export.families.demo_mllm.net import TinyMllm
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer


def write_demo_bundle(segmenter: SegmenterNet, mllm: TinyMllm, target: Path) -> None:
    """Write both parts and their index; `target` must not exist."""
    with new_part(target) as folder:
        export_segmenter(segmenter, folder / "segmenter")
        export_mllm(mllm, build_tokenizer(), folder / "mllm", VISION, LANGUAGE)
        about = "Knows coloured shapes; trained by segagent-rt on its own synthetic scenes"
        write_index(folder, BundleIndex("tiny", {"segmenter": "segmenter", "mllm": "mllm"}, about))
