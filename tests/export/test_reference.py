"""The plain loop that benchmarks compare with: the bundle's models on the bundle's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segagent_rt.backends.onnxruntime import open_session
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.bench.compare_reference import Comparison
from segagent_rt.bench.parity import ParityGate
from segagent_rt.bench.profiling import GraphProfiler
from segagent_rt.bench.scenario import Scenario
from segagent_rt.bundle.bundle import open_bundle, open_part
from segagent_rt.cli.bench import open_reference_loop
from segagent_rt.errors import InputError, SegagentError
from segagent_rt.image import jpeg_round_trip
from segagent_rt.runtime import load, open_mllm
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.click_net import ClickNet, ClickNetSettings
from segagent_rt.types import Click
from segagent_rt_export.demo_bundle import write_demo_bundle
from segagent_rt_export.families.click_net.export import export_click_net
from segagent_rt_export.families.click_net.net import Folded, SegmenterNet
from segagent_rt_export.families.demo_mllm import net as mllm_net
from segagent_rt_export.families.demo_mllm.export import export_mllm
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_training.checkpoints import trained_nets

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch's own exporter
]

REPLY = " Current IOU: 40  Positive point: (517, 238)<|im_end|>"
TOKENS = len(build_tokenizer().encode(REPLY, add_special_tokens=False).ids)
SCENE = make_scene(3, 256).image
SCENARIO = Scenario("small", "one", scenes=1, side=96, clicks=2, warm_up=1)
LENIENT = ParityGate(masks=0.0, accuracy=1.0)
"""The segmenter of these tests is not trained: 8 bits move its masks a little."""


def new_mllm():
    torch.manual_seed(0)
    return mllm_net.TinyMllm(mllm_net.tiny_config(build_tokenizer().get_vocab()))


def new_segmenter():
    torch.manual_seed(0)
    return SegmenterNet().eval()


def finish_training(folder, mllm):
    folder.mkdir()
    torch.save({"net": new_segmenter().state_dict()}, folder / "segmenter.pt")
    parts = {f"net.{name}": value for name, value in mllm.state_dict().items()}
    torch.save({"parts": parts}, folder / "joint.pt")
    return folder


def teach(mllm, loop, steps=80):
    """Train the model to give one reply, whatever it sees and is asked."""
    answer = torch.tensor([build_tokenizer().encode(REPLY, add_special_tokens=False).ids])
    optimiser = torch.optim.Adam(mllm.language.parameters(), 2e-3)
    for step in range(steps):
        scene = make_scene(100 + step % 8, 256)
        inputs = loop.inputs(scene.image, scene.expressions[0].text)
        more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
        more["mm_token_type_ids"] = torch.zeros_like(answer, dtype=torch.int32)
        inputs |= {name: torch.cat([inputs[name], rest], 1) for name, rest in more.items()}
        logits = mllm.model(**inputs).logits[0, -TOKENS - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, answer[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training folder and the bundle made of it; the model knows one reply."""
    base = tmp_path_factory.mktemp("reference")
    mllm = new_mllm()
    fresh = finish_training(base / "fresh", mllm)
    write_demo_bundle(*trained_nets(fresh, "joint"), base / "first")
    teach(mllm, open_reference_loop(open_bundle(base / "first"), fresh, 1))
    folder = finish_training(base / "taught", mllm.eval())
    write_demo_bundle(*trained_nets(folder, "joint"), base / "bundle")
    return folder, base / "bundle"


@pytest.fixture(scope="module")
def loop(training):
    folder, bundle = training
    return open_reference_loop(open_bundle(bundle), folder, 1)


def test_it_is_plain_float32_torch_with_fused_attention(loop):
    told = loop.describe()
    assert told["precision"] == "float32"
    assert told["attention"] == "sdpa"
    assert told["threads"] == 1
    assert told["overlay_file"] == "JPEG", "this model says the same whatever it sees"


@torch.no_grad()
def test_its_prompt_and_pixels_are_those_of_the_runtime(loop, tmp_path):
    """Logits of the first token of the reply, in full precision on both sides."""
    mllm = new_mllm().eval()
    mllm.model.load_state_dict(loop._nets.mllm.state_dict())
    export_mllm(mllm, build_tokenizer(), tmp_path / "mllm", Precision(), Precision())
    part, where = open_part(tmp_path / "mllm", "mllm"), Where("cpu", 1)
    annotator = open_mllm(part, lambda part, role: part.session(role, where))
    picture = SCENE
    lead, tail = annotator.prompt("the red circle")
    seen = annotator.vision_encoder.embed(picture)
    x = np.concatenate(
        [annotator.model.embed(lead), seen.embeddings, annotator.model.embed(tail)], axis=1
    )
    positions = annotator.settings.language.rope.before_text(len(lead), seen.grid)
    after = positions.max() + 1 + np.arange(len(tail))
    positions = np.concatenate([positions, np.broadcast_to(after, (3, len(tail)))], axis=1)
    ours = annotator.model.forward(annotator.model.new_cache(x.shape[1]), x, positions)[0]
    inputs = loop.inputs(picture, "the red circle")
    theirs = loop._nets.mllm(**inputs).logits[0, -1][list(annotator.settings.head_rows)].numpy()
    assert np.abs(ours - theirs).max() < 1e-3 * theirs.std()


@torch.inference_mode()
def test_its_segmenter_is_the_one_that_was_exported(loop, tmp_path):
    graphs = export_click_net(new_segmenter(), tmp_path)
    encoder, decoder = (open_session(graphs[r], Where("cpu", 1)) for r in ("encoder", "decoder"))
    net = ClickNet(encoder, decoder, ClickNetSettings())
    image = np.ascontiguousarray(SCENE[:120, :200])
    clicks = [Click(30, 40, True), Click(150, 90, False)]
    ours = theirs = None
    embedding, maps = net.encode(image), loop._encode(image)
    for count in (1, 2):
        ours = net.decode(embedding, clicks[:count], prior=ours)
        theirs = loop._segment(maps, clicks[:count], theirs, image)
        assert np.abs(ours.logits - theirs.logits).max() < 1e-3
        assert theirs.mask().shape == (120, 200)


def test_pictures_pass_through_a_file(loop):
    picture = np.ascontiguousarray(SCENE[:96, :96])
    assert np.array_equal(loop._through_file(picture), jpeg_round_trip(picture))


def test_both_click_alike_and_so_the_ratio_is_told(training, loop):
    meter = GraphProfiler()
    with load(training[1], threads=1, wrap=meter.wrap) as runtime:
        found = Comparison(runtime, meter, loop, SCENARIO).run(lambda _: None, LENIENT).to_json()
    assert found["parity"] is True
    assert found["parity_figures"]["same_clicks"] == 1.0
    assert found["parity_figures"]["states"] == 2
    assert found["reference"]["tokens_per_reply"] == TOKENS
    assert found["ratios"]["same_clicks"].n == 1
    assert {"encode", "annotate", "segment"} <= set(found["stages"]["reference"].stages)


def test_a_model_that_talks_nonsense_is_not_compared(training, tmp_path):
    nonsense = finish_training(tmp_path / "nonsense", new_mllm())
    meter = GraphProfiler()
    with load(training[1], threads=1, wrap=meter.wrap) as runtime:
        other = open_reference_loop(runtime.bundle, nonsense, 1)
        found = Comparison(runtime, meter, other, SCENARIO).run(lambda _: None, LENIENT).to_json()
    assert found["parity"] is False
    assert found["ratios"] == {"same_clicks": None, "with_stop": None}
    assert found["accuracy"]["reference"].clicks_mean == 0.0


def test_a_folder_without_a_training_is_refused(tmp_path):
    with pytest.raises(SegagentError, match="holds no finished training"):
        open_reference_loop(open_bundle(), tmp_path, 1)


def test_damaged_checkpoints_are_refused(tmp_path):
    for name in ("segmenter.pt", "joint.pt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        open_reference_loop(open_bundle(), tmp_path, 1)


@pytest.mark.parametrize("side", [2, 4])
def test_squares_of_pixels_become_channels_as_torch_shuffles_them(side):
    fold, picture = Folded(side), torch.rand(2, 1, 16, 24)
    channels = fold(picture)
    assert torch.equal(channels, torch.nn.functional.pixel_unshuffle(picture, side))
    assert torch.equal(fold.back(channels), picture)
    assert fold.state_dict() == {}, "no checkpoint holds what is not learnt"
