"""One FastAPI application on one port: the page at /, its routes, and the views below /viewport and /flat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Collection
from typing import Any, NamedTuple

# Gradio reads these: no telemetry, and no history of runs in the visitors' browsers.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

import gradio as gr
import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse

from sdlab import parsing
from sdlab.live.kept import Store
from sdlab.live.manager import Manager
from sdlab.own_loss import OwnLoss
from sdlab.settings import Settings
from sdlab.ui import agents, answers, flat_view, front, layout, results, teacher, uploads, welcome
from sdlab.ui.api import Api
from sdlab.ui.classroom import Classroom
from sdlab.ui.door import Door
from sdlab.ui.editor import Editor
from sdlab.ui.guard import Guard
from sdlab.ui.links import Links
from sdlab.ui.page import Page
from sdlab.ui.places import Room
from sdlab.ui.visitors import Visitors, max_bytes
from sdlab.viewport import proxy
from sdlab.viewport.proxy import MAX_FRAME
from sdlab.viewport.splat_view import Viewports
from sdlab.web import ANYWHERE, Site, embedders, refusal


class Class(NamedTuple):
    """A classroom: its number of seats, the teacher's PIN, and the addresses that students open."""

    seats: int
    pin: str
    addresses: tuple[str, ...] = ()


SPARE = 2  # processes that wait for uploads, so that the first visitor's file does not delay the second's


def build(
    manager: Manager,
    settings: Settings,
    preset: str | None = None,
    locked: Collection[str] = (),
    on_space: bool = False,
    site: Site = ANYWHERE,
    trust_links: bool = False,
    classroom: Class | None = None,
    own: OwnLoss | None = None,
    api: bool = False,
    store: Store | None = None,
    mcp: bool = False,
) -> FastAPI:
    """Return the application. Visitors start with `settings`, which are `preset` or a variation of it.

    Visitors cannot change the knobs at `locked` paths; see `sdlab.ui.visitors`. Browsers reach the server at the
    addresses of `site`. `trust_links` lets links choose files and models where the page itself may. A `classroom` has a
    teacher's page. `own` is the user's own loss, with an editor on the page; ValueError unless the server is for its
    own user alone. `api` opens the endpoints for programs, and with `mcp` they are tools for agents as well
    (`sdlab.ui.agents.require_mcp`). Runs are kept in `store`. The manager's sessions end with the application.
    """
    if own is not None and (locked or on_space or not site.loopback):
        raise ValueError(f"{own.name} is code, which only a server of your own runs")
    editor = Editor(own, manager) if own is not None else None
    viewports = Viewports()
    visitors = Visitors(settings, locked, manager.bursts is not None)
    room = Room(classroom.seats) if classroom is not None else None
    page = Page(manager, viewports, visitors, preset, Links(visitors, trust_links), room, editor, store)
    endpoints = Api(manager, visitors, page.shelves) if api else None

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parsing.stand_by(SPARE)
        if page.keeper is not None:
            page.keeper.start()
        yield
        parsing.close()
        if page.keeper is not None:
            page.keeper.close()
        viewports.close_all()
        manager.shutdown()
        page.shelves.close_all()

    # A redirect to an address with a slash would name the host and scheme that the proxy has used.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.closing = asyncio.Event()
    app.add_middleware(Guard, site=site, classroom=room is not None, api=api, mcp=api and mcp)
    app.state.fragment = editor.fragment if editor is not None else ""  # of the address that the program prints
    framed_by = embedders(on_space)
    for router in (  # before the page, which is mounted at / and would answer for every address
        proxy.routes(viewports, framed_by, site),
        flat_view.routes(flat_view.FlatViews(manager, visitors.locked), framed_by),
        answers.routes(page, app.state.closing),
        results.routes(page.shelves),
        uploads.routes(page.bringing, lambda knob: max_bytes(knob, bool(visitors.locked))),
        modules(),
    ):
        app.include_router(router)
    if classroom is not None and room is not None:
        teaching = Classroom(page, room, manager, classroom.addresses)
        app.include_router(teacher.routes(teaching, Door(classroom.pin)))

    app.include_router(front.routes(lambda *call: gradio(*call), framed_by))
    blocks = layout.blocks(visitors, preset, manager.device, site.urls, room is not None, own, endpoints)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        root_path="",  # whatever GRADIO_ROOT_PATH says: see `front`
        theme=layout.theme(),
        css=(layout.STATIC / "page.css").read_text(encoding="utf-8"),
        head=layout.head(),
        footer_links=[],
        ssr_mode=False,  # its front server forwards no WebSockets
        mcp_server=api and mcp,
        enable_monitoring=False,
        pwa=False,
        allowed_paths=[],
        show_error=False,
    )
    if api and mcp:
        agents.answer_legibly(blocks)
    gradio = app.routes[-1]  # the mount
    return app


def modules() -> APIRouter:
    """Return the route of the page's JavaScript modules and of what a first visitor is shown, below /page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/page/{name}")
    def module(name: str) -> Response:
        file, kept = layout.MODULES.get(name), "no-cache"
        if file is None:
            file, kept = welcome.FILES.get(name), "max-age=3600"
        if file is None:
            return refusal("there is no such file", 404)
        return FileResponse(file, media_type=welcome.TYPES[file.suffix], headers={"Cache-Control": kept})

    return router


class PageServer(uvicorn.Server):
    """Serves the application of `build`. Every open page holds an event stream, which ends when told to; otherwise a
    shutdown would wait for the streams and then log an error for each."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if isinstance(self.config.app, FastAPI):
            self.config.app.state.closing.set()
        await super().shutdown(sockets)


def server(app: FastAPI, **options: Any) -> PageServer:
    """Return a server for `app`, to be started with `run`; `options` are uvicorn's."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        log_config=None,  # its log lines go where all go, see `sdlab.console`
        ws_per_message_deflate=False,  # splats do not compress, and trying doubles the work
        ws_max_size=MAX_FRAME,
        server_header=False,
        timeout_graceful_shutdown=3,
        **options,
    )
    return PageServer(config)
