"""Who may talk to the server, and by which names it is known."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace

from segagent_rt.errors import InputError
from segagent_rt.serve.limits import ServeLimits

TOKEN = "SEGAGENT_SERVE_TOKEN"
"""The environment variable that holds the token which clients have to send."""

SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where a server listens, and whom it answers.

    Attributes:
        host: the address it listens on.
        port: the port.
        token: what clients send as `Authorization: Bearer TOKEN`; None if they need not.
        names: names of this server, beside its address, that a request may be sent to.
        limits: of everything else.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    limits: ServeLimits = field(default_factory=ServeLimits)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def on_port(self, port: int) -> ServerSettings:
        """The same settings with the port that was taken."""
        return replace(self, port=port)

    def knows_name(self, host: str) -> bool:
        """Whether a request that was sent to this name is meant for this server.

        A page of another site can make its own name lead here (DNS rebinding), but never an
        address: those are safe once the server is open to the network.
        """
        host = host.lower()
        if host in self.names or host == self.host:
            return True
        if host in LOOPBACK_NAMES:
            return True
        return not self.is_local and _is_address(host)


def is_loopback(host: str) -> bool:
    """Whether an address is one of this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def token_for(host: str) -> str | None:
    """The token of the environment.

    Args:
        host: the address to listen on; any but a loopback address needs a token.

    Raises:
        InputError: there is none, or it is too short or holds what no header can.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        if is_loopback(host):
            return None
        raise InputError(
            f"on {host} others can reach the server, so it needs a token",
            hint=f"export {TOKEN}=\"$(python3 -c 'import secrets; print(secrets.token_hex(16))')\"",
        )
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise InputError(
            f"the token in {TOKEN} is too short, or has characters that no header can hold",
            hint=f"use at least {SHORTEST_TOKEN} letters and digits",
        )
    return token


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False
