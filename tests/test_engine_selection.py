"""The gate that engines pass, and what happens to those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from segagent_rt.backends.engine_library import load_library
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.placement import open_role
from segagent_rt.engine_cache.golden_example import pack_examples, unpack_examples
from segagent_rt.engine_cache.golden_io import record_golden
from segagent_rt.engine_cache.key import engine_key
from segagent_rt.engine_cache.selection import EngineSelector, check_engine
from segagent_rt.engine_cache.store import EngineCache
from segagent_rt.errors import BackendUnavailable, EngineRefused
from tests.backends import fake_tensorrt
from tests.backends.bundles import segmenter, write_bundle


class Says:
    """A session that gives these outputs."""

    def __init__(self, **outputs):
        self._outputs = outputs

    def run(self, feeds, outputs):
        return {name: self._outputs[name] for name in outputs}


def verdict(found, expected, name="logits"):
    return check_engine(Says(**{name: found}), [({}, {name: expected})])


RNG = np.random.default_rng(0)
MAP = RNG.standard_normal((1, 1, 32, 32)).astype(np.float32)
ROWS = RNG.standard_normal((40, 20)).astype(np.float32)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda x: np.where(x > 3, np.inf, x), "not finite"),
        (lambda x: np.full_like(x, np.nan), "not finite"),
        (lambda x: x * 1.1, "error"),
        (lambda x: np.roll(x, 1, -1), "cosine"),
        (lambda x: np.zeros_like(x), "cosine"),
        (lambda x: -x, "cosine"),
    ],
)
def test_wrong_numbers_are_found(fault, why):
    assert verdict(MAP, MAP).why is None
    assert why in verdict(fault(MAP), MAP, "features").why


def test_a_mask_may_not_differ_though_its_logits_are_alike():
    """Small logits decide on the mask, large ones on the cosine."""
    logits = np.full((1, 1, 10, 10), 0.001, np.float32)
    logits[..., 0, :] = 100
    other = np.where(logits == 100, logits, -logits)
    assert "mask IoU" in verdict(other, logits, "masks").why
    assert verdict(other, logits, "features").why is None


def test_tokens_must_be_the_same_unless_the_reference_is_of_two_minds():
    rows = ROWS * 0.001 + 10
    rows[:, 3] += 0.2
    swapped = rows.copy()
    swapped[0, 7] = rows[0, 3] + 0.1
    assert "other choices is 0.025" in verdict(swapped, rows).why
    rows[0, 7] = rows[0, 3] - 0.05
    assert verdict(swapped, rows).why is None


def test_the_worst_figure_of_all_examples_is_kept():
    examples = [({}, {"features": MAP * scale}) for scale in (1.0, 1.02, 1.01)]
    found = check_engine(Says(features=MAP), examples).figures["features: error"]
    assert found == pytest.approx(0.02 / 1.02, rel=1e-3)


def test_examples_survive_the_file():
    examples = [({"a": MAP}, {"b/c": ROWS}), ({"a": MAP * 2}, {"b/c": ROWS, "n": np.array(3)})]
    for before, after in zip(examples, unpack_examples(pack_examples(examples)), strict=True):
        for old, new in zip(before, after, strict=True):
            assert list(old) == list(new)
            assert all(np.array_equal(old[name], new[name]) for name in old)


VARIANTS = ["fast", "safer", "safest"]


@pytest.fixture
def part(tmp_path, machine):
    return segmenter(write_bundle(tmp_path / "b", VARIANTS))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """What such a part computes on the CPU."""
    folder = tmp_path_factory.mktemp("examples") / "b"
    return record_golden(segmenter(write_bundle(folder, VARIANTS)), "tensorrt")


@pytest.fixture
def selector(tmp_path, machine):
    return EngineSelector(load_library("tensorrt"), EngineCache(tmp_path / "engines"))


@pytest.fixture
def build(part, selector, examples):
    return lambda role: selector.build(part.graphs(role), examples[role], lambda phase: None)


def opened(part, tmp_path, backend, role="encoder"):
    return open_role(part.graphs(role), SessionOptions(backend, 1), tmp_path / "engines")


def test_the_first_engine_that_computes_right_is_taken_and_loaded(part, build, tmp_path):
    made, failed = build("encoder")
    assert (made.graph, failed) == ("segmenter encoder (fast)", {})
    assert max(made.figures.values()) < 0.01
    found = opened(part, tmp_path, "tensorrt")
    assert (found.placement.backend, found.placement.variant) == ("tensorrt", "fast")
    found.session.close()


def test_an_overflow_is_caught_and_the_next_variant_takes_its_place(part, build, tmp_path):
    fake_tensorrt.trouble.overflows |= {"encoder.fast.onnx", "encoder.safer.onnx"}
    made, failed = build("encoder")
    assert made.graph == "segmenter encoder (safest)"
    assert list(failed) == ["fast", "safer"]
    assert "not finite" in failed["fast"]
    found = opened(part, tmp_path, "tensorrt")
    assert found.placement.variant == "safest"
    assert "not finite" in found.placement.refused["safer"]
    found.session.close()


def test_the_record_beside_the_engine_tells_what_was_refused_and_why(part, build, selector):
    fake_tensorrt.trouble.overflows.add("encoder.fast.onnx")
    build("encoder")
    fast, safer = (engine_key(g, selector.library.machine()) for g in part.graphs("encoder")[:2])
    refused = selector.cache.find(fast)
    assert not refused.passed
    assert refused.figures["fine: not finite"] == pytest.approx(1 / 7, abs=1e-3)
    assert not selector.cache.path(fast, "plan").exists(), "a refused engine is not kept"
    assert selector.cache.find(safer).passed


def test_a_graph_that_the_builder_refuses_is_a_rung_that_failed(part, build):
    fake_tensorrt.trouble.refuses.add("encoder.fast.onnx")
    made, failed = build("encoder")
    assert made.graph == "segmenter encoder (safer)"
    assert "has no MatMulNBits" in failed["fast"]


def test_if_nothing_passes_a_named_backend_is_an_error_and_auto_goes_on(part, build, tmp_path):
    fake_tensorrt.trouble.overflows |= {f"encoder.{n}.onnx" for n in ("fast", "safer", "safest")}
    with pytest.raises(EngineRefused, match="no engine of the segmenter encoder can be used"):
        build("encoder")
    with pytest.raises(EngineRefused, match=r"can be used: fast: .*not finite"):
        opened(part, tmp_path, "tensorrt")
    found = opened(part, tmp_path, "auto")
    assert found.placement.backend == "cpu"
    assert "not finite" in found.placement.refused["tensorrt"]


def test_what_was_built_is_not_built_again(build):
    build("encoder")
    before = list(fake_tensorrt.trouble.builds)
    build("encoder")
    assert fake_tensorrt.trouble.builds == before == ["encoder.fast.onnx"]


def test_every_load_is_checked_and_an_engine_that_fails_then_is_left_alone(part, build, tmp_path):
    """A driver update, a sick GPU: what was right when it was built need not be right today."""
    build("encoder")
    fake_tensorrt.trouble.overflows.add("encoder.fast.onnx")
    for _ in range(2):
        with pytest.raises(EngineRefused, match=r"no engine of the segmenter encoder \(safer\)"):
            opened(part, tmp_path, "tensorrt")
    made, failed = build("encoder")
    assert made.graph == "segmenter encoder (safer)"
    assert failed["fast"].endswith("(when it was loaded)")


def test_an_engine_that_the_library_no_longer_loads_is_built_again(part, build, tmp_path):
    build("encoder")
    fake_tensorrt.trouble.loads_nothing = True
    with pytest.raises(EngineRefused, match="does not load the segmenter encoder"):
        opened(part, tmp_path, "tensorrt")
    fake_tensorrt.trouble.loads_nothing = False
    build("encoder")
    assert len(fake_tensorrt.trouble.builds) == 2


def test_without_an_engine_a_named_backend_says_how_to_build_it(part, tmp_path):
    with pytest.raises(EngineRefused, match="no engine of the segmenter encoder") as caught:
        opened(part, tmp_path, "tensorrt")
    assert caught.value.hint.endswith("--backend tensorrt")


def test_after_an_update_of_the_library_the_difference_is_named(part, build, tmp_path, monkeypatch):
    build("encoder")
    monkeypatch.setattr(fake_tensorrt, "__version__", "11.4.0.106")
    with pytest.raises(EngineRefused, match=r"built for the library .*10\.13.* here it is .*11\.4"):
        opened(part, tmp_path, "tensorrt")


def test_examples_are_the_part_s_own_work_with_every_number_of_clicks(examples):
    assert {role: len(found) for role, found in examples.items()} == {"encoder": 1, "decoder": 3}
    feeds, outputs = examples["decoder"][-1]
    assert feeds["points"].shape == (1, 4, 3)
    assert set(outputs) == {"logits", "iou"}
    assert (outputs["logits"] > 0).any()


def test_without_a_gpu_nothing_is_loaded(part, build, machine, tmp_path):
    build("encoder")
    machine(None)
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        opened(part, tmp_path, "tensorrt")
