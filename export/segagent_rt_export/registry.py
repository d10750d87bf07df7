"""Find a model family by name: every folder in `families` registers its own.

The folder's `__init__.py` has a constant `FAMILIES`: what can be said of them without torch, and
where their code is. Another installed package can add families through an entry point of the group
`segagent_rt_export.families` that names such a constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules, resolve_name
from typing import Any, TypeAlias, TypeVar

from segagent_rt.errors import InputError

GROUP = "segagent_rt_export.families"
"""The package with a folder per family, and the group of entry points."""

CodePath: TypeAlias = str
"""Where code is, as `package.module:name`. It is imported when it is needed."""

Exporter = TypeVar("Exporter", "SegmenterExporter", "MllmExporter")


@dataclass(frozen=True, slots=True)
class SegmenterExporter:
    """A family of segmenters.

    Attributes:
        name: in recipes and manifests, and of the runtime's module.
        export: `(source, folder, **options) -> ExportedSegmenter`, which writes the graphs in full
            precision.
        preprocessing: `(settings) -> AuthorsProcessing`, the authors' own pre- and postprocessing,
            which the gate compares the runtime's with.
        export_for_gpu: `(source, folder) -> graphs by role` in another form, if GPUs need one.
        options: fields of a recipe that this family takes beside those of every family.
        tensors: a pattern of names that only checkpoints of this family have.
        no_tensors: a pattern of names that they do not have, though a family built on it does.
    """

    name: str
    export: CodePath
    preprocessing: CodePath
    export_for_gpu: CodePath | None = None
    options: tuple[str, ...] = ()
    tensors: str | None = None
    no_tensors: str | None = None

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether tensors with these names are of this family."""
        listed = list(names)
        if self.tensors is None or (self.no_tensors and _any_is(self.no_tensors, listed)):
            return False
        return _any_is(self.tensors, listed)


@dataclass(frozen=True, slots=True)
class MllmExporter:
    """A family of MLLMs.

    Attributes:
        name: in recipes and manifests, and of the runtime's module.
        model_type: in the `config.json` of its checkpoints.
        model: `(Given) -> Model`, from a configuration to shapes.
        prefixes: of tensors, and what they become; the first that fits counts. `language.*` is
            then as in transformers' Qwen2 below `model.`, `visual.*` as the vision encoder's
            builder asks for, and `head.weight` the output head.
        chat: a conversation's first turn, with `picture` and `{instruction}`, for checkpoints
            without a chat template.
        picture: the token that stands for the whole picture.
        image_processor: `module:class` below `transformers.models`; None if the model is not in
            transformers. Its pictures are then in no chat template, and `reference` is its torch.
        padding_processor: the same for checkpoints whose pictures are padded to a square.
        reference: `(tensors by name, config) -> MllmReference`, if transformers has no such model.
        rearrange: `(tensors) -> tensors` behind the renaming, for layers that are cut otherwise.
        tokenizer: `(folder) -> Tokenizer or None`, for checkpoints without `tokenizer.json`.
        needless: a pattern of tensors that a checkpoint may hold though the graphs do not use them.
        served_by: servers that take its checkpoints with pictures.
    """

    name: str
    model_type: str
    model: CodePath
    prefixes: tuple[tuple[str, str], ...]
    chat: str
    picture: str
    image_processor: CodePath | None
    padding_processor: CodePath | None = None
    reference: CodePath | None = None
    rearrange: CodePath | None = None
    tokenizer: CodePath | None = None
    needless: str | None = None
    served_by: tuple[str, ...] = ()


def code(path: CodePath) -> Any:
    """What a path names, imported now."""
    return resolve_name(path)


def segmenter_exporters() -> Mapping[str, SegmenterExporter]:
    """Every family of segmenters, by name."""
    return {family.name: family for family in _all() if isinstance(family, SegmenterExporter)}


def mllm_exporters() -> Mapping[str, MllmExporter]:
    """Every family of MLLMs, by name."""
    return {family.name: family for family in _all() if isinstance(family, MllmExporter)}


@cache
def segmenter_exporter(name: str) -> SegmenterExporter:
    """The family of segmenters with this name.

    Raises:
        InputError: there is none.
    """
    return _named(name, segmenter_exporters())


@cache
def mllm_exporter(name: str) -> MllmExporter:
    """The family of MLLMs with this name.

    Raises:
        InputError: there is none.
    """
    return _named(name, mllm_exporters())


def segmenter_family(names: Iterable[Any]) -> str | None:
    """The family of a segmenter's checkpoint with tensors of these names; None if none is known."""
    listed = list(map(str, names))
    known = segmenter_exporters().values()
    return next((family.name for family in known if family.recognises(listed)), None)


def family_hint(names: Iterable[Any]) -> str:
    """What to write in the recipe for a segmenter's checkpoint with tensors of these names."""
    family = segmenter_family(names)
    if family is None:
        return "which model is it? The recipe names the family"
    return f'its tensors are named as in {family}: is family = "{family}" in the recipe?'


def _named(name: str, known: Mapping[str, Exporter]) -> Exporter:
    if name not in known:
        raise InputError(f"there is no family `{name[:60]}`", hint="choose " + ", ".join(known))
    return known[name]


def _all() -> Iterator[SegmenterExporter | MllmExporter]:
    yield from _built_in()
    for entry in entry_points(group=GROUP):
        yield from entry.load()


@cache
def _built_in() -> tuple[SegmenterExporter | MllmExporter, ...]:
    folders = [m.name for m in iter_modules(import_module(GROUP).__path__) if m.ispkg]
    modules = (import_module(f"{GROUP}.{name}") for name in folders)
    return tuple(f for module in modules for f in getattr(module, "FAMILIES", ()))


def _any_is(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)
