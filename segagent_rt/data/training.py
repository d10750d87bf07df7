"""Trajectories as training data: for each click the picture as it was shown, and what was said.

Two formats: LLaMA-Factory's (sharegpt with pictures, `dataset_info.json`, recipes), and that of
Qwen-VL's own finetune.py.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segagent_rt.data.canvas_cache import check_size
from segagent_rt.data.images import read_picture
from segagent_rt.data.journal import CountReporter
from segagent_rt.data.read_context import ReadContext
from segagent_rt.data.record import corners
from segagent_rt.data.trajectories import Demonstration
from segagent_rt.errors import DataInvalid, InputError
from segagent_rt.image import overlay
from segagent_rt.io import dump_json, json_bytes, write_result
from segagent_rt.mllm.families import qwen3_vl, qwen_vl
from segagent_rt.mllm.prompts import MAX_PIXELS, Preset
from segagent_rt.reply import AnyReplyProtocol, ReplyProtocol
from segagent_rt.types import RgbImage

QUALITY = 75
"""Of the JPEG files, with 4:2:0 colours: what SegAgent's own code shows its MLLM."""


@dataclass(frozen=True, slots=True)
class ConversationSample:
    """A picture with the mask so far painted over it, the question, and the answer.

    `picture` is a path below the folder of the training data, with forward slashes.
    """

    picture: str
    instruction: str
    reply: str


_CONTROL = re.compile(
    r"<\|[^<>|]*\|>|\[/?INST\]"
    r"|</?(?:image|video|audio|img|imgpad|im_patch|im_start|im_end|ref|box|quad|s|unk|pad"
    r"|think|tool_call|tool_response)>"
)
"""Text that LLaMA-Factory counts as pictures, and control tokens of Qwen-VL's and LLaVA's models.
Where one is part of an expression, training is told of pictures or endings that are not there."""


def trainable(
    demonstrations: Sequence[Demonstration], context: ReadContext
) -> Iterator[Demonstration]:
    """The demonstrations whose expressions are plain text.

    Raises:
        DataInvalid: an expression contains a control token, and bad entries are not left out.
    """
    for demonstration in demonstrations:
        sample = demonstration.sample
        with context.entry():
            found = _CONTROL.search("\n".join(sample.expressions))
            if found:
                raise DataInvalid(
                    f"{sample.source}: an expression contains `{found[0]}`, which steers the model"
                )
            yield demonstration


def conversation_samples(
    demonstrations: Sequence[Demonstration],
    preset: Preset[ReplyProtocol],
    folder: Path,
    report_progress: CountReporter,
    problems: list[str],
    *,
    overwrite: bool = False,
) -> Iterator[ConversationSample]:
    """One lesson for each click and expression; the pictures are written below `folder`.

    The reply rates the mask that the picture shows, as SegAgent's does.

    Args:
        demonstrations: the trajectories.
        preset: form of the question and the reply.
        folder: of the training data.
        report_progress: called with the number of trajectories done and of all.
        problems: takes a sentence about each picture that is missing, damaged or of another size.
        overwrite: also replace a file that we did not write.
    """
    for at, demonstration in enumerate(demonstrations):
        sample = demonstration.sample
        try:
            pixels = read_picture(sample.image)
            check_size(pixels.shape, sample.size, sample.image)
        except InputError as error:
            problems.append(f"{sample.source}: {error}")
            continue
        box = corners(sample.mask.mask())
        for step, made in enumerate(demonstration.clicks):
            mask, iou = demonstration.shown[step]
            picture = f"images/{at:06d}.{step:02d}.jpg"
            shown = _jpeg(overlay(pixels, mask.mask()))
            write_result(folder / picture, shown, overwrite=overwrite)
            for said in sample.expressions:
                reply = preset.reply.write(
                    made.click, sample.size, iou=iou, box=box, expression=said
                )
                yield ConversationSample(
                    picture, preset.instruction.replace("{expression}", said), reply
                )
        report_progress(at + 1, len(demonstrations))


def _jpeg(pixels: RgbImage) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return stream.getvalue()


def write_llama_factory(
    folder: Path, taught: Sequence[ConversationSample], preset: str, *, overwrite: bool = False
) -> None:
    """`segagent.json`, `dataset_info.json`, and for each family of models a recipe of the training
    and one of the export.

    `llamafactory-cli train FOLDER/qwen3-vl.yaml` trains on it, and `segagent-rt export
    FOLDER/qwen3-vl.export.toml` exports the result.
    """
    listed = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{lesson.instruction}"},
                {"role": "assistant", "content": lesson.reply},
            ],
            "images": [lesson.picture],
        }
        for lesson in taught
    ]
    tags = {f"{name}_tag": name for name in ("role", "content", "user", "assistant")}
    about = {
        "segagent": {
            "file_name": "segagent.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": tags,
        }
    }
    files = {"segagent.json": _document(listed), "dataset_info.json": _document(about)}
    for name, (family, model, template) in MODELS.items():
        recipe = RECIPE.format(
            model=model,
            template=template,
            folder=dump_json(str(folder.resolve())),
            name=name,
            pixels=MAX_PIXELS,
        )
        files[f"{name}.yaml"] = recipe.encode()
        files[f"{name}.export.toml"] = _export_recipe(
            family, f"saves/{name}-segagent", f"hf:{model}", preset
        )
    for file, content in files.items():  # every key of dataset_info.json is a data set: no seal
        write_result(folder / file, content, overwrite=overwrite, seal=False)


MODELS: Mapping[str, tuple[str, str, str]] = {
    "qwen2-vl": ("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
    "qwen2.5-vl": ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_vl"),
    "qwen3-vl": ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl_nothink"),
}
"""Families, checkpoints, and LLaMA-Factory's templates for them."""

RECIPE = """\
# SegAgent's setting (paper, section C.1): all of the language model, the vision encoder frozen.
model_name_or_path: {model}
image_max_pixels: {pixels}  # the same when the model is exported: points depend on it
trust_remote_code: false

stage: sft
do_train: true
finetuning_type: full
freeze_vision_tower: true
freeze_multi_modal_projector: false

dataset: segagent
dataset_dir: {folder}
template: {template}
cutoff_len: 2048

output_dir: saves/{name}-segagent
per_device_train_batch_size: 1
gradient_accumulation_steps: 128  # divided by the number of GPUs
learning_rate: 1.0e-5
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.01
bf16: true
"""


EXPORT = """\
# For `segagent-rt export`, in the folder where the training ran.
name = "{name}"

[segmenter]
family = "edgetam"
source = "hf:yonigozlan/EdgeTAM-hf@c266ce53b3fc00f0f495b583f6a116c4e57f53bb"
variants = ["cpu-w8a8-dynamic", "reference"]
fallback = ["cpu-w8"]

[mllm]
family = "{family}"
source = "{source}"
# After LoRA, DoRA or PiSSA the source is the base model:
# source = "{base}"
# adapter = "{source}"
variants = ["cpu-w8a8-dynamic"]
fallback = ["cpu-w8"]
preset = "{preset}"  # of the training data
most_pixels = {pixels}  # as in the training
"""
"""The recipe for what the training makes; `segagent_rt_export.recipe` reads it."""


def _export_recipe(family: str, source: str, base: str, preset: str) -> bytes:
    return EXPORT.format(
        name=source.split("/")[-1],
        family=family,
        source=source,
        base=base,
        preset=preset,
        pixels=MAX_PIXELS,
    ).encode()


def write_qwen_vl(
    folder: Path, taught: Sequence[ConversationSample], preset: str, *, overwrite: bool = False
) -> None:
    """`qwen-vl.json` for Qwen-VL's finetune.py, which is to be run inside of the folder, and the
    recipe that exports the result."""
    listed = [
        {
            "id": f"segagent_{number}",
            "conversations": [
                {
                    "from": "user",
                    "value": f"Picture 1: <img>{lesson.picture}</img>\n{lesson.instruction}",
                },
                {"from": "assistant", "value": lesson.reply},
            ],
        }
        for number, lesson in enumerate(taught)
    ]
    recipe = _export_recipe("qwen_vl", "output_qwen", "hf:Qwen/Qwen-VL-Chat", preset)
    write_result(folder / "qwen-vl.json", _document(listed), overwrite=overwrite)
    write_result(folder / "qwen-vl.export.toml", recipe, overwrite=overwrite, seal=False)


def _document(content: Any) -> bytes:
    return json_bytes(content, indent=1, ascii_only=False)


class WriteTraining(Protocol):
    """Writes the files of a training format into a folder."""

    def __call__(
        self,
        folder: Path,
        taught: Sequence[ConversationSample],
        preset: str,
        *,
        overwrite: bool = False,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class TrainingFormat:
    """A training format: what writes it, the preset of its replies, and its main files."""

    write: WriteTraining
    preset: str
    files: tuple[str, ...]


TARGETS: Mapping[str, TrainingFormat] = {
    "llama-factory": TrainingFormat(
        write_llama_factory, qwen3_vl.FAMILY.preset, ("segagent.json", "dataset_info.json")
    ),
    "qwen-vl": TrainingFormat(write_qwen_vl, qwen_vl.FAMILY.preset, ("qwen-vl.json",)),
}


def check_preset(
    name: str, presets: Mapping[str, Preset[AnyReplyProtocol]]
) -> Preset[ReplyProtocol]:
    """A preset that asks for clicks, and whose replies do not depend on a model's resizing.

    Raises:
        DataInvalid: there is none.
    """
    usable = {
        known: Preset(preset.instruction, preset.reply)
        for known, preset in presets.items()
        if isinstance(preset.reply, ReplyProtocol) and preset.reply.unit != "pixels"
    }
    if name not in usable:
        raise DataInvalid(f"there is no preset {name} for training", hint=", ".join(usable))
    return usable[name]
