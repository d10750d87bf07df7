"""Training that begins with a bundle: the weights that come back are those that were exported, and
whatever is not one of the models that ship is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import torch

from segagent_rt.annotators.oracle import deepest
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_part
from segagent_rt.bundle.manifest import BundleIndex
from segagent_rt.errors import FileChanged, SegagentError
from segagent_rt.runtime import open_mllm
from segagent_rt.segmenters.click_net import CERTAIN, MAPS
from segagent_rt_export.bundle_writer import write_index
from segagent_rt_export.errors import CheckpointInvalid
from segagent_rt_export.families.click_net.export import export_segmenter
from segagent_rt_export.families.click_net.net import SegmenterNet
from segagent_rt_export.families.demo_mllm.activation_moments import observed_moments
from segagent_rt_export.families.demo_mllm.export import LANGUAGE, VISION, export_mllm
from segagent_rt_export.families.demo_mllm.from_bundle import mllm_from_part
from segagent_rt_export.families.demo_mllm.net import TinyMllm, tiny_config
from segagent_rt_export.families.demo_mllm.tokenizer import build_tokenizer
from segagent_rt_export.graphs.precision import Precision
from segagent_rt_export.graphs.stored_weights import read_graph
from segagent_rt_training.initial_segmenter import initial_segmenter
from segagent_rt_training.main import TrainingPlan, begin
from segagent_rt_training.progress import StageProgress
from segagent_rt_training.segmenter import SegmenterTrainingConfig, _examples, _step

pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch's exporter, about itself
]


@pytest.fixture(scope="module")
def mllm_net():
    """No two weights are the same, norms and biases neither."""
    torch.manual_seed(0)
    net = TinyMllm(tiny_config(build_tokenizer().get_vocab()))
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return net


@pytest.fixture(scope="module")
def segmenter_net():
    """Norms whose statistics are those of pictures, and whose scales and shifts are arbitrary."""
    torch.manual_seed(0)
    net = SegmenterNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = None
    with torch.no_grad():
        for number in range(2):
            _step(net, SegmenterTrainingConfig(seed=9), number, 4, 256)
    return net.eval()


@pytest.fixture(scope="module")
def bundle(mllm_net, segmenter_net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    export_segmenter(segmenter_net, folder / "segmenter")
    export_mllm(mllm_net, build_tokenizer(), folder / "mllm", VISION, LANGUAGE)
    write_index(folder, BundleIndex("made", {"segmenter": "segmenter", "mllm": "mllm"}))
    return folder


@pytest.fixture
def damaged(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "damaged")


def pictures(seed):
    """The first images of a training, and a click into an object of each."""
    images, targets = _examples(SegmenterTrainingConfig(seed=seed), 0, 8, 256)
    spots = [deepest(target)[1:] for target in targets[::2]]
    return images, np.array([[[(x + 0.5) / 256, (y + 0.5) / 256, 1]] for x, y in spots], np.float32)


@torch.no_grad()
def run(net, images, clicks):
    """Logits [B, 256, 256] after the first click, with no mask before it."""
    maps = net.encoder(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    prior = torch.zeros(len(images), 1, 256, 256)
    return net.decoder(*maps, torch.from_numpy(clicks), prior)[0][:, 0].numpy()


def run_graphs(folder, image, clicks):
    """As `run`, for one image and the graphs of a part."""
    part, where = open_part(folder, "segmenter"), SessionOptions("cpu", 1)
    encoder, decoder = (part.session(role, where, "cpu-w8") for role in ("encoder", "decoder"))
    maps = encoder.run({"image": image}, MAPS)
    prior = np.full((1, 1, 256, 256), -CERTAIN, np.float32)
    feeds = {**maps, "points": clicks, "prior_logits": prior}
    return decoder.run(feeds, ("logits",))["logits"][:, 0]


def iou(a, b):
    a, b = a > 0, b > 0
    return float(((a & b).sum((1, 2)) / (a | b).sum((1, 2))).mean())


def graph_values(folder, kind, role):
    return read_graph(open_part(folder, kind), role).values


def rewrite(folder, change):
    """Change a part's manifest, after counting and hashing its files anew."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name, record in manifest["files"].items():
        content = (folder / name).read_bytes()
        record.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def edit(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save_model(model, path)
    rewrite(path.parent, lambda manifest: None)


def test_the_mllm_comes_back_to_within_the_rounding_of_its_weights(bundle, mllm_net):
    """Of those that were rounded in turn, what they do to what comes in."""
    found = mllm_from_part(open_part(bundle / "mllm", "mllm")).model.state_dict()
    moments = observed_moments(mllm_net)
    for name, weight in mllm_net.model.state_dict().items():
        back, step = found[name], float(weight.abs().max()) / 127
        if name in moments:
            power = [
                each @ moments[name] @ each.T for each in (weight.numpy(), (weight - back).numpy())
            ]
            assert np.trace(power[1]) < 0.01**2 * np.trace(power[0]), name
            continue
        if "patch_embed.proj.weight" in name:  # a still image sees the sum of both frames only
            weight, back, step = weight.sum(2), back.sum(2), 1e-6
        elif weight.ndim == 1 or "pos_embed" in name:
            step = 1e-6
        assert float((weight - back).abs().max()) <= step, name


def test_an_mllm_without_rounding_comes_back_exactly(mllm_net, tmp_path):
    export_mllm(mllm_net, build_tokenizer(), tmp_path / "mllm", Precision(), Precision())
    found = mllm_from_part(open_part(tmp_path / "mllm", "mllm")).model.state_dict()
    for name, weight in mllm_net.model.state_dict().items():
        if "patch_embed" not in name and "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(weight, found[name]), name


def test_the_mllm_that_came_back_is_exported_with_the_same_codes(bundle, tmp_path):
    """Where they are the nearest ones: what was rounded in turn is weighed anew."""
    net = mllm_from_part(open_part(bundle / "mllm", "mllm"))
    nearest = Precision("stored", VISION.block)
    export_mllm(net, build_tokenizer(), tmp_path / "once", nearest, LANGUAGE)
    net = mllm_from_part(open_part(tmp_path / "once", "mllm"))
    export_mllm(net, build_tokenizer(), tmp_path / "mllm", nearest, LANGUAGE)
    for role, first in (("vision", tmp_path / "once"), ("decoder", bundle / "mllm")):
        before, after = (graph_values(f, "mllm", role) for f in (first, tmp_path / "mllm"))
        assert before.keys() == after.keys()
        codes = [name for name in before if before[name].dtype in (np.int8, np.uint8)]
        rest = before.keys() - codes
        if role == "decoder":
            head = codes.pop()  # was made of the table before that was rounded to 16 bits
            assert np.abs(before[head].astype(int) - after[head]).max() <= 1
        assert all(np.array_equal(before[name], after[name]) for name in codes)
        assert all(np.allclose(before[name], after[name], 1e-3, 1e-6) for name in rest)
    same = [np.load(folder / "mllm" / "embed.npy") for folder in (bundle, tmp_path)]
    assert np.array_equal(*same)


def test_the_vision_encoder_that_came_back_sees_the_same(bundle, tmp_path):
    export_mllm(
        mllm_from_part(open_part(bundle / "mllm", "mllm")),
        build_tokenizer(), tmp_path / "mllm", VISION, LANGUAGE,
    )  # fmt: skip
    where, seen = SessionOptions("cpu", 1), []
    for folder in (bundle / "mllm", tmp_path / "mllm"):
        part = open_part(folder, "mllm")
        encoder = open_mllm(part, lambda part, role: part.session(role, where)).vision_encoder
        seen.append(encoder.embed(pictures(0)[0][0]).embeddings)
    assert np.abs(seen[0] - seen[1]).std() < 0.02 * seen[0].std()


def test_the_segmenter_comes_back_and_is_exported_alike(bundle, tmp_path):
    net = initial_segmenter(open_part(bundle / "segmenter", "segmenter"), batches=1)
    images, clicks = (values[:1] for values in pictures(5))
    export_segmenter(net, tmp_path / "segmenter")
    stored, again = (run_graphs(at / "segmenter", images, clicks) for at in (bundle, tmp_path))
    close = 1e-3 * stored.std()
    assert np.abs(run(net.eval(), images, clicks) - stored).max() < close
    assert np.abs(again - stored).max() < close


@torch.no_grad()
def test_norms_change_nothing_on_the_pictures_that_they_were_measured_on(bundle):
    """As statistics of the batch, in training, and as those kept, in use."""
    net = initial_segmenter(open_part(bundle / "segmenter", "segmenter"), batches=1)
    pixels = torch.from_numpy(pictures(0)[0]).permute(0, 3, 1, 2).float()
    used, trained = (mode().encoder(pixels) for mode in (net.eval, net.train))
    for wanted, found in zip(used, trained, strict=True):
        assert float((found - wanted).std()) < 0.03 * float(wanted.std())


def test_on_other_pictures_norms_disturb_as_little_as_those_that_were_trained(
    bundle, segmenter_net
):
    net = initial_segmenter(open_part(bundle / "segmenter", "segmenter"), batches=2)
    images, clicks = pictures(5)
    masks = run(segmenter_net, images, clicks)
    own = copy.deepcopy(segmenter_net)
    ours, theirs = (iou(run(each.train(), images, clicks), masks) for each in (net, own))
    assert ours > theirs - 0.1


def test_a_training_that_begins_with_a_bundle_has_its_weights(bundle, tmp_path):
    begin(bundle, TrainingPlan("all", tmp_path, init=bundle))
    net = mllm_from_part(open_part(bundle / "mllm", "mllm")).state_dict()
    stored = torch.load(tmp_path / "vision_pretrain.pt", weights_only=True)
    assert stored["seen"] == 0
    assert all(torch.equal(stored["parts"][f"net.{name}"], net[name]) for name in net)
    assert torch.load(tmp_path / "segmenter.pt", weights_only=True)["seen"] == 0


def test_a_checkpoint_wins_over_the_bundle(damaged, tmp_path):
    """A bundle that could not be used is not even read."""
    for kind in ("segmenter", "mllm"):
        rewrite(damaged / kind, lambda manifest: manifest.update(family="other"))
    folder = tmp_path / "training"
    for stage in ("segmenter", "joint"):
        StageProgress(folder, stage, 1).save(net=SegmenterNet())
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    begin(damaged, TrainingPlan("all", folder, init=damaged))
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before


def rename(graph):
    graph.initializer[3].name += "_other"


def swap_gate_and_up(graph):
    """Each of the two projections gets the weights' place in the graph that the other has."""
    swish = next(node for node in graph.node if node.op_type == "Sigmoid")
    gate = next(node for node in graph.node if node.output[0] == swish.input[0])
    up = graph.node[list(graph.node).index(gate) + 1]
    gate.output[0], up.output[0] = up.output[0], gate.output[0]


def spare(graph):
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "spare"))


def swap_halves(graph):
    """Each of two layers gets the half over the clicks that the other has, of another size."""
    enter, refine = (f"decoder.{layer}.moving.weight" for layer in ("enter", "refine"))
    plain = next(tensor for tensor in graph.initializer if tensor.name == enter)
    unpacked = next(node for node in graph.node if node.output[0] == refine)
    plain.name, unpacked.output[0] = refine, enter


def leave_the_folder(graph):
    tensor = next(each for each in graph.initializer if each.external_data)
    tensor.external_data[0].value = "../secret.data"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (rename, "is missing"),
        (swap_gate_and_up, "'Sigmoid' would be computed while it is loaded"),
        (spare, "`spare` has no use"),
        (leave_the_folder, "the manifest does not list"),
    ],
)
def test_damaged_decoders_are_refused(damaged, fault, said):
    edit(damaged / "mllm" / "decoder.onnx", fault)
    with pytest.raises(SegagentError, match=said) as caught:
        mllm_from_part(open_part(damaged / "mllm", "mllm"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [rename, spare, swap_halves])
def test_damaged_segmenters_are_refused(damaged, fault):
    edit(damaged / "segmenter" / "decoder.onnx", fault)
    with pytest.raises(CheckpointInvalid):
        initial_segmenter(open_part(damaged / "segmenter", "segmenter"))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("mllm", {"family": "qwen2_vl"}, "family is `qwen2_vl`, not `qwen3_vl`"),
        ("segmenter", {"family": "sam"}, "family is `sam`, not `click_net`"),
        ("segmenter", {"settings": {"side": 512}}, "pictures are not 256 x 256"),
    ],
)
def test_other_models_are_refused(damaged, tmp_path, kind, change, said):
    rewrite(damaged / kind, lambda manifest: manifest.update(change))
    with pytest.raises(CheckpointInvalid, match=said):
        begin(damaged, TrainingPlan("all", tmp_path / "training", init=damaged))


def test_other_words_and_other_tables_are_refused(damaged):
    folder = damaged / "mllm"
    np.save(folder / "embed.npy", np.zeros((5, 256), np.float16))
    with pytest.raises(FileChanged):
        mllm_from_part(open_part(folder, "mllm"))
    rewrite(folder, lambda manifest: None)
    with pytest.raises(CheckpointInvalid, match=r"embed\.npy is float16"):
        mllm_from_part(open_part(folder, "mllm"))
    rewrite(folder, lambda manifest: manifest["settings"].update(longest_expression=5))
    with pytest.raises(CheckpointInvalid, match="words"):
        mllm_from_part(open_part(folder, "mllm"))
