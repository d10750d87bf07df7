"""Requests made from the API's own description, valid and not: none makes the server fail."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import integers
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from segagent_rt.serve.limits import ServeLimits
from tests.serve.fakes import FakeRuntime
from tests.serve.live import LiveServer

pytestmark = pytest.mark.slow

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 60
"""Requests for each operation."""


@pytest.fixture(scope="module")
def fuzzed(grey):
    """A server with an open image that has an object, so that paths lead somewhere."""
    with LiveServer({"fake": FakeRuntime()}, ServeLimits(rate=0, work_seconds=20)) as server:
        image = server.open(grey)
        server("POST", f"/v1/images/{image}/objects", {"clicks": [{"x": 5, "y": 5}]})
        yield server, image


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_the_server_fail(fuzzed, mode):
    server, image = fuzzed
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()):
            continue  # nothing can be wrong
        statuses = seen[f"{operation.method} {operation.path}"] = Counter()
        fuzz(operation.as_strategy(mode), server, image, statuses)
    failed = {name for name, statuses in seen.items() if {*statuses} & {500, 502, 504}}
    assert not failed
    if mode is GenerationMode.POSITIVE:
        assert len(seen) >= 20
        assert len([name for name, statuses in seen.items() if statuses[200]]) >= 15, seen


def fuzz(cases, server, image, statuses):
    """Send requests to one operation, most of them about an image that is open."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, known=integers(0, 3))
    def send(case, known):
        if known and "image" in (case.path_parameters or {}) and case.method != "DELETE":
            case.path_parameters["image"] = image
            if "number" in case.path_parameters and known > 1:
                case.path_parameters["number"] = 1
        answer = case.call(base_url=server.url)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    send()
