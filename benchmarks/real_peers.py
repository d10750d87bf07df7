"""Peers at real size on the same weights: onnxruntime-genai's decoder, samexporter's SAM graphs.

python benchmarks/real_peers.py make FOLDER --genai PYTHON --samexporter PYTHON
python benchmarks/real_peers.py measure FOLDER ...    writes benchmarks/results/real-peers.json

Each peer has an environment of its own, whose python is named; of one that is not named the
document keeps what it had, or says so. FOLDER is that of `real_loop.py make click`. samexporter's
needs segment-anything, timm, onnx and onnxruntime beside it, and no torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from in_turn import in_turn
from real_bundle import BundlePlace, make_segmenter, place_of
from real_ours import Floats, OurMllm, apart
from safetensors import safe_open
from safetensors.torch import save_file

from segagent_rt.backends.host_buffer import on_host
from segagent_rt.backends.session import SessionOptions, open_session
from segagent_rt.bench.machine import describe_machine, measure_ceilings
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.bundle.bundle import Part, open_part
from segagent_rt.io import dump_json
from segagent_rt.mllm.decoder import ConstrainedDecoder, Prompt, greedy
from segagent_rt.runtime import open_segmenter
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.sam import SamEmbedding
from segagent_rt.segmenters.sam_frame import Frame, pixels
from segagent_rt.types import Click, RgbImage, Session
from segagent_rt_export.recipe import VariantName

HERE = Path(__file__).parent
MODEL = "qwen2.5-vl-0.5b"
PRECISIONS = ("int8", "int4")
LIMITS = {"int8": 0.3, "int4": 1.0}
"""Of `apart`, between our 8 bits and theirs; four bits round random weights coarsely."""

OURS: tuple[VariantName, ...] = ("cpu-w8", "cpu-w8a8-dynamic")
SAMS = OURS
SIDE, DECODES = 1024, 30
EXPRESSION = "the mug behind the laptop"


def main() -> None:
    """Make what peers need, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["make", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genai", help="python with onnxruntime-genai, torch and transformers")
    parser.add_argument("--samexporter", help="python with samexporter")
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "real-peers.json")
    given = parser.parse_args()
    place, sam = place_of(given.folder, MODEL), given.folder / "sam"
    if given.what == "make":
        if given.genai:
            make_genai(given.genai, place)
        if given.samexporter:
            make_sam(given.samexporter, sam)
        return
    here = {"machine": describe_machine(), "ceilings": measure_ceilings()}
    document = {**here, "cores": len(os.sched_getaffinity(0)), "weights": "random"}
    document |= known(given.output)
    if given.genai:
        document["genai"] = here | measure_genai(given.genai, place, given.laps)
    if given.samexporter:
        document["samexporter"] = here | measure_sam(sam, given.laps)
    given.output.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def known(output: Path) -> dict[str, Any]:
    """What an earlier document tells of each peer, and of the machine and commit of that run."""
    earlier = json.loads(output.read_text("utf-8")) if output.exists() else {}
    nothing = {"why": "its python was not named"}
    return {peer: earlier.get(peer, nothing) for peer in ("genai", "samexporter")}


def make_genai(python: str, place: BundlePlace) -> None:
    """The language model alone, as a checkpoint of Qwen2, and what genai's builder makes of it."""
    folder = place.folder / "language"
    if not folder.exists():
        write_language_model(place, folder)
    for precision in PRECISIONS:
        builder = ["-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-e", "cpu"]
        to = ["-o", str(place.folder / f"genai-{precision}"), "-p", precision]
        more = ["--extra_options", "int4_accuracy_level=4"]
        cache = ["-c", str(place.folder / "genai-cache")]
        subprocess.run([python, *builder, *to, *cache, *more], check=True)


def write_language_model(place: BundlePlace, folder: Path) -> None:
    """Qwen2's names and configuration for the language model of a Qwen2.5-VL."""
    folder.mkdir()
    described = json.loads((place.checkpoint / "config.json").read_text("utf-8"))
    text = {k: v for k, v in described["text_config"].items() if k != "rope_parameters"}
    config = text | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "rope_theta": described["text_config"]["rope_parameters"]["rope_theta"],
        "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = (place.checkpoint / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind), "utf-8")
    tensors = {}
    for file in sorted(place.checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if "visual" not in name and "lm_head" not in name:
                    tensors[name.replace("language_model.", "")] = stored.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True, slots=True)
class Reply:
    """Seconds of reading the prompt and of writing the reply; ours does both in one."""

    read: float
    write: float

    @property
    def total(self) -> float:
        """Both."""
        return self.read + self.write


class Genai:
    """onnxruntime-genai in its own process."""

    def __init__(self, python: str, model: Path) -> None:
        command = [python, str(HERE / "peer_genai.py"), str(model)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def reply(self, prompt: Sequence[int], count: int) -> tuple[Reply, Floats]:
        """So many tokens behind a prompt; and the logits behind the prompt, [V]."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([list(prompt), count]) + "\n")
        self._child.stdin.flush()
        said = json.loads(self._child.stdout.readline())
        return Reply(said["read"], said["write"]), np.array(said["logits"], np.float32)

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


class OurLanguage:
    """The language model of a variant, about the same tokens."""

    def __init__(self, place: BundlePlace, variant: str) -> None:
        self._mllm = OurMllm(place, variant)
        self._model = self._mllm.annotator.model
        self._cache = self._model.new_cache(1024)
        self.rows = list(self._mllm.annotator.settings.head_rows)

    def close(self) -> None:
        """Release the graphs."""
        self._mllm.close()

    def prompt(self) -> list[int]:
        """As long as that of a click, with other tokens in the place of the picture's."""
        lead, tail = self._mllm.annotator.prompt(EXPRESSION)
        return [*lead, *range(100, 356), *tail]

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Behind the prompt, over the tokens of the grammar."""
        prompt = self._prompt(tokens)
        found: Floats = self._model.forward(self._cache, prompt.embeddings, prompt.positions)[0]
        return found

    def reply(self, tokens: Sequence[int]) -> tuple[Reply, int]:
        """A reply behind a prompt, and how many tokens it has."""
        prompt = self._prompt(tokens)
        annotator = self._mllm.annotator
        grammar = annotator.grammar(EXPRESSION, (1, 1))
        assert grammar is not None
        start = time.perf_counter()
        writer = ConstrainedDecoder(self._model, self.rows)
        written = writer.write(self._cache, prompt, grammar, greedy, grammar.ended)
        return Reply(time.perf_counter() - start, 0.0), len(written.tokens)

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        self._cache.rewind(0)
        return Prompt(self._model.embed(tokens))


def measure_genai(python: str, place: BundlePlace, laps: int) -> dict[str, Any]:
    """A click's language part: genai writes as many tokens as our reply has, and the end token."""
    ours = {name: OurLanguage(place, name) for name in OURS}
    prompt = ours["cpu-w8"].prompt()
    with _genais(python, place) as peers:
        wanted = ours["cpu-w8"].logits(prompt)
        lengths = {name: mllm.reply(prompt)[1] for name, mllm in ours.items()}
        count = lengths["cpu-w8"] + 1
        errors = {
            name: apart(peer.reply(prompt, count)[1][ours["cpu-w8"].rows], wanted)
            for name, peer in peers.items()
        }
        done = in_turn(
            {n: lambda _, m=m: m.reply(prompt)[0] for n, m in ours.items()}
            | {n: lambda _, m=m: m.reply(prompt, count)[0] for n, m in peers.items()},
            laps,
        )
    for mllm in ours.values():
        mllm.close()
    return {
        "prompt_tokens": len(prompt),
        "reply_tokens": lengths,
        "apart_from_our_8_bits": errors,
        "ways": {
            name: {"whole": percentiles([r.total for r in replies])}
            | ({} if name in ours else {"read": percentiles([r.read for r in replies])})
            for name, replies in done.items()
        },
        "times_as_fast": {
            f"{name} against {peer}": ratio_percentiles([r.total for r in done[peer]],
                                                   [r.total for r in done[name]])
            if errors[peer] <= LIMITS[peer] else None
            for name in ours for peer in peers
        },
    }  # fmt: skip


@contextmanager
def _genais(python: str, place: BundlePlace) -> Iterator[dict[str, Genai]]:
    peers = {name: Genai(python, place.folder / f"genai-{name}") for name in PRECISIONS}
    yield peers
    for peer in peers.values():
        peer.close()


def make_sam(python: str, folder: Path) -> None:
    """SAM ViT-B with random weights: theirs, and ours from the same file."""
    folder.mkdir(exist_ok=True)
    subprocess.run([python, str(HERE / "peer_sam.py"), str(folder)], check=True)
    make_segmenter("sam", folder / "sam_vit_b.pth", folder / "segmenter", SAMS)


class PeerSam:
    """samexporter's graphs, with our preprocessing before them."""

    def __init__(self, folder: Path) -> None:
        cpu = SessionOptions("cpu")
        self._encoder = open_session(folder / "encoder.onnx", cpu)
        self._decoder = open_session(folder / "decoder.onnx", cpu)

    def encode(self, image: RgbImage) -> Floats:
        """Features [1, 256, 64, 64]."""
        frame = Frame((image.shape[0], image.shape[1]), SIDE, "longest")
        mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        feeds = {"input_image": pixels(image, frame, mean, std)}
        name = "image_embeddings"
        found: Floats = self._encoder.run(feeds, [name])[name]
        return found

    def close(self) -> None:
        """Release the graphs."""
        self._encoder.close()
        self._decoder.close()

    def decode(self, features: Floats, click: Click) -> Any:
        """The best mask of one click, at the size of the image."""
        feeds = {
            "image_embeddings": features,
            "point_coords": np.array([[[click.x, click.y], [0, 0]]], np.float32),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([SIDE, SIDE], np.float32),
        }
        found = self._decoder.run(feeds, ["masks", "iou_predictions"])
        best = 1 + int(np.argmax(found["iou_predictions"][0, 1:]))
        return found["masks"][0, best] > 0


class OurSam:
    """A variant of ours."""

    def __init__(self, part: Part, variant: str) -> None:
        self._sessions = list[Session]()

        def session(part: Part, role: str) -> Session:
            self._sessions.append(part.session(role, SessionOptions("cpu"), variant))
            return self._sessions[-1]

        self._segmenter = open_segmenter(part, session)

    def encode(self, image: RgbImage) -> Any:
        """Features, and where the picture lies."""
        return self._segmenter.encode(image)

    def close(self) -> None:
        """Release the graphs."""
        for session in self._sessions:
            session.close()

    def decode(self, features: Any, click: Click) -> Any:
        """The mask of one click, at the size of the image."""
        return self._segmenter.decode(features, [click]).mask()


def copied(features: Any) -> Any:
    """Features apart from the memory of their encoder, which they else would keep."""
    if not isinstance(features, SamEmbedding):
        return features
    maps = {name: np.array(on_host(each)) for name, each in features.features.items()}
    return SamEmbedding(maps, features.frame)


def measure_sam(folder: Path, laps: int) -> dict[str, Any]:
    """Encoding, and a click's decoding up to the mask at the image's size; both warmed up.

    While encoders run one way is in memory at a time, for those of this size take gigabytes.
    Decoders are loaded together, and take turns more often, as they are quick.
    """
    part, click = open_part(folder / "segmenter", "segmenter"), Click(400, 300, True)
    ways: dict[str, Callable[..., OurSam | PeerSam]] = {
        name: lambda name=name: OurSam(part, name) for name in SAMS
    }
    ways["samexporter"] = lambda: PeerSam(folder)
    image, features, masks = make_scene(0, SIDE).image, dict[str, Any](), dict[str, Any]()

    def encode(name: str) -> float:
        way = ways[name]()
        way.encode(image)
        start = time.perf_counter()
        found = way.encode(image)
        seconds = time.perf_counter() - start
        features[name] = copied(found)
        del found
        way.close()
        return seconds

    encoded = in_turn({name: lambda _, name=name: encode(name) for name in ways}, laps)
    opened = {name: way() for name, way in ways.items()}

    def decode(name: str) -> float:
        start = time.perf_counter()
        masks[name] = opened[name].decode(features[name], click)
        return time.perf_counter() - start

    turns = {name: lambda _, name=name: decode(name) for name in ways}
    in_turn(turns, 1)
    decoded = in_turn(turns, DECODES)
    for way in opened.values():
        way.close()
    done = {name: {"encode": encoded[name], "decode": decoded[name]} for name in ways}
    same = {name: float(np.mean(masks[name] == masks["samexporter"])) for name in SAMS}
    return {
        "same_pixels": same,
        "ways": {n: {k: percentiles(v) for k, v in kinds.items()} for n, kinds in done.items()},
        "times_as_fast": {
            name: {
                kind: ratio_percentiles(done["samexporter"][kind], done[name][kind])
                for kind in ("encode", "decode")
            } if same[name] >= 0.95 else None
            for name in SAMS
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
