"""Other runtimes at real size on the same weights.

python benchmarks/real_peers.py make FOLDER --genai PYTHON --llama PYTHON --openvino PYTHON
python benchmarks/real_peers.py measure FOLDER ...    writes benchmarks/results/real-peers.json

The language model runs in ONNX Runtime GenAI, llama.cpp and OpenVINO; the peers that are named take
turns in one run. `--samexporter PYTHON` compares SAM's graphs. Each peer has an environment of its
own, whose python is named; if none of a comparison is named, the document keeps what it had. FOLDER
is that of `real_loop.py make click`. samexporter's environment needs segment-anything, timm, onnx
and onnxruntime beside it, and no torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
MODEL, SMALL = "qwen2.5-vl-0.5b", "qwen2.5-vl-small"
CORES = len(os.sched_getaffinity(0))
EIGHT_BITS, FOUR_BITS = 0.3, 1.0
"""Most that a peer's logits may be `apart` from those of our 8 bits; four bits round random weights
coarsely."""

STAGES = ("whole", "prompt", "token")
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
    parser.add_argument("--llama", help="python with xllamacpp and gguf")
    parser.add_argument("--openvino", help="python with openvino, optimum-intel and nncf")
    parser.add_argument("--samexporter", help="python with samexporter")
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="a small model: that all of it runs")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "real-peers.json")
    given = parser.parse_args()
    named = {"genai": given.genai, "llama.cpp": given.llama, "openvino": given.openvino}
    pythons = {name: python for name, python in named.items() if python}
    place, sam = place_of(given.folder, SMALL if given.dry else MODEL), given.folder / "sam"
    if given.what == "make":
        make_language(pythons, place)
        if given.samexporter:
            make_sam(given.samexporter, sam)
        return
    here = {"machine": describe_machine(), "ceilings": measure_ceilings()}
    document = {"cores": CORES, "weights": "random", **known(given.output)}
    if pythons:
        document["language"] = here | measure_language(pythons, place, given.laps)
    if given.samexporter:
        document["samexporter"] = here | measure_sam(sam, given.laps)
    given.output.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))


def known(output: Path) -> dict[str, Any]:
    """What an earlier document tells of both comparisons, with machine and commit of that run."""
    earlier = json.loads(output.read_text("utf-8")) if output.exists() else {}
    nothing = {"why": "no python of a peer was named"}
    return {part: earlier.get(part, nothing) for part in ("language", "samexporter")}


@dataclass(frozen=True, slots=True)
class LanguagePeer:
    """How a runtime's models are made of a checkpoint of Qwen2, and how one of them is asked."""

    precisions: tuple[str, ...]
    make: Callable[[str, Path, str], Sequence[str]]
    reply: Callable[[str, Path, str], Sequence[str]]


def _make_genai(python: str, folder: Path, precision: str) -> Sequence[str]:
    source, target = str(folder / "language"), str(folder / f"genai-{precision}")
    builder = (python, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", target)
    cache = ("-c", str(folder / "genai-cache"))
    more = ("--extra_options", "int4_accuracy_level=4")
    return (*builder, "-p", precision, "-e", "cpu", *cache, *more)


def _make_llama(python: str, folder: Path, precision: str) -> Sequence[str]:
    target = str(folder / f"language-{precision}.gguf")
    return (python, str(HERE / "peer_llama.py"), "convert", str(folder / "language"), target,
            precision)  # fmt: skip


def _make_openvino(python: str, folder: Path, precision: str) -> Sequence[str]:
    export = (str(Path(python).parent / "optimum-cli"), "export", "openvino")
    source, target = str(folder / "language"), str(folder / f"openvino-{precision}")
    task = ("--task", "text-generation-with-past")
    return (*export, "--model", source, *task, "--weight-format", precision, target)


LANGUAGE_PEERS = {
    "genai": LanguagePeer(
        ("int8", "int4"),
        _make_genai,
        lambda python, folder, precision: (
            python, str(HERE / "peer_genai.py"), str(folder / f"genai-{precision}")
        ),
    ),
    "llama.cpp": LanguagePeer(
        ("Q8_0", "Q4_0"),
        _make_llama,
        lambda python, folder, precision: (
            python, str(HERE / "peer_llama.py"), "reply",
            str(folder / f"language-{precision}.gguf"), str(CORES),
        ),
    ),
    "openvino": LanguagePeer(
        ("int8", "int4"),
        _make_openvino,
        lambda python, folder, precision: (
            python, str(HERE / "peer_openvino.py"), "reply",
            str(folder / f"openvino-{precision}"), str(CORES),
        ),
    ),
}  # fmt: skip


def make_language(pythons: Mapping[str, str], place: BundlePlace) -> None:
    """The language model alone, as a checkpoint of Qwen2, and what other runtimes make of it."""
    folder = place.folder / "language"
    if not folder.exists():
        write_language_model(place, folder)
    for name, python in pythons.items():
        for precision in LANGUAGE_PEERS[name].precisions:
            subprocess.run(LANGUAGE_PEERS[name].make(python, place.folder, precision), check=True)


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
class Lap:
    """Seconds of a prompt and its reply together, of reading the prompt, and of one more token."""

    whole: float
    prompt: float
    token: float


class Peer:
    """Another runtime in its own process; `command` begins it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def lap(self, prompt: Sequence[int], count: int) -> Lap:
        """So many tokens behind a prompt, each by itself."""
        said = self._asked(prompt, count, 0)
        return Lap(said["read"] + said["write"], said["read"], said["write"] / count)

    def logits(self, prompt: Sequence[int], rows: Sequence[int], vocabulary: int) -> Floats:
        """Those behind a prompt for these tokens of a vocabulary's, up to a constant."""
        said = self._asked(prompt, 1, vocabulary)
        if "logits" in said:
            return np.array(said["logits"], np.float32)[list(rows)]
        by_token = dict(said["by_token"])
        return np.array([by_token.get(row, np.nan) for row in rows], np.float32)

    def _asked(self, prompt: Sequence[int], count: int, probable: int) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([list(prompt), count, probable]) + "\n")
        self._child.stdin.flush()
        said: dict[str, Any] = json.loads(self._child.stdout.readline())
        return said

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

    def reply(self, tokens: Sequence[int]) -> int:
        """Write a reply behind a prompt; returns how many tokens it has."""
        prompt = self._prompt(tokens)
        grammar = self._mllm.annotator.grammar(EXPRESSION, (1, 1))
        assert grammar is not None
        writer = ConstrainedDecoder(self._model, self.rows)
        return len(writer.write(self._cache, prompt, grammar, greedy, grammar.ended).tokens)

    def lap(self, tokens: Sequence[int]) -> Lap:
        """A reply, which feeds the tokens together that its grammar forces, and then both stages by
        themselves."""
        whole = seconds(lambda: self.reply(tokens))
        prompt = seconds(lambda: self.logits(tokens))
        one = self._model.embed(tokens[-1:])
        return Lap(whole, prompt, seconds(lambda: self._model.forward(self._cache, one)))

    def _prompt(self, tokens: Sequence[int]) -> Prompt:
        self._cache.rewind(0)
        return Prompt(self._model.embed(tokens))


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_language(pythons: Mapping[str, str], place: BundlePlace, laps: int) -> dict[str, Any]:
    """A click's language part: peers write as many tokens as our reply has, and the end token."""
    ours = {name: OurLanguage(place, name) for name in OURS}
    first = OURS[0]
    prompt, rows = ours[first].prompt(), ours[first].rows
    described = json.loads((place.folder / "language" / "config.json").read_text("utf-8"))
    vocabulary: int = described["vocab_size"]
    with ExitStack() as stack:
        peers = dict[str, Peer]()
        for name, python in pythons.items():
            for precision in LANGUAGE_PEERS[name].precisions:
                peer = Peer(LANGUAGE_PEERS[name].reply(python, place.folder, precision))
                stack.callback(peer.close)
                peers[f"{name} {precision}"] = peer
        wanted = ours[first].logits(prompt)
        lengths = {name: mllm.reply(prompt) for name, mllm in ours.items()}
        count = lengths[first] + 1
        errors = {
            name: apart(centred(peer.logits(prompt, rows, vocabulary)), centred(wanted))
            for name, peer in peers.items()
        }
        done = in_turn(
            {n: lambda _, m=m: m.lap(prompt) for n, m in ours.items()}
            | {n: lambda _, m=m: m.lap(prompt, count) for n, m in peers.items()},
            laps,
        )
    for mllm in ours.values():
        mllm.close()
    taken = {
        name: {stage: [getattr(lap, stage) for lap in done[name]] for stage in STAGES}
        for name in done
    }
    return {
        "prompt_tokens": len(prompt),
        "reply_tokens": lengths,
        "apart_from_our_8_bits": errors,
        "ways": {n: {stage: percentiles(t) for stage, t in each.items()}
                 for n, each in taken.items()},
        "times_as_fast": {
            f"{name} against {peer}": {
                stage: ratio_percentiles(taken[peer][stage], taken[name][stage])
                for stage in STAGES
            } if errors[peer] <= (FOUR_BITS if "4" in peer else EIGHT_BITS) else None
            for name in ours for peer in peers
        },
    }  # fmt: skip


def centred(logits: Floats) -> Floats:
    """Without their median: log probabilities are logits up to a constant."""
    found: Floats = logits - np.median(logits, -1, keepdims=True)
    return found


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
