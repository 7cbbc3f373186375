"""A server in this process and a visitor in a real browser, for measurements of the page.

The browser is the system's Chromium, driven by Playwright, which only this needs. It draws WebGL by software, as on a
machine without a graphics processor.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from PIL import Image
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdlab.bench import distant
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Event, Failed, Stepped
from sdlab.live.session import Session
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from uvicorn import Server

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
SOFTWARE_GL = ("--no-sandbox", "--enable-unsafe-swiftshader")
WINDOW = {"width": 1280, "height": 800}
PATIENCE = 300.0  # seconds for whatever is waited for: a machine may be busy, and compile what it meets first
LOOK_EVERY = 0.05  # seconds
CALL = "/gradio_api/run/"  # in the address of every call of a handler
NEWS = "/news/"  # in that of a question for what is new
POLL = -1  # stands for it among Gradio's numbers of handlers
# what the browser itself says of its calls: from sending to the last byte of the answer, in ms
OWN_TIMES = (
    "if (window === window.top) { window.callsOfPage = []; new PerformanceObserver((list) => {"
    f"for (const e of list.getEntries()) if (e.name.includes('{CALL}') || e.name.includes('{NEWS}'))"
    " window.callsOfPage.push(e.duration);"
    "}).observe({ type: 'resource', buffered: true }); }"
)

Serve = Callable[[Manager, Settings], "Server"]  # a server of the page on a free port, not yet running


# ---- the browser -----------------------------------------------------------------------------------------


def require_browser() -> None:
    """RuntimeError that says what to install where no page can be opened."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as e:
        raise RuntimeError("a browser is driven with Playwright, which is not installed: pip install playwright") from e
    if _chromium() is not None:
        return
    with sync_playwright() as p:
        if not Path(p.chromium.executable_path).exists():
            raise RuntimeError(
                f"there is no browser: install Chromium (looked for {', '.join(CHROMIUM)}), or give Playwright its own "
                "with python -m playwright install chromium"
            )


def _chromium() -> str | None:
    """The system's; None where there is none, and Playwright's own is tried."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser without a page. What goes wrong in it is a RuntimeError of one line."""
    from playwright.sync_api import Error, sync_playwright

    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=_chromium(), args=list(SOFTWARE_GL))
            try:
                yield browser
            finally:
                browser.close()
    except Error as e:
        raise RuntimeError(f"the browser: {e.message.strip().splitlines()[0]}") from e


class Tab:
    """A page that was just opened."""

    def __init__(self, browser: Browser, site: Site) -> None:
        self._site = site
        self._context = browser.new_context(viewport=WINDOW)  # type: ignore[arg-type]
        self._context.add_init_script(OWN_TIMES)
        self.page = self._context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.opened = time.perf_counter()
        self.page.goto(site.address)

    @property
    def meter(self) -> Meter:
        """Of the lane in focus."""
        return self._site.manager.meters[self.seat_id()]

    def seat_id(self) -> str:
        """Of the lane in focus."""
        self.page.wait_for_selector(".lane.focus iframe", state="attached")
        address = self.page.get_attribute(".lane.focus iframe", "src") or ""
        found = re.fullmatch(r"(?:viewport|flat)/(.+)/", address)
        if found is None:
            raise RuntimeError(f"the lane in focus has no view, but {address!r}")
        return found[1]

    def require_health(self) -> None:
        """RuntimeError when a session has failed."""
        for meter in list(self._site.manager.meters.values()):  # a branch may come in between
            meter.require_health()

    def click(self, selector: str) -> None:
        self.page.click(selector)

    def toggle(self, loss: str) -> None:
        """Press the button of a loss, which may be folded away."""
        button = f'#form [data-value="{loss}"]'
        if not self.page.is_visible(button):
            self.page.click("#form .others summary")
        self.page.click(button)

    def wait(self, seconds: float) -> None:
        """Let time pass. Playwright has to be served meanwhile."""
        self.page.wait_for_timeout(1000 * seconds)

    def wait_for_phase(self, phase: str) -> None:
        self.page.wait_for_selector(f'#status [data-phase="{phase}"]')

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds; RuntimeError, naming `what`, after PATIENCE, or when a session fails."""
        until(condition, what, self.require_health, self.wait)

    def view(self) -> np.ndarray:
        """The 3D view in focus as it is drawn now, float [H, W, 3] in [0, 255]."""
        shot = self.page.locator(".lane.focus iframe").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.float32)

    def own_times(self) -> list[float]:
        """Milliseconds of each call of a handler so far, as the browser saw them."""
        return self.page.evaluate("window.callsOfPage")

    def close(self) -> None:
        self._context.close()


def until(
    condition: Callable[[], object],
    what: str,
    require_health: Callable[[], None] = lambda: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """See `Tab.until`."""
    end = time.monotonic() + PATIENCE
    while not condition():
        require_health()
        if time.monotonic() > end:
            raise RuntimeError(f"waited {PATIENCE:.0f} s in vain for {what}")
        wait(LOOK_EVERY)


# ---- the server ------------------------------------------------------------------------------------------


class Meter:
    """What a session's own thread says of its steps."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.steps = 0
        self.now = (0, 0.0)  # the last step, and the processor's seconds that the thread had taken by then
        self.first_step: dict[str, int] = {}  # by loss: when it first moved the scene
        self._failure = ""
        seat.session.listen(self._listen)

    @property
    def session(self) -> Session:
        return self.seat.session

    def _listen(self, event: Event) -> None:
        match event:
            case Stepped(step):
                self.steps += 1
                self.now = (step, time.thread_time())
                self.first_step.setdefault(self.session.state.regime.partition(" ")[0], step)
            case Failed(step, reason):
                self._failure = f"a session failed at step {step}: {reason}"

    def require_health(self) -> None:
        """RuntimeError when the session has failed."""
        if self._failure:
            raise RuntimeError(self._failure)


class MeteredManager(Manager):
    """Has a meter for every session, from its beginning."""

    def __init__(self, device: torch.device | str, max_sessions: int) -> None:
        super().__init__(device, max_sessions)
        self.meters: dict[str, Meter] = {}  # by seat

    def open(self, settings: Settings) -> Seat:
        return self._metered(super().open(settings))

    def branch(self, seat_id: str, changes: Iterable[tuple[str, Any]] = ()) -> Seat:
        return self._metered(super().branch(seat_id, changes))

    def _metered(self, seat: Seat) -> Seat:
        self.meters[seat.id] = Meter(seat)
        return seat

    def close_all(self) -> None:
        """End all sessions and wait until they are over."""
        for meter in list(self.meters.values()):
            self.close(meter.seat.id)
        for meter in list(self.meters.values()):
            meter.seat.thread.join(PATIENCE)
        self.meters.clear()


class Calls:
    """Times every call of one of the page's handlers and every question for what is new, from the arrival of the
    request to the end of the answer: what Gradio makes of both and the wait for a thread are in it. Plain ASGI."""

    def __init__(self, app: ASGIApp, kept: list[tuple[int, float]]) -> None:
        self._app = app
        self._kept = kept  # (Gradio's number of the handler, ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith((CALL, NEWS)):
            await self._app(scope, receive, send)
            return
        asked = b""
        started = time.perf_counter()

        async def keep_body() -> Message:
            nonlocal asked
            message = await receive()
            asked += message.get("body", b"")
            return message

        async def watch_end(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ms = 1e3 * (time.perf_counter() - started)
                number = POLL if scope["path"].startswith(NEWS) else int(json.loads(asked)["fn_index"])
                self._kept.append((number, ms))

        await self._app(scope, keep_body, watch_end)


class Site:
    """The page, served from this process as app.py does it, until the end of the `with` block."""

    def __init__(self, serve: Serve, settings: Settings, device: torch.device, seats: int) -> None:
        self.manager = MeteredManager(device, seats)
        self.calls: list[tuple[int, float]] = []
        self._server = serve(self.manager, settings)
        self._app: Any = self._server.config.app
        self._app.add_middleware(Calls, kept=self.calls)
        self._settings = settings
        self._thread = threading.Thread(target=self._server.run, name="sdlab-site", daemon=True)

    def __enter__(self) -> Site:
        self.manager.preload(self._settings)
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive(), "the server")
        if not self._server.started:
            raise RuntimeError("the server did not start")
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    @contextlib.contextmanager
    def visited_from_elsewhere(self, tab: str) -> Iterator[str]:
        """A page that is open somewhere else and shows `tab`; its seat. See `sdlab.bench.distant`."""
        numbers = {name: str(number) for number, name in self.handlers.items()}
        command = [sys.executable, distant.__file__, self.address, numbers["arrive"], numbers["act"], tab]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            try:
                seat = program.stdout.readline().strip() if program.stdout else ""
                if seat not in self.manager.meters:
                    raise RuntimeError("a visitor from elsewhere could not open the page: see above")
                yield seat
            finally:
                program.communicate()  # which ends its input, and so itself

    @functools.cached_property
    def handlers(self) -> dict[int, str]:
        """The handlers' names by Gradio's numbers."""
        pages = [route.app for route in self._app.routes if isinstance(route, Mount)]
        fns = next(blocks.fns for page in pages if (blocks := getattr(page, "blocks", None)) is not None)
        return {POLL: "poll"} | {number: fn.fn.__name__.strip("_") for number, fn in fns.items() if fn.fn is not None}


# ---- what it takes ---------------------------------------------------------------------------------------


def processor_seconds_of_browser() -> dict[int, float]:
    """Processor time so far of each process that this one has started: the browser's, and what drives it."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def rss_mb() -> float:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20
