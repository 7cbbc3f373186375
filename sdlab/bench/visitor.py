"""A server in this process and a visitor in a real browser, for benchmarks of the page.

The browser is the system's Chromium, driven by Playwright, which only this module needs. It draws WebGL in software, as
on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdlab.bench import distant
from sdlab.errors import first_line
from sdlab.live.clients import Client
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Event, Failed
from sdlab.live.session import Session
from sdlab.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route
    from uvicorn import Server

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
SOFTWARE_GL = ("--no-sandbox", "--enable-unsafe-swiftshader")
WINDOW = {"width": 1280, "height": 800}
PATIENCE = 300.0  # time limit of every wait, in seconds: a machine may be busy or have to compile
LOOK_EVERY = 0.05  # seconds
DESK = "/desk"  # part of the path of a page's first request
NEWS = "/news/"  # part of the path of every request for news
DO = "/do/"  # part of the path of every request that carries acts of the user
OURS = (DESK, NEWS, DO)
# durations of calls as measured by the browser, from sending to the last byte of the response, in ms
OWN_TIMES = (
    "if (window === window.top) { window.callsOfPage = []; new PerformanceObserver((list) => {"
    f"for (const e of list.getEntries()) if ({json.dumps(OURS)}.some((part) => e.name.includes(part)))"
    " window.callsOfPage.push(e.duration);"
    "}).observe({ type: 'resource', buffered: true }); }"
)

# A visitor who has been here before; without the recording that plays on the stage until there is a live view.
RETURNING = "try { localStorage['sdlab-welcomed'] = 'yes'; localStorage['sdlab-examples'] = 'closed'; } catch {}"
LIVE_ONLY = ".opening { visibility: hidden !important; }"

Serve = Callable[[Manager, Settings], "Server"]  # a server of the page on a free port, not yet running


# ---- the browser -----------------------------------------------------------------------------------------


def require_browser() -> None:
    """Raise RuntimeError that says what to install if no page can be opened."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as e:
        raise RuntimeError("Playwright, which drives the browser, is not installed: pip install playwright") from e
    if _chromium() is not None:
        return
    with sync_playwright() as p:
        if not Path(p.chromium.executable_path).exists():
            raise RuntimeError(
                f"no browser found: install Chromium (looked for {', '.join(CHROMIUM)}), or Playwright's own browser "
                "with `python -m playwright install chromium`"
            )


def _chromium() -> str | None:
    """Return the path of the system's Chromium, or None, which makes Playwright use its own."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser without a page. Its errors become RuntimeErrors of one line."""
    from playwright.sync_api import Error, sync_playwright

    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=_chromium(), args=list(SOFTWARE_GL))
            try:
                yield browser
            finally:
                browser.close()
    except Error as e:
        raise RuntimeError(f"browser error: {first_line(e)}") from e


def _leave_out(route: Route) -> None:
    """Answer the frame of a view with nothing; let other requests through."""
    if route.request.is_navigation_request():
        route.fulfill(body="", content_type="text/html")
    else:
        route.continue_()


class Tab:
    """A newly opened page."""

    def __init__(self, browser: Browser, site: Site, view: bool = True) -> None:
        """`view` False leaves the 3D view out, which software draws slowly."""
        self._site = site
        self._context = browser.new_context(viewport=WINDOW)  # type: ignore[arg-type]
        self._context.add_init_script(OWN_TIMES)
        self._context.add_init_script(RETURNING)
        self.page = self._context.new_page()
        if not view:
            for views in ("**/viewport/**", "**/flat/**"):
                self.page.route(views, _leave_out)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.opened = time.perf_counter()
        self.page.goto(site.address)

    @property
    def meter(self) -> Meter:
        """The meter of the lane in focus."""
        return self._site.manager.meters[self.seat_id()]

    def seat_id(self) -> str:
        """Return the seat of the lane in focus."""
        self.page.wait_for_selector(".lane.focus iframe", state="attached")
        address = self.page.get_attribute(".lane.focus iframe", "src") or ""
        found = re.fullmatch(r"(?:viewport|flat)/(.+)/", address)
        if found is None:
            raise RuntimeError(f"the lane in focus has no view: its address is {address!r}")
        return found[1]

    def require_health(self) -> None:
        """Raise RuntimeError if a session has failed."""
        for meter in list(self._site.manager.meters.values()):  # a branch may be added meanwhile
            meter.require_health()

    def click(self, selector: str) -> None:
        self.page.click(selector)

    def toggle(self, loss: str) -> None:
        """Press the button of a loss, which may be in the folded part."""
        button = f'#form [data-value="{loss}"]'
        if not self.page.is_visible(button):
            self.page.click("#form .others summary")
        self.page.click(button)

    def wait(self, seconds: float) -> None:
        """Wait while serving Playwright."""
        self.page.wait_for_timeout(1000 * seconds)

    def wait_for_phase(self, phase: str) -> None:
        self.page.wait_for_selector(f'#status [data-phase="{phase}"]')

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds. Raises RuntimeError that names `what` after PATIENCE, or if a session fails."""
        until(condition, what, self.require_health, self.wait)

    def view(self) -> np.ndarray:
        """Return a screenshot of the 3D view in focus, float [H, W, 3] in [0, 255]."""
        style = self.page.add_style_tag(content=LIVE_ONLY)  # not in the view's own page, whose policy forbids it
        shot = self.page.locator(".lane.focus iframe").screenshot()
        style.evaluate("(element) => element.remove()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.float32)

    def own_times(self) -> list[float]:
        """Return the milliseconds of every call of a handler so far, as the browser saw them."""
        return self.page.evaluate("window.callsOfPage")

    def close(self) -> None:
        self._context.close()


def until(
    condition: Callable[[], object],
    what: str,
    require_health: Callable[[], None] = lambda: None,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Wait as in `Tab.until`."""
    end = time.monotonic() + PATIENCE
    while not condition():
        require_health()
        if time.monotonic() > end:
            raise RuntimeError(f"timed out after {PATIENCE:.0f} s waiting for {what}")
        wait(LOOK_EVERY)


# ---- the server ------------------------------------------------------------------------------------------


class Meter:
    """Step counts and times of a session, taken in its own thread."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.steps = 0
        self.now = (0, 0.0)  # last step, and CPU seconds of the thread until then
        self.first_step: dict[str, int] = {}  # loss -> first step in which it moved the scene
        self._failure = ""
        seat.session.listen(self._listen)
        seat.session.listen_to_steps(self._stepped)

    @property
    def session(self) -> Session:
        return self.seat.session

    def _listen(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._failure = f"a session failed at step {event.step}: {event.reason}"

    def _stepped(self, step: int) -> None:
        self.steps += 1
        self.now = (step, time.thread_time())
        self.first_step.setdefault(self.session.state.regime.partition(" ")[0], step)

    def require_health(self) -> None:
        """Raise RuntimeError if the session has failed."""
        if self._failure:
            raise RuntimeError(self._failure)


class MeteredManager(Manager):
    """A manager with a meter for every session from its start."""

    def __init__(self, device: torch.device | str, max_sessions: int) -> None:
        super().__init__(device, max_sessions)
        self.meters: dict[str, Meter] = {}  # by seat

    def open(self, settings: Settings, client: Client | None = None) -> Seat:
        return self._metered(super().open(settings, client))

    def branch(self, seat_id: str, changes: Iterable[tuple[str, Any]] = ()) -> Seat:
        return self._metered(super().branch(seat_id, changes))

    def _metered(self, seat: Seat) -> Seat:
        self.meters[seat.id] = Meter(seat)
        return seat

    def close_all(self) -> None:
        """End all sessions and wait for their threads."""
        for meter in list(self.meters.values()):
            self.close(meter.seat.id)
        for meter in list(self.meters.values()):
            meter.seat.thread.join(PATIENCE)
        self.meters.clear()


class Calls:
    """ASGI middleware that times every request of the page from its arrival to the end of the response, including the
    wait for a thread."""

    def __init__(self, app: ASGIApp, kept: list[tuple[str, float]]) -> None:
        self._app = app
        self._kept = kept  # (what was asked, ms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(OURS):
            await self._app(scope, receive, send)
            return
        body = b""
        started = time.perf_counter()

        async def keep_body() -> Message:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            return message

        async def watch_end(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._kept.append((_asked_for(scope["path"], body), 1e3 * (time.perf_counter() - started)))

        await self._app(scope, keep_body, watch_end)


def _asked_for(path: str, body: bytes) -> str:
    """Return the name of a request: "poll", the verb of the first act, or "arrive"; "refused" for acts that were
    refused before they were read."""
    if path.startswith(NEWS):
        return "poll"
    if not path.startswith(DO):
        return "arrive"
    return json.loads(body)[0]["do"] if body else "refused"


class Site:
    """Serves the page from this process, as app.py does, until the end of the `with` block."""

    def __init__(self, serve: Serve, settings: Settings, device: torch.device, seats: int) -> None:
        self.manager = MeteredManager(device, seats)
        self.calls: list[tuple[str, float]] = []
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
    def visited_remotely(self, tab: str) -> Iterator[str]:
        """Open a page on a simulated other machine that shows `tab`; yields its seat. See `sdlab.bench.distant`."""
        command = [sys.executable, distant.__file__, self.address, tab]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            try:
                seat = program.stdout.readline().strip() if program.stdout else ""
                if seat not in self.manager.meters:
                    raise RuntimeError("the simulated visitor could not open the page: see above")
                yield seat
            finally:
                program.communicate()  # closes its input, which ends it


# ---- resources -------------------------------------------------------------------------------------------


def browser_cpu_seconds() -> dict[int, float]:
    """Return the CPU time so far of each child process: the browser and what drives it."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # the process has just ended
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def rss_mb() -> float:
    """Return the current resident memory of this process."""
    return psutil.Process().memory_info().rss / 2**20
