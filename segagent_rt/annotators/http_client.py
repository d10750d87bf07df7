"""Questions to a server in JSON, with a bound on everything: time, size, tries.

Servers are foreign: redirects are not followed, proxies not used, answers never trusted.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from segagent_rt.errors import AnnotatorError, Interrupted
from segagent_rt.io import dump_json, parse_json
from segagent_rt.timing import current_deadline

KEY, OPENAI_KEY = "SEGAGENT_API_KEY", "OPENAI_API_KEY"
"""The environment variables that hold a key: that of the server, and that of OpenAI, which many
people have set for other programs."""

LARGEST = 1 << 20
"""Of an answer, bytes."""

TRIES, PAUSE = 3, 0.25
"""For questions that a server could not take just now; seconds before the second try, then twice
as many."""

LONGEST_PAUSE = 30.0
"""Seconds that a server may ask to wait before the next try (`Retry-After`)."""

PASSING = frozenset({429, 500, 502, 503, 504})
"""States of a server that may be others in a moment."""

_LOG = "the server's own log says more"
_HINTS = {
    400: "--server says how the form of a reply is asked for: is it of that kind?",
    401: f"put the server's key into the environment variable {KEY}",
    403: f"put the server's key into the environment variable {KEY}",
    404: "--model must be a name that the server knows; its /models lists them",
    413: "export the model for smaller pictures, or let the server take larger requests",
    422: "--server says how the form of a reply is asked for: is it of that kind?",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server's API begins; as text, its URL."""

    secure: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.secure}://{host}:{self.port}{self.path}"

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def parse_address(url: str, allowed: Collection[str] = ()) -> Address:
    """Read a server's URL; without a path it is that of its version 1.

    Pictures go only to this machine, and to the hosts `allowed` by name.

    Raises:
        AnnotatorError: it is no such URL, or leads to another host.
    """
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        port = usual if parts.port is None else parts.port
        plain = url.isascii() and url.isprintable() and not set(url) & set(' @?#\\"')
    except (ValueError, KeyError):
        plain = False
    if not plain or not parts.hostname or not port:
        raise AnnotatorError(
            "the value of --endpoint is not the URL of a server",
            hint="write it like http://127.0.0.1:8000/v1",
        )
    path = parts.path.rstrip("/") or "/v1"
    address = Address(parts.scheme == "https", parts.hostname, port, path)
    if not address.local and address.host not in allowed:
        raise AnnotatorError(
            f"{address.host} is another machine, and pictures would be sent to it",
            hint=f"if that is meant: --allow-host {address.host}",
        )
    return address


def find_key(address: Address, allowed: Collection[str], *, for_openai: bool) -> str | None:
    """The name of the environment variable whose key goes to a server; None for no key.

    OpenAI's key goes only to a host that was allowed by name, and only if the server is said to be
    OpenAI's: people have it set for other programs, and it must reach no other server.

    Args:
        address: of the server.
        allowed: names of other machines that pictures may be sent to.
        for_openai: whether somebody said that the server is of that kind.
    """
    if os.environ.get(KEY, "").strip():
        return KEY
    named = for_openai and address.host in allowed and os.environ.get(OPENAI_KEY, "").strip()
    return OPENAI_KEY if named else None


def post(
    address: Address, path: str, question: Mapping[str, Any], timeout: float, key: str | None = None
) -> Any:
    """Ask, and return the answer's JSON. Within `timeout` seconds for each try.

    Args:
        address: of the server.
        path: of the question, below the address.
        question: what is sent as JSON.
        timeout: seconds for each try.
        key: the environment variable that holds the server's key, if one is sent.

    Raises:
        AnnotatorError: there is no answer, or it says no, or is not JSON.
        Interrupted: the deadline passed meanwhile.
    """
    body, headers = dump_json(question).encode(), _headers(address, key)
    for tried in range(1, TRIES + 1):
        problem: AnnotatorError
        pause = PAUSE * tried
        try:
            answer = _exchange(address, path, body, headers, timeout)
        except _Broken as broken:
            problem = AnnotatorError(f"{address} {broken}", hint=broken.hint)
        else:
            if answer.status == 200:
                return _json(address, answer.content)
            problem = _refusal(address, answer)
            pause = max(pause, answer.retry_after)
            if answer.status not in PASSING or pause > LONGEST_PAUSE:
                break
        if tried < TRIES:
            time.sleep(min(pause, _remaining()))
    raise problem


def _headers(address: Address, name: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if name is not None and (key := os.environ.get(name, "").strip()):
        if not (key.isascii() and key.isprintable()):
            raise AnnotatorError(f"{name} holds what cannot be a key", hint="set it again")
        if not (address.secure or address.local):
            raise AnnotatorError(
                f"the key in {name} would go to {address.host} for everyone to read",
                hint=f"use https, or unset {name}",
            )
        headers["Authorization"] = f"Bearer {key}"
    return headers


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server sent; `retry_after` are the seconds that it asks to wait, 0 if it does not."""

    status: int
    content: bytes
    retry_after: float = 0.0


class _Broken(Exception):
    """A connection that came to nothing, and may not the next time."""

    def __init__(self, why: str, hint: str = _LOG) -> None:
        super().__init__(why)
        self.hint = hint


class _Cut:
    """Ends a connection from another thread, whatever it waits for: a time-out of the socket alone
    would begin anew with each byte."""

    def __init__(self) -> None:
        self.done, self._socket = False, None

    def arm(self, connected: Any) -> None:
        """The connection stands; http.client would forget its socket while it reads."""
        self._socket = connected
        if self.done:
            self.now()

    def now(self) -> None:
        self.done = True
        with suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


def _exchange(
    address: Address, path: str, body: bytes, headers: Mapping[str, str], timeout: float
) -> _Answer:
    """One try."""
    connect = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
    connection, cut = connect(address.host, address.port, timeout=timeout), _Cut()
    timer, deadline = threading.Timer(timeout, cut.now), current_deadline()
    timer.daemon = True
    timer.start()
    try:
        with deadline.stopping(cut.now) if deadline else nullcontext():
            connection.connect()
            cut.arm(connection.sock)
            connection.request("POST", address.path + path, body, dict(headers))
            with connection.getresponse() as response:
                answer, missing = response.read(LARGEST + 1), response.length
                wait = _retry_after(response.getheader("Retry-After"))
        if len(answer) > LARGEST:
            raise AnnotatorError(f"{address} answers with more than {LARGEST >> 20} MB", hint=_LOG)
        if missing or cut.done:  # read() tells of a short answer only when no bound is given
            raise http.client.IncompleteRead(answer)
        return _Answer(response.status, answer, wait)
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # no name of a host
        if cut.done or isinstance(error, TimeoutError):
            raise _late(address, timeout) from error
        raise _failure(address, error) from error
    finally:
        timer.cancel()
        connection.close()


def _retry_after(header: str | None) -> float:
    """Seconds, which the header gives as a number or as the time of day."""
    try:
        if header is None or header.strip().isdecimal():
            return float(header or 0)
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, TypeError):
        return 0.0


def _late(address: Address, timeout: float) -> Exception:
    if _remaining() == 0.0:
        return Interrupted("the deadline passed while a server was asked")
    return AnnotatorError(
        f"{address} does not answer within {timeout:g} seconds",
        hint="wait until the model is loaded, or give a longer --timeout",
    )


def _failure(address: Address, error: Exception) -> Exception:
    """What is wrong with a connection, in words."""
    if isinstance(error, ConnectionRefusedError):
        return _Broken("does not answer: nothing listens there", "start the server, check the port")
    if isinstance(error, (ConnectionError, http.client.IncompleteRead)):
        return _Broken("ends the connection before its answer is complete")
    if isinstance(error, http.client.HTTPException):
        return AnnotatorError(f"{address} does not speak HTTP", hint="check the URL")
    return AnnotatorError(f"{address} cannot be reached: {_clean(str(error))}", hint=_LOG)


def _json(address: Address, answer: bytes) -> Any:
    try:
        return parse_json(answer)
    except ValueError:
        raise AnnotatorError(f"{address} does not answer in JSON", hint="check the URL") from None


def _refusal(address: Address, answer: _Answer) -> AnnotatorError:
    said, status = _clean(_said(answer.content)), answer.status
    sentence = f"{address} answers {status}: {said}" if said else f"{address} answers {status}"
    if answer.retry_after > LONGEST_PAUSE:
        hint = f"the server asks to try again in {answer.retry_after:.0f} seconds"
        return AnnotatorError(sentence, hint=hint)
    return AnnotatorError(sentence, hint=_HINTS.get(status, _LOG))


def _said(answer: bytes) -> str:
    """The message of an error, where servers put it."""
    try:
        content = parse_json(answer)
    except ValueError:
        return "" if answer.lstrip().startswith(b"<") else answer.decode("utf-8", "replace")
    content = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(content, dict):
        content = content.get("message", content.get("detail", ""))
    return str(content)


def _clean(text: str) -> str:
    """One line of foreign text that steers no terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())
    return line.rstrip(".")[:200]


def _remaining() -> float:
    deadline = current_deadline()
    left = None if deadline is None else deadline.remaining
    return float("inf") if left is None else left
