"""The loop inside Triton Inference Server: a model of its Python backend.

Graphs that keep nothing between calls (both of the segmenter, and the MLLM's vision encoder) are
Triton models of their own, which Triton batches, places and counts. The language model stays in
this process: its KV cache would otherwise be copied with every token.

`segagent-rt export BUNDLE --target triton` writes the repository; its `model.py` imports
`TritonPythonModel` from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from segagent_rt.backends.host_buffer import HostBuffer
from segagent_rt.backends.session import SessionOptions
from segagent_rt.bundle.bundle import Bundle, Part, open_bundle
from segagent_rt.errors import InputError, SegagentError
from segagent_rt.io import dump_json, parse_json
from segagent_rt.loop import StoppingRules
from segagent_rt.results import describe
from segagent_rt.runtime import Runtime
from segagent_rt.search import SearchConfig
from segagent_rt.types import (
    Array,
    Box,
    Buffers,
    Click,
    DeviceTensor,
    Feeds,
    Mask,
    Names,
    ObjectPrompt,
    Session,
    Trajectory,
)

CallModel: TypeAlias = Callable[[str, Mapping[str, Array], Sequence[str]], dict[str, Array]]
"""Runs a Triton model: its name, inputs, and the names of the outputs wanted."""

REMOTE = {"segmenter encoder", "segmenter decoder", "segmenter net", "mllm vision"}
"""Graphs that are Triton models of their own."""


def model_name(loop: str, part: str, role: str) -> str:
    """The name of the Triton model of a graph.

    Args:
        loop: the name of the model that holds the loop.
        part: `segmenter` or `mllm`.
        role: of the graph.
    """
    return f"{loop}_{part}_{role}"


class TritonSession:
    """A graph that runs as a Triton model.

    Args:
        name: of the model.
        call: runs it.
    """

    inputs: Names = ()
    """Not known here. The loop asks only for those of the decoder, which is no Triton model."""

    def __init__(self, name: str, call: CallModel) -> None:
        self._name, self._call = name, call

    def run(
        self, feeds: Feeds, outputs: Names, *, into: Buffers | None = None, keep: Names = ()
    ) -> dict[str, Any]:
        """Run the graph; see `Session`. Nothing stays elsewhere, so `keep` gives host arrays."""
        arrays = {
            name: feed if isinstance(feed, np.ndarray) else feed.numpy()
            for name, feed in feeds.items()
        }
        buffers = into or {}
        found = self._call(self._name, arrays, [*outputs, *buffers])
        for name, buffer in buffers.items():
            buffer.numpy()[...] = found[name]
        return {name: HostBuffer(found[name]) if name in keep else found[name] for name in outputs}

    def allocate(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceTensor:
        """A zeroed array."""
        return HostBuffer(np.zeros(tuple(shape), dtype))

    def close(self) -> None:
        """Triton unloads its models itself."""


class TritonRuntime(Runtime):
    """A runtime whose graphs of `REMOTE` are Triton models.

    Args:
        bundle: an opened bundle.
        where: for the graphs that stay here.
        loop: the name of the model that holds the loop.
        call: runs a Triton model.
    """

    def __init__(self, bundle: Bundle, where: SessionOptions, loop: str, call: CallModel) -> None:
        self._loop, self._call = loop, call
        super().__init__(bundle, where)

    def _open(self, part: Part, role: str) -> Session:
        kind = part.manifest.kind
        if f"{kind} {role}" not in REMOTE:
            return super()._open(part, role)
        return TritonSession(model_name(self._loop, kind, role), self._call)


class SegmentationModel:
    """Answers requests of Triton's clients.

    Args:
        runtime: what segments.
        megapixels: of the largest image that is taken.
    """

    def __init__(self, runtime: Runtime, megapixels: float = 50.0) -> None:
        self._runtime, self._megapixels = runtime, megapixels

    def answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Segment one object.

        Args:
            inputs: `IMAGE` uint8 [bytes], a picture file; `EXPRESSION` a text [1]; or `CLICKS`
                int32 [n, 3] (x, y, 1 for positive) and `BOX` int32 [4] (left, top, right, bottom);
                `MAX_CLICKS` int32 [1].

        Returns:
            `MASK` uint8 [H, W], 0 and 1, empty if there is none; `RESULT` [1], the document that
            `segagent-rt run` writes for one object, as JSON.

        Raises:
            SegagentError: the request cannot be answered.
        """
        from segagent_rt.image import load_image

        if "IMAGE" not in inputs:
            raise InputError("the request has no IMAGE")
        image = load_image(inputs["IMAGE"].astype(np.uint8).tobytes(), self._megapixels)
        most = int(inputs["MAX_CLICKS"].reshape(-1)[0]) if "MAX_CLICKS" in inputs else 7
        config = SearchConfig(StoppingRules(min(max(most, 1), 20)), 1)
        canvas = self._runtime.open(image)
        (found,) = canvas.annotate_prompts([prompt_of(inputs)], config=config)
        return {
            "MASK": _mask(found, image.shape[:2]).astype(np.uint8),
            "RESULT": np.array([dump_json(describe(found)).encode()], np.object_),
        }


def prompt_of(inputs: Mapping[str, Array]) -> ObjectPrompt:
    """What says which object is meant.

    Raises:
        InputError: nothing does, or a tensor has another shape.
    """
    text, box, clicks = "", None, tuple[Click, ...]()
    if "EXPRESSION" in inputs and inputs["EXPRESSION"].size:
        said = inputs["EXPRESSION"].reshape(-1)[0]
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if "CLICKS" in inputs and inputs["CLICKS"].size:
        rows = inputs["CLICKS"]
        if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) > 100:
            raise InputError("CLICKS is not [n, 3] with at most 100 rows")
        clicks = tuple(Click(int(x), int(y), positive=bool(p)) for x, y, p in rows)
    if "BOX" in inputs and inputs["BOX"].size:
        if inputs["BOX"].size != 4:
            raise InputError("BOX does not have four numbers")
        box = Box(*(int(n) for n in inputs["BOX"].reshape(-1)))
    if not (text or clicks or box):
        raise InputError("the request has neither EXPRESSION nor CLICKS nor BOX")
    return ObjectPrompt(text, clicks, box)


def _mask(found: Trajectory, size: tuple[int, ...]) -> Mask:
    made = found.prediction
    return np.zeros(size, np.bool_) if made is None else made.mask()


class TritonPythonModel:
    """What Triton's Python backend loads; see its documentation."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle that lies beside `model.py`."""
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        parameters = parse_json(args["model_config"]).get("parameters") or {}
        threads = parameters.get("threads", {}).get("string_value") or "0"
        bundle = open_bundle(folder)
        for part in bundle.parts.values():
            part.verify_once()
        where = SessionOptions("auto", int(threads) or None)
        runtime = TritonRuntime(bundle, where, args["model_name"], call_model)
        self._runtime, self._model = runtime, SegmentationModel(runtime)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests one after the other; one that fails has an error, the others go on."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Release the graphs."""
        self._runtime.close()

    def _respond(self, request: Any) -> Any:
        import triton_python_backend_utils as triton

        inputs = {each.name(): each.as_numpy() for each in request.inputs()}
        try:
            found = self._model.answer(inputs)
        except SegagentError as error:
            message = f"{error}" if error.hint is None else f"{error}; {error.hint}"
            return triton.InferenceResponse(error=triton.TritonError(message))
        return triton.InferenceResponse(
            output_tensors=[triton.Tensor(name, array) for name, array in found.items()]
        )


def call_model(name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Run another model of the same server (business logic scripting).

    Raises:
        InputError: it failed.
    """
    import triton_python_backend_utils as triton

    request = triton.InferenceRequest(
        model_name=name,
        requested_output_names=list(outputs),
        inputs=[triton.Tensor(key, np.ascontiguousarray(value)) for key, value in inputs.items()],
    )
    response = request.exec()
    if response.has_error():
        raise InputError(f"the model {name} failed: {response.error().message()}")
    named = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    return {output: named[output] for output in outputs}
