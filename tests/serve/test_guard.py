"""What foreign pages, names, sizes and slow clients cannot do; and what is never told."""

from __future__ import annotations

import base64
import logging
import time
import zlib
from contextlib import suppress

import pytest

from segagent_rt.errors import InputError
from segagent_rt.serve.guard import RateLimit, RefusedRequest
from segagent_rt.serve.limits import ServeLimits
from segagent_rt.serve.server_settings import TOKEN, ServerSettings, token_for
from tests.serve.fakes import FakeRuntime
from tests.serve.live import LiveServer, wait_until

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def locked():
    with LiveServer({"fake": FakeRuntime()}, token=SECRET) as server:
        yield server


@pytest.mark.parametrize(
    "path",
    [
        "/static/%2e%2e%2fservice.py", "/static/..%5cservice.py", "/static/../guard.py",
        "/examples/..%2f..%2fservice.py", "/static//etc/passwd", "/v1/images/..%2f..", "/..%2fetc",
        "/static/main.js%00.html",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page_s_files(server, path):
    answer = server("GET", path)
    assert answer.status == 404
    assert b"import" not in answer.body


def test_paths_lead_only_below_a_root(tmp_path, grey):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(grey)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with LiveServer({"fake": FakeRuntime()}, roots=[root]) as server:
        answers = {
            server("POST", "/v1/images", {"path": path}).body
            for path in (
                "../secret.png",
                str(tmp_path / "secret.png"),
                "link.png",
                "no.png",
                "/dev/zero",
            )
        }
    assert len(answers) == 1


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://["]
)
def test_pages_of_other_sites_are_refused(server, origin, grey):
    assert server("POST", "/v1/images", grey, Origin=origin).status == 403
    assert server("GET", "/v1/bundles", Origin=origin).status == 403
    assert "access-control-allow-origin" not in server("OPTIONS", "/v1/images").headers


def test_the_own_page_is_not_refused(server, grey):
    assert server("POST", "/v1/images", grey, Origin=server.url).status == 200
    assert server("POST", "/v1/images", grey, Sec_Fetch_Site="cross-site").status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.9", ""]
)
def test_a_name_that_was_made_to_lead_here_is_refused(server, host):
    assert server("GET", "/", Host=host).status == 421
    for own in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80", "LOCALHOST"):
        assert server("GET", "/", Host=own).status == 200


def test_names_of_a_server_on_the_network():
    settings = ServerSettings("0.0.0.0", names=("lab.example",))
    assert settings.knows_name("lab.example")
    assert settings.knows_name("10.0.0.1")
    assert not settings.knows_name("evil.example")


def test_a_token_is_needed_and_only_the_right_one_will_do(locked, grey):
    for value in (None, "Bearer wrong", f"{SECRET}x", "Bearer ü", f"Basic {SECRET}"):
        headers = {} if value is None else {"Authorization": value}
        answer = locked("GET", "/v1/bundles", **headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert locked("GET", f"/v1/bundles?token={SECRET}").status == 401
    assert locked("GET", "/v1/bundles", Authorization=f"Bearer {SECRET}").status == 200
    assert locked("POST", "/v1/images", grey).status == 401
    assert locked("GET", "/metrics").status == 401
    for path in ("/", "/health", "/ready", "/static/main.js"):
        assert locked("GET", path).status == 200


def test_outside_of_this_machine_a_token_is_a_must(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_for("127.0.0.1") is None
    for host in ("0.0.0.0", "::", "192.168.0.2", "lab.example"):
        with pytest.raises(InputError, match="needs a token"):
            token_for(host)
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(InputError, match="too short"):
        token_for("127.0.0.1")
    monkeypatch.setenv(TOKEN, SECRET)
    assert token_for("0.0.0.0") == SECRET


def test_the_token_is_in_no_log_and_no_answer(locked, caplog, capfd, grey):
    caplog.set_level(logging.DEBUG)
    locked.service.images.get = lambda id: 1 / 0
    answers = [
        locked("GET", path, Authorization=f"Bearer {SECRET}")
        for path in (
            f"/v1/images/{SECRET}",
            f"/nothing/{SECRET}?{SECRET}",
            "/v1/bundles",
            "/metrics",
        )
    ]
    written = capfd.readouterr()
    said = [record.getMessage() for record in caplog.records] + [written.out, written.err]
    assert any("ZeroDivisionError" in each for each in said)
    assert not any(SECRET in each for each in said)
    assert not any(SECRET.encode() in each.body for each in answers)
    assert SECRET not in repr(ServerSettings(token=SECRET))


def test_a_mistake_of_ours_is_no_traceback(own_server, caplog, capfd):
    server = own_server
    server.service.images.get = lambda id: 1 / 0
    answer = server("GET", "/v1/images/any")
    assert answer.status == 500
    assert answer.json() == {
        "error": "the server made a mistake; its log names the place",
        "hint": None,
    }
    wait_until(lambda: "ZeroDivisionError at test_guard.py" in caplog.text)
    written = capfd.readouterr()
    for text in (answer.body.decode(), caplog.text, written.out, written.err):
        assert "Traceback" not in text


def test_errors_do_not_repeat_what_was_sent(server):
    answer = server("POST", "/v1/segment", {"image": ["<script>" * 1000]})
    assert answer.status == 422
    assert b"script" not in answer.body


def bomb(side: int) -> bytes:
    """A PNG file of a few kilobytes that unpacks to side x side pixels."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked(server, grey):
    content = bomb(10_000)
    assert len(content) < 100_000
    start = time.monotonic()
    answer = server("POST", "/v1/images", content)
    assert (answer.status, "100 megapixels" in answer.json()["error"]) == (422, True)
    body = {"image": base64.b64encode(content).decode(), "expression": "x"}
    assert server("POST", "/v1/segment", body).status == 422
    body = {**body, "image": base64.b64encode(grey).decode(), "mask": body["image"]}
    assert server("POST", "/v1/segment", body).status == 422
    assert time.monotonic() - start < 2


def upload(*headers: str, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    lines = ["POST /v1/images HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_bodies_are_bounded(grey):
    limits = ServeLimits(rate=0, upload_bytes=10_000, all_uploads_bytes=15_000)
    with LiveServer({"fake": FakeRuntime()}, limits) as server:
        assert server("POST", "/v1/images", bytes(10_001)).status == 413
        with server.raw(upload("Content-Length: 99999999999")) as announced:
            assert announced.recv(12) == b"HTTP/1.1 413"
        chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
        with server.raw(upload("Transfer-Encoding: chunked", body=3 * chunk)) as endless:
            assert endless.recv(12) == b"HTTP/1.1 413"
        with server.raw(upload("Content-Length: 9000", body=bytes(8000))):
            # the first body is held while another one comes
            wait_until(lambda: server("POST", "/v1/images", bytes(9000)).status == 503)
        wait_until(lambda: server("POST", "/v1/images", grey).status == 200)


def test_slow_uploads_and_slow_heads_end():
    limits = ServeLimits(rate=0, upload_seconds=0.3, header_seconds=0.3)
    with LiveServer({"fake": FakeRuntime()}, limits) as server:
        start = time.monotonic()
        with server.raw(upload("Content-Length: 9", body=b"123")) as slow:
            assert slow.recv(12) == b"HTTP/1.1 408"
        for head in (b"", b"GET / HTTP/1.1\r\nHost: local"):
            with server.raw(head) as slow:
                assert slow.recv(100) == b""
        assert time.monotonic() - start < 8


def test_a_head_without_an_end_is_cut_off(server):
    """httptools keeps headers without a bound."""
    with server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ") as endless:
        with suppress(ConnectionError):
            for _ in range(64):
                endless.sendall(b"x" * (16 << 10))
                time.sleep(0.005)
        with suppress(ConnectionError):
            assert b" 200 " not in b"".join(iter(lambda: endless.recv(4096), b""))


def test_a_connection_may_be_used_again_after_a_pause():
    limits = ServeLimits(rate=0, header_seconds=0.3)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def answered(connection) -> bool:
        said = b""
        while not said.endswith(b"}"):
            said += (block := connection.recv(4096))
            assert block
        return said.startswith(b"HTTP/1.1 200")

    with LiveServer({"fake": FakeRuntime()}, limits) as server, server.raw(request) as kept:
        assert answered(kept)
        time.sleep(0.5)
        kept.sendall(request)
        assert answered(kept)
        kept.sendall(request[:10])
        assert kept.recv(4096) == b""


def test_the_rate_of_an_address_is_bounded():
    now = [0.0]
    rate = RateLimit(5, lambda: now[0])
    for _ in range(10):
        rate.check("10.0.0.1")
    with pytest.raises(RefusedRequest) as refused:
        rate.check("10.0.0.1")
    assert refused.value.status == 429
    rate.check("10.0.0.2")
    now[0] = 0.2
    rate.check("10.0.0.1")
    for number in range(10_000):
        rate.check(str(number))
    assert len(rate._left) <= 4096


def test_too_many_requests_are_429():
    with LiveServer({"fake": FakeRuntime()}, ServeLimits(rate=2)) as server:
        statuses = [server("GET", "/health").status for _ in range(8)]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses


def test_every_answer_says_that_the_page_stands_alone(server):
    for path in ("/", "/v1/bundles", "/nothing"):
        headers = server("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["server"] is None
