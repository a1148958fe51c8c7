"""Headers that every answer carries, and which other web pages may read answers.

Knows browsers: what keeps them from guessing types, from framing, and from sending addresses on. Does not know what is
answered. What a page of ours may load stands in pages.py, whose headers go before these.
"""

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "Facet",  # and not the versions of what it is made of
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
READABLE = "Retry-After, Server-Timing, X-Request-ID"
SENDABLE = "Authorization, Content-Type, X-API-Key, X-Request-ID"
PREFLIGHT_S = 600  # for which a browser need not ask again


async def secure(request: web.Request, response: web.StreamResponse) -> None:
    """Add what an answer lacks of HEADERS, just before it is written."""
    for name, value in HEADERS.items():
        if name not in response.headers or name == hdrs.SERVER:
            response.headers[name] = value


def cors(origins: tuple[str, ...]) -> Middleware:
    """Return the middleware that lets pages of `origins` read answers, "*" being all; without any it does nothing."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN, "")
        allowed = "*" if "*" in origins else origin if origin in origins else None
        if allowed is None:
            return await handler(request)
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            response: web.StreamResponse = web.Response(status=204, headers=_preflight())
        else:
            response = await handler(request)
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = READABLE
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        response.headers[hdrs.VARY] = "Origin"
        return response

    return middleware


def _preflight() -> dict[str, str]:
    return {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: SENDABLE,
        hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
    }
