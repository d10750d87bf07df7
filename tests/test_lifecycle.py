"""A runtime in other threads, in other processes, and after it was closed."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading

import pytest

import segagent_rt
from segagent_rt.backends.session import SessionOptions as Where
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import RuntimeClosed
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click

SCENE = make_scene(7, 96)
TEXT = SCENE.expressions[0].text

FORKED = """
import os, sys
import segagent_rt
from segagent_rt.errors import RuntimeClosed
from segagent_rt.scenes import make_scene
image = make_scene(7, 96).image
runtime = segagent_rt.load(threads={threads})
canvas = runtime.open(image)
canvas.annotate("the largest object")
{before}
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    runtime.close()
    print("parent", os.waitstatus_to_exitcode(status))
    sys.exit()
for work in (
    lambda: runtime.open(image),
    lambda: canvas.annotate("the largest object"),
    lambda: canvas.embedding.result(),
    lambda: canvas.view,
):
    try:
        work()
        print("it went on", work)
    except RuntimeClosed as error:
        assert "before a fork" in str(error), error
runtime.close()
del runtime, canvas
with segagent_rt.load(threads={threads}) as own:
    print("child", own.open(image).annotate("the largest object").stop, flush=True)
sys.exit(7)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("threads", "before"), [(2, "pass"), (1, "runtime.close()")])
def test_a_forked_process_is_told_to_load_its_own_and_ends(threads, before):
    """Sessions' threads are not there after a fork: running, and freeing, would wait for ever."""
    program = FORKED.format(threads=threads, before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["child accepted unrated", "parent 7"], (
        done.stdout + done.stderr
    )


def test_a_runtime_is_not_sent_to_another_process():
    with segagent_rt.load() as runtime, pytest.raises(RuntimeClosed, match="cannot be sent"):
        pickle.dumps(runtime)


def test_closing_twice_is_closing_once_and_using_it_then_is_one_error():
    runtime = segagent_rt.load(threads=1)
    canvas = runtime.open(SCENE.image)
    canvas.annotate(TEXT)
    view = canvas.view
    runtime.close()
    runtime.close()
    for use in (
        lambda: runtime.open(SCENE.image),
        lambda: runtime.segmenter,
        lambda: runtime.annotator,
        lambda: canvas.annotate(TEXT),
        lambda: canvas.segment([Click(5, 5, True)]),
        lambda: canvas.embedding,
        lambda: view.propose([segagent_rt.types.Request(None, SCENE.expressions[1].text)]),
    ):
        with pytest.raises(RuntimeClosed, match="closed"):
            use()


def test_a_runtime_that_never_loaded_a_graph_closes():
    segagent_rt.load().close()


def test_a_graph_that_is_closed_says_so():
    session = open_bundle().part("segmenter").session("encoder", Where("cpu", 1))
    session.close()
    session.close()
    with pytest.raises(RuntimeClosed, match="is closed"):
        session.run({}, ["keys"])


def test_threads_share_one_runtime_and_load_each_graph_once():
    loaded, barrier = [], threading.Barrier(4)
    with segagent_rt.load(
        threads=1, wrap=lambda name, session: loaded.append(name) or session
    ) as runtime:
        found = []

        def work():
            canvas = runtime.open(SCENE.image)
            barrier.wait()
            found.append(canvas.annotate(TEXT).clicks)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(loaded) == len(set(loaded)) == 4
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_coroutine_may_wait_for_masks():
    async def masks():
        with segagent_rt.load(threads=1) as runtime:
            canvas = runtime.open(SCENE.image)
            texts = [expression.text for expression in SCENE.expressions[:2]]
            return await asyncio.gather(
                *(asyncio.to_thread(canvas.annotate, text) for text in texts)
            )

    assert all(found.prediction is not None for found in asyncio.run(masks()))
