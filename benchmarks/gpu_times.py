"""Times of models of real size on a GPU: ours, and torch's with the same weights and inputs.

A part (an encoder, a prompt, a step) runs between places of the device's memory on both sides, so
nothing is copied. A whole click runs from an image on the host to a mask on the host. Ways take
turns. What did not come out is in the document as a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_cards import seconds_of, share_of_card, wait
from gpu_graphs import (
    GraphHost,
    LastCall,
    RecordedCall,
    cache_bytes,
    captured,
    repeated,
    stored_bytes,
)
from gpu_report import Findings
from in_turn import in_turn
from real_bundle import BundlePlace
from real_ours import OurMllm, apart
from real_reference import PlainMllm, plain_segmenter, torch_segmenter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from segagent_rt.backends.onnxruntime import nodes_by_provider
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bench.profiling import GraphProfiler, covered_seconds
from segagent_rt.bench.stats import percentiles, ratio_percentiles
from segagent_rt.bundle.bundle import Part, open_part
from segagent_rt.runtime import open_segmenter
from segagent_rt.scenes import make_scene
from segagent_rt.segmenters.sam import SamSettings
from segagent_rt.types import Click, RgbImage, Segmenter, Session
from segagent_rt_export.graphs.sam_export import Pair, random_prompts, run
from segagent_rt_export.recipe import VariantName

VARIANT: VariantName = "gpu-fp16"
OURS, CAPTURED = "segagent-rt", "segagent-rt, CUDA graph"
EAGER, COMPILED = "PyTorch", "torch.compile"
GENERATE, STATIC = "transformers generate", "transformers generate, compiled"
EXPRESSION, CLICK = "the mug behind the laptop", Click(400, 300, True)
SIDE, MOST = 1024, 30
"""Side of the image, and the most laps."""

Way = Callable[[], object]


@dataclass(slots=True)
class Timer:
    """Times ways side by side, and puts what comes out into the document.

    Attributes:
        findings: where that is.
        model: what it is called there.
        device: `cuda` or `cpu`.
        card: what `describe_gpu` returned.
        compiled: whether PyTorch is timed beside compiled PyTorch, or beside ours.
        laps: the most turns of a way.
    """

    findings: Findings
    model: str
    device: str
    card: Mapping[str, Any]
    compiled: bool
    laps: int = MOST

    def note(self, *path: str, value: Any) -> None:
        """Put a value below this model."""
        self.findings.note("models", self.model, *path, value=value)

    def _turn(self, work: Way, lap: int) -> float:
        return seconds_of(self.device, work)

    def part(
        self,
        name: str,
        ways: Mapping[str, Callable[[], Way]],
        seconds: float,
        *,
        read: float = 0.0,
        flops: float = 0.0,
    ) -> None:
        """Time a part.

        Args:
            name: of the part.
            ways: what makes each way ready; one that cannot be made ready is noted as failed.
            seconds: about how long all of it may take.
            read: bytes that a call must read from the card's memory.
            flops: its floating-point operations.
        """
        ready: dict[str, Callable[[int], float]] = {}
        for way, prepare in ways.items():
            with self.findings.attempt("models", self.model, "parts", name, way):
                work = prepare()
                for _ in range(3):  # allocate, capture, replay
                    seconds_of(self.device, work)
                ready[way] = partial(self._turn, work)
        if not ready:
            return
        done = in_turn(ready, self.laps, min(seconds, self.findings.left / 2))
        for way, taken in done.items():
            if self.compiled and way in (EAGER, GENERATE):
                continue  # was noted when it was timed beside ours
            median = float(np.median(taken))
            share = share_of_card(dict(self.card), median, read=read, flops=flops)
            found: dict[str, Any] = {"time": percentiles(taken)} | share
            if way not in (EAGER, GENERATE):
                rival = next((name for name in (EAGER, GENERATE) if name in done), None)
                if rival is not None:
                    found[f"speed_up_over_{rival}"] = ratio_percentiles(done[rival], taken)
            self.note("parts", name, way, value=found)
        if read:
            self.note("parts", name, "read_mb", value=round(read / 1e6, 1))
        if flops:
            self.note("parts", name, "gflop", value=round(flops / 1e9, 2))


@contextmanager
def inference(device: str) -> Iterator[None]:
    """Without gradients; products of 32-bit floats as ONNX Runtime does them, in TF32."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    with torch.inference_mode():
        yield
    wait(device)


def count_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of products, convolutions and attention."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


@dataclass(slots=True)
class SegmenterPair:
    """A segmenter's graphs and its modules in torch."""

    part: Part
    pair: Pair
    device: str

    @classmethod
    def of(cls, family: str, checkpoint: Path, part: Path, device: str) -> SegmenterPair:
        """Open both."""
        return cls(open_part(part, "segmenter"), torch_segmenter(family, checkpoint), device)

    def path(self, role: str) -> Path:
        """Of a graph."""
        return self.part.graphs(role, VARIANT)[0].path

    def ours(self) -> Segmenter:
        """In the runtime."""
        where = SessionOptions(self.device)
        return open_segmenter(self.part, lambda part, role: part.session(role, where, VARIANT))

    def plain(self) -> Segmenter:
        """In torch; the encoder in bfloat16, the decoder in 32 bits as in the graph."""
        settings = self.part.settings(SamSettings)
        return plain_segmenter(self.pair, settings, self.device, torch.bfloat16)


def time_segmenter(timer: Timer, segmenter: SegmenterPair) -> None:
    """The encoder, and the decoder of one click."""
    device, pair = timer.device, segmenter.pair
    with inference(device):
        encoder = deepcopy(pair.encoder).to(device, torch.bfloat16).eval()
        decoder = pair.decoder.to(device).eval()
        image = torch.randn(1, 3, pair.side, pair.side)
        half = image.to(device, torch.bfloat16)
        maps = {n: f.float() for n, f in run(encoder, {"image": half}, pair.features).items()}
        prompts = random_prompts(pair, 2, torch.Generator().manual_seed(0))
        feeds = maps | {name: feed.to(device) for name, feed in prompts.items()}
        results = run(decoder, feeds, pair.results)
        calls = {
            "encoder": RecordedCall(_arrays({"image": image}), {}, _arrays(maps)),
            "decoder": RecordedCall(_arrays(feeds), {}, _arrays(results)),
        }
        torch_ways: dict[str, tuple[torch.nn.Module, Mapping[str, Tensor]]] = {
            "encoder": (encoder, {"image": half}), "decoder": (decoder, feeds),
        }  # fmt: skip
        for role, title in (("encoder", "image encoder"), ("decoder", "mask decoder")):
            module, inputs = torch_ways[role]
            ways: dict[str, Callable[[], Way]] = {EAGER: partial(_module_call, module, inputs)}
            if timer.compiled:
                ways[COMPILED] = partial(_compiled_call, device, module, inputs)
            else:
                ways |= graph_ways(timer, title, segmenter.path(role), calls[role])
            timer.part(title, ways, 4, flops=count_flops(_module_call(module, inputs)))


def graph_ways(
    timer: Timer, part: str, path: Path, call: RecordedCall
) -> dict[str, Callable[[], Way]]:
    """A graph by itself and captured in a CUDA graph; notes where its nodes run."""
    with timer.findings.attempt("models", timer.model, "nodes", part):
        note_nodes(timer, part, path, call)
    return {
        OURS: partial(repeated, path, call, GraphHost(timer.device)),
        CAPTURED: partial(captured, path, call, timer.device),
    }


def note_nodes(timer: Timer, part: str, path: Path, call: RecordedCall) -> None:
    """How many nodes of a graph each provider runs: those on the CPU make the GPU wait."""
    feeds = {n: f if isinstance(f, np.ndarray) else f.numpy() for n, f in call.feeds.items()}
    timer.note("nodes", part, value=nodes_by_provider(path, SessionOptions(timer.device), feeds))


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.float().numpy(force=True) for name, tensor in tensors.items()}


class MllmPair:
    """An MLLM in the runtime and in transformers, with the same weights.

    What the runtime replies is what transformers is made to reply; it lies beside the bundle, so
    that a process that only needs transformers need not load the graphs.
    """

    def __init__(self, place: BundlePlace, device: str) -> None:
        self.place, self.device = place, device
        self.meter, self.last = GraphProfiler(), dict[str, LastCall]()
        self.image: RgbImage = make_scene(0, SIDE).image
        reply = place.folder / "reply.json"
        if not reply.exists():
            tokens = self.ours.click(self.image, EXPRESSION).tokens
            reply.write_text(json.dumps(tokens), "utf-8")
        self.tokens: tuple[int, ...] = tuple(json.loads(reply.read_text("utf-8")))
        self.plain = PlainMllm(place, torch.bfloat16, device)
        self.plain.forget_hooks()

    @cached_property
    def ours(self) -> OurMllm:
        """In the runtime, loaded when it is needed."""
        return OurMllm(self.place, VARIANT, self.device, self._wrapped)

    def _wrapped(self, role: str, session: Session) -> Session:
        self.last[role] = LastCall(session)
        return self.meter.wrap(role, self.last[role])

    def path(self, role: str) -> Path:
        """Of a graph."""
        return open_part(self.place.bundle / "mllm", "mllm").graphs(role, VARIANT)[0].path

    def call(self, role: str) -> RecordedCall:
        """The last call of a graph."""
        found = self.last[role].last
        assert found is not None
        return found


def time_parts(timer: Timer, models: MllmPair) -> None:
    """One step of decoding, the vision encoder, and the prompt."""
    timer.note("reply_tokens", value=len(models.tokens))
    with inference(timer.device):
        torch_calls = captured_calls(models)
        if not timer.compiled:
            with timer.findings.attempt("models", timer.model, "logits_apart_from_torch_bf16"):
                timer.note("logits_apart_from_torch_bf16", value=_logits_apart(models))
        for name, role in (
            ("decode step", "decoder"), ("vision encoder", "vision"), ("prefill", "decoder"),
        ):  # fmt: skip
            module, inputs, reset = torch_calls[name]
            ways: dict[str, Callable[[], Way]] = {
                EAGER: partial(_module_call, module, inputs, reset)
            }
            read = flops = 0.0
            if timer.compiled:
                ways[COMPILED] = partial(_compiled_call, timer.device, module, inputs, reset)
            else:
                call = _call_of(models, name)
                ways |= graph_ways(timer, name, models.path(role), call)
                read = float(stored_bytes(models.path(role)) + cache_bytes(call))
            if name != "decode step":
                read, flops = 0.0, count_flops(_module_call(module, inputs, reset))
            timer.part(name, ways, 5, read=read, flops=flops)


def _module_call(module: Any, inputs: Mapping[str, Any], reset: Way = lambda: None) -> Way:
    """A call of the module on `inputs`, with `reset` before it."""

    def work() -> None:
        reset()
        module(**inputs)

    return work


def _compiled_call(
    device: str, module: Any, inputs: Mapping[str, Any], reset: Way = lambda: None
) -> Way:
    """One call of what `torch.compile` makes; on the CPU without its compiler, for dry runs."""
    fast = torch.compile(module, backend="inductor" if device == "cuda" else "eager")
    return _module_call(fast, inputs, reset)


def _logits_apart(models: MllmPair) -> float:
    """How far the reply's logits are from torch's in bfloat16, in `apart`."""
    found = models.ours.click(models.image, EXPRESSION)
    return apart(found.logits, models.plain.choices(models.image, EXPRESSION, found.tokens))


def _call_of(models: MllmPair, name: str) -> RecordedCall:
    """What the runtime gives a graph: for the picture, the whole prompt, or one more token."""
    annotator, model = models.ours.annotator, models.ours.annotator.model
    picture = annotator.picture(models.image, annotator.vision_encoder.resize(models.image), None)
    seen = annotator.vision_encoder.embed(picture)
    if name == "vision encoder":
        return models.call("vision")
    lead, tail = annotator.prompt(EXPRESSION)
    x = np.concatenate([model.embed(lead), seen.embeddings, model.embed(tail)], axis=1)
    cache = model.new_cache(annotator.room(seen.embeddings.shape[1]))
    model.forward(cache, x, annotator.settings.language.rope.before_text(len(lead), seen.grid))
    if name == "decode step":
        model.forward(cache, model.embed([1]))
    return models.call("decoder")


TorchCall = tuple[Any, dict[str, Any], Way]
"""A module, what it is given, and what is done before each call so that it is the same again."""


def captured_calls(models: MllmPair) -> dict[str, TorchCall]:
    """What transformers itself gives its modules in a click, by the name of the part."""
    model = models.plain.model.model
    seen = list[tuple[str, dict[str, Any]]]()

    def listen(name: str) -> Callable[..., None]:
        def hear(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            held = {} if not given else {"hidden_states": given[0]}
            seen.append((name, held | dict(named)))

        return hear

    hooks = [
        getattr(model, name).register_forward_pre_hook(listen(name), with_kwargs=True)
        for name in ("visual", "language_model")
    ]
    models.plain.click(models.image, None, EXPRESSION, models.tokens)
    for hook in hooks:
        hook.remove()
    vision = next(named for name, named in seen if name == "visual")
    prefill, step = [named for name, named in seen if name == "language_model"][:2]
    count = prefill["inputs_embeds"].shape[1]
    cache: DynamicCache = step["past_key_values"]
    if "hidden_states" in vision:  # the parameter's name differs between models
        first = vision.pop("hidden_states")
        vision_module: Any = lambda **named: model.visual(first, **named)  # noqa: E731
    else:
        vision_module = model.visual
    language: Any = model.language_model

    def empty() -> None:
        prefill["past_key_values"] = DynamicCache(config=language.config)

    def back() -> None:
        if (further := cache.get_seq_length() - count) > 0:
            cache.crop(-further)

    return {
        "vision encoder": (vision_module, vision, lambda: None),
        "prefill": (language, prefill, empty),
        "decode step": (language, step, back),
    }


def time_clicks(timer: Timer, models: MllmPair, segmenter: SegmenterPair) -> None:
    """A whole click with its mask, from an image whose embedding the segmenter has."""
    with inference(timer.device):
        click = partial(_click_plain, models, segmenter.plain())
        ways: dict[str, Callable[[], Way]] = {GENERATE: click}
        if timer.compiled:
            ways[STATIC] = partial(click, cache_implementation="static")
        else:
            ways[OURS] = partial(_click_ours, models, segmenter.ours())
        timer.part("whole click", ways, 12)
        if not timer.compiled:
            note_host_time(timer, models)


def _click_ours(models: MllmPair, segmenter: Segmenter) -> Way:
    embedding = segmenter.encode(models.image)

    def work() -> None:
        models.ours.click(models.image, EXPRESSION)
        segmenter.decode(embedding, [CLICK]).mask()

    return work


def _click_plain(models: MllmPair, segmenter: Segmenter, **generation: Any) -> Way:
    embedding = segmenter.encode(models.image)

    def work() -> None:
        models.plain.click(models.image, None, EXPRESSION, models.tokens, **generation)
        segmenter.decode(embedding, [CLICK]).mask()

    return work


def note_host_time(timer: Timer, models: MllmPair) -> None:
    """What the host does between the calls of graphs, in a click and for each call."""
    shares, between, calls = list[float](), list[float](), 0
    for _ in range(min(5, timer.laps)):
        models.meter.take()
        whole = seconds_of(timer.device, lambda: models.ours.click(models.image, EXPRESSION))
        taken = models.meter.take()
        calls = len(taken)
        rest = whole - covered_seconds(taken)
        shares.append(rest / whole)
        between.append(rest / max(calls, 1))
    timer.note(
        "host_between_calls",
        value={
            "calls": calls,
            "each": percentiles(between),
            "share_of_click": round(float(np.median(shares)), 4),
        },
    )


def time_model(timer: Timer, place: BundlePlace) -> None:
    """Everything about an MLLM and the segmenter beside it."""
    assert place.segmenter is not None
    models = MllmPair(place, timer.device)
    segmenter = SegmenterPair.of(
        place.segmenter.family, place.segmenter_checkpoint, place.bundle / "segmenter", timer.device
    )
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("clicks", lambda: time_clicks(timer, models, segmenter)),
        ("segmenter", lambda: time_segmenter(timer, segmenter)),
        ("language", lambda: time_parts(timer, models)),
    )
    for name, step in steps:
        with timer.findings.attempt("models", timer.model, f"all of {name}"):
            step()
