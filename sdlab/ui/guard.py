"""The border of the server: which requests reach the application at all, and the headers of every answer.

Gradio mounts about 90 routes, of which the page needs four; uploads, proxies and handlers among the others would be
open to everybody. So `OPEN` lists what is answered, and everything else is 404. The page's own HTML is in
`sdlab.ui.front`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from sdlab.web import ANYWHERE, Site, refusal

TOKEN, FILE, KNOB = r"[A-Za-z0-9_-]{1,64}", r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,127}", r"[^/]{1,128}"


class Route(NamedTuple):
    """A route that is answered: its method ("WS" for a WebSocket) and a pattern of the whole path. Pages of other sites
    may ask for what is `public`, which is the same for everybody."""

    method: str
    pattern: str
    public: bool = False


OPEN = (
    Route("GET", "/", public=True),  # the page
    # Gradio's
    Route("GET", f"/assets/{FILE}", public=True),
    Route("GET", "/theme\\.css", public=True),
    Route("GET", "/static/js/iframeResizer\\.contentWindow\\.min\\.js", public=True),
    Route("GET", "/favicon\\.ico", public=True),
    # the page's modules and its desk
    Route("GET", f"/page/{FILE}", public=True),
    Route("POST", "/desk"),
    Route("GET", f"/here/{TOKEN}"),
    Route("GET", f"/news/{TOKEN}"),
    Route("POST", f"/do/{TOKEN}"),
    Route("POST", f"/uploads/{TOKEN}/{KNOB}"),
    Route("GET", f"/results/{TOKEN}/{TOKEN}"),
    # views
    Route("GET", f"/viewport/{TOKEN}/"),
    Route("GET", f"/viewport/{TOKEN}/why"),
    Route("GET", f"/viewport/{TOKEN}"),
    Route("WS", f"/viewport/{TOKEN}/?"),
    Route("GET", f"/flat/{FILE}", public=True),
    Route("GET", f"/flat/{TOKEN}/"),
    Route("GET", f"/flat/{TOKEN}/(now|ground)"),
    Route("POST", f"/flat/{TOKEN}/start"),
)

CLASSROOM = (  # only where there is one
    Route("GET", "/teacher/?", public=True),
    Route("GET", f"/teacher/code/{FILE}", public=True),
    Route("POST", "/teacher/(pin|out|do)"),
    Route("GET", "/teacher/(room|choices)"),
    Route("GET", f"/teacher/picture/{TOKEN}/[a-z]{{1,10}}"),
)

API = (  # only with --api: what Gradio's clients and curl need to call endpoints
    Route("GET", "/config"),
    Route("GET", "/gradio_api/info"),
    Route("GET", "/gradio_api/openapi\\.json"),
    Route("GET", f"/gradio_api/heartbeat/{TOKEN}"),
    Route("POST", "/gradio_api/queue/join"),
    Route("GET", "/gradio_api/queue/data"),
    Route("POST", "/gradio_api/call/[a-z]{1,20}"),
    Route("GET", f"/gradio_api/call/[a-z]{{1,20}}/{TOKEN}"),
)
MCP = (  # only with --mcp
    Route("POST", "/gradio_api/mcp/"),
    Route("GET", "/gradio_api/mcp/schema"),
)
MOST_SAID = 100_000  # bytes of a call

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
NOTHING = "default-src 'none'; frame-ancestors 'none'"  # the policy of answers that are no pages


def routes_at(path: str, classroom: bool = False, api: bool = False, mcp: bool = False) -> list[Route]:
    """Return the routes that answer at `path`, in a `classroom` or not, with `api` and `mcp` or without them."""
    routes = (*OPEN, *(CLASSROOM if classroom else ()), *(API if api else ()), *(MCP if mcp else ()))
    return [route for route in routes if re.fullmatch(route.pattern, path)]


def _too_long(path: str, method: str, headers: Headers) -> bool:
    """Return whether a call of the API says more than it may, or not how much: Gradio reads all of it."""
    if method != "POST" or not path.startswith("/gradio_api/"):
        return False
    length = headers.get("content-length", "")
    return not length.isdecimal() or int(length[:12]) > MOST_SAID


class Guard:
    """Refuses foreign hosts and origins and unlisted routes, removes the prefix of `site` from paths, and adds security
    headers. A WebSocket's origin is left to its route, which can say why. Plain ASGI: Starlette's own base class
    buffers event streams."""

    def __init__(
        self, app: ASGIApp, site: Site = ANYWHERE, classroom: bool = False, api: bool = False, mcp: bool = False
    ) -> None:
        self._app = app
        self._site = site
        self._classroom = classroom
        self._api = api
        self._mcp = mcp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = {**scope, "path": self._inner(scope["path"]), "root_path": ""}
        refused = self._refused(scope, headers)
        if refused is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close()  # the handshake ends with 403
        else:
            await refusal(*refused)(scope, receive, _with_headers(send))

    def _inner(self, path: str) -> str:
        """Return a path without the prefix, which some proxies pass on and others remove."""
        prefix = self._site.prefix
        return path.removeprefix(prefix) or "/" if f"{path}/".startswith(f"{prefix}/") else path

    def _refused(self, scope: Scope, headers: Headers) -> tuple[str, int] | None:
        """Return text and status of the refusal, None for a request that may pass."""
        path, method = scope["path"], scope.get("method", "WS")
        if unknown := self._site.unknown_host(headers):
            return unknown, 421
        found = routes_at(path, self._classroom, self._api, self._mcp)
        if method != "WS" and not any(route.public for route in found) and not self._site.is_own(headers):
            return self._site.foreign_origin(headers), 403
        methods = {route.method for route in found}
        if not methods:
            return "There is nothing at this address.", 404
        if method not in methods and not (method == "HEAD" and "GET" in methods):
            return f"This address is for {' and '.join(sorted(methods))} only.", 405
        if _too_long(path, method, headers):
            return f"A call has at most {MOST_SAID} bytes, and says how many in Content-Length.", 413
        return None


def _with_headers(send: Send) -> Send:
    """Return `send` that adds the security headers; a page's own policy decides who may frame it."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            policy = headers.setdefault("Content-Security-Policy", NOTHING)
            ancestors = policy.rpartition("frame-ancestors ")[2]
            if ancestors in ("'none'", "'self'"):  # a list of sites cannot be said in the older header
                headers["X-Frame-Options"] = "DENY" if ancestors == "'none'" else "SAMEORIGIN"
        await send(message)

    return send_with_headers
