"""What bundles look like on disk: manifests, roles, tensor names. Export writes it, runtime reads
it.

A bundle is a folder with `bundle.json`, which names its parts, `segmenter` and `mllm`, by relative
path. A part is a folder with `manifest.json`. Only files named in a manifest are ever opened.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

from segagent_rt.bounds import Between, Count, Share
from segagent_rt.bundle.integrity import LARGEST, read_regular
from segagent_rt.errors import FileChanged, ManifestInvalid
from segagent_rt.io import parse_json

SCHEMA = 1
BUNDLE_FILE = "bundle.json"
MANIFEST_FILE = "manifest.json"

PartName: TypeAlias = Literal["segmenter", "mllm"]
PARTS: tuple[PartName, ...] = ("segmenter", "mllm")

LONGEST_NAME = 255
"""Characters of the longest name of a file."""

FORMER_VARIANTS: Mapping[str, str] = {
    "cpu-8bit": "cpu-w8",
    "cpu-fast": "cpu-w8a8-dynamic",
    "cpu-int8": "cpu-w8a8-static",
    "cpu-4bit": "cpu-w4",
}
"""Names of variants in older manifests and recipes, and what they are called now."""

T = TypeVar("T")


ANY_NUMBER = Between(-(2.0**53), 2.0**53)
"""Of a field that has no bounds of its own: a double holds it exactly."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a part: its size in bytes and SHA-256."""

    size: Annotated[int, Between(0, 1 << 50)]
    sha256: str


@dataclass(frozen=True, slots=True)
class Range:
    """Shapes that an engine takes for one input; it is tuned for the typical one."""

    least: tuple[int, ...]
    typical: tuple[int, ...]
    most: tuple[int, ...]


Profile: TypeAlias = Mapping[str, Range]
"""Ranges of the inputs whose shapes are not fixed, by name."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of graphs of a part: the same function at some precision, for some kind of device.

    `graphs` maps a role (`encoder`, `decoder`, `vision`, `language`, ...) to a file; `profiles`
    says, by role, for which shapes an engine is built; `integers` are the roles whose convolutions
    multiply integers; `golden` maps a role to the file of inputs and outputs that an engine is
    compared with.
    """

    device: Literal["cpu", "gpu", "any"]
    precision: str
    graphs: Mapping[str, str]
    dialect: Literal["ort", "portable"] = "ort"
    profiles: Mapping[str, tuple[Profile, ...]] = field(default_factory=dict)
    integers: tuple[str, ...] = ()
    golden: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One part of a bundle. `settings` belong to the family, whose module types them.

    Former names of variants become the present ones.
    """

    kind: PartName
    family: str
    settings: Mapping[str, Any]
    variants: Mapping[str, Variant]
    files: Mapping[str, FileRecord]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        variants = {variant_name(name): variant for name, variant in self.variants.items()}
        object.__setattr__(self, "variants", variants)


def variant_name(name: str) -> str:
    """What a variant is called now."""
    return FORMER_VARIANTS.get(name, name)


@dataclass(frozen=True, slots=True)
class LoopGain:
    """What further clicks were measured to add to the first mask, on one data set.

    Attributes:
        samples: expressions of the data set.
        one_shot: gIoU of the masks after the first look, 0..1.
        returned: gIoU of the masks that the whole loop returned, 0..1.
        max_clicks: of the loop.
        digest: of the bundle that it was measured with.
    """

    samples: Annotated[int, Between(1, 1 << 40)]
    one_shot: Share
    returned: Share
    max_clicks: Count
    digest: str

    @property
    def gain(self) -> float:
        """`returned` less `one_shot`."""
        return self.returned - self.one_shot


@dataclass(frozen=True, slots=True)
class UnratedAcceptance:
    """From where on masks are accepted without a look that rates them, and what that was measured
    to save.

    Attributes:
        stability, confidence, later_stability, rating: see `loop.UnratedLimits`.
        samples: expressions that were measured.
        looks: mean looks of the MLLM per expression.
        looks_rated: the same if every mask is rated.
        miou: mean IoU of the returned masks.
        miou_rated: the same if every mask is rated.
        digest: of the bundle that it was measured with.
    """

    stability: Share
    confidence: Share
    later_stability: Share
    rating: Share
    samples: Annotated[int, Between(1, 1 << 40)]
    looks: Annotated[float, Between(0, 1000)]
    looks_rated: Annotated[float, Between(0, 1000)]
    miou: Share
    miou_rated: Share
    digest: str


@dataclass(frozen=True, slots=True)
class BundleIndex:
    """`bundle.json`: where each part lies, relative to the file, and what the bundle is.

    `loop_gain` has a measurement for each data set; `eval --record` writes it. `accept_unrated` is
    written by `python -m segagent_rt_training calibrate`.
    """

    name: str
    parts: Mapping[PartName, str]
    about: str = ""
    loop_gain: Mapping[str, LoopGain] = field(default_factory=dict)
    accept_unrated: UnratedAcceptance | None = None
    schema: int = SCHEMA


def read_json(path: Path, into: type[T]) -> T:
    """Read a JSON file as a dataclass.

    Raises:
        ManifestInvalid: not JSON, another schema, or a field that is missing, unknown or mistyped.
    """
    try:
        content = read_regular(path, LARGEST)
    except FileChanged as error:
        raise ManifestInvalid(str(error), hint=error.hint) from error
    return decode_json(content, into, path)


def decode_json(text: bytes, into: type[T], path: Path) -> T:
    """As `read_json`, of a file's content."""
    try:
        content = parse_json(text.decode("utf-8"))
    except ValueError as error:
        raise ManifestInvalid(f"{path} is not JSON: {error}") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise ManifestInvalid(
            f"{path} has schema {found!a:.60}, this version reads schema {SCHEMA}",
            hint="export the bundle again, or install the version that made it",
        )
    return cast(T, parse(content, into, str(path)))


def parse(content: Any, into: Any, where: str) -> Any:
    """Check plain JSON data against a type, and build it."""
    origin, arguments = typing.get_origin(into), typing.get_args(into)
    if origin is Annotated:
        return _bounded(parse(content, arguments[0], where), arguments[1], where)
    if dataclasses.is_dataclass(into):
        return _parse_dataclass(content, into, where)
    if into is Any:
        return content
    if origin is Literal:
        return _expect(content in arguments, content, where, f"one of {arguments}")
    if origin in (typing.Union, types.UnionType):
        return _parse_union(content, arguments, where)
    if origin in (Mapping, dict, typing.get_origin(Mapping[str, int])):
        _expect(isinstance(content, dict), content, where, "an object")
        return {
            parse(key, arguments[0], where): parse(value, arguments[1], f"{where}: {_name(key)}")
            for key, value in content.items()
        }
    if origin in (tuple, list):
        _expect(isinstance(content, list), content, where, "a list")
        kinds = arguments if arguments[-1] is not ... else (arguments[0],) * len(content)
        kinds = kinds if origin is tuple else (arguments[0],) * len(content)
        _expect(len(kinds) == len(content), content, where, f"a list of {len(kinds)}")
        items = [parse(item, kind, where) for item, kind in zip(content, kinds, strict=True)]
        return tuple(items)
    wanted = (int, float) if into is float else into
    right = isinstance(content, wanted) and (into is bool or not isinstance(content, bool))
    _expect(right, content, where, f"{into.__name__}")
    if into in (int, float):
        return into(_bounded(content, ANY_NUMBER, where))
    return content


def _bounded(value: Any, bounds: Between, where: str) -> Any:
    """A number, checked before anything is allocated for it; NaN is within no bounds."""
    return _expect(value in bounds, value, where, f"between {bounds.least:g} and {bounds.most:g}")


def _parse_dataclass(content: Any, into: Any, where: str) -> Any:
    _expect(isinstance(content, dict), content, where, "an object")
    hints = _type_hints(into)
    fields = {f.name: f for f in dataclasses.fields(into)}
    unknown = sorted(set(content) - set(fields))
    if unknown:
        raise ManifestInvalid(f"{where}: unknown field `{_name(unknown[0])}`")
    values = {}
    for name, spec in fields.items():
        if name in content:
            values[name] = parse(content[name], hints[name], f"{where}: {name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ManifestInvalid(f"{where}: field `{name}` is missing")
    return into(**values)


@lru_cache
def _type_hints(into: type) -> dict[str, Any]:
    """Evaluated once: a manifest has dozens of ranges and files."""
    return typing.get_type_hints(into, include_extras=True)


def _parse_union(content: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if content is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return parse(content, kind, where)
            except ManifestInvalid as error:
                problem = error
    raise problem


def _expect(right: bool, content: Any, where: str, wanted: str) -> Any:
    if not right:
        raise ManifestInvalid(f"{where}: {_shown(content)} is not {wanted}")
    return content


def _shown(content: Any) -> str:
    """Foreign content in a message: short, and in characters that steer no terminal."""
    try:
        return json.dumps(content, default=str)[:60]
    except (ValueError, RecursionError):
        return "what is there"


def _name(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else _shown(key)


def to_json(value: Any) -> Any:
    """The inverse of `parse`: plain data, ready for `json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def inside(folder: Path, relative: str) -> Path:
    """The path of a file named in a manifest.

    Raises:
        ManifestInvalid: the name is absolute or leads out of the folder.
    """
    name = PurePosixPath(relative)
    if name.is_absolute() or ".." in name.parts or "\\" in relative or ":" in relative:
        raise ManifestInvalid(f"{folder}: the path `{_name(relative)}` leads out of the bundle")
    if not name.parts or not relative.isprintable() or max(map(len, name.parts)) > LONGEST_NAME:
        raise ManifestInvalid(f"{folder}: `{_name(relative)}` is not a file name")
    return folder.joinpath(*name.parts)
