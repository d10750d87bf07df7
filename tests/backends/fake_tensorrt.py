"""TensorRT's API as far as this package calls it, with ONNX Runtime's CPU doing the arithmetic.

A plan holds the path of its graph and the profiles it was built for. Trouble can be ordered.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import time
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort

from tests.backends import fake_cuda

__version__ = "10.13.2.6"


@dataclass
class Trouble:
    """What is to go wrong, by the graph's file name where it depends on it."""

    refuses: set[str] = field(default_factory=set)
    overflows: set[str] = field(default_factory=set)
    loads_nothing: bool = False
    dies_in_build: bool = False
    slow_seconds: float = 0.0
    builds: list[str] = field(default_factory=list)
    workspaces: list[int] = field(default_factory=list)
    reason: str = "false"


trouble = Trouble()


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, message):
        raise NotImplementedError


class IProgressMonitor:
    pass


class Dims(tuple):
    """Not a plain tuple in TensorRT either."""


_TYPES = {
    "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64",
    "tensor(int32)": "INT32", "tensor(uint8)": "UINT8", "tensor(bool)": "BOOL",
}  # fmt: skip


def _session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _shape(node):
    return Dims(side if isinstance(side, int) else -1 for side in node.shape)


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self.logger = logger

    def create_network(self, flags=0):
        typed = getattr(NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        assert flags == (0 if typed is None else 1 << typed)
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        name = Path(network.path).name
        trouble.builds.append(name)
        config.progress_monitor.phase_start("Building engine", None, 1)
        time.sleep(trouble.slow_seconds)
        if trouble.dies_in_build:
            os.kill(os.getpid(), signal.SIGKILL)
        dynamic = [i for i in range(network.num_inputs) if -1 in network.get_input(i).shape]
        if dynamic and not config.profiles:
            self.logger.log(ILogger.ERROR, "Network has dynamic inputs, but no profile")
            return None
        config.cache.content += b"t"
        plan = {"graph": network.path, "profiles": config.profiles, "version": __version__}
        return json.dumps(plan).encode()


class INetworkDefinition:
    path = ""
    inputs: tuple = ()

    @property
    def num_inputs(self):
        return len(self.inputs)

    def get_input(self, index):
        node = self.inputs[index]
        return SimpleNamespace(name=node.name, shape=_shape(node))


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, index):
        return self.errors[index]

    def parse_from_file(self, path):
        if Path(path).name in trouble.refuses:
            self.errors.append(ParserError())
            return False
        self.network.path, self.network.inputs = path, _session(path).get_inputs()
        return True


class ParserError:
    def desc(self):
        return trouble.reason

    def node_operator(self):
        return "MatMulNBits"


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, typical, most):
        assert all(a <= b <= c for a, b, c in zip(least, typical, most, strict=True))
        self.shapes[name] = [list(least), list(typical), list(most)]


class ITimingCache:
    def __init__(self, content):
        self.content = bytes(content)

    def serialize(self):
        return self.content


class IBuilderConfig:
    progress_monitor = None

    def __init__(self):
        self.profiles, self.cache = [], ITimingCache(b"")

    def set_memory_pool_limit(self, pool, size):
        assert pool is MemoryPoolType.WORKSPACE
        trouble.workspaces.append(size)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        return ITimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        content = json.loads(plan)
        if trouble.loads_nothing or content["version"] != __version__:
            self.logger.log(ILogger.ERROR, "The engine plan file is not compatible")
            return None
        return ICudaEngine(content)


class ICudaEngine:
    def __init__(self, plan):
        self.plan, self.session = plan, _session(plan["graph"])
        self.nodes = {n.name: n for n in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [node.name for node in self.session.get_inputs()]

    num_io_tensors = property(lambda self: len(self.nodes))
    num_optimization_profiles = property(lambda self: max(len(self.plan["profiles"]), 1))

    def get_tensor_name(self, index):
        return list(self.nodes)[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=_TYPES[self.nodes[name].type])

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_location(self, name):
        return SimpleNamespace(name="DEVICE")

    def get_tensor_shape(self, name):
        return _shape(self.nodes[name])

    def get_tensor_profile_shape(self, name, profile):
        return [Dims(shape) for shape in self.plan["profiles"][profile][name]]

    def create_execution_context(self):
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.profile = None

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        assert name in self.engine.inputs
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        assert isinstance(address, int)
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return Dims(self.shapes[name])
        zeros = {n: np.zeros(self.shapes[n], self._dtype(n)) for n in self.engine.inputs}
        return Dims(self.engine.session.run([name], zeros)[0].shape)

    def _dtype(self, name):
        kinds = {"FLOAT": "f4", "HALF": "f2", "INT64": "i8", "INT32": "i4", "UINT8": "u1"}
        return np.dtype(kinds.get(self.engine.get_tensor_dtype(name).name, "?"))

    def _view(self, name, shape, address):
        size = math.prod(shape) * self._dtype(name).itemsize
        assert fake_cuda.device.holds(address, size), f"{name} is bound to memory that is not there"
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.ctypeslib.as_array(memory).view(self._dtype(name)).reshape(shape)

    def execute_async_v3(self, stream):
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        if set(addresses) != set(self.engine.nodes):
            return False
        fake_cuda.device.calls.append("enqueue")
        fake_cuda.device.enqueue(stream, lambda: self._execute(shapes, addresses))
        return True

    def _execute(self, shapes, addresses):
        engine = self.engine
        feeds = {n: self._view(n, shapes[n], addresses[n]).copy() for n in engine.inputs}
        names = [name for name in engine.nodes if name not in engine.inputs]
        for name in names:  # an engine writes while it reads: in place, it spoils its own input
            for other in engine.inputs:
                assert addresses[name] != addresses[other], f"{name} is written over {other}"
        for name, value in zip(names, engine.session.run(names, feeds), strict=True):
            spoilt = Path(engine.plan["graph"]).name in trouble.overflows
            value = np.where(np.arange(value.size).reshape(value.shape) % 7 == 0, np.nan, value) \
                if spoilt and value.dtype.kind == "f" else value  # fmt: skip
            self._view(name, value.shape, addresses[name])[...] = value
