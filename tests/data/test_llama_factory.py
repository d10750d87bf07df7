"""LLaMA-Factory's own code reads what `convert` writes: its list of data sets, its converter, its
templates and loss mask.

Needs `pip install --no-deps llamafactory==0.9.5`. What it imports besides is replaced by names
without content: nothing of torch or transformers takes part in reading.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from types import SimpleNamespace

import pytest

from tests.cli.terminal import Terminal
from tests.data.datasets import trajectories

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llamafactory") is None,
    reason="needs llamafactory, without its own needs",
)

HEAVY = {
    "accelerate", "av", "datasets", "fsspec", "huggingface_hub", "omegaconf", "peft", "torch",
    "torchaudio", "transformers", "trl",
}  # fmt: skip


class Nothing:
    """Any class, function or decorator of a package that is not there."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *given: object, **_: object) -> object:
        return given[0] if given else None


class Hollow(types.ModuleType):
    """A module in which every name is there."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Nothing,), {})


class Hollows(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Hollow(spec.name)

    def exec_module(self, module):
        pass


@pytest.fixture
def factory(monkeypatch):
    """The modules of LLaMA-Factory; everything that was imported for them is forgotten again."""
    before = dict(sys.modules)
    for name in [n for n in sys.modules if n.partition(".")[0] in HEAVY]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "meta_path", [Hollows(), *sys.meta_path])
    from llamafactory.data import converter, parser, processor, template

    yield SimpleNamespace(
        converter=converter, parser=parser, processor=processor, template=template
    )
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


class Letters:
    """A tokenizer of letters; the end of a turn is one token."""

    eos_token_id, eos_token = 1, "<eos>"

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) for letter in text]

    def convert_tokens_to_ids(self, token):
        return 2


def test_every_sample_is_read_and_only_the_reply_is_learnt(factory, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    done = Terminal(monkeypatch, capsys)(
        "convert", trajectories(tmp_path), "--to", "llama-factory", "-o", out
    )
    assert done.code == 0, done.err
    (listed,) = factory.parser.get_dataset_list(["segagent"], str(out))
    options = SimpleNamespace(
        media_dir=str(out), cutoff_len=100_000, mask_history=False, train_on_prompt=False
    )
    read = factory.converter.get_dataset_converter(listed.formatting, listed, options)
    records = json.loads((out / listed.dataset_name).read_text())
    samples = [read(record) for record in records]
    assert len(samples) == 8
    learn = factory.processor.SupervisedDatasetProcessor
    for name in ("qwen2_vl", "qwen3_vl_nothink"):
        template = factory.template.TEMPLATES[name]
        monkeypatch.setattr(template, "mm_plugin", Pictures())
        teacher = learn(template, Letters(), None, options)
        for sample, record in zip(samples, records, strict=True):
            assert all((out / image).is_file() for image in sample["_images"])
            tokens, labels = teacher._encode_data_example(
                sample["_prompt"], sample["_response"], sample["_system"], sample["_tools"],
                sample["_images"], [], [],
            )  # fmt: skip
            learnt = "".join(chr(n) for n in labels if n != -100)
            assert learnt.startswith(record["messages"][1]["content"])
            assert learnt.removeprefix(record["messages"][1]["content"]) in (
                "<|im_end|>\n",
                "\x02\n",
            )
            assert len(tokens) == len(labels)
            assert "<|vision" not in learnt


class Pictures:
    """In place of the plugin that counts the tokens of real pictures: one tag for each picture."""

    def process_messages(self, messages, images, videos, audios, processor):
        assert sum(message["content"].count("<image>") for message in messages) == len(images) == 1
        return messages

    def process_token_ids(self, ids, labels, *_):
        return ids, labels
