"""The folder that a server of others loads: made whole, checked, recorded in its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segagent_rt.bundle.manifest import MANIFEST_FILE, FileRecord
from segagent_rt.bundle.store import cache_folder
from segagent_rt.errors import OutputError
from segagent_rt.io import check_writable
from segagent_rt.memory import check_disk_space
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt.types import ProgressReporter
from segagent_rt_export.bundle_writer import file_records, new_part, tool_versions, write_json
from segagent_rt_export.errors import RecipeInvalid, ToolFailed
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.plan import read_mllm
from segagent_rt_export.recipe import MllmRecipe, Recipe
from segagent_rt_export.registry import mllm_exporters
from segagent_rt_export.sources.locations import locate
from segagent_rt_export.sources.shards import open_shards, read_object
from segagent_rt_export.targets.checkpoint import expect_half, limit_pictures, write_checkpoint
from segagent_rt_export.targets.commands import Target, as_text, commands, sizes_of
from segagent_rt_export.targets.edge_llm import NAME, Tool, open_tool
from segagent_rt_export.targets.graph_check import GraphFacts, check_graph

YAML = "guided_decoding_backend: xgrammar\n"
"""What TensorRT-LLM must be told to hold replies to the form of a click."""


@dataclass(frozen=True, slots=True)
class Served:
    """The manifest of a prepared folder.

    Attributes:
        kind: marks the folder as one of these.
        vocabulary: tokens that the language model's ONNX can say; None for all of them.
        tools: versions of everything in the environment that exported, and ours.
        commands: what to run, by what it is for.
    """

    target: Target
    recipe: str
    family: str
    source: str
    adapter: str | None
    tools: Mapping[str, Mapping[str, str]]
    commands: Mapping[str, str]
    files: Mapping[str, FileRecord]
    graphs: Mapping[str, GraphFacts] = field(default_factory=dict)
    vocabulary: int | None = None
    kind: str = "served"


def prepare(
    recipe: Recipe, target: Target, folder: Path, report_progress: ProgressReporter
) -> Served:
    """Prepare what `target`'s server loads, in `folder`, which appears when all of it is there.

    Raises:
        RecipeInvalid: the recipe has no MLLM, or one that this server does not take.
        SourceMissing, CheckpointInvalid: the checkpoint is not there, or cannot be used.
        ToolFailed: the exporter's environment cannot be made, or it did not write whole graphs.
        OutputError, TooLittleRoom: the folder cannot be written.
    """
    if recipe.mllm is None:
        raise RecipeInvalid(f"the recipe {recipe.name} has no MLLM that could be served")
    taken = [name for name, family in mllm_exporters().items() if target in family.served_by]
    if recipe.mllm.family not in taken:
        raise RecipeInvalid(
            f"{target} does not serve models of the family {recipe.mllm.family}",
            hint="it takes " + ", ".join(taken),
        )
    check_writable(folder)
    if folder.exists() and not _is_ours(folder):
        raise OutputError(
            f"{folder} exists and was not made for a server", hint="choose another folder with -o"
        )
    beside = Path(recipe.folder)
    place = locate(recipe.mllm.source, beside, recipe.mllm.origin)
    adapter = None if recipe.mllm.adapter is None else locate(recipe.mllm.adapter, beside)
    source = read_mllm(recipe.mllm, place, adapter)
    _check_room(place, folder, copies=2 if target == "edge-llm" else 1)
    tool = open_tool(cache_folder(), report_progress) if target == "edge-llm" else None
    with new_part(folder) as scratch:
        report_progress("writing the checkpoint")
        write_checkpoint(place, adapter, recipe.mllm.family, scratch / "checkpoint")
        resize = source.settings.vision.resize
        if isinstance(resize, SmartResize):
            limit_pictures(scratch / "checkpoint", resize.least, resize.most)
        if tool is None:
            (scratch / "trtllm.yaml").write_text(YAML, "utf-8")
            graphs, words = dict[str, GraphFacts](), None
        else:
            words = write_vocabulary(scratch, recipe.mllm, source)
            graphs = _export(
                tool, scratch, folder.with_name(f"{folder.name}.log"), words, report_progress
            )
        lines = commands(target, recipe.name, folder, sizes_of(source))
        served = Served(
            target=target, recipe=recipe.name, family=recipe.mllm.family, source=place.name,
            adapter=adapter.name if adapter else None,
            tools={"segagent-rt": tool_versions()} | ({NAME: tool.packages} if tool else {}),
            commands={what: as_text(line) for what, line in lines.items()},
            files=file_records(scratch), graphs=graphs, vocabulary=words,
        )  # fmt: skip
        write_json(scratch / MANIFEST_FILE, served)
    return served


def _is_ours(folder: Path) -> bool:
    path = folder / MANIFEST_FILE
    return path.is_file() and read_object(path).get("kind") == "served"


def _check_room(source: Path, folder: Path, copies: int) -> None:
    """At least the weights, in 16 bits, go into the checkpoint, and again into the graphs."""
    need = copies * sum(2 * int(np.prod(t.shape)) for t in open_shards(source).values())
    check_disk_space(need, folder, "this takes", "choose another folder with -o")


def write_vocabulary(scratch: Path, recipe: MllmRecipe, source: MllmSource) -> int | None:
    """The tokens of the click grammar and those that end a reply, as the exporter takes them.

    Rows of the output head follow this list. Nothing is written where replies are free.
    """
    if recipe.decoding == "free":
        return None
    ending = set(source.settings.stops)
    for name in ("config.json", "generation_config.json"):
        if (path := scratch / "checkpoint" / name).is_file():
            content = read_object(path)
            for settings in (content, content.get("text_config") or {}):
                found = settings.get("eos_token_id")
                ending |= {i for i in (found if isinstance(found, list) else [found]) if i}
    tokens = np.array(sorted({*source.settings.head_rows, *ending}), np.int32)
    header = {"vocab_map": {"dtype": "I32", "shape": [len(tokens)],
                            "data_offsets": [0, tokens.nbytes]}}  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder = scratch / "vocabulary"
    folder.mkdir()
    content_bytes = len(text).to_bytes(8, "little") + text + tokens.tobytes()
    (folder / "vocab_map.safetensors").write_bytes(content_bytes)
    whole = source.tokenizer.get_vocab_size()
    about = {"vocab_size": whole, "reduced_vocab_size": len(tokens), "method": "click grammar"}
    write_json(folder / "reduced_vocab.json", about)
    return len(tokens)


def _export(
    tool: Tool, scratch: Path, log: Path, words: int | None, report_progress: ProgressReporter
) -> dict[str, GraphFacts]:
    """Let the exporter work, and believe nothing: both graphs must be whole, and of its version."""
    expect_half(scratch / "checkpoint")
    report_progress(f"{NAME} exports; this takes minutes")
    log.parent.mkdir(parents=True, exist_ok=True)
    output = scratch / "onnx"
    tool.export(scratch / "checkpoint", output, scratch / "vocabulary", log)
    graphs = {part: check_graph(output / part / "model.onnx") for part in ("llm", "visual")}
    table = output / "llm" / "embedding.safetensors"
    if not table.is_file() or not open_shards(table.parent, "embedding"):
        raise ToolFailed(f"{NAME} wrote no table of embeddings", hint=f"what it said is in {log}")
    said = read_object(output / "llm" / "config.json").get("edgellm_version")
    if said != tool.packages[NAME]:
        raise ToolFailed(f"the exporter calls itself {said}, and its package {tool.packages[NAME]}")
    head = graphs["llm"].outputs.get("logits", ())
    if words is not None and (not head or head[-1] != words):
        raise ToolFailed(f"the exported head has not the {words} rows of the click grammar")
    log.replace(output / "export.log")
    return graphs
