"""Sends requests to an application in this process, as the server would."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class LocalClient:
    """A client on this machine."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return asyncio.run(self._send(method, path, body, headers))

    async def _send(self, method, path, body, headers):
        content = b"" if body is None else json.dumps(body).encode()
        head = {"host": "127.0.0.1:8000", "content-type": "application/json", **headers}
        if content:
            head["content-length"] = str(len(content))
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(k.encode(), v.encode()) for k, v in head.items()],
            "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        sent, got = [False], []
        finished = asyncio.Event()

        async def receive():
            if not sent[0]:
                sent[0] = True
                return {"type": "http.request", "body": content, "more_body": False}
            await finished.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            got.append(message)

        await self._app(scope, receive, send)
        finished.set()
        status = next(m["status"] for m in got if m["type"] == "http.response.start")
        parts = [m.get("body", b"") for m in got if m["type"] == "http.response.body"]
        return Answer(status, b"".join(parts))
