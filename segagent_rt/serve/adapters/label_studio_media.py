"""Where the image of a Label Studio task comes from. Nothing is fetched that nobody allowed.

| the task's data | what happens |
|---|---|
| `data:image/...;base64,...` | it is the image |
| `/data/local-files/?d=PATH` | PATH is read below a folder of `--root` |
| another path, or a URL of Label Studio's own | it is fetched from Label Studio |
| anything else | it is refused |
"""

from __future__ import annotations

import http.client
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import parse_qs, quote, urlsplit

from segagent_rt.errors import AnnotatorError, InputError
from segagent_rt.serve.image_content import decode_base64
from segagent_rt.serve.service import SegmentationService
from segagent_rt.timing import current_deadline

URL, TOKEN = "SEGAGENT_LABEL_STUDIO_URL", "SEGAGENT_LABEL_STUDIO_TOKEN"
"""Environment variables: the address of Label Studio, and an access token for it."""

SECONDS = 20.0
"""Between two blocks of an image; the request's own time bounds the whole."""

LOCAL_FILES = "/data/local-files/"

Site: TypeAlias = tuple[str, str, int]
"""Scheme, host and port of a server."""


@dataclass(frozen=True, slots=True)
class LabelStudioMedia:
    """Reads images of tasks.

    Attributes:
        site: of Label Studio; None if nothing may be fetched.
        token: an access token for it.
    """

    site: Site | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> LabelStudioMedia:
        """The address and the token of the environment.

        Raises:
            InputError: the address is not the URL of a server, or the token can be in no header.
        """
        url, token = (os.environ.get(name, "").strip() for name in (URL, TOKEN))
        site = site_of(url)
        if url and site is None:
            raise InputError(
                f"{URL} is not the URL of a server", hint="write it like http://host:8080"
            )
        if not (token.isascii() and (token.isprintable() or not token)):
            raise InputError(f"{TOKEN} holds what no header can", hint="copy it again")
        return cls(site, token)

    def read(self, service: SegmentationService, place: str) -> bytes:
        """The bytes of an image.

        Args:
            service: says which folders may be read, and how large an image may be.
            place: as it stands in the task.

        Raises:
            InputError: it may not be read, or is not there.
            AnnotatorError: Label Studio does not give it.
        """
        if place.startswith("data:"):
            return decode_base64(place, "the image of the task")
        parts = urlsplit(place) if "//" not in place or site_of(place) else None
        if parts is None:
            raise InputError("the image of the task has no address that can be read")
        if not parts.netloc and parts.path == LOCAL_FILES:
            return service.read_path(parse_qs(parts.query).get("d", [""])[0])
        own = place.startswith("/") or site_of(place) == self.site
        if self.site is None or not own:
            raise InputError(
                "the image of the task lies elsewhere, and is not fetched",
                hint=f"set {URL} to the address of Label Studio, or use local files and --root",
            )
        path = quote(parts.path, safe="/%") + (f"?{parts.query}" if parts.query else "")
        return self._fetch(self.site, path, service.limits.upload_bytes)

    def _fetch(self, site: Site, path: str, most: int) -> bytes:
        """Get an image from Label Studio; redirects are not followed."""
        scheme, host, port = site
        connect = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection, deadline = connect(host, port, timeout=SECONDS), current_deadline()
        headers = {"Authorization": f"Token {self.token}"} if self.token else {}
        try:
            with deadline.stopping(connection.close) if deadline else nullcontext():
                connection.request("GET", path, headers=headers)
                with connection.getresponse() as response:
                    status, content = response.status, response.read(most + 1)
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            raise AnnotatorError(
                "Label Studio does not give the image of the task", hint=f"check {URL}"
            ) from None
        finally:
            connection.close()
        if status != 200:
            raise AnnotatorError(
                f"Label Studio answers {status} for the image of the task",
                hint=f"check {URL} and {TOKEN}",
            )
        if len(content) > most:
            raise InputError("the image of the task is too large", hint="see --max-upload")
        return content


def site_of(url: str) -> Site | None:
    """The server that a URL leads to; None if it is no plain URL of one."""
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        port = usual if parts.port is None else parts.port
    except (ValueError, KeyError):
        return None
    plain = url.isprintable() and not set(url) & set(' @\\"')
    return (parts.scheme, parts.hostname, port) if plain and parts.hostname and port else None
