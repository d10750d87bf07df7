"""The model that ships: its exporter against the net that was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_bundle, open_part
from segagent_rt.runtime import open_mllm
from segagent_rt.types import Request
from segagent_rt_export.families.demo_mllm import net as mllm_net
from segagent_rt_export.families.demo_mllm.export import LANGUAGE, VISION, export_mllm
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.gate.graph_lint import lint
from segagent_rt_export.graphs.precision import Precision

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    tokens = build_tokenizer().get_vocab()
    return mllm_net.TinyMllm(mllm_net.tiny_config(tokens)).eval()


def opened(net, folder, vision, language):
    export_mllm(net, build_tokenizer(), folder, vision, language)
    part, where = open_part(folder, "mllm"), SessionOptions("cpu", 2)
    return open_mllm(part, lambda part, role: part.session(role, where))


@torch.no_grad()
def test_the_graphs_are_the_net(net, photo, tmp_path):
    annotator = opened(net, tmp_path / "mllm", Precision(), Precision())
    image = photo(256, 256)
    sight = net.see(torch.from_numpy(image)[None])
    seen = annotator.vision_encoder.embed(annotator.vision_encoder.resize(image))
    theirs = sight.tokens[0].numpy()
    assert np.abs(seen.embeddings[0] - theirs).max() < 1e-4 * theirs.std()
    lead, tail = annotator.prompt("the red circle")
    x = np.concatenate(
        [annotator.model.embed(lead), seen.embeddings, annotator.model.embed(tail)], axis=1
    )
    rope = annotator.settings.language.rope
    positions = rope.before_text(len(lead), seen.grid)
    after = positions.max() + 1 + np.arange(len(tail))
    positions = np.concatenate([positions, np.broadcast_to(after, (3, len(tail)))], axis=1)
    ours = annotator.model.forward(annotator.model.new_cache(x.shape[1]), x, positions)[0]
    bias = torch.full((x.shape[1],) * 2, -1e9).triu(1)[None, None]
    asking = torch.zeros(1, 1, dtype=torch.int64)
    hidden, _ = net.read(torch.from_numpy(x), torch.from_numpy(positions)[:, None], bias, asking)
    logits = (hidden[0, -1] @ net.embedding.T)[list(annotator.settings.head_rows)].numpy()
    assert np.abs(ours - logits).max() < 1e-3 * logits.std()  # the table is stored in 16 bits


def test_it_answers_in_the_precision_that_ships(net, photo, tmp_path):
    annotator = opened(net, tmp_path / "mllm", VISION, LANGUAGE)
    view = annotator.look(photo(256, 256))
    turn = view.propose([Request(None, "the red circle")])[0][0]
    assert turn.rating is not None
    assert turn.reply.startswith(" Current IOU: ")


def places(path):
    """Where a graph's large weights lie."""
    stored = onnx.load(path, load_external_data=False).graph.initializer
    return {tuple(entry.value for entry in t.external_data) for t in stored if t.external_data}


def test_its_portable_variant_takes_no_weight_of_its_own(net, tmp_path):
    folder = tmp_path / "mllm"
    export_mllm(net, build_tokenizer(), folder, VISION, LANGUAGE)
    part = open_part(folder, "mllm")
    portable = part.manifest.variants["portable"]
    assert portable.profiles.keys() == portable.graphs.keys() == {"vision", "decoder"}
    for role, file in portable.graphs.items():
        ours = part.manifest.variants["cpu-w8a8-static"].graphs[role]
        assert places(folder / file) == places(folder / ours)
        assert len(places(folder / file)) > 20


def test_no_operator_of_one_library_is_in_the_portable_variant_that_ships():
    part = open_bundle().part("mllm")
    assert list(lint(part)) == []
    ours = part.manifest.variants["cpu-w8a8-static"]
    wrong = replace(part.manifest, variants={"portable": replace(ours, dialect="portable")})
    found = list(lint(replace(part, manifest=wrong)))
    assert len(found) == 2
    assert all("operators of com.microsoft" in failure.text for failure in found)


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.portable.onnx"])
def test_behind_the_last_keys_and_values_are_only_rows_that_are_scored(name):
    """Two gathers, of the mixture and of what goes past it; then four products, and the head."""
    path = open_bundle().part("mllm").folder / name
    graph = onnx.load(path, load_external_data=False).graph
    few, kinds = {"logits_at"}, []
    for node in graph.node:
        if few.intersection(node.input):
            few.update(node.output)
            kinds.append(node.op_type)
    assert kinds.count("Gather") == 2
    assert kinds.count("MatMul") == 5
    assert not {"present.3.key", "present.3.value"} & few
