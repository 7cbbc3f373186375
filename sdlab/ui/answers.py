"""The page's own routes: GET /news/TOKEN returns what changed, POST /do/TOKEN performs what the user does.

A token names a desk; it is unguessable and the only key. A browser on a foreign page is refused by its Origin. A page
without a desk posts to /desk to get one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from sdlab.live.clients import NO_LIMIT
from sdlab.ui.desk import nothing
from sdlab.ui.panels import no_session
from sdlab.ui.visitors import MESSAGES, PATIENCE
from sdlab.web import capped_body, same_origin

if TYPE_CHECKING:
    from sdlab.ui.page import Page

MAX_BODY = 1_000_000  # bytes of one request; a settings file is the largest part
NO_STORE = {"Cache-Control": "no-store"}


# ---- pages without a desk --------------------------------------------------------------------------------


def no_seat(reason: str, page: str) -> dict[str, Any]:
    """Return the answer to a page when no seat is free."""
    return _without_desk(page, "No free seat", reason, "Try again")


def session_over(page: str) -> dict[str, Any]:
    """Return the answer to a page whose desk is gone."""
    text = "This session ended: nobody used it for a while, or the server was restarted."
    return _without_desk(page, "Session ended", text, "New session")


def another_tab(page: str) -> dict[str, Any]:
    """Return the answer to a page whose desk is now shown by another tab."""
    text = "This session continues in another tab, a copy of this one."
    return _without_desk(page, "Open in another tab", text, "New session")


def _without_desk(page: str, title: str, text: str, button: str) -> dict[str, Any]:
    can = dict.fromkeys(("start", "pause", "step", "reset"), False)
    panels = {
        **nothing(),
        "status": no_session(title, text),
        "controls": {"can": can, "again": button},
        "stage": [],
        "timeline": {},
        "results": {},
    }
    return {"token": "", "page": page, "panels": panels}


# ---- routes ----------------------------------------------------------------------------------------------


def routes(pages: Page) -> APIRouter:
    """Return the routes below /news, /do and /desk."""
    router = APIRouter(include_in_schema=False)

    @router.get("/news/{token}")
    async def news(token: str, request: Request, page: str = "") -> Response:
        if not same_origin(request.headers):
            return Response("news is sent only to the page it belongs to", 403)
        if (refused := await _held_up(pages.delay(token))) is not None:
            return refused
        return JSONResponse(await run_in_threadpool(pages.poll, token, page), headers=NO_STORE)

    @router.post("/do/{token}")
    async def do(token: str, request: Request) -> Response:
        said = await _said(request)
        if isinstance(said, Response):
            return said
        if (refused := await _held_up(pages.delay(token, len(said) if isinstance(said, list) else 1))) is not None:
            return refused
        if not await run_in_threadpool(pages.act, token, said):
            return Response("this session has ended", 404)
        return Response(status_code=204)

    @router.post("/desk")
    async def desk(request: Request, page: str = "") -> Response:
        said = await _said(request)
        if isinstance(said, Response):
            return said
        dark = isinstance(said, dict) and said.get("dark") is True
        address = client_address(request)
        return JSONResponse(await run_in_threadpool(pages.arrive, page, "", dark, address), headers=NO_STORE)

    return router


async def _held_up(seconds: float) -> Response | None:
    """Wait for `seconds`, or return the refusal of a request for which that would be too long."""
    if seconds > PATIENCE:
        return Response(f"too many messages: this server takes {MESSAGES[0]:.0f} a second; {NO_LIMIT}", 429)
    await asyncio.sleep(seconds)
    return None


def client_address(request: Any) -> str:
    """Return the network address of a browser, of IPv6 the network; "" if unknown, as behind a proxy on this machine
    that does not tell.

    uvicorn has replaced a proxy's address by the one that the proxy names if it trusts the proxy: one on this machine,
    or those in the environment variable FORWARDED_ALLOW_IPS. Any other client could name whatever it likes.
    """
    try:
        address = ipaddress.ip_address(getattr(request.client, "host", ""))
    except ValueError:
        return ""
    if address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


async def _said(request: Request) -> Any:
    """Return the JSON in the body of a request, or the response that refuses it."""
    if not same_origin(request.headers):
        return Response("actions are accepted only from the page they belong to", 403)
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return Response("actions must be application/json", 415)
    body = await capped_body(request, MAX_BODY)
    if body is None:
        return Response(f"the request is too large: at most {MAX_BODY:,} bytes are allowed", 413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return Response("actions must be JSON", 422)
