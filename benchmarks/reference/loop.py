"""SegAgent's loop as its own evaluation runs it: plain PyTorch and transformers, nothing reused.

Every click paints the mask over the picture, writes that to a file and reads it back, tokenises the
prompt again, runs the whole vision encoder and prompt, generates up to the end token, and reads the
click in the text. The segmenter encodes once for each expression and decodes for each click. The
number of clicks is fixed; the mask that the replies rate best is the result.

Weights and pixels are those of the bundle that it is compared with: overlay, resizing and the
reading of replies are the runtime's own functions, all else is torch. Needs the extra `export`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segagent_rt.annotators.mllm import MllmSettings
from segagent_rt.backends.cores import usable_cores
from segagent_rt.bundle.bundle import Bundle
from segagent_rt.errors import InputError
from segagent_rt.image import overlay, squash
from segagent_rt.mllm.vision_encoder import cut_patches
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.prediction import LogitsPrediction
from segagent_rt.timing import Stopwatch
from segagent_rt.types import Click, Prediction, RgbImage, Step, Trajectory, Turn
from segagent_rt_export.families.click_net.from_bundle import click_net_from_part
from segagent_rt_export.families.click_net.net import SIDE, SegmenterNet
from segagent_rt_export.families.demo_mllm.from_bundle import mllm_from_part

END = "<|im_end|>"
LONGEST = 128
"""Tokens after which a reply that does not end is cut."""
PROBE_SCENES, PROBE_SEED, PROBE_CLICKS = 6, 90_000, 7
"""Trajectories that tell whether JPEG files change the clicks."""

OverlayFile: TypeAlias = Literal["JPEG", "BMP"]


@dataclass(frozen=True, slots=True)
class Nets:
    """The two models, in float32 on the CPU; `mllm` is transformers' own class."""

    mllm: Any
    segmenter: SegmenterNet


class ReferenceLoop:
    """`annotate` an image in plain torch."""

    def __init__(self, nets: Nets, settings: MllmSettings, tokenizer: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._nets, self._settings, self._threads = nets, settings, threads
        self._tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
        self._end = self._tokenizer.convert_tokens_to_ids(END)
        self._picture_token = self._tokenizer.convert_tokens_to_ids(settings.picture)
        self._file: OverlayFile = "JPEG"

    def describe(self) -> dict[str, Any]:
        """Libraries, precision, threads, and how the painted picture reaches the model."""
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "precision": str(self._nets.mllm.dtype).removeprefix("torch."),
            "attention": self._nets.mllm.config._attn_implementation,
            "threads": self._threads,
            "overlay_file": self._file,
        }

    def choose_file(self) -> None:
        """SegAgent passes JPEG files on. A model that was not trained on them may click elsewhere:
        then the files are BMP, which lose nothing."""
        clicked: dict[OverlayFile, list[tuple[Click, ...]]] = {}
        kinds: tuple[OverlayFile, ...] = ("BMP", "JPEG")
        for kind in kinds:
            self._file = kind
            scenes = (make_scene(PROBE_SEED + n) for n in range(PROBE_SCENES))
            clicked[kind] = [
                self.annotate(scene.image, scene.expressions[0].text, PROBE_CLICKS).clicks
                for scene in scenes
            ]
        self._file = "JPEG" if clicked["JPEG"] == clicked["BMP"] else "BMP"

    @torch.inference_mode()
    def annotate(self, image: RgbImage, expression: str, clicks: int) -> Trajectory:
        """Make so many clicks; fewer only if a reply holds none."""
        encoding = Stopwatch()
        with encoding("encode"):
            maps = self._encode(image)
        prediction: Prediction | None = None
        made, steps, spent = list[Click](), list[Step](), encoding.seconds
        for _ in range(clicks):
            watch = Stopwatch()
            with watch("annotate"):
                turn = self._ask(image, prediction, expression)
            watch.add_stages(turn.seconds)
            if steps:  # the reply rates the mask that was shown
                steps[-1] = replace(steps[-1], rating=turn.rating, rating_reply=turn.reply)
            if not isinstance(turn.action, Click):
                seconds = spent | watch.seconds
                steps.append(Step(turn=turn, seconds=seconds, stop="malformed"))
                break
            made.append(turn.action)
            with watch("segment"):
                prediction = self._segment(maps, made, prediction, image)
                prediction.mask()
            steps.append(Step(turn.action, prediction, turn=turn, seconds=spent | watch.seconds))
            spent = {}
        return Trajectory(expression, tuple(steps))

    def _ask(self, image: RgbImage, prediction: Prediction | None, expression: str) -> Turn:
        watch = Stopwatch()
        with watch("paint"):
            picture = self._picture(image, prediction)
        with watch("prepare"):
            inputs = self.inputs(picture, expression)
        with watch("generate"):
            whole = self._nets.mllm.generate(
                **inputs, do_sample=False, max_new_tokens=LONGEST, eos_token_id=self._end,
                pad_token_id=self._end,
            )  # fmt: skip
        reply = self._tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :])
        size, frame = (image.shape[0], image.shape[1]), (picture.shape[0], picture.shape[1])
        reading = self._settings.reply.read(reply, size, frame=frame)
        return Turn(reply, reading.action, reading.iou, reading.box, watch.seconds)

    def _picture(self, image: RgbImage, prediction: Prediction | None) -> RgbImage:
        """The picture with the mask over it, painted where the model was trained to see it."""
        resize = self._settings.vision.resize.resize
        if self._settings.paint == "image":
            painted = image if prediction is None else overlay(image, prediction.mask())
            return resize(self._through_file(painted))
        picture = resize(image)
        if prediction is not None:
            picture = overlay(picture, prediction.mask((picture.shape[0], picture.shape[1])))
        return self._through_file(picture)

    def _through_file(self, picture: RgbImage) -> RgbImage:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"overlay.{self._file.lower()}"
            Image.fromarray(picture).save(path, self._file)
            with Image.open(path) as written:
                return np.asarray(written.convert("RGB"), np.uint8)

    def inputs(self, picture: RgbImage, expression: str) -> dict[str, Tensor]:
        """What transformers' processor makes of a chat with one picture."""
        settings, vision = self._settings, self._settings.vision
        rows, columns = (side // vision.patch for side in picture.shape[:2])
        visual = rows * columns // vision.merge**2
        text = settings.prompt.replace("{expression}", expression)
        text = text.replace(settings.picture, settings.picture * visual)
        tokens = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        flat = torch.from_numpy(cut_patches(picture, vision.patch, vision.merge))
        frames = (flat.view(-1, 3, 1, vision.patch**2) / 127.5 - 1).expand(-1, -1, 2, -1)
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "mm_token_type_ids": (tokens["input_ids"] == self._picture_token).int(),
            "pixel_values": frames.reshape(rows * columns, -1),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        }

    def _encode(self, image: RgbImage) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(squash(image, SIDE)).permute(2, 0, 1)[None].float()
        return cast(tuple[Tensor, Tensor], self._nets.segmenter.encoder(pixels))

    def _segment(
        self, maps: tuple[Tensor, Tensor], clicks: Sequence[Click], before: Any, image: RgbImage
    ) -> LogitsPrediction:
        """All clicks so far, and the probabilities of the mask before the last of them."""
        height, width = image.shape[:2]
        points = [((c.x + 0.5) / width, (c.y + 0.5) / height, float(c.positive)) for c in clicks]
        prior = torch.zeros(1, 1, SIDE, SIDE)
        if before is not None:
            prior = torch.from_numpy(before.logits)[None, None].sigmoid()
        logits, rating = self._nets.segmenter.decoder(*maps, torch.tensor([points]), prior)
        return LogitsPrediction(logits[0, 0].numpy(), (height, width), float(rating[0]))


def open_reference(bundle: Bundle, training: Path | None, threads: int | None) -> ReferenceLoop:
    """The loop on the weights that a bundle was exported from.

    Args:
        training: the folder of the training; None to read the weights back from the bundle.

    Raises:
        InputError: there are no such weights.
    """
    part = bundle.part("mllm")
    settings = part.settings(MllmSettings)
    nets = nets_of(bundle, training)
    loop = ReferenceLoop(nets, settings, part.file("tokenizer.json"), threads or usable_cores())
    loop.choose_file()
    return loop


def nets_of(bundle: Bundle, training: Path | None) -> Nets:
    """The one place where weights come from: a training's checkpoints, or the bundle itself."""
    if training is None:
        net = mllm_from_part(bundle.part("mllm"))
        return Nets(net.model.float().eval(), click_net_from_part(bundle.part("segmenter")).eval())
    try:
        from segagent_rt_training.checkpoints import last_stage, trained_nets
    except ModuleNotFoundError:
        raise InputError(
            "only a checkout of segagent-rt reads the folder of a training",
            hint="leave --training out: the weights are then read from the bundle",
        ) from None
    stage = last_stage(training)
    try:
        segmenter, mllm = trained_nets(training, stage)
    except (OSError, RuntimeError, LookupError, ValueError, EOFError, UnpicklingError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise InputError(
            f"{training} holds checkpoints that cannot be read: {why}",
            hint="was the training written by this version?",
        ) from None
    return Nets(mllm.model.float(), segmenter.float())
