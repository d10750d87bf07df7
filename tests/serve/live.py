"""A server in a thread of this process, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, replace

import uvicorn

from segagent_rt.serve.app import create_app, service_metrics
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.server import configure, listen
from segagent_rt.serve.server_settings import ServerSettings
from segagent_rt.serve.service import SegmentationService


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)

    def events(self):
        """Server-sent events as pairs of name and data."""
        blocks = [block.split("\n") for block in self.body.decode().strip().split("\n\n")]
        return [(name[7:], json.loads(data[6:])) for name, data in blocks]


class LiveServer:
    """Use it in a `with` block.

    Args:
        bundles: runtimes by name; they stay open when the server ends.
        limits: of the service.
        token: that clients have to send.
        options: of the service.
    """

    def __init__(self, bundles, limits=None, *, token=None, adapters=(), **options):
        limits = limits or ServeLimits(rate=0)
        self.metrics = service_metrics(lambda: self.service)
        self.service = SegmentationService(
            bundles, limits, on_seconds=self.metrics.add_stages, **options
        )
        self.service.close = lambda: None
        settings = ServerSettings(port=0, token=token, limits=limits)
        self._listener = listen(settings)
        self.port = self._listener.getsockname()[1]
        settings = replace(settings, port=self.port)
        app = create_app(self.service, settings, self.metrics, adapters=adapters)
        self._server = uvicorn.Server(configure(app, settings))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()

    def __call__(self, method, path, body=None, **headers):
        """A request; a body that is no bytes is sent as JSON. Underscores in names are hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def raw(self, content=b""):
        """A connection on which anything may be sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(content)
        return connection

    def open(self, content, bundle=None):
        """The id of a newly opened image."""
        query = f"?bundle={bundle}" if bundle else ""
        answer = self("POST", f"/v1/images{query}", content, Content_Type="image/png")
        assert answer.status == 200, answer.body
        return answer.json()["image"]


def wait_until(true, seconds=10.0):
    """Wait for something to become true, at most so long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.005)
