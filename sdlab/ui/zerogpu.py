"""A Hugging Face Space on ZeroGPU: no GPU of its own, but one for the seconds in which a decorated function runs.

The package `spaces`, which only such a Space has, runs that function in a forked process. Nothing else of this program
may use CUDA there, although torch says that there is a device. The platform ends a Space that does not report a
decorated function when it starts. `spaces` makes that report when Gradio's `launch` is called, and by its own
`zero.startup`, where it has one: the first needs Gradio's server (`launch`), the second leaves us ours.

Checked with spaces 0.51.3 and a stand-in for the platform; never run on ZeroGPU itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import psutil
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sdlab.live.bursts import Bursts, States, burst, needs_gpu
from sdlab.ui.answers import QUOTA_HEADER

WAY = "SDLAB_ZEROGPU_START"  # set by the Space's owner
DEVICE = "SDLAB_ZEROGPU_DEVICE"  # of a burst; for machines without a GPU
INNER = re.compile(r"/gradio_api/startup-events")  # what Gradio asks its own server

HUB = "The Hub says"

Way = Literal["server", "launch"]


class ZeroGpu:
    """The platform, by its package `spaces`, with our decorated function. ValueError if the environment variable `WAY`
    names no way to start."""

    def __init__(self, spaces: Any) -> None:
        self._spaces = spaces
        self.way = way_to_start(spaces)
        self._task = spaces.GPU(duration=seconds_asked)(on_gpu)
        self.bursts = Bursts(self.call, needs_gpu)

    def call(self, state: bytes, steps: int, seconds: float, quota: str) -> States:
        """Start a burst, see `sdlab.live.bursts.Bursts`. RuntimeError that says why there is none, or no more of it."""
        charge(quota)
        try:
            with contextlib.closing(self._task(state, steps, seconds)) as states:
                yield from states
        except Exception as e:
            raise RuntimeError(explained(e)) from e

    def report(self) -> None:
        """Tell the platform that there is a decorated function, for a server of our own."""
        self._spaces.zero.startup()


def way_to_start(spaces: Any) -> Way:
    """Return how to start: as `WAY` says, or with our own server if `spaces` lets us report to the platform."""
    chosen = os.environ.get(WAY, "")
    if chosen in ("server", "launch"):
        return chosen
    if chosen:
        raise ValueError(f"{WAY}={chosen}: must be server or launch")
    return "server" if callable(getattr(getattr(spaces, "zero", None), "startup", None)) else "launch"


# ---- bursts ----------------------------------------------------------------------------------------------

_home = os.getpid()
_port = 0  # that the server listens on


def on_gpu(state: bytes, steps: int, seconds: float) -> States:
    """Take steps of a run on the GPU: `sdlab.live.bursts.burst`, in a process forked from the server's."""
    if os.getpid() != _home:
        let_go(_port)
    yield from burst(state, steps, seconds, os.environ.get(DEVICE, "cuda"))


def seconds_asked(state: bytes, steps: int, seconds: float) -> int:
    """Return the time that is asked of the platform for `on_gpu`."""
    return math.ceil(seconds)


def serves_at(port: int) -> None:
    """Remember the port whose connections a forked process closes."""
    global _port
    _port = port


def let_go(port: int) -> None:
    """Close this process's copies of the server's connections, which would keep them open when the server ends them."""
    for connection in psutil.Process().net_connections("tcp"):
        if connection.fd >= 0 and connection.laddr and connection.laddr[1] == port:
            with contextlib.suppress(OSError):
                os.close(connection.fd)


def charge(quota: str) -> None:
    """Let `spaces` find in this thread whose quota a burst uses: it looks at the request that Gradio would be
    answering."""
    from gradio.context import LocalContext

    request: Any = SimpleNamespace(headers=Headers({QUOTA_HEADER: quota, "x-gradio-user": "app"}))
    LocalContext.request.set(request if quota else None)


def explained(error: Exception) -> str:
    """Return why the platform gave no GPU, or took it back, and what it says itself, without a full stop."""
    title, said = str(getattr(error, "title", "")), _plain(str(getattr(error, "message", "") or error))
    what = f"{title}: {said}".lower()
    if "no gpu was available" in what or "queue timeout" in what:
        return f"no GPU is free now. {HUB}: {said}"
    if "quota" in what or "gpu limit" in what or "credits" in what:
        return f"no GPU: the daily quota of this visitor or Space is used up. {HUB}: {said}"
    if "duration" in what:
        return f"no GPU: it was asked for longer than the platform allows. {HUB}: {said}"
    if "aborted" in what:
        return "the platform ended the burst: it took longer than was asked for, or ran out of memory"
    if "expired" in what:
        return "no GPU: the page's permission to use your quota has expired"
    return f"the burst failed. {HUB}: {said or type(error).__name__}"


def _plain(text: str) -> str:
    """Return a text of the platform in one line, without tags, the full stop at its end, and advice that is about
    Gradio's examples."""
    text = re.sub(r"<[^>]*>|Try re-running outside of examples[^.]*", "", text)
    return " ".join(text.split()).rstrip(". ")[:300]


# ---- start-up with Gradio's own server -------------------------------------------------------------------


class Instead:
    """Answers all requests of Gradio's server with `served`, our application, which starts and ends with it; except
    `INNER`, by which Gradio tells whether its server is up."""

    def __init__(self, app: ASGIApp, served: FastAPI) -> None:
        self._app = app
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with self._served.router.lifespan_context(self._served):
                await self._app(scope, receive, send)
        elif INNER.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
        else:
            await self._served(scope, receive, send)


def launch(app: FastAPI, host: str, listener: socket.socket) -> Callable[[], None]:
    """Serve `app` by Gradio's `launch`, at the address of `listener`, which is closed; return what ends that."""
    import gradio as gr

    port = listener.getsockname()[1]
    listener.close()
    with gr.Blocks(analytics_enabled=False) as shell:
        pass
    shell.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        ssr_mode=False,  # its front server forwards no WebSockets
        quiet=True,
        inbrowser=False,
        share=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Instead, served=app)]},
    )
    return lambda: shell.close(verbose=False)
