"""The page's own routes: a page posts to /desk when it is loaded, GET /news/TOKEN returns what changed, POST /do/TOKEN
performs what the user does, and GET /here/TOKEN stays open for as long as the page does.

A token names a desk; it is unguessable and the only key. The server also gives each page an unguessable name, so that
no other page can act or leave in its place. Foreign pages never get this far (`sdlab.ui.guard`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from sdlab.ui.desk import nothing
from sdlab.ui.pace import held_up
from sdlab.ui.panels import no_session
from sdlab.ui.wording import sentence
from sdlab.web import capped_body, refusal

if TYPE_CHECKING:
    from sdlab.ui.page import Page

MAX_BODY = 1_000_000  # bytes of one request; a settings file is the largest part
MAX_TOKEN, MOST_LEFT = 64, 4  # characters of a token, and how many a page may ask for when it arrives
QUOTA_HEADER, MOST_QUOTA = "x-ip-token", 4096  # by which ZeroGPU says whose quota a request may use; its characters
NO_STORE = {"Cache-Control": "no-store"}
PULSE = 15.0  # seconds between signs that an open page is still connected; proxies close silent connections
NUDGE = 4.0  # seconds after which a page in the line is told to ask again; timers of hidden pages may take a minute


# ---- pages without a desk --------------------------------------------------------------------------------


def no_seat(reason: str, page: str) -> dict[str, Any]:
    """Return the answer to a page when no seat is free."""
    return _without_desk(page, "No free seat", reason, "Try again")


def in_line(ticket: str, number: int, waiting: int, reason: str, page: str) -> dict[str, Any]:
    """Return the answer to a page that is `number` of the `waiting` pages in the line, and asks with its `ticket`."""
    others = f" of {waiting}" if waiting > 1 else ""
    text = f"{sentence(reason)}. This page gets a seat by itself when one is free and its turn has come: keep it open."
    return {**_without_desk(page, f"You are number {number}{others} in the line", text, ""), "ticket": ticket}


def session_over(page: str, classroom: bool = False) -> dict[str, Any]:
    """Return the answer to a page whose desk is gone, in a `classroom` or not."""
    teacher = "the teacher ended it, " if classroom else ""
    text = f"This session ended: {teacher}nobody used it for a while, or the server was restarted."
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
        "room": None,
        "stage": [],
        "timeline": {},
        "results": {},
    }
    return {"token": "", "page": page, "panels": panels}


# ---- routes ----------------------------------------------------------------------------------------------


def routes(pages: Page, closing: asyncio.Event | None = None) -> APIRouter:
    """Return the routes below /news, /do, /desk and /here; `closing` ends the streams of open pages."""
    router = APIRouter(include_in_schema=False)
    ended = closing or asyncio.Event()

    @router.get("/news/{token}")
    async def news(token: str, page: str = "", missed: bool = False, hidden: bool = False) -> Response:
        if (refused := await held_up(pages.delay(token))) is not None:
            return refused
        return JSONResponse(await run_in_threadpool(pages.poll, token, page, missed, hidden), headers=NO_STORE)

    @router.post("/do/{token}")
    async def do(token: str, request: Request) -> Response:
        said = await _said(request)
        if isinstance(said, Response):
            return said
        if (refused := await held_up(pages.delay(token, len(said) if isinstance(said, list) else 1))) is not None:
            return refused
        quota = request.headers.get(QUOTA_HEADER, "")[:MOST_QUOTA]
        if not await run_in_threadpool(pages.act, token, said, quota):
            return refusal("this session has ended", 404)
        return Response(status_code=204)

    @router.post("/desk")
    async def desk(request: Request, page: str = "") -> Response:
        said = await _said(request)
        if isinstance(said, Response):
            return said
        said = said if isinstance(said, dict) else {}
        dark, token = said.get("dark") is True, str(said.get("token") or "")
        query, fresh = str(said.get("query") or ""), said.get("fresh") is True
        page, back = page or secrets.token_urlsafe(16), said.get("back") is True
        address, left = client_address(request), said.get("left")
        tokens = [str(one)[:MAX_TOKEN] for one in left[:MOST_LEFT]] if isinstance(left, list) else []
        found = await run_in_threadpool(pages.arrive, page, token, dark, address, query, fresh, tokens, back)
        return JSONResponse(found, headers=NO_STORE)

    @router.get("/here/{token}")
    async def here(token: str, page: str = "") -> Response:
        if not pages.shows(token, page):
            return Response(status_code=204)  # any other answer makes the browser try again
        headers = {**NO_STORE, "X-Accel-Buffering": "no"}
        return StreamingResponse(_presence(pages, token, page, ended), media_type="text/event-stream", headers=headers)

    return router


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


async def _presence(pages: Page, token: str, page: str, ended: asyncio.Event) -> AsyncIterator[str]:
    """Send a sign of life now and then until the page goes, which is reported, or the desk or the server."""
    try:
        while pages.shows(token, page) and not ended.is_set():
            waits = pages.waits(token, page)
            yield "data: ask\n\n" if waits else ":\n\n"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), NUDGE if waits else PULSE)
    finally:
        if pages.shows(token, page):
            pages.leave(page)


async def _said(request: Request) -> Any:
    """Return the JSON in the body of a request, or the response that refuses it."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return refusal("actions must be application/json", 415)
    body = await capped_body(request, MAX_BODY)
    if body is None:
        return refusal(f"the request is too large: at most {MAX_BODY:,} bytes are allowed", 413)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return refusal("actions must be JSON", 422)
