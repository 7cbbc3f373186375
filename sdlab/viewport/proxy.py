"""viser behind the page's own port: one HTML file and one WebSocket per view, named by an unguessable token.

viser's client is a single file that needs nothing else. It opens its WebSocket at its own address without the trailing
slash, so relative addresses survive any reverse proxy. The token is the only key: no route lists views, and a browser
on a foreign page is refused by its Origin.
"""

from __future__ import annotations

import asyncio

import websockets
from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import HTMLResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from sdlab.viewport.client import client_html
from sdlab.viewport.splat_view import Viewports
from sdlab.web import same_origin

UNKNOWN_VIEW = 4404
FOREIGN_ORIGIN = 4403


def routes(views: Viewports, embedders: str = "'self'") -> APIRouter:
    """Return the routes below /viewport; `embedders` is the value of frame-ancestors: sites that may frame a view."""
    router = APIRouter()

    @router.get("/viewport/{token}/", include_in_schema=False)
    async def page(token: str, request: Request) -> Response:
        if not same_origin(request.headers):
            return Response("a view is shown only on the page it belongs to", 403)
        if views.get(token) is None:
            return Response("there is no such view, or its session has ended", 404)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": f"frame-ancestors {embedders}"}
        return HTMLResponse(client_html(), headers=headers)

    @router.websocket("/viewport/{token}")
    @router.websocket("/viewport/{token}/")
    async def stream(token: str, browser: WebSocket) -> None:
        if not same_origin(browser.headers):
            await _refuse(browser, FOREIGN_ORIGIN, "foreign origin")
            return
        view = views.get(token)
        if view is None:
            await _refuse(browser, UNKNOWN_VIEW, "no such view")
            return
        await _relay(browser, view.port)

    return router


async def _refuse(browser: WebSocket, code: int, reason: str) -> None:
    await browser.accept()  # only an accepted socket can send its code; otherwise the browser sees a bare 403
    await browser.close(code, reason)


async def _relay(browser: WebSocket, port: int) -> None:
    """Pass messages both ways until either side closes; the sub-protocol carries viser's version."""
    offered = [websockets.Subprotocol(p) for p in browser.scope.get("subprotocols", [])]
    try:
        upstream = await websockets.connect(
            f"ws://127.0.0.1:{port}", subprotocols=offered or None, max_size=None, compression=None, proxy=None
        )
    except (OSError, websockets.WebSocketException):  # it closed after the look-up
        await _refuse(browser, UNKNOWN_VIEW, "the view has closed")
        return
    async with upstream:
        await browser.accept(subprotocol=upstream.subprotocol)

        async def down() -> None:
            async for message in upstream:
                await (browser.send_bytes(message) if isinstance(message, bytes) else browser.send_text(message))

        async def up() -> None:
            while (message := await browser.receive())["type"] == "websocket.receive":
                await upstream.send(message.get("bytes") or message.get("text") or b"")

        tasks = [asyncio.create_task(down()), asyncio.create_task(up())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception) and not isinstance(end, (WebSocketDisconnect, websockets.ConnectionClosed)):
            raise end
    if browser.application_state is WebSocketState.CONNECTED and browser.client_state is WebSocketState.CONNECTED:
        await browser.close()
