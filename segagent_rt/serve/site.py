"""The page at `/`, its files, the examples that it offers, and a plain list of the API."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from segagent_rt.errors import BundleError, NotOpen
from segagent_rt.serve.bundle_card import known_words
from segagent_rt.serve.service import SegmentationService

PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SCENE_SEED = 7


def site_router(service: SegmentationService) -> APIRouter:
    """Routes of everything that browsers are shown.

    Args:
        service: the page is offered examples that fit its bundles.
    """
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}
    examples = find_examples(service)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return _file(request, files["index.html"], TYPES[".html"])

    @router.get("/static/{name}")
    async def static(request: Request, name: str) -> Response:
        if name not in files or name == "index.html":
            raise NotOpen("the page has no such file")
        return _file(request, files[name], TYPES[Path(name).suffix])

    @router.get("/examples/{name}")
    async def example(request: Request, name: str) -> Response:
        found = [each for each in examples if each["picture"] == f"/examples/{name}"]
        if not found:
            raise NotOpen("there is no such example")
        return _file(request, found[0]["content"], found[0]["type"])

    @router.get("/v1/examples")
    async def list_examples() -> Response:
        shown = ("name", "about", "bundle", "picture", "expressions", "credit")
        return JSONResponse([{key: each[key] for key in shown} for each in examples])

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        assert isinstance(request.app, FastAPI)
        return HTMLResponse(list_of_operations(request.app.openapi()))

    return router


def find_examples(service: SegmentationService) -> list[dict[str, Any]]:
    """Pictures in the package that fit a loaded bundle.

    Returns:
        Each with its `content`, and what the page says of it.
    """
    words = [name for name, runtime in service.bundles.items() if known_words(runtime)]
    others = [name for name in service.bundles if name not in words]
    found = list[dict[str, Any]]()
    if words:
        found.append(_scene_example(words[0]))
    if others:
        with suppress(BundleError):  # an installation without the shipped bundle
            found.append(_photo_example("photo" if "photo" in others else others[0]))
    return found


def _scene_example(bundle: str) -> dict[str, Any]:
    from segagent_rt.draw import png
    from segagent_rt.scenes import make_scene

    scene = make_scene(SCENE_SEED)
    content = png(scene.image)
    return {
        "name": "example scene",
        "about": "Coloured shapes, which the demonstration model knows by words",
        "bundle": bundle,
        "picture": "/examples/scene.png",
        "type": "image/png",
        "content": content,
        "expressions": [each.text for each in scene.expressions],
        "credit": None,
    }


def _photo_example(bundle: str) -> dict[str, Any]:
    from segagent_rt.bundle.bundle import open_photo_bundle
    from segagent_rt.io import parse_json

    folder = open_photo_bundle().folder
    about = parse_json((folder / "demo.json").read_bytes())
    content = (folder / "demo.jpg").read_bytes()
    return {
        "name": "example photo",
        "about": "A photo for clicks and boxes",
        "bundle": bundle,
        "picture": "/examples/photo.jpg",
        "type": "image/jpeg",
        "content": content,
        "expressions": [],
        "credit": str(about["attribution"]),
    }


def list_of_operations(document: dict[str, Any]) -> str:
    """The operations of an OpenAPI document as a plain page, without any script."""
    rows = [
        f"<tr><td><code>{escape(method.upper())}</code></td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('summary', ''))}</td></tr>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="/static/style.css"></head>'
        f'<body class="plain"><h1>{escape(title)}</h1><p>The full description is '
        '<a href="/openapi.json">openapi.json</a>; load it into any OpenAPI client. '
        'The <a href="/">page</a> uses the same API.</p>'
        f'<table class="facts">{"".join(rows)}</table></body></html>'
    )


def _file(request: Request, content: bytes, kind: str) -> Response:
    """A file of the page; browsers ask each time, and are told if it is the same."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
