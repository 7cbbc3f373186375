"""Shared by all HTTP routes: the same-origin check, capped request bodies and security headers."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
HUB = "https://huggingface.co https://*.hf.space"  # the Hub shows a Space's page in a frame


def same_origin(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from a page of this server, or from a client that is not a browser (no Origin).

    Behind a reverse proxy the public host name is in X-Forwarded-Host, which a page in a browser cannot set.
    """
    origin = headers.get("origin")
    if origin is None:
        return True
    host = urlsplit(origin).netloc.lower()
    forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip().lower()
    return host != "" and host in (headers.get("host", "").lower(), forwarded)


async def capped_body(request: Request, most: int) -> bytes | None:
    """Return the request body, or None (and stop reading) when it exceeds `most` bytes."""
    if int(request.headers.get("content-length") or 0) > most:
        return None
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            return None
    return bytes(body)


def embedders(on_space: bool) -> str:
    """Return the value of frame-ancestors: the sites that may show this server's views in a frame."""
    return f"'self' {HUB}" if on_space else "'self'"


class SecurityHeaders:
    """Adds `HEADERS` to every HTTP response. Plain ASGI: Starlette's own base class buffers event streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
