"""Recipes: which checkpoints become a bundle, and how. TOML files; no torch is needed to read one.

Tracked recipes lie in `engines/` of a checkout and are installed with the package; a recipe is
named by its file's name, or by a path.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import segagent_rt
from segagent_rt.bundle.manifest import PARTS, PartName, parse, variant_name
from segagent_rt.errors import ManifestInvalid
from segagent_rt.mllm.prompts import MAX_PIXELS, PRESETS
from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid
from segagent_rt_export.files import read_bounded
from segagent_rt_export.registry import mllm_exporters, segmenter_exporters

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTIONS = ("side", "flip")
"""Fields of a segmenter that only some families take."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

LONGEST = 100_000
"""Bytes of a recipe."""

HUBS, FILES = ("hf:", "ms:"), (".pt", ".pth")
"""How the names of hubs' models begin, and how those of checkpoints that are one file end."""

VariantName: TypeAlias = Literal[
    "reference",
    "cpu-w8",
    "cpu-w8a8-dynamic",
    "cpu-w8a8-static",
    "cpu-w4",
    "gpu-fp16",
    "gpu-w8",
    "gpu-w4",
]
"""What each means is in `variants`."""


@dataclass(frozen=True, slots=True)
class PublishedShape:
    """Sizes of a published MLLM that its memory on a board depends on.

    Attributes:
        vision_m, decoder_m, table_m: weights of the vision encoder, of the language model's layers
            and of the table of embeddings, in millions.
        patches: of the largest picture that an export takes if the recipe does not say it.
        visual_tokens: that the language model reads of that picture.
        layers, hidden, kv_heads, head_width: of the language model.
    """

    vision_m: float
    decoder_m: float
    table_m: float
    patches: int
    visual_tokens: int
    layers: int
    hidden: int
    kv_heads: int
    head_width: int


@dataclass(frozen=True, slots=True)
class PublishedFacts:
    """What is known of a published checkpoint before it is downloaded.

    Attributes:
        licence: as the checkpoint's page names it.
        parameters_m: weights of the part that is exported, in millions.
        download_mb: megabytes of the files that an export reads.
        bundle_mb: megabytes of the part, with the variants that the recipe names.
        memory_mb: megabytes of memory that the export takes.
        shape: sizes of an MLLM, for the plan of its memory on boards.
    """

    licence: str
    parameters_m: float
    download_mb: float
    bundle_mb: float
    memory_mb: float
    shape: PublishedShape | None = None


@dataclass(frozen=True, slots=True)
class SegmenterRecipe:
    """How a segmenter is exported.

    Attributes:
        source: where the checkpoint is, see `sources`.
        variants: of those that suit a device the first is used.
        fallback: variants that are written if none of `variants` for their device passes the gate.
        origin: where people get the checkpoint, for the error when it is not there.
        side: of the square that the net sees; SimpleClick only, 448 if left out.
        flip: average with the mirrored picture; SimpleClick only, on if left out.
        sha256: of the checkpoint, if it is one file; another file is refused.
        published: facts about the checkpoint, for people who have not downloaded it.
    """

    family: str
    source: str
    variants: tuple[VariantName, ...]
    fallback: tuple[VariantName, ...] = ()
    origin: str = ""
    side: int | None = None
    flip: bool | None = None
    sha256: str = ""
    published: PublishedFacts | None = None


@dataclass(frozen=True, slots=True)
class MllmRecipe:
    """How an MLLM is exported.

    Attributes:
        source, variants, fallback, origin, published: as for segmenters.
        preset: the instruction and the form of the reply; the family's own if left out.
        decoding: within the reply grammar, or free.
        adapter: where a LoRA adapter is that is to be merged.
        most_pixels: pixels of the largest picture, up to what the checkpoint allows and the context
            holds; those that `convert` writes into training recipes if left out.
        jpeg: painted images pass through a JPEG file, as in SegAgent's own code.
    """

    family: str
    source: str
    variants: tuple[VariantName, ...]
    fallback: tuple[VariantName, ...] = ()
    origin: str = ""
    preset: str | None = None
    decoding: Literal["grammar", "free"] = "grammar"
    adapter: str | None = None
    most_pixels: int = MAX_PIXELS
    jpeg: bool = False
    published: PublishedFacts | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A bundle to be made. Relative sources are looked up beside the recipe, then here."""

    name: str
    about: str = ""
    segmenter: SegmenterRecipe | None = None
    mllm: MllmRecipe | None = None
    folder: str = "."

    @property
    def parts(self) -> dict[PartName, SegmenterRecipe | MllmRecipe]:
        """What is to be exported, by part."""
        found: dict[PartName, SegmenterRecipe | MllmRecipe | None]
        found = {"segmenter": self.segmenter, "mllm": self.mllm}
        return {name: part for name in PARTS if (part := found[name]) is not None}

    @property
    def sources(self) -> list[str]:
        """Every checkpoint that is read."""
        adapter = self.mllm.adapter if self.mllm else None
        return [part.source for part in self.parts.values()] + ([adapter] if adapter else [])

    def pinned(self, pins: Iterable[str]) -> Recipe:
        """The recipe with other revisions of hubs' models.

        Args:
            pins: such as `hf:owner/name@revision`.

        Raises:
            RecipeInvalid: one names no revision, or a model that the recipe does not read.
        """
        chosen = {}
        for pin in pins:
            model, _, revision = pin.partition("@")
            if not revision or model not in (source.partition("@")[0] for source in self.sources):
                raise RecipeInvalid(
                    f"the recipe {self.name} cannot pin `{pin[:80]}`",
                    hint=f"write SOURCE@REVISION for one of {', '.join(self.sources)}",
                )
            chosen[model] = pin

        def other(source: str) -> str:
            return chosen.get(source.partition("@")[0], source)

        segmenter, mllm = self.segmenter, self.mllm
        if segmenter:
            segmenter = replace(segmenter, source=other(segmenter.source))
        if mllm:
            adapter = other(mllm.adapter) if mllm.adapter else None
            mllm = replace(mllm, source=other(mllm.source), adapter=adapter)
        return replace(self, segmenter=segmenter, mllm=mllm)

    def narrowed(self, only: PartName | None, variants: tuple[str, ...]) -> Recipe:
        """The recipe for one part alone, or with other variants than it names.

        Raises:
            RecipeInvalid: it has no such part, or there is no such variant.
        """
        if only is not None and only not in self.parts:
            raise RecipeInvalid(f"the recipe {self.name} has no {only}")
        variants = tuple(map(variant_name, variants))
        for variant in variants:
            _expect_one_of(variant, typing.get_args(VariantName), "the variant")
        named = typing.cast(tuple[VariantName, ...], variants)
        segmenter = self.segmenter if only != "mllm" else None
        mllm = self.mllm if only != "segmenter" else None
        if segmenter and named:
            segmenter = replace(segmenter, variants=named, fallback=())
        if mllm and named:
            mllm = replace(mllm, variants=named, fallback=())
        narrowed = replace(self, segmenter=segmenter, mllm=mllm)
        _check(narrowed, self.name)
        return narrowed


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeInvalid: not TOML, or a field is missing, unknown, mistyped or has no such value.
    """
    try:
        text = read_bounded(path, LONGEST).decode()
    except CheckpointInvalid as error:
        raise RecipeInvalid(str(error), hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise RecipeInvalid(f"{path} is not TOML: {error}") from error
    return parse_recipe(text, path)


def parse_recipe(text: str, path: Path) -> Recipe:
    """As `read_recipe`, of the text of a recipe.

    Args:
        text: in TOML.
        path: where it lies or would lie; names the bundle if the text does not.
    """
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeInvalid(f"{path} is not TOML: {' '.join(str(error).split())[:120]}") from error
    whole = {"name": path.stem, **_with_present_names(content), "folder": str(path.parent)}
    try:
        recipe: Recipe = parse(whole, Recipe, str(path))
    except ManifestInvalid as error:
        raise RecipeInvalid(str(error), hint="engines/README.md explains every field") from None
    _check(recipe, str(path))
    return recipe


def _with_present_names(content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's content with what its variants are called now."""
    renamed = dict(content)
    for name in PARTS:
        part = content.get(name)
        if isinstance(part, dict):
            present = {
                key: [variant_name(v) if isinstance(v, str) else v for v in part[key]]
                for key in ("variants", "fallback")
                if isinstance(part.get(key), list)
            }
            renamed[name] = {**part, **present}
    return renamed


def _check(recipe: Recipe, where: str) -> None:
    """What the types do not say."""
    if not recipe.parts:
        raise RecipeInvalid(
            f"{where} has neither a segmenter nor an MLLM", hint="add [segmenter] or [mllm]"
        )
    for name, part in recipe.parts.items():
        tried = (*part.variants, *part.fallback)
        if not part.variants or len(set(tried)) < len(tried):
            raise RecipeInvalid(
                f"{where}: {name}: variants and fallback must name each variant once"
            )
    if segmenter := recipe.segmenter:
        families = segmenter_exporters()
        _expect_one_of(segmenter.family, families, f"{where}: segmenter: family")
        if segmenter.sha256 and not _SHA256.fullmatch(segmenter.sha256):
            raise RecipeInvalid(f"{where}: segmenter: sha256 is not 64 digits of 0-9 and a-f")
        for field in OPTIONS:
            given = getattr(segmenter, field) is not None
            if given and field not in families[segmenter.family].options:
                raise RecipeInvalid(f"{where}: segmenter: {segmenter.family} has no {field}")
    if mllm := recipe.mllm:
        _expect_one_of(mllm.family, mllm_exporters(), f"{where}: mllm: family")
        if mllm.preset is not None:
            _expect_one_of(mllm.preset, PRESETS, f"{where}: mllm: preset")


def _expect_one_of(found: str, known: Collection[str], what: str) -> None:
    if found not in known:
        raise RecipeInvalid(f"{what} `{found[:60]}` is unknown", hint="choose " + ", ".join(known))


def tracked_recipes() -> Iterator[Path]:
    """The recipes that come with this package, by name."""
    package = Path(segagent_rt.__file__).parent
    for folder in (package / "recipes", package.parent / "engines"):
        if found := sorted(folder.glob("*.toml")):
            yield from found
            return


def is_checkpoint(text: str) -> bool:
    """Whether a text names a checkpoint, and not a recipe."""
    if text.startswith(HUBS) or text.endswith(FILES):
        return True
    return Path(text).is_dir() and text not in {path.stem for path in tracked_recipes()}


def find_recipe(where: str) -> Path:
    """The file of a recipe: a path, or the name of a tracked one.

    Raises:
        RecipeInvalid: there is none.
    """
    if Path(where).is_file():
        return Path(where)
    for path in tracked_recipes():
        if path.stem == where:
            return path
    raise RecipeInvalid(
        f"there is no recipe `{where}`", hint="`segagent-rt export --list` shows those that are"
    )
