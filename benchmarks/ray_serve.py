"""Ray Serve with 1, 2 and 4 replicas: same masks, requests per second, and a killed replica.

    python benchmarks/ray_serve.py --output benchmarks/results/ray-serve.json

Every answer is compared with the mask that the library makes in this process. Under load one
replica is killed; a request is lost if it is not answered with its mask.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve

import segagent_rt
from segagent_rt.bench.machine import describe_machine
from segagent_rt.draw import png
from segagent_rt.image import mask_to_rle
from segagent_rt.io import json_bytes, write_result
from segagent_rt.scenes import make_scene
from segagent_rt.serve.ray import REPLICA, TRIED, RaySettings, app
from segagent_rt.types import Click

PORT = 8123
BUNDLE = "tiny"


@dataclass(frozen=True)
class Question:
    """A body, and the mask that answers it."""

    body: bytes
    mask: dict[str, Any]


@dataclass
class Load:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    answered: list[tuple[int, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def questions(count: int) -> list[Question]:
    """Clicks on so many scenes, with the masks that the library makes of them."""
    made = []
    with segagent_rt.load(BUNDLE, threads=1, parts=["segmenter"]) as runtime:
        for seed in range(count):
            scene = make_scene(70_000 + seed)
            place = scene.mask(0).nonzero()
            click = Click(int(place[1].mean()), int(place[0].mean()), positive=True)
            mask = runtime.open(scene.image).segment([click]).mask()
            body = {
                "image": base64.b64encode(png(scene.image)).decode(),
                "bundle": BUNDLE,
                "clicks": [{"x": click.x, "y": click.y}],
                "format": "rle",
            }
            made.append(Question(json.dumps(body).encode(), mask_to_rle(mask)))
    return made


def ask(load: Load, turns: Iterator[Question]) -> None:
    """One client: a question after the other, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    for question in turns:
        start = time.perf_counter()
        problem, tries, replica = "", 0, ""
        try:
            connection.request(
                "POST", "/v1/segment", question.body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            content = json.loads(answer.read())
            tries = int(answer.headers.get(TRIED, 0))
            replica = answer.headers.get(REPLICA, "")
            if answer.status != 200:
                problem = f"status {answer.status}: {content}"
            elif content["mask"]["value"] != question.mask:
                problem = "another mask"
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            problem = repr(error)
            connection.close()
        with load.lock:
            load.seconds.append(time.perf_counter() - start)
            load.tries.append(tries)
            load.answered.append((hash(question.body), replica))
            if problem:
                load.lost.append(problem)


def run_load(asked: list[Question], clients: int, rounds: int, kill_after: float = 0.0) -> Load:
    """So many clients ask all questions some times over; a replica is killed meanwhile."""
    load = Load()
    turns = [[asked[(c + n) % len(asked)] for n in range(rounds)] for c in range(clients)]
    threads = [threading.Thread(target=ask, args=(load, iter(each))) for each in turns]
    for thread in threads:
        thread.start()
    if kill_after:
        time.sleep(kill_after)
        kill_one()
    for thread in threads:
        thread.join()
    return load


def kill_one() -> str:
    """Kill one replica, as a failing machine would."""
    named = ray.util.list_named_actors(all_namespaces=True)
    victim = next(
        each for each in named if "REPLICA" in each["name"] and "#segment#" in each["name"]
    )
    ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]), no_restart=True)
    return str(victim["name"])


def same_replica(load: Load) -> float:
    """The share of requests that the usual replica of their image answered."""
    by_image = dict[int, Counter[str]]()
    for image, replica in load.answered:
        by_image.setdefault(image, Counter())[replica] += 1
    return sum(max(counts.values()) for counts in by_image.values()) / len(load.answered)


def measure(replicas: int, asked: list[Question], clients: int, rounds: int) -> dict[str, Any]:
    """Figures for so many replicas."""
    settings = RaySettings(
        bundles=BUNDLE, cpus=0.5, min_replicas=replicas, max_replicas=replicas, waiting=64
    )
    serve.run(app(settings), name="segagent", route_prefix="/")
    run_load(asked, clients, 2)  # warm-up: every image is encoded
    start = time.perf_counter()
    usual = run_load(asked, clients, rounds)
    spent = time.perf_counter() - start
    killed = run_load(asked, clients, 2 * rounds, kill_after=0.3 * spent)
    serve.delete("segagent")
    ordered = sorted(usual.seconds)
    return {
        "replicas": replicas,
        "requests": len(usual.seconds),
        "per_second": round(len(usual.seconds) / spent, 2),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
        "same_replica": round(same_replica(usual), 3),
        "lost": usual.lost,
        "killed": {
            "requests": len(killed.seconds),
            "sent_again": sum(tries > 1 for tries in killed.tries),
            "longest_ms": round(1000 * max(killed.seconds), 1),
            "lost": killed.lost,
        },
    }


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=50, help="requests of each client")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    asked = questions(options.images)
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    rows = [measure(n, asked, options.clients, options.rounds) for n in options.replicas]
    ray.shutdown()
    document = {
        "schema": 1,
        "machine": describe_machine(),
        "clients": options.clients,
        "rows": rows,
    }
    if options.output is not None:
        write_result(options.output, json_bytes(document, indent=1))
    print(json.dumps(rows, indent=1))
    return 1 if any(row["lost"] or row["killed"]["lost"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
