"""SimpleClick's export: the net against a plain statement of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.errors import InputError
from segagent_rt.segmenters.simple_click import SimpleClickSettings

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")

from segagent_rt_export.errors import CheckpointInvalid  # noqa: E402
from segagent_rt_export.families.simple_click.checkpoint_layout import Source, resampled  # noqa: E402
from segagent_rt_export.families.simple_click.export import export_simple_click, load_net  # noqa: E402
from segagent_rt_export.families.simple_click.net import Head, NetShape, by_windows  # noqa: E402
from segagent_rt_export.graphs.exported_segmenter import ExportedSegmenter  # noqa: E402

from .made_up import Sizes, content, random_tensors, save  # noqa: E402
from .plain import PlainNet, error, pictures  # noqa: E402

pytestmark = pytest.mark.export

NANO = Sizes()


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> ExportedSegmenter:
    folder = tmp_path_factory.mktemp("nano")
    return export_simple_click(save(folder / "nano.pth", content(NANO)), folder, flip=False)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_graph_computes_what_the_plain_net_does(nano: ExportedSegmenter, batch: int) -> None:
    image, guide = pictures(batch)
    expected = PlainNet(random_tensors(NANO), NANO)(image, guide)
    session = open_session(nano.graphs["net"], SessionOptions("cpu", 2))
    feeds = {"image": image.numpy(), "guide": guide.numpy()}
    found = session.run(feeds, ("logits",))["logits"]
    assert found.shape == (batch, 1, 112, 112)
    assert error(found, expected) < 1e-5


def test_the_exports_own_checks_hold_and_would_notice_another_net(nano: ExportedSegmenter) -> None:
    session = open_session(nano.graphs["net"], SessionOptions("cpu", 2))
    assert [len(check.feeds["image"]) for check in nano.checks] == [1, 2]
    for check in nano.checks:
        expected = check.expected["logits"]
        assert error(session.run(check.feeds, ("logits",))["logits"], expected) < 1e-5
        swapped = {"image": check.feeds["guide"], "guide": check.feeds["image"]}
        assert error(session.run(swapped, ("logits",))["logits"], expected) > 1e-2


def test_the_graph_is_one_that_every_backend_takes(nano: ExportedSegmenter) -> None:
    """No control flow, no shapes computed at run time, and none of the norms that TensorRT or ONNX
    Runtime compute badly over a million values.
    """
    model = onnx.load(nano.graphs["net"])
    kinds = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.version for opset in model.opset_import] == [18]
    assert model.ir_version <= 10
    assert not kinds & {"If", "Loop", "Scan", "NonZero", "Range", "Shape", "ScatterND", "Where"}
    assert not kinds & {"GroupNormalization", "InstanceNormalization"}


def test_settings_and_provenance_come_from_the_checkpoint(nano: ExportedSegmenter) -> None:
    assert nano.family == "simple_click"
    assert nano.settings == SimpleClickSettings(flip=False)
    assert nano.provenance["model"] == "isegm.model.is_plainvit_model.PlainVitModel"
    assert nano.provenance["source"] == "nano.pth"
    assert nano.provenance["unused"] == [
        "backbone.cls_token", "backbone.fc_norm.bias", "backbone.fc_norm.weight",
        "backbone.head.bias", "backbone.head.weight", "head.up_conv1.0.bias",
        "head.up_conv1.0.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "side"),
    [(NANO, 448), (Sizes(width=16, heads=1), 672), (NANO, 224), (NANO, 512),
     (Sizes(patch=14, depth=4), 448), (Sizes(width=24, depth=12, heads=3), 448),
     (Sizes(width=100, heads=5, depth=4), 448)],
)  # fmt: skip
def test_every_size_of_net_and_picture(sizes: Sizes, side: int) -> None:
    """Other patches, depths and sides: windows, global blocks and positions are laid out anew."""
    checkpoint = content(sizes)
    image, guide = pictures(1, side)
    with torch.no_grad():
        found = load_net(Source.of(checkpoint), side)(image, guide)
    expected = PlainNet(checkpoint["state_dict"], sizes)(image, guide)
    assert error(found, expected) < 1e-5


def _every_block_global(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetShape, "group", property(lambda self: 1))


def _windows_in_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetShape, "windows", property(lambda self: 4))


def _positions_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "segagent_rt_export.families.simple_click.checkpoint_layout.resampled"
    monkeypatch.setattr(where, lambda positions, shape: positions[:, 1:])


def _class_row_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    where = "segagent_rt_export.families.simple_click.checkpoint_layout.resampled"

    def shifted(positions: Any, shape: NetShape) -> Any:
        rows = torch.cat([positions[:, :1], positions[:, :-1]], 1)
        return resampled(rows, shape)

    monkeypatch.setattr(where, shifted)


def _maps_mixed_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Head.forward

    def forward(self: Head, *pyramid: Any) -> Any:
        self.blend = torch.nn.ModuleList(reversed(self.blend))
        return plain(self, *pyramid)

    monkeypatch.setattr(Head, "forward", forward)


@pytest.mark.parametrize(
    "fault",
    [_every_block_global, _windows_in_other_places, _positions_row_by_row, _class_row_kept,
     _maps_mixed_in_reverse],
)  # fmt: skip
def test_a_fault_in_the_net_would_be_noticed(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    checkpoint = content(NANO)
    image, guide = pictures(1)
    with torch.no_grad():
        found = load_net(Source.of(checkpoint), 448)(image, guide)
    expected = PlainNet(checkpoint["state_dict"], NANO)(image, guide)
    assert error(found, expected) > 1e-2


def test_tokens_are_taken_window_by_window() -> None:
    tokens = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert by_windows(tokens, 2).flatten().int().tolist() == [
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
    ]  # fmt: skip


def test_a_config_of_the_first_releases_is_understood() -> None:
    """Before the head had variants, the config did not name one."""
    sizes = Sizes(depth=4)
    checkpoint = content(sizes, head_params__upsample=None, norm_mean_std=None)
    unused = [n for n in checkpoint["state_dict"] if n.startswith("head.up_conv")]
    for name in unused:
        del checkpoint["state_dict"][name]
    source = Source.of(checkpoint)
    assert source.colours == (SimpleClickSettings().mean, SimpleClickSettings().std)
    load_net(source, 448)


def test_half_precision_weights_are_widened() -> None:
    checkpoint = content(Sizes(depth=4))
    halves = {name: tensor.half() for name, tensor in checkpoint["state_dict"].items()}
    net = load_net(Source.of(checkpoint | {"state_dict": halves}), 448)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone_params__depth": 12}, "depth 12, not 8"),
        ({"backbone_params__embed_dim": 10**12}, "embed_dim"),
        ({"backbone_params__patch_size": (8, 8)}, "patch_size"),
        ({"backbone_params__num_heads": 5}, "5 heads"),
        ({"backbone_params__num_heads": 0}, "0 heads"),
        ({"backbone_params__num_heads": "four"}, "misstates"),
        ({"backbone_params": None}, "backbone_params"),
        ({"neck_params__out_dims": [8, 16, 24]}, "out_dims"),
        ({"head_params__channels": 99}, "channels"),
        ({"head_params__upsample": "x2"}, "upsample x2"),
        ({"head_params__align_corners": True}, "align_corners"),
        ({"use_disks": False}, "use_disks"),
        ({"with_prev_mask": False}, "with_prev_mask"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointInvalid, match=says):
        load_net(Source.of(content(NANO, **changes)), 448)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("backbone.pos_embed", "pos_embed"),
        ("backbone.blocks.3.attn.qkv.bias", r"backbone\.blocks\.3\.attn\.qkv\.bias"),
        ("head.fusion_conv.conv.weight", "fusion_conv"),
        ("backbone.patch_embed.proj.weight", "patch_embed"),
    ],
)
def test_a_missing_tensor_is_named(name: str, says: str) -> None:
    checkpoint = content(NANO)
    del checkpoint["state_dict"][name]
    with pytest.raises(CheckpointInvalid, match=says):
        load_net(Source.of(checkpoint), 448)


def test_an_unknown_tensor_is_named() -> None:
    checkpoint = content(NANO)
    checkpoint["state_dict"]["backbone.blocks.0.gamma"] = torch.ones(32)
    with pytest.raises(CheckpointInvalid, match=r"blocks\.0\.gamma"):
        load_net(Source.of(checkpoint), 448)


@pytest.mark.parametrize(
    "other",
    [
        [],
        {},
        {"state_dict": {}, "config": {"class": "isegm.model.is_hrnet_model.HRNetModel"}},
        {"state_dict": {}, "config": {"class": "x.HRNetModel", "params": {}}},
        {"state_dict": {"w": 1}, "config": {"class": "x.PlainVitModel", "params": {}}},
        {"state_dict": {}, "config": {"class": "x.PlainVitModel", "params": {"a": 1}}},
        {"state_dict": {}, "config": {"class": "x.PlainVitModel", "params": {}}},
        {"model": {"w": torch.ones(1)}},
    ],
)
def test_other_checkpoints_are_refused(other: Any) -> None:
    with pytest.raises(CheckpointInvalid):
        load_net(Source.of(other), 448)


@pytest.mark.parametrize("side", [100, 208, 450, 688])
def test_sides_that_no_window_fits_are_refused(side: int) -> None:
    with pytest.raises(InputError, match=str(side)):
        load_net(Source.of(content(NANO)), side)


@pytest.mark.slow
def test_the_width_of_vit_b_loses_no_digits(tmp_path: Path) -> None:
    """768 channels and the real pyramid, two thirds of the depth."""
    sizes = Sizes(768, 8, 12, 16, (128, 256, 512, 1024), 256)
    exported = export_simple_click(save(tmp_path / "b.pth", content(sizes)), tmp_path)
    session = open_session(exported.graphs["net"], SessionOptions("cpu", 2))
    for batch in (1, 2):
        image, guide = pictures(batch)
        expected = PlainNet(random_tensors(sizes), sizes)(image, guide)
        feeds = {"image": image.numpy(), "guide": guide.numpy()}
        assert error(session.run(feeds, ("logits",))["logits"], expected) < 1e-4
