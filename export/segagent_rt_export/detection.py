"""A recipe from a checkpoint alone: what its files say about family, layout, preset and pixels.

What no file says is asked: the error names the option that answers it. The result is the text of a
recipe, so what is printed is what is exported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segagent_rt.hub.repository import HubRepository
from segagent_rt.mllm.preprocess import SmartResize
from segagent_rt_export.errors import CheckpointInvalid, RecipeInvalid
from segagent_rt_export.families.mllm_source import default_preset, read_model
from segagent_rt_export.recipe import (
    FILES,
    Recipe,
    find_recipe,
    is_checkpoint,
    parse_recipe,
    read_recipe,
)
from segagent_rt_export.registry import segmenter_exporters, segmenter_family
from segagent_rt_export.sources.downloads import read_origin
from segagent_rt_export.sources.locations import DOWNLOADED, locate, parse_source
from segagent_rt_export.sources.shards import read_object

ADAPTER = "adapter_config.json"
CONVERTED = "pissa_converted"
"""Where LLaMA-Factory puts a PiSSA adapter as a plain one."""

TRACES = ("trainer_state.json", "trainer_log.jsonl", "training_args.bin", "llamaboard_config.yaml")
"""Files that training programs leave beside the weights."""

GROUNDING: Mapping[str, str] = {"qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
"""The presets of models that were not trained to click, by family."""

AUTHORS = ("Qwen", "qwen")
"""Owners of the published models on the hubs."""

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "segmenter": ("cpu-w8a8-dynamic", "reference"), "mllm": ("cpu-w8a8-dynamic",)
}  # fmt: skip
FALLBACK = ("cpu-w8",)

_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_STEP = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user says beside the checkpoint.

    Attributes:
        preset: of the MLLM.
        base: source of the model that an adapter was trained upon.
        segmenter: a checkpoint, or the name of a recipe whose segmenter is taken.
        variants: in place of the usual ones.
    """

    preset: str | None = None
    base: str | None = None
    segmenter: str | None = None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetectedPart:
    """Fields of a recipe's part, and a reason for some of them."""

    name: str
    fields: Mapping[str, Any]
    reasons: Mapping[str, str] = field(default_factory=dict)


def needed_sources(text: str, wishes: Wishes) -> Iterator[str]:
    """The sources that must be on this machine to tell what they are, in this order."""
    yield text
    if wishes.segmenter is not None and is_checkpoint(wishes.segmenter):
        yield wishes.segmenter
    place = locate(text, Path())
    if (place / ADAPTER).is_file():
        yield _base_of(place, wishes)


def detect_recipe(text: str, wishes: Wishes) -> tuple[Recipe, str]:
    """The recipe for a checkpoint, and its text.

    Args:
        text: a folder, a file, or a hub's model that was downloaded.
        wishes: what the user says beside it.

    Raises:
        CheckpointInvalid: it cannot be exported.
        RecipeInvalid: its files do not say something; the hint names the option that does.
        SourceMissing: it is not on this machine.
    """
    parts = [_detect(text, wishes)]
    name = _name(text)
    if wishes.segmenter is not None:
        if parts[0].name == "segmenter":
            raise RecipeInvalid(f"{text} is a segmenter itself", hint="leave out --segmenter")
        parts.insert(0, _segmenter(wishes))
    written = "\n".join([f"name = {_toml(name)}", *map(_written, parts)]) + "\n"
    return parse_recipe(written, Path(f"{name}.toml")), written


def _segmenter(wishes: Wishes) -> DetectedPart:
    text = wishes.segmenter or ""
    if is_checkpoint(text):
        found = _detect(text, Wishes(variants=wishes.variants))
        if found.name == "segmenter":
            return found
        raise RecipeInvalid(f"{text} is no segmenter", hint="name one with --segmenter")
    lent = read_recipe(find_recipe(text)).segmenter
    if lent is None:
        raise RecipeInvalid(f"the recipe {text} has no segmenter")
    fields: dict[str, Any]
    fields = {"family": lent.family, "source": lent.source, "origin": lent.origin or None,
              "side": lent.side, "flip": lent.flip, "sha256": lent.sha256 or None}  # fmt: skip
    fields |= _variants(wishes, lent.variants, lent.fallback)
    return DetectedPart("segmenter", fields, {"source": f"of the recipe {text}"})


def _detect(text: str, wishes: Wishes) -> DetectedPart:
    place = locate(text, Path())
    if not place.is_dir():
        if wishes.base or wishes.preset:
            raise RecipeInvalid(f"{text} is a segmenter", hint="leave out --preset and --base")
        return _of_segmenter(text, _family_of_file(place), wishes)
    if (place / ADAPTER).is_file():
        return _of_adapter(text, place, wishes)
    if wishes.base is not None:
        raise RecipeInvalid(f"{text} is no adapter", hint="leave out --base")
    _expect_model(place)
    kind = str(read_object(place / "config.json").get("model_type"))
    kind = kind.removesuffix("_video").removesuffix("_tracker")
    if kind in segmenter_exporters():
        return _of_segmenter(text, kind, wishes)
    return _of_mllm(text, place, wishes)


def _family_of_file(path: Path) -> str:
    """The family of a segmenter that is one file, by the names of its tensors."""
    from segagent_rt_export.sources.checkpoints import read_checkpoint

    content = read_checkpoint(path)
    found = segmenter_family(_names(content))
    if found is None:
        raise CheckpointInvalid(
            f"{path} holds no segmenter that is known",
            hint="write a recipe that names its family; engines/README.md explains how",
        )
    return found


def _names(content: Any) -> Iterator[str]:
    """The names of all tensors, however deep they lie, without what training puts before them."""
    waiting, seen = [content], 0
    while waiting and seen < 100_000:
        value = waiting.pop()
        inner = value.items() if isinstance(value, dict) else ()
        waiting += list(value) if isinstance(value, (list, tuple)) else []
        for key, item in inner:
            seen += 1
            yield str(key).removeprefix("module.")
            waiting.append(item)


def _of_segmenter(text: str, family: str, wishes: Wishes) -> DetectedPart:
    fields: dict[str, Any] = {"family": family, "source": text}
    return DetectedPart("segmenter", fields | _variants(wishes, VARIANTS["segmenter"], FALLBACK))


def _variants(
    wishes: Wishes, usual: Sequence[str], fallback: Sequence[str]
) -> dict[str, list[str]]:
    """What the user names, else the usual ones."""
    if wishes.variants:
        return {"variants": list(wishes.variants)}
    return {"variants": list(usual)} | ({"fallback": list(fallback)} if fallback else {})


def _of_adapter(text: str, place: Path, wishes: Wishes) -> DetectedPart:
    """An adapter; PiSSA's in the plain form that LLaMA-Factory leaves beside it."""
    base = _base_of(place, wishes)
    begun = str(read_object(place / ADAPTER).get("init_lora_weights"))
    if begun.startswith("pissa_niter") and (place / CONVERTED / ADAPTER).is_file():
        text = (place / CONVERTED).as_posix()
    folder = locate(base, Path())
    _expect_model(folder)
    found = _of_mllm(base, folder, wishes, trained="an adapter was trained")
    return DetectedPart("mllm", {**found.fields, "adapter": text}, found.reasons)


def _base_of(place: Path, wishes: Wishes) -> str:
    """The source of the model that an adapter was trained upon.

    Raises:
        RecipeInvalid: the adapter does not say it, or names a folder of another machine.
    """
    if wishes.base is not None:
        return wishes.base
    named = read_object(place / ADAPTER).get("base_model_name_or_path")
    if isinstance(named, str) and named:
        for path in (Path(named), place / named):
            if path.is_dir():
                return path.as_posix()
        if _MODEL.fullmatch(named):
            revision = read_object(place / ADAPTER).get("revision")
            return f"hf:{named}@{revision}" if isinstance(revision, str) else f"hf:{named}"
    said = f", and it says {named[:80]!a}" if isinstance(named, str) and named else ""
    raise RecipeInvalid(
        f"the adapter {place} does not say where its base model is on this machine{said}",
        hint="name it with --base FOLDER or --base hf:owner/name",
    )


def _expect_model(place: Path) -> None:
    """Say what is in a folder that is no model's, and what to name instead.

    Raises:
        CheckpointInvalid: it is none.
    """
    if (place / "config.json").is_file():
        return
    steps = {int(m[1]): p for p in place.glob("checkpoint-*") if (m := _STEP.fullmatch(p.name))}
    files = sorted(path for ending in FILES for path in place.glob(f"*{ending}"))
    if steps:
        hint = f"the training did not end; its last state is {steps[max(steps)]}"
    elif any(place.glob("*.gguf")):
        hint = "llama.cpp serves GGUF files: `segagent-rt run --endpoint URL --server llama.cpp`"
    elif files:
        hint = f"name the file {files[0]}"
    else:
        hint = "is it the folder of a whole model, or of an adapter?"
    raise CheckpointInvalid(f"{place} holds no config.json", hint=hint)


def _of_mllm(text: str, place: Path, wishes: Wishes, trained: str | None = None) -> DetectedPart:
    """A model in transformers' layout; `trained` says why it is known to be fine-tuned."""
    model = read_model(place)
    traces = [name for name in TRACES if (place / name).exists()]
    if trained is None and traces:
        trained = f"it was trained ({traces[0]})"
    preset, why = _preset(model.family, text, place, trained, wishes)
    fields: dict[str, Any] = {
        "family": model.family,
        "source": text,
        **_variants(wishes, VARIANTS["mllm"], FALLBACK),
        "preset": preset,
    }
    reasons = {"preset": why}
    resize = model.vision_settings.resize
    if isinstance(resize, SmartResize):
        fields["most_pixels"] = resize.most
        reasons["most_pixels"] = "of the largest picture; write what the training used"
    else:
        reasons["source"] = f"every picture becomes {resize.side} x {resize.side}"
    if model.family == "qwen_vl":
        fields["jpeg"] = True
        reasons["jpeg"] = "SegAgent's own code hands pictures over as JPEG files"
    return DetectedPart("mllm", fields, reasons)


def _preset(
    family: str, text: str, place: Path, trained: str | None, wishes: Wishes
) -> tuple[str, str]:
    """The preset, and why it is this one.

    Raises:
        RecipeInvalid: nothing says whether the model was trained to click.
    """
    usual, stock = default_preset(family), GROUNDING.get(family)
    if wishes.preset is not None:
        return wishes.preset, "as you said"
    if trained is not None:
        return usual, f"{trained}; `convert` writes training data for this one"
    if stock is None:
        return usual, "the only one that models of this family have"
    if _owner(text, place) in AUTHORS:
        return stock, "the model is as its authors published it"
    raise RecipeInvalid(
        f"no file in {place} says whether the model was trained to click",
        hint=f"add --preset {usual} for a fine-tune on SegAgent's data, or --preset {stock} for a "
        "model that answers with boxes",
    )


def _owner(text: str, place: Path) -> str:
    """Who published a model on a hub, if that is known."""
    source = parse_source(text)
    if isinstance(source, HubRepository):
        return source.owner
    named = read_origin(place).get("model")
    if isinstance(named, str):
        return named.removeprefix("hf:").removeprefix("ms:").split("/")[0]
    try:
        return place.resolve().relative_to(DOWNLOADED.resolve()).parts[0]
    except (ValueError, IndexError):
        return ""


def _name(text: str) -> str:
    """What the bundle is called: as the checkpoint's last folder, in letters that suit a path."""
    source = parse_source(text)
    if isinstance(source, HubRepository):
        name = source.name
    else:
        parts = [source.stem if source.is_file() else source.resolve().name]
        parts += [source.resolve().parent.name] if _STEP.fullmatch(parts[0]) else []
        name = "-".join(reversed(parts))
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "mine"


def _written(part: DetectedPart) -> str:
    """A part in TOML, a line for each field."""
    lines = [f"\n[{part.name}]"]
    for key, value in part.fields.items():
        if value is not None:
            why = part.reasons.get(key)
            lines.append(f"{key} = {_toml(value)}" + (f"  # {why}" if why else ""))
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A string, a number, true or false, or a list of them; JSON writes these as TOML does."""
    return json.dumps(value, ensure_ascii=True)
