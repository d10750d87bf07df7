"""From a checkpoint to the files of an MLLM's part of a bundle."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from segagent_rt.errors import InputError
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.mllm_source import MllmSource
from segagent_rt_export.families.weight_names import needless
from segagent_rt_export.gate.verdict import DAMAGED
from segagent_rt_export.graphs.builder import Dialect, new_graph
from segagent_rt_export.graphs.language_model import build_decoder, build_head
from segagent_rt_export.graphs.precision import MllmPrecision
from segagent_rt_export.sources.weights import Stored, row_pieces

TABLE_FILE, TOKENIZER_FILE = "embed.npy", "tokenizer.json"


def export_mllm_graphs(
    source: MllmSource, folder: Path, precision: MllmPrecision, dialect: Dialect = "ort"
) -> dict[str, Path]:
    """Write the graphs of one variant; returns them by role: `vision`, `decoder`, and `head` if
    decoding is free. Each tensor is read once, and at most a few lie in memory at a time.

    Raises:
        CheckpointInvalid: a tensor is missing, of the wrong shape, or would be left out.
        InputError: the dialect cannot express the precision.
    """
    if dialect == "portable" and "int8" in (precision.vision.scheme, precision.language.scheme):
        raise InputError("int8 arithmetic has no portable form", hint="choose 8bit or 4bit")
    model, weights = source.model, source.weights
    _embeddings(source)
    graphs = {role: folder / f"{role}.onnx" for role in _roles(source)}
    with new_graph(graphs["vision"], dialect) as g:
        model.vision_encoder.build(g, weights.below("visual."), precision.vision)
    head = _head(source)
    rows = head.read(list(source.settings.head_rows))
    with new_graph(graphs["decoder"], dialect) as g:
        build_decoder(g, model.language, weights.below("language."), rows, precision.language)
    if "head" in graphs:
        with new_graph(graphs["head"], dialect) as g:
            build_head(g, row_pieces(head), model.language.hidden, precision.language)
    _refuse_leftovers(source)
    return graphs


def export_mllm_tables(source: MllmSource, folder: Path) -> None:
    """Write what all variants share: the table of embeddings, and the tokenizer.

    The table keeps 16-bit weights in 16 bits.

    Raises:
        CheckpointInvalid: an embedding is not finite, or does not fit 16 bits.
    """
    table = _embeddings(source)
    dtype = np.float16 if table.width == 2 else np.float32
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": table.shape}
    # No memory map: a full disk would end it in a signal instead of an error.
    with (folder / TABLE_FILE).open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in row_pieces(table):
            rows = piece.astype(dtype)
            if not np.isfinite(rows).all():
                raise CheckpointInvalid("the table of embeddings is not finite", hint=DAMAGED)
            stream.write(rows.tobytes())
    source.tokenizer.save(str(folder / TOKENIZER_FILE))


def _roles(source: MllmSource) -> tuple[str, ...]:
    free = source.settings.decoding == "free"
    return ("vision", "decoder", "head") if free else ("vision", "decoder")


def _embeddings(source: MllmSource) -> Stored:
    table = source.weights.stored("language.embed_tokens.weight")
    size, hidden = source.tokenizer.get_vocab_size(), source.model.language.hidden
    if len(table.shape) != 2 or table.shape[1] != hidden or table.shape[0] < size:
        raise CheckpointInvalid(
            f"the table of embeddings is {table.shape}, for {size} tokens of {hidden} numbers",
            hint="do the tokenizer, config.json and the weights belong together?",
        )
    return table


def _head(source: MllmSource) -> Stored:
    if source.model.tied:
        source.weights.read.add("head.weight")  # some checkpoints store the same table twice
        return _embeddings(source)
    return source.weights.stored("head.weight")


def _refuse_leftovers(source: MllmSource) -> None:
    leftovers = list(source.weights.unread(partial(needless, source.family)))
    if leftovers:
        raise CheckpointInvalid(
            f"the checkpoint holds {len(leftovers)} tensors that this architecture does not use, "
            f"`{leftovers[0]}` among them",
            hint="is config.json that of these weights?",
        )
