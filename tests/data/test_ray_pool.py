"""Work spread over Ray's workers: the files of one process, whoever dies in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segagent_rt.data.ray_pool import RayPool, RayWorker
from segagent_rt.data.record import RunLengths, Sample
from segagent_rt.data.work_items import sequentially, shards
from segagent_rt.errors import DataInvalid, install_hint
from tests.cli.terminal import Terminal
from tests.cli.test_eval_data import many


@pytest.fixture
def terminal(monkeypatch, capsys):
    return Terminal(monkeypatch, capsys)


@dataclass(frozen=True)
class Piece:
    key: str
    sample: Sample


def piece(key: str, picture: str = "a") -> Piece:
    return Piece(key, Sample(0, picture, Path(picture), RunLengths.empty((1, 1)), ("it",), ""))


@given(st.lists(st.sampled_from("abc")), st.integers(1, 5))
def test_shards_hold_every_piece_once_in_order_and_one_picture_each(pictures, most):
    pieces = [piece(str(at), picture) for at, picture in enumerate(pictures)]
    found = shards(pieces, most)
    assert [each for shard in found for each in shard] == pieces
    assert all(1 <= len(shard) <= most for shard in found)
    assert all(len({each.sample.image for each in shard}) == 1 for shard in found)


def test_what_cannot_be_done_is_said_and_the_rest_done():
    def do(given):
        if given.key == "1":
            raise DataInvalid("it is odd")
        return {"done": given.key}

    outcomes = list(sequentially(do)([piece(str(n)) for n in range(3)]))
    assert [(o.key, o.content, o.problem) for o in outcomes] == [
        ("0", {"done": "0"}, None), ("1", None, "it is odd"), ("2", {"done": "2"}, None),
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["eval", "trajectories"])
def test_a_missing_package_is_named_before_anything_is_done(
    terminal, tmp_path, monkeypatch, command
):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = terminal(command, many(tmp_path, 1), "--ray", "local", "-o", tmp_path / "out")
    assert done.code == 1
    assert done.err.endswith(f"\n\nhint: {install_hint('ray')}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [("--workers", 2), ("--ray", "local", "--workers", 0)])
def test_workers_without_a_cluster_are_a_usage_error(terminal, tmp_path, wrong):
    assert terminal("eval", many(tmp_path, 1), *wrong, "-o", tmp_path / "out").code == 2


def test_scenes_without_a_file_are_not_spread(terminal):
    done = terminal("eval", "--ray", "local")
    assert done.code == 2
    assert "--ray applies to" in " ".join(done.err.split())


@pytest.fixture
def ray(monkeypatch):
    """Ray, whose workers would otherwise wait for everything else on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return pytest.importorskip("ray")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "ray://127.0.0.1:1"])
def test_where_no_cluster_is_it_is_said_at_once(ray, terminal, tmp_path, address):
    done = terminal("eval", many(tmp_path, 1), "--ray", address, "-o", tmp_path / "out")
    assert done.code == 1
    assert done.err.startswith(f"error: there is no Ray cluster at {address}: ")
    assert "--ray local" in done.err
    assert not (tmp_path / "out").exists()


COUNT = 200
EVAL = ["eval", "--annotator", "oracle", "--max-clicks", "2", "--threads", "1"]


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds its workers in /proc")
def test_one_of_four_workers_is_killed_and_the_files_are_those_of_one_process(ray, tmp_path):
    data = many(tmp_path / "data", COUNT)
    command = [sys.executable, "-m", "segagent_rt", *EVAL, data, "-o"]
    subprocess.run([*command, str(tmp_path / "alone")], check=True, capture_output=True)
    spread = [*command, str(tmp_path / "four"), "--ray", "local", "--workers", "4"]
    journal = tmp_path / "four" / "many.journal.jsonl"
    with subprocess.Popen(spread, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        workers = list[int]()
        while len(workers) < 4 or not journal.exists() or not lines(journal):
            assert running.poll() is None
            time.sleep(0.05)
            workers = below(running.pid, b"ray::RayWorker")
        os.kill(workers[0], signal.SIGKILL)
        done = len(lines(journal))
        _, said = running.communicate()
    assert running.returncode == 0, said.decode()
    assert done < COUNT, "it was in the middle of it"
    keys = [line["key"] for line in lines(journal)]
    assert sorted(keys) == sorted(f"{n}.0" for n in range(COUNT)), "each once"
    for path in sorted((tmp_path / "alone").glob("many*")):
        if path.name not in ("many.journal.jsonl", "many.timings.json"):
            assert (tmp_path / "four" / path.name).read_bytes() == path.read_bytes(), path.name


def lines(journal: Path) -> list[dict[str, object]]:
    whole, _, _ = journal.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()[1:]]


def below(ancestor: int, title: bytes) -> list[int]:
    """Processes that descend from one, and whose title begins so."""
    parents, found = dict[int, int](), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            titled = (folder / "cmdline").read_bytes().startswith(title)
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
        found += [int(folder.name)] if titled else []

    def descends(process: int) -> bool:
        while process and process != ancestor:
            process = parents.get(process, 0)
        return process == ancestor

    return [process for process in found if descends(process)]


class Given:
    """In place of a runtime's copy: nothing is to be loaded."""

    def load(self):
        return None


def slowly(runtime):
    def do(given):
        time.sleep(0.3)
        return {"done": given.key}

    return do


@pytest.mark.chaos
@pytest.mark.slow
def test_a_machine_is_lost_for_good_and_the_other_takes_its_pieces_over(ray):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        hand = ray.remote(RayWorker).options(num_cpus=1, max_restarts=4, max_task_retries=-1)
        crew = RayPool([hand.remote(Given(), slowly) for _ in range(2)])
        outcomes, found = crew.spread([piece(str(n)) for n in range(40)]), []
        for outcome in outcomes:
            found.append(outcome.key)
            if len(found) == 8:
                cluster.remove_node(other, allow_graceful=False)
        assert sorted(found, key=int) == [str(n) for n in range(40)]
    finally:
        ray.shutdown()
        cluster.shutdown()
