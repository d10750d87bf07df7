"""What a server takes on, and when it lets go."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """Bounds of everything that a client can make the server spend.

    Attributes:
        upload_bytes: of one request's body.
        all_uploads_bytes: of the bodies of all requests that are in progress.
        upload_seconds: within which a body has to arrive.
        header_seconds: within which the head of a request has to arrive.
        megapixels: of an image.
        open_images: how many images are kept open; the one that was used last the longest ago goes.
        open_bytes: memory that open images may take together, by estimate.
        idle_seconds: after which an image that nobody uses is closed.
        objects: of one image.
        states: kept of one object, to undo.
        workers: pieces of work that are computed at a time.
        waiting: requests that may wait for their turn; more are refused.
        work_seconds: of one request, waiting included; the best mask so far is the result.
        rate: requests per second of one client address, in the long run; 0 for any number.
    """

    upload_bytes: int = 32 * MIB
    all_uploads_bytes: int = 256 * MIB
    upload_seconds: float = 30.0
    header_seconds: float = 10.0
    megapixels: float = 50.0
    open_images: int = 64
    open_bytes: int = 1024 * MIB
    idle_seconds: float = 1800.0
    objects: int = 64
    states: int = 100
    workers: int = 1
    waiting: int = 32
    work_seconds: float = 120.0
    rate: float = 100.0
