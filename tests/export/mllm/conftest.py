"""Small models of every family, exported once for all tests."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segagent_rt.annotators.mllm import MllmAnnotator
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import open_part
from segagent_rt.bundle.manifest import Variant
from segagent_rt.runtime import open_mllm

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from segagent_rt_export.bundle_writer import PartDraft, write_manifest  # noqa: E402
from segagent_rt_export.families.mllm_export import export_mllm_graphs, export_mllm_tables  # noqa: E402
from segagent_rt_export.families.mllm_source import Choices, MllmSource, read_source  # noqa: E402
from segagent_rt_export.families.qwen_vl_v1.reference import QwenVlV1  # noqa: E402
from segagent_rt_export.graphs.precision import MllmPrecision  # noqa: E402
from tests.export.mllm import small_models  # noqa: E402
from tests.export.mllm.qwen_vl_v1 import SIZES, make_state  # noqa: E402

NAMES = (*small_models.FAMILIES, "qwen_vl")


@dataclass(frozen=True)
class Small:
    """A small model: its folder, and the reference that answers for it."""

    name: str
    folder: Path
    reference: Any


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return small_models.train_tokenizer()


def v1_ranks(tokenizer: Any) -> bytes:
    """The tokenizer's vocabulary in tiktoken's format: single bytes first, then by merge."""
    from segagent_rt_export.families.qwen_vl_v1.tiktoken import _byte_letters

    value = {letter: at for at, letter in enumerate(_byte_letters())}
    model = json.loads(tokenizer.to_str())["model"]
    words = [bytes([v]) for v in range(256)]
    words += [bytes(value[c] for c in a + b) for a, b in model["merges"]]
    unique = list(dict.fromkeys(words))
    return b"\n".join(base64.b64encode(w) + b" %d" % n for n, w in enumerate(unique))


@pytest.fixture(scope="session")
def small(tmp_path_factory: Any, tokenizer: Any) -> Callable[[str], Small]:
    made: dict[str, Small] = {}

    def make(name: str) -> Small:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "qwen_vl":
                state = make_state()
                torch.save(state, folder / "pytorch_model.bin")
                (folder / "config.json").write_text(json.dumps(SIZES))
                (folder / "qwen.tiktoken").write_bytes(v1_ranks(tokenizer))
                made[name] = Small(name, folder, QwenVlV1(state, SIZES))
            else:
                family = small_models.FAMILIES[name]
                model = small_models.save_family(family, folder, tokenizer)
                picture = "<image>" if family.name == "llava" else "<|image_pad|>"
                reference = small_models.Reference(family, model, tokenizer.token_to_id(picture))
                made[name] = Small(name, folder, reference)
        return made[name]

    return make


@dataclass(frozen=True)
class Exported:
    """An exported model, opened as the runtime opens it."""

    source: MllmSource
    folder: Path
    annotator: MllmAnnotator


@pytest.fixture(scope="session")
def exported(tmp_path_factory: Any, small: Callable[[str], Small]) -> Callable[..., Exported]:
    made: dict[Any, Exported] = {}

    def export(
        name: str,
        dialect: Any = "ort",
        choices: Choices | None = None,
        precision: MllmPrecision | None = None,
    ) -> Exported:
        key = (name, dialect, choices, precision)
        if key not in made:
            source = read_source(small(name).folder, choices)
            made[key] = open_exported(source, tmp_path_factory.mktemp("part"), dialect, precision)
        return made[key]

    return export


def open_exported(
    source: MllmSource, folder: Path, dialect: Any = "ort", precision: MllmPrecision | None = None
) -> Exported:
    graphs = export_mllm_graphs(source, folder, precision or MllmPrecision(), dialect)
    export_mllm_tables(source, folder)
    names = {role: path.name for role, path in graphs.items()}
    variants = {"reference": Variant("any", "fp32", names, dialect)}
    write_manifest(folder, PartDraft("mllm", source.family, source.settings, variants))
    where = SessionOptions("cpu", 1)
    part = open_part(folder, "mllm")
    annotator = open_mllm(part, lambda part, role: part.session(role, where))
    return Exported(source, folder, annotator)


@pytest.fixture(scope="session")
def photo() -> Callable[[int, int], np.ndarray]:
    """Pictures of any size: smooth shapes and noise."""

    def draw(height: int, width: int) -> np.ndarray:
        rng = np.random.default_rng(height * 1000 + width)
        y, x = np.mgrid[:height, :width]
        waves = [np.sin(x / f + p) * np.cos(y / (f + 3)) for f, p in ((9, 0), (17, 1), (31, 2))]
        noise = rng.normal(0, 12, (height, width, 3))
        return np.clip(127 + 80 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)

    return draw
