"""The web page: files of `trinity_serve/web`, read once, sent with a policy that runs nothing else.

They hold no secrets and are sent without a key; what the page shows it asks the other routes for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

INDEX_PATH = "/"
ASSETS_PATH = "/page/"
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup or code anywhere, even by mistake.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        # Asked for again each time, answered by 304: modules import each other by plain names.
        "cache-control": "no-cache",
    }
)


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent."""

    body: bytes
    media_type: str
    etag: str


def is_page(method: str, path: str) -> bool:
    """Whether this asks for a file of the page, which everybody may have who reaches the server."""
    return method in ("GET", "HEAD") and (path == INDEX_PATH or path.startswith(ASSETS_PATH))


def page_files() -> dict[str, PageFile]:
    """Return the files by name."""
    folder = files("trinity_serve").joinpath("web")
    found = {}
    for entry in folder.iterdir():
        media_type = _TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            found[entry.name] = PageFile(body, media_type, etag)
    return found


def page_router() -> APIRouter:
    """Return `/` and `/page/NAME`."""
    router = APIRouter()
    page = page_files()

    @router.api_route(INDEX_PATH, methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        """Return the page."""
        return _answer(request, page["index.html"])

    @router.api_route(ASSETS_PATH + "{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        """Return a file that the page loads."""
        if name not in page:
            raise HTTPException(404, "Not Found")
        return _answer(request, page[name])

    return router


def _answer(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(None, 304, headers)
    return Response(file.body, 200, headers, media_type=file.media_type)
