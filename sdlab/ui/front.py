"""The page's HTML: rendered by Gradio once, then the same for every visitor and at every address.

Gradio writes the server's address into its HTML, as far as it can tell it from the request's headers. Behind a proxy
that is often wrong, and the page stays dead. Here the browser fills in the address that it has used.
"""

from __future__ import annotations

import gzip
import re

import httpx
from fastapi import APIRouter, Request, Response
from starlette.types import ASGIApp

from sdlab.ui.welcome import FIRST_SCREEN
from sdlab.web import source_hash

PLACE = "http://page.invalid"  # the host for which Gradio renders
HERE = 'new URL(".",document.baseURI).href.replace(/\\/$/,"")'  # the page's folder, in JavaScript
# Relative addresses need the slash at the end of a path such as /lab/.
SLASH = '<script>if(!location.pathname.endsWith("/"))location.replace(location.pathname+"/"+location.search)</script>'
SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
BODY = re.compile(r"<body[^>]*>")
MANIFEST = '<link rel="manifest" href="/manifest.json" />'  # of an installable app, which this is not
ICON = '<link rel="icon" href="./favicon.ico" />'


def at_any_address(html: str) -> str:
    """Return Gradio's HTML for `PLACE` with the browser's address in its place, and with the first screen."""
    html = html.replace(MANIFEST, ICON).replace(f'"{PLACE}"', HERE).replace(PLACE, "")
    html = html.replace("<head>", f"<head>{SLASH}", 1)
    return BODY.sub(lambda found: found[0] + FIRST_SCREEN, html, count=1)


def policy(html: str, embedders: str) -> str:
    """Return the Content-Security-Policy of the page: only its own inline scripts run, no handlers in attributes.

    Gradio compiles the scripts of its HTML parts from text, which requires 'unsafe-eval'.
    """
    hashes = " ".join(map(source_hash, SCRIPT.findall(html)))
    return (
        f"default-src 'self'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        f"frame-ancestors {embedders}"
    )


def routes(gradio: ASGIApp, embedders: str) -> APIRouter:
    """Return the route of the page; `gradio` renders it at the first request."""
    router = APIRouter(include_in_schema=False)
    kept: list[tuple[bytes, bytes, dict[str, str]]] = []

    async def rendered() -> tuple[bytes, bytes, dict[str, str]]:
        if not kept:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(gradio)) as client:
                html = at_any_address((await client.get(f"{PLACE}/")).raise_for_status().text)
            headers = {"Content-Security-Policy": policy(html, embedders), "Cache-Control": "no-cache"}
            kept.append((html.encode(), gzip.compress(html.encode()), headers))
        return kept[0]

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        plain, packed, headers = await rendered()
        headers = {**headers, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, media_type="text/html", headers={**headers, "Content-Encoding": "gzip"})
        return Response(plain, media_type="text/html", headers=headers)

    return router
