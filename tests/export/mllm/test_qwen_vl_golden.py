"""Qwen-VL's golden tensors, which its own code made, against our graphs and our reference."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.mllm.language_model import LanguageModel
from segagent_rt.mllm.vision_encoder import cut_patches
from segagent_rt_export.families.mllm_source import read_model
from segagent_rt_export.families.qwen_vl_v1.layers import split_layers
from segagent_rt_export.families.qwen_vl_v1.reference import QwenVlV1
from segagent_rt_export.families.weight_names import rename
from segagent_rt_export.graphs.builder import new_graph
from segagent_rt_export.graphs.language_model import build_decoder, build_head
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.sources.shards import open_shards
from segagent_rt_export.sources.weights import Checkpoint, row_pieces
from tests.export.mllm.measuring import CLOSE, distance
from tests.export.mllm.qwen_vl_v1 import SIZES

pytestmark = pytest.mark.export

GOLDEN = SIZES | {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "kv_channels": 64,
    "intermediate_size": 704, "vocab_size": 512,
    "visual": SIZES["visual"] | {"width": 104, "layers": 3, "heads": 4, "output_dim": 256},
}  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared):
    return dict(np.load(shared / "qwen_vl_v1" / "golden.npz"))


@pytest.fixture(scope="module", params=["ort", "portable"])
def opened(shared, tmp_path_factory, request):
    """The decoder with its head, and the vision encoder's session."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copy(shared / "qwen_vl_v1" / "tiny.pt", folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(GOLDEN))
    model = read_model(folder)
    weights = Checkpoint(split_layers(rename("qwen_vl", open_shards(folder))))
    head, language = weights.stored("head.weight"), weights.below("language.")
    paths = [folder / f"{role}.onnx" for role in ("vision", "decoder", "head")]
    with new_graph(paths[0], request.param) as g:
        model.vision_encoder.build(g, weights.below("visual."), Precision())
    with new_graph(paths[1], request.param) as g:
        build_decoder(g, model.language, language, head.read([0]), Precision())
    with new_graph(paths[2], request.param) as g:
        build_head(g, row_pieces(head, 100), model.language.hidden, Precision())
    vision, decoder, whole = (open_session(path, SessionOptions("cpu", 1)) for path in paths)
    table = weights("language.embed_tokens.weight")
    return LanguageModel(decoder, table, model.language_settings, whole), vision


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def picture(golden):
    """The pixels 0..255 behind the golden ones, which are normalised and stored in 16 bits."""
    return np.rint((golden["pixel_values"][0].astype(np.float64) * STD + MEAN) * 255)


def test_the_vision_encoder(opened, golden):
    pixels = picture(golden).transpose(1, 2, 0).astype(np.uint8)
    feeds = {"patches": cut_patches(pixels, 14, 1)[:, 0]}
    ours = opened[1].run(feeds, ["image_embeds"])["image_embeds"]
    assert distance(ours, golden["image_embeds"][0]) < CLOSE / 5


def test_the_decoder_its_cache_and_one_more_token(opened, golden):
    model, ids = opened[0], golden["input_ids"][0]
    start = int(np.flatnonzero(ids == SIZES["visual"]["image_start_id"])[0]) + 1
    x = model.embed(ids.tolist())
    x[0, start : start + 256] = golden["image_embeds"][0]
    cache = model.new_cache(len(ids) + 1)
    logits = model.forward_full_vocab(cache, x)
    assert distance(logits, golden["prefill_logits_last"]) < CLOSE
    for kind in ("key", "value"):
        kept = cache.past[f"past.2.{kind}"].numpy()[0, :, : len(ids)].transpose(1, 0, 2)
        assert distance(kept, golden[f"{kind[0]}_last"][0]) < CLOSE
    token = model.embed([int(golden["next_id"][0, 0])])
    row = model.forward_full_vocab(cache, token)
    assert distance(row, golden["decode_logits"][0]) < CLOSE


def test_our_reference_is_the_original(shared, golden):
    """The reference of the other tests, by which graphs are judged where golden data is absent."""
    state = torch.load(shared / "qwen_vl_v1" / "tiny.pt", weights_only=True)
    net = QwenVlV1(state, GOLDEN)
    pixels = torch.from_numpy((picture(golden) / 255 - MEAN) / STD).float()
    seen = net.see(pixels[None])
    assert distance(seen.numpy(), golden["image_embeds"][0]) < CLOSE / 5
    ids = golden["input_ids"][0]
    start = int(np.flatnonzero(ids == SIZES["visual"]["image_start_id"])[0]) + 1
    x = state["transformer.wte.weight"][ids].clone()
    x[start : start + 256] = torch.from_numpy(golden["image_embeds"][0])
    assert distance(net.read(x)[-1:].numpy(), golden["prefill_logits_last"]) < CLOSE / 5
