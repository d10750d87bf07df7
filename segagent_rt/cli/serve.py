"""Serve a page for people, and an HTTP API for programs and annotation tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segagent_rt.cli import console
from segagent_rt.cli.option_groups import ComputeOptions, ServerOptions
from segagent_rt.cli.parameters import (
    COMPUTE,
    DATA,
    MODEL,
    check_options,
    number_option,
    option,
)
from segagent_rt.errors import ExtraMissing

NETWORK, LIMITS = "Network", "Limits"


def command(
    context: typer.Context,
    bundle: Annotated[
        list[str] | None,
        option(
            "Folder or name of a bundle. May be repeated. Default: the demo bundle and the "
            "segmenter for photos.",
            "--bundle",
            "-b",
            panel=MODEL,
        ),
    ] = None,
    host: Annotated[
        str,
        option(
            "Address to listen on. Any but 127.0.0.1 needs a token in SEGAGENT_SERVE_TOKEN.",
            panel=NETWORK,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, option("Port to listen on. 0 takes any free port.", panel=NETWORK, min=0, max=65535)
    ] = 8000,
    name: Annotated[
        list[str] | None,
        option("Host name by which clients reach this server. May be repeated.", panel=NETWORK),
    ] = None,
    root: Annotated[
        list[Path] | None,
        option("Folder whose images clients may open by path. May be repeated.", panel=DATA),
    ] = None,
    max_upload: Annotated[
        float, number_option("Largest request, in MB.", panel=LIMITS, min=0.001, max=4096)
    ] = 32.0,
    max_megapixels: Annotated[
        float, number_option("Largest image, in megapixels.", panel=LIMITS, min=0.001, max=1000)
    ] = 50.0,
    max_images: Annotated[int, option("Largest number of open images.", panel=LIMITS, min=1)] = 64,
    max_memory: Annotated[
        float, number_option("Memory for all open images, in MB.", panel=LIMITS, min=1, max=1 << 20)
    ] = 1024.0,
    idle_minutes: Annotated[
        float,
        number_option("Minutes until an unused image is closed.", panel=LIMITS, min=0.01, max=1e6),
    ] = 30.0,
    queue: Annotated[
        int, option("Largest number of waiting requests.", panel=LIMITS, min=0, max=10_000)
    ] = 32,
    rate: Annotated[
        float,
        number_option(
            "Requests per second from one address. 0 sets no limit.", panel=LIMITS, min=0, max=1e6
        ),
    ] = 100.0,
    workers: Annotated[
        int, option("Requests that run at the same time.", panel=COMPUTE, min=1, max=256)
    ] = 1,
    *,
    compute: ComputeOptions,
    server: ServerOptions,
) -> None:
    """The page is at http://127.0.0.1:8000/, the API is below /v1. docs/serve.md describes both.

    Ctrl-C and SIGTERM let requests in progress finish.
    """
    check_options(context)
    try:
        from segagent_rt.serve.adapters.label_studio import label_studio_router
        from segagent_rt.serve.adapters.x_anylabeling import x_anylabeling_router
        from segagent_rt.serve.app import create_app, service_metrics
        from segagent_rt.serve.server import listen, run_server
    except ImportError as error:
        if not (error.name or "").startswith("segagent_rt"):
            raise ExtraMissing("serve", "serve") from None
        raise
    from segagent_rt.serve.bundles import load_bundles
    from segagent_rt.serve.limits import MIB, ServeLimits
    from segagent_rt.serve.process_memory import search_garbage, share_heaps
    from segagent_rt.serve.server_settings import ServerSettings, token_for
    from segagent_rt.serve.service import SegmentationService

    where = server.where()
    limits = ServeLimits(
        upload_bytes=int(max_upload * 1e6),
        all_uploads_bytes=max(8 * int(max_upload * 1e6), 64 * MIB),
        megapixels=max_megapixels,
        open_images=max_images,
        open_bytes=int(max_memory * 1e6),
        idle_seconds=idle_minutes * 60,
        waiting=queue,
        workers=workers,
        rate=rate,
    )
    names = tuple(each.lower() for each in name or ())
    settings = ServerSettings(host, port, token_for(host), names, limits)
    share_heaps()
    listener = listen(settings)
    settings = settings.on_port(listener.getsockname()[1])
    metrics = service_metrics(lambda: service)
    service = SegmentationService(
        load_bundles(bundle or [], compute.backend, compute.threads, where),
        limits,
        roots=root or (),
        on_seconds=metrics.add_stages,
    )
    adapters = (x_anylabeling_router, label_studio_router)
    app = create_app(service, settings, metrics, adapters=adapters)
    search_garbage()
    run_server(app, listener, settings, lambda: console.say(f"serving on {settings.url}"))
