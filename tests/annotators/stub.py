"""A server that plays what it is told, byte for byte, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Play = Callable[[socket.socket], None]


def says(status: int, content: Any, **headers: str) -> Play:
    """A whole answer; content that is no text is put into JSON."""
    body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    lines = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return sends("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def replies(text: Any) -> Play:
    return says(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})


def sends(content: bytes) -> Play:
    return lambda connection: connection.sendall(content)


def waits(seconds: float) -> Play:
    return lambda connection: time.sleep(seconds)


def drips(content: bytes, pause: float) -> Play:
    """A byte at a time, as long as somebody listens."""

    def play(connection: socket.socket) -> None:
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(pause)

    return play


class Stub:
    def __init__(self) -> None:
        self.plays: list[Play] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    def will(self, *plays: Play) -> None:
        """What to play, one for each connection; the last one from then on."""
        self.plays = list(plays)

    def handle(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            line = stream.readline().decode("ascii").split()
            headers = {}
            while (header := stream.readline().strip()) != b"":
                name, _, value = header.decode("ascii").partition(": ")
                headers[name.lower()] = value
            body = stream.read(int(headers["content-length"]))
        assert line[::2] == ["POST", "HTTP/1.1"]
        self.asked.append((line[1], headers, json.loads(body)))
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        play(connection)


@contextmanager
def running() -> Iterator[Stub]:
    stub = Stub()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client goes away, as it should from some of these
                stub.handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        stub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield stub
        server.shutdown()
