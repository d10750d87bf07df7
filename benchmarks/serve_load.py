"""Load on `segagent-rt serve`: many clients, images of mixed sizes, garbage, clients that vanish.

python benchmarks/serve_load.py [MINUTES]    writes benchmarks/results/serve-load.json

It starts a server of its own, and ends with an error unless no request failed, every accepted one
was answered, memory stayed flat, and a click took at most 1.3 times as long as in the library.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import segagent_rt
from segagent_rt.bench.machine import describe_machine
from segagent_rt.bench.stats import percentiles
from segagent_rt.draw import png
from segagent_rt.io import dump_json
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click

RESULT = Path(__file__).parent / "results" / "serve-load.json"
CLIENTS = 32
GARBAGE, VANISHING, STATELESS = 0.10, 0.05, 0.05
"""Shares of requests."""

SIDES = (256, 512, 1024, 1600)
CLICKS = 300
"""Of the comparison with the library, after warm-up."""

MOST_GROWTH, MOST_RATIO = 0.05, 1.3
OPTIONS = ["--port", "0", "--rate", "0", "--queue", "64", "--max-images", "40"]


@dataclass
class Tally:
    """What all clients saw; threads share it."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, kind: str, status: int, seconds: float) -> None:
        with self.lock:
            self.statuses[f"{kind} {status}"] += 1
            if status == 200:
                self.seconds[kind].append(seconds)

    def failed(self, kind: str, error: Exception) -> None:
        with self.lock:
            self.unanswered[f"{kind}: {type(error).__name__}"] += 1


class Client:
    """One connection that is kept; it is made anew when the server has closed it."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port, self._tally = port, tally
        self._connection = self._new()

    def _new(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)

    def send(self, kind: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's JSON; None if there is none, or it is a refusal."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        start = time.perf_counter()
        try:
            try:
                status, content = self._exchange(method, path, body, headers)
            except (ConnectionError, http.client.BadStatusLine):  # it was closed while idle
                self._connection = self._new()
                status, content = self._exchange(method, path, body, headers)
        except Exception as error:
            self._connection = self._new()
            self._tally.failed(kind, error)
            return None
        self._tally.answered(kind, status, time.perf_counter() - start)
        with contextlib.suppress(ValueError):
            return json.loads(content) if status == 200 else None
        return content

    def _exchange(self, method: str, path: str, body: Any, headers: Any) -> tuple[int, bytes]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def vanish(self, path: str, body: Any, rng: random.Random) -> None:
        """Send a request, or a part of one, and go away."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        sent = head.encode() + content
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as s:
            s.sendall(sent[: rng.choice([len(sent), len(sent), len(sent) // 2, 20])])
            time.sleep(rng.random() * 0.2)


def pictures() -> list[tuple[str, bytes, int, int, list[str]]]:
    """Bundle, file, width, height and expressions of images of all sizes."""
    made = []
    for number, side in enumerate(SIDES):
        scene = make_scene(number, side)
        words = [each.text for each in scene.expressions]
        made.append(("tiny", png(scene.image), side, side, words))
        wide = cv2.resize(scene.image, (side, side * 3 // 4))
        made.append(("photo", cv2.imencode(".jpg", wide)[1].tobytes(), side, side * 3 // 4, []))
    return made


def visit(client: Client, files: list[Any], rng: random.Random) -> None:
    """One image from opening to closing, as a person or a program would go about it."""
    bundle, content, width, height, words = rng.choice(files)
    if rng.random() < STATELESS:
        body = {
            "image": base64.b64encode(content).decode(),
            "bundle": bundle,
            "clicks": [{"x": width // 2, "y": height // 2}],
        }
        client.send("stateless", "POST", "/v1/segment", body)
        return
    opened = client.send("open", "POST", f"/v1/images?bundle={bundle}", content)
    if not opened:
        time.sleep(0.1)
        return
    one = f"/v1/images/{opened['image']}"
    for _ in range(rng.randrange(4, 12)):
        point = {"x": rng.randrange(width), "y": rng.randrange(height)}
        if rng.random() < GARBAGE:
            garbage(client, one, rng)
        elif rng.random() < VANISHING:
            body = {"expression": rng.choice(words)} if words else {"clicks": [point]}
            client.vanish(f"{one}/objects", body, rng)
        elif words and rng.random() < 0.4:
            accept = rng.choice(["application/json", "text/event-stream"])
            body = {"expression": rng.choice(words)}
            client.send("words", "POST", f"{one}/objects", body, Accept=accept)
        else:
            client.send("click", "POST", f"{one}/objects", {"clicks": [point]})
            client.send("undo", "POST", f"{one}/objects/1/undo", {})
        time.sleep(rng.random() * 0.05)
    client.send("export", "GET", f"{one}/coco")
    if rng.random() < 0.7:  # the others forget to
        client.send("close", "DELETE", one)


def garbage(client: Client, one: str, rng: random.Random) -> None:
    """A request that nobody should send."""
    noise = rng.randbytes(rng.randrange(1, 20_000))
    path, body = rng.choice(
        [
            ("/v1/images", noise),
            ("/v1/images", b"\x89PNG\r\n\x1a\n" + noise),
            ("/v1/segment", {"image": noise.hex(), "expression": "x"}),
            ("/v1/segment", {"image": None, "clicks": [[[]]]}),
            (f"{one}/objects", {"clicks": [{"x": -1, "y": 10**9}]}),
            (f"{one}/objects", {"expression": "\x00" * 1500}),
            (f"{one}/objects/999/clicks", {"clicks": [{"x": 1, "y": 1}]}),
            (f"{one}/objects/{noise.hex()[:50]}/undo", {}),
            (f"/{noise.hex()[:200]}", noise),
        ]
    )
    client.send("garbage", "POST", path, body)


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """A server; its process id and port."""
    command = [sys.executable, "-m", "segagent_rt", "serve", *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serving on http://127.0.0.1:(\d+)/", line):
                break
        else:
            sys.exit("the server did not start")
        said = list[str]()
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        yield process.pid, int(found[1])
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            sys.exit(f"the server ended with {process.returncode}")
        reader.join()
        print("".join(said[-20:]), file=sys.stderr)
    finally:
        process.kill()


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def put_load(pid: int, port: int, seconds: float, tally: Tally) -> list[float]:
    """Let all clients work for so long; memory of the server in MB, twice a second."""
    files, end = pictures(), time.monotonic() + seconds

    def work(number: int) -> None:
        client, rng = Client(port, tally), random.Random(number)
        while time.monotonic() < end:
            visit(client, files, rng)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(resident(pid))
        time.sleep(0.5)
    return memory


def growth(memory: list[float]) -> float:
    """How much larger the last third is than the middle one; the first third is warm-up."""
    third = len(memory) // 3
    return statistics.median(memory[-third:]) / statistics.median(memory[third:-third]) - 1


def tenths(memory: list[float]) -> list[list[float]]:
    """The samples in ten parts, one after the other."""
    edges = [len(memory) * part // 10 for part in range(11)]
    return [memory[first:last] for first, last in itertools.pairwise(edges)]


def compare_clicks(port: int) -> dict[str, Any]:
    """Clicks on an open image: through the server and in the library, in turns."""
    scene, client = make_scene(1, 512), Client(port, Tally())
    opened = client.send("open", "POST", "/v1/images?bundle=photo", png(scene.image))
    one, rng = f"/v1/images/{opened['image']}", np.random.default_rng(0)
    times = dict[str, list[float]](server=[], library=[])
    with segagent_rt.load("photo") as runtime:
        canvas = runtime.open(scene.image)
        for number in range(CLICKS + 20):
            x, y = (int(value) for value in rng.integers(0, 512, 2))
            start = time.perf_counter()
            canvas.segment([Click(x, y, positive=True)]).mask()
            middle = time.perf_counter()
            made = client.send("click", "POST", f"{one}/objects", {"clicks": [{"x": x, "y": y}]})
            end = time.perf_counter()
            client.send("delete", "DELETE", f"{one}/objects/{made['object']}")
            if number >= 20:
                times["library"].append(middle - start)
                times["server"].append(end - middle)
    ratio = statistics.median(times["server"]) / statistics.median(times["library"])
    return {**{name: percentiles(each) for name, each in times.items()}, "ratio": round(ratio, 3)}


def main(minutes: float) -> int:
    """Measure, print, write; 1 if a bar is missed."""
    tally = Tally()
    with serving() as (pid, port):
        clicks = compare_clicks(port)
        memory = put_load(pid, port, minutes * 60, tally)
    broken = {key: n for key, n in tally.statuses.items() if key.endswith((" 500", " 502"))}
    document = {
        "machine": describe_machine(),
        "options": " ".join(OPTIONS),
        "clients": CLIENTS,
        "minutes": minutes,
        "requests": sum(tally.statuses.values()),
        "refused_503": sum(n for key, n in tally.statuses.items() if key.endswith(" 503")),
        "failed": broken,
        "unanswered": dict(tally.unanswered),
        "wall_ms": {kind: percentiles(each) for kind, each in sorted(tally.seconds.items())},
        "memory_megabytes": {
            "peak": round(max(memory), 1),
            "growth": round(growth(memory), 4),
            "by_tenth": [round(statistics.median(part), 1) for part in tenths(memory)],
        },
        "click_on_an_open_image_ms": clicks,
        "statuses": dict(sorted(tally.statuses.items())),
    }
    RESULT.write_text(dump_json(document, indent=1) + "\n", "utf-8")
    print(dump_json(document, indent=1))
    missed = {
        "requests failed": bool(broken),
        "requests were not answered": bool(tally.unanswered),
        "memory grew": growth(memory) > MOST_GROWTH,
        "clicks are slow": clicks["ratio"] > MOST_RATIO,
    }
    for what in (name for name, is_missed in missed.items() if is_missed):
        print(f"missed: {what}", file=sys.stderr)
    return int(any(missed.values()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
