"""viser behind the page's own port: one HTML file and one WebSocket per view, named by an unguessable token.

viser's client is a single file that needs nothing else. It opens its WebSocket at its own address without the trailing
slash, so relative addresses survive any reverse proxy. The token is the only key: no route lists views.

Towards viser, only well-formed camera moves pass: its other messages start uploads and tunnels, and anything malformed
costs a traceback in the log.
"""

from __future__ import annotations

import asyncio
import math
from typing import Literal

import msgspec
import websockets
from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import HTMLResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from sdlab.viewport.client import client_html
from sdlab.viewport.splat_view import SplatView, Viewports
from sdlab.web import ANYWHERE, Site, refusal

UNKNOWN_VIEW = 4404
FOREIGN_ORIGIN = 4403
NORMAL, NONSENSE = 1000, 1008  # close codes of WebSockets; the latter is "policy violation"
MAX_FRAME = 65_536  # bytes that a browser may send at once; a camera move has about 200
MOST_PIXELS = 100_000  # of a browser's window, in each direction
FAR = 1e6  # the greatest distance in a camera move, in world units

Triple = tuple[float, float, float]

# viser's client builds itself and its workers from compressed text.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval' blob: data:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; connect-src 'self' data: blob:; "
    "worker-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors "
)


class Camera(msgspec.Struct, forbid_unknown_fields=True):
    """The only message that a view's client sends."""

    type: Literal["ViewerCameraMessage"]
    wxyz: tuple[float, float, float, float]
    position: Triple
    fov: float
    near: float
    far: float
    image_height: int
    image_width: int
    look_at: Triple
    up_direction: Triple

    def is_possible(self) -> bool:
        """Return whether this is the camera of a browser window."""
        lengths = (*self.position, *self.look_at, *self.up_direction, *self.wxyz, self.near)
        return (
            all(math.isfinite(x) and abs(x) < FAR for x in lengths)
            and math.isfinite(self.far)
            and 0 < self.fov < math.pi
            and all(0 <= n <= MOST_PIXELS for n in (self.image_height, self.image_width))
            and any(self.wxyz)
            and any(self.up_direction)
        )


def is_camera_move(message: object) -> bool:
    """Return whether a message of a browser is one that viser may get."""
    if not isinstance(message, bytes):
        return False
    try:
        return msgspec.msgpack.decode(message, type=Camera).is_possible()
    except (msgspec.DecodeError, RecursionError, OverflowError):  # a ValidationError is a DecodeError
        return False


def routes(views: Viewports, embedders: str = "'self'", site: Site = ANYWHERE) -> APIRouter:
    """Return the routes below /viewport; `embedders` is the value of frame-ancestors: sites that may frame a view.
    Pages of other addresses than those of `site` get no frames."""
    router = APIRouter()

    @router.get("/viewport/{token}/", include_in_schema=False)
    async def page(token: str) -> Response:
        if views.get(token) is None:
            return _unknown()
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": f"{POLICY}{embedders}"}
        return HTMLResponse(client_html(), headers=headers)

    @router.get("/viewport/{token}/why", include_in_schema=False)
    async def why(token: str) -> Response:
        view = views.get(token)
        return _unknown() if view is None else refusal(view.obstacle or NO_SOCKET, 200)

    @router.get("/viewport/{token}", include_in_schema=False)
    async def stripped(token: str, request: Request) -> Response:
        view = views.get(token)
        if view is not None and "sec-websocket-key" in request.headers:
            view.obstacle = NO_UPGRADE
        return refusal(NO_UPGRADE, 426)

    @router.websocket("/viewport/{token}")
    @router.websocket("/viewport/{token}/")
    async def stream(token: str, browser: WebSocket) -> None:
        view = views.get(token)
        if not site.is_own(browser.headers):
            if view is not None:
                view.obstacle = site.foreign_origin(browser.headers)
            await _refuse(browser, FOREIGN_ORIGIN, "foreign origin")
        elif view is None:
            await _refuse(browser, UNKNOWN_VIEW, "no such view")
        else:
            await _relay(browser, view)

    return router


NO_UPGRADE = (
    "The proxy in front of this server does not forward WebSockets, by which the view gets its frames: it drops the "
    "header Upgrade. For nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    'proxy_set_header Connection "upgrade".'
)
NO_SOCKET = (
    "No WebSocket of this view has reached the server: a proxy or a firewall in between blocks it. The proxy must "
    "forward WebSockets, with the headers Upgrade, Connection and Host that the browser sent."
)


def _unknown() -> Response:
    return refusal("there is no such view, or its session has ended", 404)


async def _refuse(browser: WebSocket, code: int, reason: str) -> None:
    await browser.accept()  # only an accepted socket can send its code; otherwise the browser sees a bare 403
    await browser.close(code, reason)


async def _relay(browser: WebSocket, view: SplatView) -> None:
    """Pass messages both ways until either side closes; the sub-protocol carries viser's version."""
    offered = [websockets.Subprotocol(p) for p in browser.scope.get("subprotocols", [])]
    try:
        upstream = await websockets.connect(
            view.address, subprotocols=offered or None, max_size=None, compression=None, proxy=None
        )
    except (OSError, websockets.WebSocketException):  # it closed after the look-up
        await _refuse(browser, UNKNOWN_VIEW, "the view has closed")
        return
    async with upstream:
        await browser.accept(subprotocol=upstream.subprotocol)
        ending: list[tuple[int, str]] = []  # said once nothing is being sent

        async def down() -> None:
            async for message in upstream:
                await (browser.send_bytes(message) if isinstance(message, bytes) else browser.send_text(message))

        async def up() -> None:
            while (message := await browser.receive())["type"] == "websocket.receive":
                if not is_camera_move(message.get("bytes")):
                    ending.append((NONSENSE, "only camera moves are accepted"))
                    return
                await upstream.send(message["bytes"])

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
        code, why = ending[0] if ending else (NORMAL, None)
        await browser.close(code, why)
