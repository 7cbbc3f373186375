"""viser behind the page's own port: one HTML file and one WebSocket per view, named by an unguessable token.

The client of viser is a single file that needs nothing else; it opens its WebSocket at its own address without the
trailing slash, so that relative addresses survive any reverse proxy. The token is the only key: no route lists views,
and a browser on a foreign page is refused by its Origin.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from pathlib import Path

import viser
import websockets
from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import HTMLResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from sdlab.viewport.splat_view import Viewports
from sdlab.web import same_origin

STATIC = Path(__file__).parent / "static"
UNKNOWN_VIEW = 4404
FOREIGN_ORIGIN = 4403

# viser reconnects only from a focused document, which an iframe is not: a dropped socket would stay dropped.
RECONNECT = "<script>Document.prototype.hasFocus=function(){return !document.hidden}</script>"
# Its own panel has nothing that this page needs, and covers the scene on small screens.
STYLE = """<style>
[data-floating-window], .mantine-Paper-root[style*="position: fixed"][style*="bottom: 0"] { display: none !important; }
</style>"""
# Its notice that a machine has no graphics processor stays long enough to be read, where it leaves room for the scene.
NOTICE = """<style>
@media (max-width: 560px) { .mantine-Notification-root { display: none !important; } }
.mantine-Notification-root { animation: sdlab-fade 0.4s 8s forwards; }
@keyframes sdlab-fade { to { opacity: 0; visibility: hidden; } }
</style>"""


@functools.cache
def client_html() -> str:
    """The client of viser with what an embedded view needs."""
    html = (Path(inspect.getfile(viser)).parent / "client" / "build" / "index.html").read_text(encoding="utf-8")
    draw = f"<script>{(STATIC / 'view.js').read_text(encoding='utf-8')}</script>"
    return html.replace("<head>", f"<head>{RECONNECT}{draw}{STYLE}{NOTICE}", 1)


def routes(views: Viewports, embedders: str = "'self'") -> APIRouter:
    """Routes below /viewport; `embedders` is the value of frame-ancestors: who may show a view in a frame."""
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
    await browser.accept()  # only an accepted socket can tell its code; otherwise the browser sees a bare 403
    await browser.close(code, reason)


async def _relay(browser: WebSocket, port: int) -> None:
    """Pass messages both ways until either side closes; the sub-protocol carries viser's version."""
    offered = [websockets.Subprotocol(p) for p in browser.scope.get("subprotocols", [])]
    try:
        upstream = await websockets.connect(
            f"ws://127.0.0.1:{port}", subprotocols=offered or None, max_size=None, compression=None, proxy=None
        )
    except (OSError, websockets.WebSocketException):  # closed between the look-up and now
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
