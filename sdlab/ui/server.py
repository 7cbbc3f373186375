"""One FastAPI application: the page at /, the views below /viewport and /flat, on one port."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Collection
from typing import Any

# Gradio reads these: nothing is reported to anybody, and what visitors do is not kept in their browsers.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Mount

from sdlab.live.manager import Manager
from sdlab.settings import Settings
from sdlab.ui import flat_view, news_route, results, uploads
from sdlab.ui.page import STATIC, Page, theme
from sdlab.viewport.proxy import routes
from sdlab.viewport.splat_view import Viewports
from sdlab.web import SecurityHeaders, embedders


def build(
    manager: Manager,
    settings: Settings,
    preset: str | None = None,
    locked: Collection[str] = (),
    on_space: bool = False,
) -> FastAPI:
    """The application. Visitors begin with `settings`, which is `preset` or a variation of it.

    `locked` are paths of knobs that visitors may not change: on a server that others reach, the prior's path, with
    which they could have it load any folder or download any model. The manager's sessions end with the application.
    """
    viewports = Viewports()
    page = Page(manager, viewports, settings, preset, locked)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        viewports.close_all()
        manager.shutdown()
        page.shelves.close_all()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SecurityHeaders)
    # before the page is mounted at /, which would answer for every address
    framed_by = embedders(on_space)
    app.include_router(routes(viewports, framed_by))
    app.include_router(results.routes(page.shelves))
    app.include_router(news_route.routes(page.poll))
    app.include_router(uploads.routes(page.bringing, bool(locked)))
    app.include_router(flat_view.routes(flat_view.FlatViews(manager, locked), framed_by))
    gr.mount_gradio_app(
        app,
        page.build(),
        path="/",
        theme=theme(),
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(STATIC / 'page.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
        ssr_mode=False,  # its front server forwards no WebSockets
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        allowed_paths=[],
        max_file_size="1mb",  # nothing is uploaded to Gradio
        show_error=True,
    )
    return app


class PageServer(uvicorn.Server):
    """Serves what `build` made. Every open page keeps an event stream, which Gradio ends only when told to; without
    that, the server would wait for them and then complain about each."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for route in getattr(self.config.app, "routes", []):
            if isinstance(route, Mount) and isinstance(route.app, App):
                route.app.stop_event.set()
        await super().shutdown(sockets)


def server(app: FastAPI, **options: Any) -> PageServer:
    """A server for `app`, to be `run`; `options` are uvicorn's."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_per_message_deflate=False,  # splats do not shrink, and it doubles the work
        ws_max_size=64 << 20,
        timeout_graceful_shutdown=3,
        **options,
    )
    return PageServer(config)
