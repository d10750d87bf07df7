"""Whatever a server does: one sentence, in time, and no more tries than told."""

from __future__ import annotations

import re
import socket
import time
from email.utils import formatdate

import pytest

import segagent_rt
from segagent_rt.annotators import http_client
from segagent_rt.annotators.endpoint import Endpoint, EndpointAnnotator
from segagent_rt.annotators.http_client import KEY, LARGEST, TRIES, parse_address
from segagent_rt.bundle.bundle import open_bundle
from segagent_rt.errors import AnnotatorError
from segagent_rt.loop import StoppingRules
from segagent_rt.runtime import open_prompt_codec
from segagent_rt.scenes import make_scene
from segagent_rt.types import Click, Malformed, Request
from tests.annotators.stub import drips, replies, running, says, sends, waits

GOOD = " Current IOU: 40  Positive point: (500, 250)"
IMAGE = make_scene(1, 100).image


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(http_client, "PAUSE", 0.0)
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def stub():
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def codec():
    return open_prompt_codec(open_bundle().part("mllm"))


@pytest.fixture
def ask(codec, stub):
    """One question to the stub."""

    def question(server="any", timeout=10.0, url=None, allowed=()):
        endpoint = Endpoint(url or stub.url, "tiny", server, timeout, allowed)
        view = EndpointAnnotator(codec, endpoint).look(IMAGE)
        return view.propose([Request(None, "the red circle")])[0][0]

    return question


def test_a_click_is_read_in_pixels_of_the_image(ask, stub):
    stub.will(replies(GOOD))
    turn = ask()
    assert turn.action == Click(25, 50, positive=True)
    assert turn.rating == pytest.approx(0.4)
    assert set(turn.seconds) == {"paint", "server"}


@pytest.mark.parametrize(
    ("server", "allowed", "own", "sent"),
    [
        ("openai", ("127.0.0.1",), "", "Bearer openai-key"),
        ("any", ("127.0.0.1",), "", None),
        ("vllm", ("127.0.0.1",), "", None),
        ("openai", (), "", None),
        ("openai", ("127.0.0.1",), "own-key", "Bearer own-key"),
        ("any", (), "own-key", "Bearer own-key"),
    ],
)
def test_openais_key_goes_only_to_a_named_host_that_is_said_to_be_openais(
    ask, stub, monkeypatch, server, allowed, own, sent
):
    monkeypatch.setenv("OPENAI_API_KEY", "openai-key")
    monkeypatch.setenv("SEGAGENT_API_KEY", own)
    stub.will(replies(GOOD))
    ask(server, allowed=allowed)
    headers = {name.lower(): value for name, value in stub.asked[0][1].items()}
    assert headers.get("authorization") == sent


def test_a_busy_server_is_given_the_time_that_it_asks_for(ask, stub, monkeypatch):
    pauses = []
    monkeypatch.setattr("segagent_rt.annotators.http_client.time.sleep", pauses.append)
    soon = formatdate(time.time() + 20, usegmt=True)
    busy = [says(429, "slow down", **{"Retry-After": value}) for value in ("7", soon)]
    stub.will(*busy, replies(GOOD))
    assert isinstance(ask().action, Click)
    assert pauses[0] == 7.0
    assert 10.0 < pauses[1] <= 20.0


def test_a_server_that_asks_for_too_long_a_pause_is_not_waited_for(ask, stub):
    stub.will(says(503, "loading", **{"Retry-After": "3600"}))
    with pytest.raises(AnnotatorError, match="answers 503") as caught:
        ask()
    assert caught.value.hint == "the server asks to try again in 3600 seconds"
    assert len(stub.asked) == 1


@pytest.mark.parametrize("value", ["soon", "-5", "9" * 400, ""])
def test_a_pause_that_is_none_is_not_read(ask, stub, value):
    stub.will(says(503, "loading", **{"Retry-After": value}), replies(GOOD))
    if value.startswith("9"):
        with pytest.raises(AnnotatorError, match="answers 503"):
            ask()
    else:
        assert isinstance(ask().action, Click)


FAULTS = {
    "server error": (says(500, {"error": {"message": "out of memory"}}), "answers 500: out of mem"),
    "busy": (says(503, "loading"), "answers 503: loading"),
    "no answer": (sends(b""), "ends the connection before its answer is complete"),
    "half an answer": (
        sends(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices'),
        "ends the connection before its answer is complete",
    ),
    "half a chunk": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{}"),
        "ends the connection before its answer is complete",
    ),
}
"""What may pass, so it is tried again."""

VERDICTS = {
    "no JSON": (says(200, "<html>hello</html>"), "does not answer in JSON"),
    "no text": (says(200, b"\xff\xfe".decode("latin-1")), "does not answer in JSON"),
    "deep JSON": (says(200, "[" * 200_000), "does not answer in JSON"),
    "a list": (says(200, [1]), "answers without a reply"),
    "no choices": (says(200, {"choices": []}), "answers without a reply"),
    "other choices": (says(200, {"choices": ["a"]}), "answers without a reply"),
    "no content": (replies(None), "answers without a reply"),
    "odd likelihoods": (
        says(200, {"choices": [{"message": {"content": GOOD}, "logprobs": 5}]}),
        "answers without a reply",
    ),
    "wrong model": (
        says(404, {"error": {"message": "The model `tiny` does not exist."}}),
        "answers 404: The model `tiny` does not exist",
    ),
    "no key": (says(401, {"error": "Unauthorized"}), "answers 401: Unauthorized"),
    "odd fields": (says(422, {"detail": [{"msg": "no"}]}), "answers 422: [{'msg': 'no'}]"),
    "a page of an error": (says(400, "<html>bad</html>"), "answers 400"),
    "elsewhere": (says(307, "", Location="http://127.0.0.2/"), "answers 307"),
    "too much": (says(200, "x" * (LARGEST + 1)), "answers with more than 1 MB"),
    "endless": (
        sends(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (LARGEST + 1)), "answers with more than 1 MB",
    ),
    "another protocol": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "does not speak HTTP"),
    "long headers": (sends(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000), "does not speak HTTP"),
}  # fmt: skip
"""What would be the same the next time."""


@pytest.mark.parametrize("fault", [*FAULTS, *VERDICTS])
def test_a_fault_is_one_sentence(ask, stub, fault):
    play, sentence = (FAULTS | VERDICTS)[fault]
    stub.will(play)
    with pytest.raises(AnnotatorError) as caught:
        ask()
    assert str(caught.value).startswith(f"{stub.url}/v1 {sentence}")
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert len(stub.asked) == (TRIES if fault in FAULTS else 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_costs_a_second_try_only(ask, stub, fault):
    stub.will(FAULTS[fault][0], replies(GOOD))
    assert isinstance(ask().action, Click)
    assert len(stub.asked) == 2


@pytest.mark.parametrize(
    "play",
    [
        waits(3),
        drips(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 99, 0.05),
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b"x" * 99, 0.05),
        drips(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 99, 0.02),
    ],
    ids=["silent", "slow headers", "slow content", "content without an end"],
)
def test_a_slow_server_is_left_in_time_and_asked_once(ask, stub, play):
    stub.will(play)
    start = time.monotonic()
    with pytest.raises(AnnotatorError, match=r"does not answer within 0.4 seconds"):
        ask(timeout=0.4)
    assert time.monotonic() - start < 2
    assert len(stub.asked) == 1


def test_the_deadline_of_a_walk_stops_a_question(stub):
    stub.will(replies(GOOD), waits(5))
    start = time.monotonic()
    with segagent_rt.load(endpoint=Endpoint(stub.url, "tiny")) as runtime:
        canvas = runtime.open(IMAGE)
        canvas.embedding.result()
        found = canvas.annotate("the red circle", rules=StoppingRules(deadline=1.0))
    assert found.stop == "deadline"
    assert len(found.clicks) == 1
    assert time.monotonic() - start < 4


def test_nobody_there(ask, stub):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(AnnotatorError, match="does not answer: nothing listens there"):
            ask(url=url)


def test_words_of_a_server_steer_no_terminal(ask, stub):
    stub.will(says(400, {"error": {"message": "a\x1b[2J\r\nb" + "c" * 9999}}))
    with pytest.raises(AnnotatorError) as caught:
        ask()
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 300
    assert "a [2J bccc" in said


def test_a_reply_without_a_click_is_data(ask, stub):
    stub.will(replies("I cannot see a red circle."))
    assert isinstance(ask().action, Malformed)


@pytest.mark.parametrize(
    "more", [" ", "1", "Positive point ", "Positive point: (1", "current iou: "]
)
def test_a_reply_that_never_ends_is_read_quickly(ask, stub, more):
    """No pattern goes back and forth over it."""
    stub.will(replies("Positive point" + more * (900_000 // len(more))))
    start = time.monotonic()
    assert isinstance(ask().action, Malformed)
    assert time.monotonic() - start < 2


def test_the_key_comes_from_the_environment(ask, stub, monkeypatch):
    stub.will(replies(GOOD))
    ask()
    monkeypatch.setenv(KEY, "secret\n")
    ask()
    assert [headers.get("authorization") for _, headers, _ in stub.asked] == [
        None, "Bearer secret",
    ]  # fmt: skip


def test_a_key_goes_over_no_open_network(codec, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    endpoint = Endpoint("http://192.0.2.1", "m", allowed=("192.0.2.1",))
    view = EndpointAnnotator(codec, endpoint).look(IMAGE)
    with pytest.raises(AnnotatorError, match="for everyone to read") as caught:
        view.rate([Request(None, "the red circle")])
    assert "secret" not in str(caught.value) + str(caught.value.hint)


def test_what_cannot_be_a_key_is_not_sent(ask, stub, monkeypatch):
    monkeypatch.setenv(KEY, "a\r\nX: b")
    with pytest.raises(AnnotatorError, match="holds what cannot be a key"):
        ask()
    assert not stub.asked


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://[::1]/openai/v1", "https://[::1]:443/openai/v1"),
        ("http://127.1.2.3", "http://127.1.2.3:80/v1"),
    ],
)
def test_urls_of_this_machine(url, means):
    assert str(parse_address(url)) == means


@pytest.mark.parametrize(
    "url",
    ["", "8000", "localhost:8000", "ftp://localhost", "ftp://localhost:21", "ws://localhost:8000",
     "http://localhost:0", "https://localhost:0/v1", "http://localhost:-1", "http://", "http://localhost:99999",
     "http://a:b@localhost", "http://localhost/v1?key=1", "http://local host", "http://localhost/\r\nA",
     "http://[::1", "http://löcalhost", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_url_of_a_server(url):
    with pytest.raises(AnnotatorError, match="not the URL of a server"):
        parse_address(url)


@pytest.mark.parametrize("host", ["192.0.2.1", "example.com", "127.0.0.1.example.com", "0.0.0.0"])
def test_another_machine_must_be_named(host):
    with pytest.raises(AnnotatorError, match=re.escape(f"{host} is another machine")):
        parse_address(f"http://{host}", allowed=["other"])
    assert parse_address(f"http://{host}:1", allowed=[host]).host == host


def test_a_name_that_no_host_can_have_is_one_sentence(codec):
    host = "a" * 64 + ".example"
    endpoint = Endpoint(f"http://{host}:9", "tiny", allowed=(host,))
    view = EndpointAnnotator(codec, endpoint).look(IMAGE)
    with pytest.raises(AnnotatorError, match="cannot be reached"):
        view.propose([Request(None, "the red circle")])


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan"), 1e300])
def test_a_time_out_that_cannot_be_waited_for_is_refused(codec, timeout):
    with pytest.raises(AnnotatorError, match="cannot be waited for"):
        EndpointAnnotator(codec, Endpoint("http://localhost:9", "tiny", "openai", timeout))


@pytest.mark.parametrize(
    "said",
    [
        f"<box>({'9' * 400},1),(2,3)</box> Positive point: (500, 250)",
        f"<box>({'9' * 5000},1),(2,3)</box> Positive point: (500, 250)",
        f" Current IOU: {'9' * 400}  Positive point: (500, 250)",
        f" Current IOU: 40  Positive point: ({'9' * 400}, 250)",
        f" Current IOU: 40  Positive point: (0.{'9' * 400}, 0.5)",
    ],
    ids=["box", "very long box", "rating", "point", "fraction"],
)
def test_numbers_of_any_length_are_read(ask, stub, said):
    stub.will(replies(said))
    assert isinstance(ask().action, (Click, Malformed))


def test_half_of_a_character_in_a_reply_can_be_written(ask, stub):
    stub.will(replies(" Current IOU: 40  Positive point: (500, 250) \ud83d"))
    ask().reply.encode("utf-8")
