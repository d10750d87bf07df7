"""Requests made from the description of the adapters' routes, valid and not: none fails."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

import schemathesis
from schemathesis import GenerationMode

from segagent_rt.serve.adapters.label_studio import label_studio_router
from segagent_rt.serve.adapters.label_studio_media import LabelStudioMedia
from segagent_rt.serve.adapters.x_anylabeling import x_anylabeling_router
from segagent_rt.serve.limits import ServeLimits
from tests.serve.fakes import FakeRuntime
from tests.serve.live import LiveServer
from tests.serve.test_schema import fuzz

pytestmark = pytest.mark.slow

PATHS = {"/v1/models", "/v1/predict", "/setup", "/predict", "/webhook"}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_an_adapter_fail(mode):
    adapters = [
        x_anylabeling_router,
        lambda runner: label_studio_router(runner, LabelStudioMedia()),
    ]
    limits = ServeLimits(rate=0, work_seconds=20)
    with LiveServer({"fake": FakeRuntime()}, limits, adapters=adapters) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [each.ok() for each in schema.get_all_operations()]
        ours = [each for each in operations if each.path in PATHS]
        assert {each.path for each in ours} == PATHS
        for operation in ours:
            if mode is GenerationMode.NEGATIVE and not list(operation.body):
                continue
            statuses = Counter()
            fuzz(operation.as_strategy(mode), server, "", statuses)
            assert not {*statuses} & {500, 502, 504}, operation.path
