"""What a browser is served: the page at /app, the documentation at /docs, and openapi.json that it is made from.

Knows which files there are and the headers that keep a page to this server: it may load nothing from anywhere else,
run nothing that does not lie in a file, and be shown in no frame. Does not know what the pages do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: is how a page shows what was dropped on it
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # another version of the server has other files under the same names
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class File:
    """What is served under one address."""

    body: bytes
    content_type: str


def routes(*, page: bool) -> list[web.RouteDef]:
    """Return the routes to what a browser is served; `page` says whether /app is there."""
    description = web.get("/openapi.json", partial(_file, file=read(FOLDER / "openapi.json")))
    return [description, *_page("docs"), *(_page("app") if page else [])]


def files(name: str) -> dict[str, File]:
    """Return what the page `name` is made of beside its HTML, by the names in its addresses."""
    paths = [path for folder in (name, "shared") for path in sorted((FOLDER / folder).iterdir())]
    return {path.name: read(path) for path in paths if path.suffix in TYPES and path.suffix != ".html"}


def read(path: Path) -> File:
    """Read a file of one of the types that are served."""
    return File(path.read_bytes(), TYPES[path.suffix])


def _page(name: str) -> list[web.RouteDef]:
    return [
        web.get(f"/{name}", partial(_file, file=read(FOLDER / name / "index.html"))),
        web.get(f"/{name}/{{file:[^/]*}}", partial(_part, name=name, parts=files(name))),
    ]


async def _part(request: web.Request, name: str, parts: Mapping[str, File]) -> web.Response:
    if not request.match_info["file"]:  # relative, since a proxy may have put it all into a folder
        return web.Response(status=HTTPStatus.PERMANENT_REDIRECT, headers={**HEADERS, "Location": f"../{name}"})
    file = parts.get(request.match_info["file"])
    if file is None:
        raise web.HTTPNotFound
    return await _file(request, file)


async def _file(request: web.Request, file: File) -> web.Response:
    return web.Response(body=file.body, headers={**HEADERS, "Content-Type": file.content_type})
