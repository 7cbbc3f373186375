"""The page as a person uses it: a real server, a real browser (headless Chromium with software WebGL)."""

import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from run_folders import run_folder, zipped
from test_lessons import SHORT
from waiting import LONG, until

from sdlab.bench.visitor import LIVE_ONLY, RETURNING
from sdlab.cli import main
from sdlab.export.writers import render_turntable
from sdlab.live.clients import UNSEEN_SHARE
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Advance, Applied, Event, Failed, Noted, Patch, Rejected, Reset, Skipped, Status, Stepped
from sdlab.live.session import Session
from sdlab.settings import PRESETS, Settings, from_toml, preset, preset_names, to_toml
from sdlab.toybox import judge
from sdlab.ui.server import build
from sdlab.ui.server import server as page_server
from sdlab.ui.visitors import Visitors
from sdlab.viewport.splat_view import SplatView

ROOT = Path(__file__).parents[1]
COMPILING = 120  # s; a network that this machine has not met is compiled first
GRACE = 1.0


def settings() -> Settings:
    """Exact scores: milliseconds a step, and no file is needed."""
    changes = [("steps", 100_000), ("scene.n_init", 100), ("scene.max_gaussians", 100), ("camera.views", 1)]
    return preset("mixture").patch_all(changes)


@pytest.fixture(scope="module", autouse=True)
def presets(unhurried: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Presets of which none loads a network."""
    folder = tmp_path_factory.mktemp("presets")
    texts = {
        "mixture": (PRESETS / "mixture.toml").read_text(),
        "strong": (
            '[about]\ntitle = "Strong"\ntext = "CFG 50, to see what it does"\n[prompt]\ntext = "a strong bear"\n'
            '[prior]\nkind = "mixture"\n[losses.sds]\ncfg = 50.0\n'
        ),
        **{name: (PRESETS / f"{name}.toml").read_text() for name in ("playground", "playground-esd")},
        "elsewhere": '[prior]\nkind = "diffusers"\npath = "/nowhere"\n',
    }
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    lessons = tmp_path_factory.mktemp("lessons")
    (lessons / "short.toml").write_text(SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.PRESETS", folder)
        patch.setattr("sdlab.lessons.library.FOLDER", lessons)
        yield


@pytest.fixture(scope="module")
def manager() -> Manager:
    return Manager(max_sessions=3, grace=GRACE)


@pytest.fixture(scope="module")
def address(manager: Manager) -> Iterator[str]:
    app = build(manager, settings(), "mixture", locked=["prior.seed"])
    server = page_server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)
    assert manager.count() == 0, "the application ends its sessions"


class Tab:
    """A visitor's tab and the seat it was given; `view` False leaves the 3D view out, which is slow to draw."""

    def __init__(self, browser, manager: Manager, address: str, view: bool, **context) -> None:
        self.context = browser.new_context(viewport={"width": 960, "height": 640}, **context)
        self.context.add_init_script(RETURNING)
        self.page = self.context.new_page()
        if not view:
            for views in ("**/viewport/**", "**/flat/**"):
                self.page.route(views, lambda route: route.fulfill(body="", content_type="text/html"))
        self.page.set_default_timeout(1000 * LONG)
        self.errors: list[str] = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.manager = manager
        self.page.goto(address)

    def hear(self, message) -> None:
        """Errors; but for a file that was refused."""
        refused = "422" in message.text and "/uploads/" in message.location["url"]
        if message.type == "error" and not refused:
            self.errors.append(message.text)

    @property
    def token(self) -> str:
        source = self.page.get_attribute(".lane.focus iframe", "src")
        return re.fullmatch(r"(?:viewport|flat)/(.+)/", source).group(1)

    @property
    def seat(self) -> Seat:
        return self.manager._seats[self.token]  # not `get`, which would be a sign of life

    @property
    def session(self) -> Session:
        return self.seat.session

    @property
    def step(self) -> int:
        """What the page says."""
        return int(self.page.get_attribute("#status .status", "data-step"))

    def events(self) -> list[Event]:
        return self.session.events.since(0)[0]

    def wait_for_phase(self, *phases: str, seconds: float = LONG) -> None:
        selector = ", ".join(f'#status [data-phase="{p}"]' for p in phases)
        self.page.wait_for_selector(selector, timeout=1000 * seconds)

    def wait_for_step(self, step: int, seconds: float = LONG) -> None:
        until(lambda: self.step >= step, seconds)

    def type(self, selector: str, text: str) -> None:
        self.page.fill(selector, text)
        self.page.press(selector, "Enter")

    def view(self) -> np.ndarray:
        """The view in focus as it is drawn."""
        style = self.page.add_style_tag(content=LIVE_ONLY)  # not in the view's own page, whose policy forbids it
        shot = self.page.locator(".lane.focus iframe").screenshot()
        style.evaluate("(element) => element.remove()")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))

    def shoot(self, name: str) -> None:
        folder = ROOT / "test-artifacts"
        folder.mkdir(exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")

    def close(self) -> None:
        self.context.close()
        assert not self.errors, self.errors


@pytest.fixture
def open_tab(browser, manager: Manager, address: str) -> Iterator[Callable[..., Tab]]:
    tabs = []

    def open_one(ready: bool = True, view: bool = False, **options) -> Tab:
        tab = Tab(browser, manager, address, view, **options)
        tabs.append(tab)
        if ready:
            tab.wait_for_phase("ready", seconds=COMPILING)
        return tab

    yield open_one
    for tab in tabs:
        tab.close()
    for token in list(manager._seats):  # without the grace for pages that are opened again
        manager.close(token)
    until(lambda: manager.count() == 0)


# ---- one run ---------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_run_from_start_to_reset(open_tab: Callable[..., Tab]):
    tab = open_tab(view=True)
    tab.page.click("[data-tab=charts]")
    assert tab.step == 0
    assert tab.session.latest.get().step == 0
    until(lambda: tab.view().std() > 3)  # the ball at the start: the canvas is not uniform
    before = tab.view().astype(float)

    tab.page.click("#start")
    tab.wait_for_phase("running")
    tab.wait_for_step(20)
    until(lambda: np.abs(tab.view() - before).mean() > 2)  # it is another picture by now
    until(lambda: tab.page.locator("#charts polyline").count() >= 2)
    tab.shoot("running")

    # CFG and prompt, while it runs
    tab.type("#knob-losses-sds-cfg", "20")
    tab.type("#prompt textarea, #prompt input", "a blue car")
    until(lambda: tab.session.settings.loss.cfg == 20 and tab.session.settings.prompt.text == "a blue car")
    applied = {e.path: e for e in tab.events() if isinstance(e, Applied)}
    assert set(applied) == {"losses.sds.cfg", "prompt.text"}
    last = max(e.step for e in applied.values())
    until(lambda: any(isinstance(e, Stepped) and e.step > last for e in tab.events()))  # and steps follow them
    assert tab.session.effective.loss.cfg == 20
    until(lambda: tab.page.locator("#charts .mark").count() >= 2)

    # pause: nothing moves
    tab.page.click("#pause")
    tab.wait_for_phase("paused")
    until(lambda: tab.session.status.phase == "paused")
    paused = tab.session.state.step
    until(lambda: tab.step == paused)
    time.sleep(0.5)
    assert tab.session.state.step == paused

    # one step is one step
    tab.page.click("#step")
    until(lambda: tab.step == paused + 1)
    time.sleep(0.5)
    assert tab.session.state.step == paused + 1
    assert tab.session.status.phase == "paused"

    # and back to the beginning
    tab.page.click("#reset")
    tab.wait_for_phase("ready")
    until(lambda: tab.step == 0)
    assert tab.session.state.step == 0
    assert tab.session.settings.prompt.text == "a blue car", "a reset keeps the settings"
    until(lambda: tab.page.locator("#charts polyline").count() == 0)


@pytest.mark.browser
def test_start_takes_the_prompt_as_typed(open_tab: Callable[..., Tab]):
    tab = open_tab()
    tab.page.fill("#prompt textarea, #prompt input", "a green tree")
    tab.page.click("#step")
    until(lambda: any(isinstance(e, Stepped) for e in tab.events()))  # told after the frame
    first = next(i for i, e in enumerate(tab.events()) if isinstance(e, Stepped))
    assert any(isinstance(e, Applied) and e.value == "a green tree" for e in tab.events()[:first])


# ---- knobs -----------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_refused_value_is_explained_and_the_run_goes_on(open_tab: Callable[..., Tab]):
    tab = open_tab()
    tab.page.click("#start")
    tab.wait_for_phase("running")
    tab.page.click("[data-group=camera] summary")
    tab.type("#knob-camera-distance_min", "9")
    tab.page.wait_for_selector("#status .error")
    assert "Distance min = 9 is above Distance max = 3.1" in tab.page.inner_text("#status .error")
    until(lambda: tab.page.input_value("#knob-camera-distance_min") == "2.8")  # the value in force
    tab.shoot("refused")

    before = tab.step
    tab.wait_for_step(before + 5)
    tab.type("#knob-losses-sds-cfg", "1000")
    until(lambda: "must be a number from 0 to 200" in tab.page.inner_text("#status"))
    until(lambda: tab.page.input_value("#knob-losses-sds-cfg") == "7.5")
    tab.type("#prompt textarea, #prompt input", "x" * 10_000)
    until(lambda: "at most 300 characters" in tab.page.inner_text("#status"))
    until(lambda: tab.page.input_value("#prompt textarea, #prompt input") == "a red bear")
    assert {e.path for e in tab.events() if isinstance(e, Rejected)} == {
        "camera.distance_min",
        "losses.sds.cfg",
        "prompt.text",
    }

    tab.type("#knob-losses-sds-cfg", "30")  # the next change ends the message
    tab.page.wait_for_selector("#status .error", state="detached")
    assert tab.session.settings.loss.cfg == 30
    assert tab.session.settings.camera == settings().camera


@pytest.mark.browser
def test_sliders_switches_and_choices(open_tab: Callable[..., Tab]):
    tab = open_tab()
    s = tab.session
    for group in ("run", "prompt", "camera", "schedule", "optim", "scene", "prior"):
        tab.page.click(f"[data-group={group}] > summary")

    slider = tab.page.locator('[data-path="losses.sds.cfg"] input[type=range]')
    slider.fill("500")  # of 1000 notches over 0 .. 200
    until(lambda: s.settings.loss.cfg == 100)
    assert tab.page.input_value("#knob-losses-sds-cfg") == "100"

    rate = tab.page.locator('[data-path="optim.lr_means"] input[type=range]')
    rate.fill("500")  # logarithmic, 1e-6 .. 1
    until(lambda: s.settings.optim.lr_means == pytest.approx(1e-3))
    rate.fill("250")
    until(lambda: s.settings.optim.lr_means == 3.2e-5)
    assert tab.page.input_value("#knob-optim-lr_means") == "3.2e-5"
    rate.fill("0")  # and off at the left end
    until(lambda: s.settings.optim.lr_means == 0)

    def colour() -> str:
        return tab.page.evaluate(
            "getComputedStyle(document.querySelector('#knob-prompt-view_dependent')).backgroundColor"
        )

    on = colour()
    tab.page.uncheck("#knob-prompt-view_dependent")
    until(lambda: not s.settings.prompt.view_dependent)
    until(lambda: colour() != on)  # Gradio's own style would show both alike
    tab.page.select_option("#knob-camera-background", "black")
    until(lambda: s.settings.camera.background == "black")

    tab.page.click("#step")
    until(lambda: tab.step == 1)
    tab.page.click('[data-path="schedule.start"] [data-now]')
    until(lambda: s.settings.schedule.start == 1)
    assert tab.page.input_value("#knob-schedule-start") == "1"
    tab.type("#knob-scene-splats-n_init", "50")
    until(lambda: s.settings.scene.n_init == 50)
    until(lambda: "N init: applied at the next reset" in tab.page.inner_text("#status"))
    assert s.effective.scene.n_init == 100
    assert "at the next reset" in tab.page.inner_text('[data-path="scene.n_init"]')
    tab.page.click("#reset")
    until(lambda: s.latest.get().stats["n_gaussians"] == 50)

    locked = tab.page.locator("#knob-prior-mixture-seed")
    assert locked.is_disabled()
    assert "Fixed on this server" in tab.page.inner_text('[data-owner="prior/mixture"] [data-path="prior.seed"]')
    tab.page.evaluate(  # and a visitor who enables it is not heard
        """() => { const f = document.querySelector('#knob-prior-mixture-seed'); f.disabled = false; f.value = 5;
        f.dispatchEvent(new Event('change')); }"""
    )
    tab.type("#knob-run-steps", "77")
    until(lambda: s.settings.steps == 77)
    assert s.settings.prior.seed == 0


@pytest.mark.browser
def test_another_preset_and_another_prior(open_tab: Callable[..., Tab], manager: Manager):
    tab = open_tab()
    first = tab.token
    assert tab.page.input_value("#preset") == "mixture"
    tab.type("#knob-losses-sds-cfg", "33")
    until(lambda: tab.session.settings.loss.cfg == 33)
    tab.page.select_option("#preset", "strong")  # the same kind of prior: one patch to the same session
    until(lambda: tab.session.settings == preset("strong"))
    until(lambda: tab.page.input_value("#knob-losses-sds-cfg") == "50")
    until(lambda: tab.page.input_value("#prompt textarea, #prompt input") == "a strong bear")
    assert "CFG 50, to see what it does" in tab.page.inner_text(".preset")
    assert tab.token == first

    tab.page.select_option("#preset", "elsewhere")  # another kind needs another session
    until(lambda: tab.token != first)
    assert not manager.exists(first)
    tab.wait_for_phase("failed")
    assert "/nowhere" in tab.page.inner_text("#status")
    assert tab.page.input_value("#knob-losses-sds-cfg") == "7.5"
    assert tab.page.locator('[data-owner="prior/mixture"]').get_attribute("hidden") is not None
    assert tab.page.locator('[data-owner="prior/diffusers"]').get_attribute("hidden") is None
    tab.page.click("#start")  # a second try fails as the first, and is said again
    time.sleep(1)
    tab.wait_for_phase("failed")


@pytest.mark.browser
def test_nothing_typed_becomes_html(open_tab: Callable[..., Tab]):
    tab = open_tab()
    tab.page.click("[data-tab=charts]")
    tab.page.click("#start")
    evil = "<img src=x onerror=window.broken=1>\"'${window.broken=1}{{broken}}`"
    tab.type("#prompt textarea, #prompt input", evil)
    until(lambda: tab.session.settings.prompt.text == evil)
    until(lambda: tab.page.locator("#charts .mark").count() > 0)
    assert evil in tab.page.locator("#charts title").last.text_content()
    tab.type("#prompt textarea, #prompt input", evil + "x" * 300)
    tab.page.wait_for_selector("#status .error")
    assert tab.page.evaluate("window.broken") is None


@pytest.mark.browser
def test_acts_wait_for_the_one_under_way_and_of_a_slider_the_last_counts(open_tab: Callable[..., Tab]):
    tab = open_tab()
    posted: list[list[dict]] = []

    def slowly(route) -> None:
        posted.append(route.request.post_data_json)
        tab.page.wait_for_timeout(500)
        route.continue_()

    tab.page.route("**/do/**", slowly)
    slider = tab.page.locator('[data-path="losses.sds.cfg"] input[type=range]')
    for position in (100, 200, 300, 400, 500):
        slider.fill(str(position))
    tab.page.fill("#prompt textarea", "a blue car")
    tab.page.click("#step")
    until(lambda: tab.step == 1)
    acts = [act for acts in posted for act in acts]
    assert [act["value"] for act in acts if act["do"] == "knob"][-1] == 100
    assert [act["do"] for act in acts][-2:] == ["prompt", "step"], "in the order in which they were done"
    assert len(posted) <= 3, "what waits goes together"
    first = next(i for i, e in enumerate(tab.events()) if isinstance(e, Stepped))
    applied = {e.path: e.value for e in tab.events()[:first] if isinstance(e, Applied)}
    assert applied == {"losses.sds.cfg": 100, "prompt.text": "a blue car"}


@pytest.mark.browser
def test_a_note_of_the_session_is_shown(open_tab: Callable[..., Tab]):
    tab = open_tab()
    tab.session.events.append(Noted(0, "drawn more slowly: gsplat is not installed"))
    tab.page.wait_for_selector("#status .warning:text('Drawn more slowly: gsplat is not installed')")
    tab.type("#knob-losses-sds-cfg", "20")
    tab.page.wait_for_selector("#status .warning", state="detached")


# ---- visitors --------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_two_tabs_do_not_see_each_other(open_tab: Callable[..., Tab]):
    a, b = open_tab(), open_tab()
    assert a.token != b.token
    a.page.click("#start")
    a.wait_for_step(5)
    a.type("#knob-losses-sds-cfg", "40")
    until(lambda: a.session.settings.loss.cfg == 40)
    time.sleep(1.2)  # two ticks
    assert b.step == 0
    assert b.session.status.phase == "ready"
    assert b.session.settings == settings()
    assert b.page.input_value("#knob-losses-sds-cfg") == "7.5"


@pytest.mark.browser
def test_a_closed_tab_frees_its_session(open_tab: Callable[..., Tab], manager: Manager, address: str):
    tab = open_tab()
    token, session, thread = tab.token, tab.session, tab.seat.thread
    assert urllib.request.urlopen(f"{address}viewport/{token}/").status == 200
    tab.page.click("#start")
    tab.wait_for_step(3)
    tab.page.close()
    until(lambda: not manager.exists(token), GRACE + 15)
    thread.join(10)
    assert session.status.phase == "ended"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}viewport/{token}/")


@pytest.mark.browser
def test_a_tab_closed_at_once_frees_its_seat(
    open_tab: Callable[..., Tab], manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sdlab.ui.page.ARRIVING", 2.0)
    monkeypatch.setattr("sdlab.ui.page.Page.leave", lambda pages, page: None)  # as when it had no connection yet
    monkeypatch.setattr("sdlab.ui.page.Page.poll", lambda pages, *asked: {})  # no poll is a sign of life
    open_tab(ready=False)
    until(lambda: manager.count() == 1)
    until(lambda: manager.count() == 0, 20)


@pytest.mark.browser
def test_a_closed_page_is_found_again_at_its_address_and_a_hidden_one_is_slowed(
    open_tab: Callable[..., Tab], manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(manager, "grace", 120.0)
    tab = open_tab()
    first, account, address = tab.token, tab.seat.client.account, tab.page.url
    tab.page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away ?? false })")
    for away, share in (("true", UNSEEN_SHARE), ("false", 1.0)):
        tab.page.evaluate(f"window.away = {away}; document.dispatchEvent(new Event('visibilitychange'))")
        until(lambda share=share: account.share == share)

    tab.page.click("#start")
    tab.wait_for_step(3)
    beside = tab.context.new_page()
    beside.goto(address)
    beside.wait_for_selector(".lane.focus iframe", state="attached")
    assert first not in beside.get_attribute(".lane.focus iframe", "src"), "the other tab is still open"
    tab.page.close()
    until(lambda: account.share == UNSEEN_SHARE)
    tab.page = tab.context.new_page()
    tab.page.goto(f"{address}?text=large")
    tab.page.wait_for_selector(".lane.focus iframe", state="attached")
    assert tab.token != first, "another address"
    tab.page.goto("about:blank")
    again = tab.context.new_page()
    again.goto(address)
    again.wait_for_selector(".lane.focus iframe", state="attached")
    assert first in again.get_attribute(".lane.focus iframe", "src")
    assert int(again.get_attribute("#status .status", "data-step")) >= 3
    for token in list(manager._seats):
        manager.close(token)


@pytest.mark.browser
def test_when_all_seats_are_taken_and_when_a_seat_has_ended(open_tab: Callable[..., Tab], manager: Manager):
    tab = open_tab()
    others = [manager.open(settings()) for _ in range(2)]
    late = open_tab(ready=False)
    late.wait_for_phase("none")
    assert "All 3 seats of this server are taken" in late.page.inner_text("#status")
    assert "You are number 1 in the line" in late.page.inner_text("#status")
    assert late.page.locator("#start").is_disabled()
    for seat in others:
        manager.close(seat.id)
    late.wait_for_phase("ready")  # by itself
    assert late.page.locator("#again").is_hidden()

    tab.type("#knob-losses-sds-cfg", "40")
    until(lambda: tab.session.settings != settings())
    manager.close(tab.token)  # as the sweeper does when nobody is there for a long time
    tab.wait_for_phase("none")
    assert "This session ended" in tab.page.inner_text("#status")
    tab.shoot("ended")
    tab.page.click("#again")
    tab.wait_for_phase("ready")
    assert tab.session.settings == settings()
    assert tab.page.input_value("#knob-losses-sds-cfg") == "7.5"


@pytest.mark.browser
def test_it_fits_the_window_in_light_and_dark(open_tab: Callable[..., Tab]):
    tab = open_tab(view=True, color_scheme="dark")
    tab.page.set_viewport_size({"width": 400, "height": 700})
    until(lambda: tab.view()[3, 3].max() < 60)  # viser follows the page
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400, "nothing sticks out"
    tab.shoot("dark-400")
    tab.page.click("[data-do=front]")  # takes the camera back; must at least not fail
    tab.page.click("#title [data-theme]")
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    until(lambda: tab.view()[3, 3].min() > 200)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1280
    tab.shoot("light-1280")


# ---- the embedded prior -----------------------------------------------------------------------------------


@contextlib.contextmanager
def visitor_of(browser, wanted: Settings, view: bool = True) -> Iterator[Tab]:
    """A tab on a server of its own."""
    manager = Manager(max_sessions=1, grace=GRACE)
    server = page_server(build(manager, wanted), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    tab = Tab(browser, manager, f"http://127.0.0.1:{port}/", view=view)
    try:
        yield tab
    finally:
        tab.close()
        server.should_exit = True
        thread.join(20)


def embedded() -> Settings:
    return from_toml((PRESETS / "toybox.toml").read_text())


needs_toybox = pytest.mark.skipif(
    not (ROOT / "assets/toybox/unet/config.json").exists(), reason="the toybox's weights are not here"
)


@pytest.mark.browser
@needs_toybox
def test_the_embedded_prior_runs_on_the_page(browser):
    with visitor_of(browser, embedded()) as tab:
        tab.page.click("#start")  # while it is still loading
        tab.wait_for_step(10, COMPILING)
        assert tab.session.prior.image_size == 32
        tab.shoot("toybox")


@pytest.mark.browser
@pytest.mark.nightly
def test_a_gallery_is_drawn_with_the_time_left_while_the_page_stays_usable(browser):
    small = [("prior.images", 1024), ("prior.null_images", 512), ("prior.seed", 11)]  # drawn by no other test
    with visitor_of(browser, from_toml((PRESETS / "gallery.toml").read_text()).patch_all(small)) as tab:

        def drawing_of(text: str) -> None:
            shares = set()  # percent, as they are shown

            def watch() -> bool:
                found = re.search(
                    r"Drawing \d+ images of '([^']*)'?: (\d+) %, \d+ s left", tab.page.inner_text("#status")
                )
                if found and found[1].startswith(text):
                    shares.add(found[2])
                return len(shares) >= 2

            until(watch)

        tab.page.click("#start")
        drawing_of("a red bear")
        tab.wait_for_step(10, COMPILING)
        assert tab.session.prior.image_size == 64
        tab.type("#prompt textarea, #prompt input", "a blue car")
        drawing_of("a blue car")
        tab.page.click("#pause")
        tab.wait_for_phase("paused", seconds=COMPILING)
        assert tab.session.settings.prompt.text == "a blue car"
        tab.shoot("gallery")


ROUND = {  # loss -> a piece of its formula as it is shown, paths of knobs that are its own
    "vsd": ("\u2212 \u03b5\u03c8(camera)", ("cfg", "network", "rank", "lr", "p_null", "lessons", "warm_up")),
    "esd": ("\u2212 (1 \u2212 \u03bb) \u03b5\u03c8(camera)", ("cfg", "lam", "network", "warm_up")),
    "vdm": ("\u2212 \u03bbt M(\u03b5c)", ("cfg", "dca_cutoff", "operator", "lr", "warm_up")),
    "sbp": ("\u2212 \u03b5(source prompt)", ("w", "stage", "form", "switch", "sds_cfg")),
    "jsd": ("\u2212 \u03b5(minority)", ("cfg", "inversion_steps", "inversion_cfg", "form", "k", "inversion_eta")),
    "sds": ("\u2212 noise", ("cfg",)),
}
WARM_UPS = {"vsd": 12, "vdm": 200}  # lessons, enough of them to be seen by a page that looks twice a second
EACH = 4  # steps with each loss


@pytest.mark.browser
@needs_toybox
@pytest.mark.nightly
def test_all_six_losses_by_hand(browser):
    changes = [(f"losses.{loss}.warm_up", n) for loss, n in {**WARM_UPS, "esd": WARM_UPS["vsd"]}.items()]
    with visitor_of(browser, embedded().patch_all(changes), view=False) as tab:
        page, session = tab.page, tab.session
        page.click("#start")
        tab.wait_for_step(150, COMPILING)
        toggled: dict[str, int] = {}
        for loss, (formula, knobs) in ROUND.items():
            page.click(f'#form [data-value="{loss}"]')
            until(lambda loss=loss: session.settings.active == loss)
            toggled[loss] = session.state.step
            card = page.locator(f'[data-owner="losses.{loss}"]')
            card.wait_for(state="visible")
            assert formula in re.sub(r"\s+", " ", card.locator(".formula:visible").inner_text().replace("\u00a0", " "))
            wanted = {f"losses.{loss}.{name}" for name in knobs}
            wanted |= {"prompt.source", "prompt.target"} if loss == "sbp" else set()
            if card.locator("details.more").count():
                card.locator("details.more").evaluate("fold => fold.open = true")
            shown = page.locator("[data-path]:visible").evaluate_all("nodes => nodes.map((n) => n.dataset.path)")
            assert {path for path in shown if path.startswith(("losses.", "prompt."))} >= wanted
            assert all(path.startswith(f"losses.{loss}.") for path in shown if path.startswith("losses."))
            assert ("prompt.source" in shown) == (loss == "sbp")
            for path in wanted - {"prompt.source", "prompt.target"}:
                field = page.input_value(f"#knob-{path.replace('.', '-')}")
                value = session.settings.knob(path).value
                assert (field if isinstance(value, str) else type(value)(float(field))) == value, path
            if loss in WARM_UPS:
                page.wait_for_selector("#status strong:text-is('Warming up')")
                tab.shoot(f"warming-up-{loss}")
            if loss == "sbp":  # its text is edited mid-run
                tab.type("#knob-losses-sbp-source", "{prompt}, a blurry picture")
                until(lambda: session.settings.prompt.source == "{prompt}, a blurry picture")
            until(lambda loss=loss: session.state.step >= toggled[loss] + EACH, 60)
            page.wait_for_selector("#status strong:text-is('Running')")
            tab.shoot(f"loss-{loss}")
        tab.wait_for_step(toggled["sds"] + 100)
        page.click("#pause")
        tab.wait_for_phase("paused")
        until(lambda: session.status.phase == "paused")
        tab.shoot("all-six")

        applied = [(e.path, e.value) for e in tab.events() if isinstance(e, Applied) and e.path == "active"]
        assert applied == [("active", loss) for loss in ROUND]
        assert not [e for e in tab.events() if isinstance(e, (Rejected, Skipped, Failed))]
        said = {e.text.partition(",")[0] for e in tab.events() if isinstance(e, Status) and "warms up" in e.text}
        assert said == {"VSD: its own network warms up", "VDM + DCA: its own network warms up"}, "ESD goes on with psi"
        assert session.state.skipped == 0
        assert session.effective.loss.kind == "sds"
        assert set(session.state.aux) == {"score", "vdm"}
        assert page.get_attribute('#form [data-value="sds"]', "aria-checked") == "true"

        pictures = render_turntable(session.state.scene, embedded().camera, 8, 32)
        seen = [x.object for x in judge.read(judge.load(), torch.from_numpy(pictures).permute(0, 3, 1, 2))]
        assert seen.count("bear") > 4, seen


# ---- without a browser -----------------------------------------------------------------------------------


def test_answers_carry_security_headers_and_no_foreign_addresses(address: str):
    with urllib.request.urlopen(address) as answer:
        headers, body = dict(answer.headers), answer.read().decode()
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "fonts.googleapis.com" not in body
    assert "cdn" not in re.sub(r"https://raw\.githubusercontent\.com\S+", "", body).lower()


def test_a_port_in_use_ends_with_one_line_and_code_2():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        begun = time.monotonic()
        command = [sys.executable, "app.py", "--no-browser", "--port", str(port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"--port {port} on 127.0.0.1" in done.stderr
    assert "choose another with --port" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - begun < 2, "it is told before anything heavy is imported"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are sent in another way there")
def test_the_app_says_where_it_is_and_ends_quietly_when_interrupted():
    command = [sys.executable, "app.py", "--no-browser", "--port", "0", "--preset", "mixture"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        arrival = urllib.request.Request(f"{address[0]}desk", b"{}", {"Content-Type": "application/json"})
        given = json.loads(urllib.request.urlopen(arrival).read())
        stream = urllib.request.urlopen(f"{address[0]}here/{given['token']}?page={given['page']}")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        stream.close()
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.slow
def test_the_playground_is_picked_and_shows_where_the_points_go(open_tab: Callable[..., Tab]):
    tab = open_tab(view=True)
    first = tab.token
    tab.page.select_option("#preset", "playground")
    until(lambda: tab.token != first)
    assert tab.page.get_attribute(".lane.focus iframe", "src").startswith("flat/")
    assert tab.page.input_value("#prompt textarea, #prompt input") == "north west"
    tab.wait_for_phase("ready")
    until(lambda: tab.session.state.scene.way.shape == (1, 100, 2))
    before = tab.view().astype(float)
    tab.page.click("#start")
    until(lambda: tab.session.state.step == 200)
    tab.wait_for_phase("paused")
    until(lambda: np.abs(tab.view() - before).mean() > 0.5)  # the points are elsewhere
    tab.shoot("playground")
    assert "Gaussians" not in tab.page.inner_text("#charts")
    assert (
        tab.page.locator('[data-path="optim.lr_points"]').is_visible()
        or tab.page.locator('[data-owner="scene/points"]').first.get_attribute("hidden") is None
    )
    assert tab.page.locator('[data-owner="scene/splats"]').first.get_attribute("hidden") is not None
    second = tab.token
    tab.page.select_option("#preset", "playground-esd")  # the points start elsewhere: a new run
    until(lambda: tab.token != second)
    tab.wait_for_phase("ready")
    until(lambda: tab.session.state.scene.way.shape == (1, 32, 2))


# ---- the laboratory: lens, lanes, timeline, results ------------------------------------------------------------


@pytest.mark.browser
def test_the_lens_shows_the_step_and_asks_at_another_t(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page, session = tab.page, tab.session
    assert "With the next step" in page.inner_text("#lens")
    page.click("#step")
    until(lambda: page.locator("#lens img").count() >= 5)
    names = page.locator("#lens figcaption").all_inner_texts()
    assert {"Render", "Noisy", "Residual", "Push"} <= set(names)
    drawn = int(session.latest.get().stats["t"])
    assert f"t = {drawn}," in page.inner_text("#lens p")
    before = page.locator("#lens img").nth(1).get_attribute("src")

    page.locator("#scrub input").fill("20")
    until(lambda: "t = 20," in page.inner_text("#lens p"))
    assert page.locator("#lens img").nth(1).get_attribute("src") != before, "less noise"
    assert session.state.step == 1, "the run is not touched"
    tab.shoot("lens")
    page.click("#scrub [data-live]")
    until(lambda: f"t = {drawn}," in page.inner_text("#lens p"))
    page.click("#scrub [data-exact]")
    until(lambda: "exact prediction" in page.inner_text("#lens p"))
    assert page.get_attribute("#scrub [data-exact]", "aria-pressed") == "true"
    page.click("#scrub [data-exact]")
    until(lambda: "exact prediction" not in page.inner_text("#lens p"))
    page.click("[data-tab=charts]")  # nobody looks any more
    until(lambda: session.watched[0] is None)


@pytest.mark.browser
def test_the_formula_holds_its_values_and_lights_up_with_its_knob(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.page
    card = page.locator('[data-owner="losses.sds"]')

    def now(symbol: str) -> str | None:
        return card.locator(f'.formula [data-symbol="{symbol}"]').first.get_attribute("data-now")

    until(lambda: now("s") == "7.5")
    tab.type("#knob-losses-sds-cfg", "20")
    until(lambda: now("s") == "20")
    page.click("#step")
    until(lambda: tab.step == 1)
    until(lambda: now("t") == f"{tab.session.latest.get().stats['t']:.0f}")
    assert float(now("eps_c")) == pytest.approx(tab.session.latest.get().stats["rms_pos"], abs=0.06)
    card.locator('[data-path="losses.sds.cfg"]').hover()
    assert card.locator(".formula .lit").all_inner_texts() == ["s"]

    page.click('#form [data-value="sbp"]')
    shown = page.locator('[data-owner="losses.sbp"] .formula:visible')
    shown.wait_for()
    assert "noise" not in shown.inner_text()
    page.select_option('[data-path="losses.sbp.stage"] select', "two-stage")
    until(lambda: "noise" in shown.inner_text())
    assert "source prompt" not in shown.inner_text(), "the first stage is SDS"
    page.select_option('[data-path="losses.sbp.stage"] select', "bridge")
    page.select_option('[data-path="losses.sbp.form"] select', "restoring")
    page.click('#form [data-value="sds"]')
    page.click('#form [data-value="sbp"]')
    until(lambda: {"noise", "source prompt"} <= set(re.findall("noise|source prompt", shown.inner_text())))


@pytest.mark.browser
def test_all_losses_are_held_against_each_other(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.page
    page.click("#step")
    until(lambda: tab.step == 1)
    page.click("[data-tab=versus]")
    page.click("#compare")
    n = len(tab.session.settings.losses)
    until(lambda: page.locator("#versus tbody tr").count() == n)
    until(lambda: "losses are done" not in page.inner_text("#versus"), 60)
    row = page.locator("#versus tbody tr").first
    assert row.locator(".cosine").count() == n
    assert row.locator(".cosine").first.inner_text() == "1.00"
    assert tab.session.state.step == 1, "the run is not touched"
    tab.shoot("losses-compared")


@pytest.mark.browser
def test_lanes_branch_differ_and_close(open_tab: Callable[..., Tab], manager: Manager):
    tab = open_tab()
    page, first = tab.page, tab.token
    page.click("#start")
    tab.wait_for_step(10)
    page.click("[data-do=branch]")
    until(lambda: page.locator(".lane").count() == 2)
    second = tab.token
    assert second != first, "the new lane has the focus"
    until(lambda: tab.session.status.phase == "running")
    page.click("#form .others summary")
    page.click('#form [data-value="csd"]')
    until(lambda: tab.session.settings.active == "csd")
    other = manager._seats[first].session
    assert other.settings.active == "sds", "only the lane in focus is changed"
    until(lambda: "CSD" in page.inner_text(".lane.focus figcaption"))

    page.click("[data-tab=charts]")
    until(lambda: page.locator("#charts table.lanes tbody tr").count() == 2)
    until(lambda: page.locator("#charts .chart >> nth=0 >> polyline").count() == 2)
    page.click("#pause")  # all of them
    until(lambda: {other.status.phase, tab.session.status.phase} == {"paused"})
    tab.shoot("two-lanes")

    page.click(".lane:not(.focus) [data-do=focus]")
    until(lambda: tab.token == first)
    assert page.get_attribute('#form [data-value="sds"]', "aria-checked") == "true"
    page.click(".lane.focus [data-do=keep]")
    until(lambda: page.locator(".lane").count() == 1)
    assert not manager.exists(second)
    assert tab.token == first
    page.click("#start")
    tab.wait_for_step(other.state.step + 3)


@pytest.mark.browser
def test_no_seat_for_another_lane_is_said(open_tab: Callable[..., Tab], manager: Manager):
    tab = open_tab()
    others = [manager.open(settings()) for _ in range(2)]
    try:
        tab.page.click("[data-do=branch]")
        until(lambda: "All 3 seats of this server are taken" in tab.page.inner_text("#status"))
        assert tab.page.locator(".lane").count() == 1
    finally:
        for seat in others:
            manager.close(seat.id)


@pytest.mark.browser
def test_the_timeline_goes_back_and_replays(open_tab: Callable[..., Tab]):
    tab = open_tab(view=True)
    page, session = tab.page, tab.session
    page.click("#start")
    tab.wait_for_step(60)
    tab.type("#knob-losses-sds-cfg", "20")
    until(lambda: session.settings.loss.cfg == 20)
    tab.wait_for_step(session.state.step + 60)
    page.click("#pause")
    tab.wait_for_phase("paused")
    until(lambda: page.locator(".timeline .event").count() >= 1)
    assert "cfg" in page.locator(".timeline .event").first.get_attribute("title")
    kept = session.timeline.steps()
    until(lambda: page.locator(".timeline .kept").count() == len(kept))
    tab.shoot("timeline")

    page.click(".timeline [data-replay]")
    until(lambda: page.locator(".timeline [data-replay]").get_attribute("title").startswith("Replaying"))
    page.click(".timeline [data-replay]")  # back to now
    until(lambda: not page.locator(".timeline [data-replay]").get_attribute("title").startswith("Replaying"))

    page.locator(".timeline .kept").nth(1).dispatch_event("click")
    until(lambda: tab.step == kept[1])
    assert session.status.phase == "paused"
    assert session.settings.loss.cfg == 7.5, "the settings of then"
    until(lambda: page.input_value("#knob-losses-sds-cfg") == "7.5")
    page.click("#step")
    until(lambda: tab.step == kept[1] + 1)


@pytest.mark.browser
def test_results_are_made_downloaded_and_survive_a_refresh(
    open_tab: Callable[..., Tab], manager: Manager, tmp_path: Path
):
    tab = open_tab()
    page = tab.page
    page.click("#start")
    tab.wait_for_step(20)
    first = tab.token
    page.click("[data-tab=results]")
    for kind in ("ply", "toml"):
        page.click(f"#results [data-kind={kind}]")
    until(lambda: page.locator("#results .shelf li.done").count() == 2)
    tab.shoot("results")
    step = tab.step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "grace", 60.0)  # the others' second is too short for a page to load
        page.reload()
        tab.wait_for_phase("running", "paused")
        until(lambda: tab.seat.ends_at is None)
    assert tab.token == first, "the same run"
    assert tab.step >= step
    page.click("[data-tab=results]")
    until(lambda: page.locator("#results .shelf li.done").count() == 2)
    with page.expect_download() as got:
        page.click("#results .shelf a:has-text('.ply')")
    assert re.fullmatch(r"a-red-bear-sds-seed0-step\d+\.ply", got.value.suggested_filename)
    got.value.save_as(tmp_path / "scene.ply")
    assert (tmp_path / "scene.ply").read_bytes().startswith(b"ply\nformat binary_little_endian")


@pytest.mark.browser
def test_a_hand_in_is_made_and_repeated_bit_for_bit_elsewhere(
    open_tab: Callable[..., Tab], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tab = open_tab()
    page = tab.page
    page.click("#start")
    tab.wait_for_step(1)
    tab.type("#form [data-path='losses.sds.cfg'] [data-field]", "7")
    until(lambda: tab.session.settings.knob("losses.sds.cfg").value == 7)
    tab.wait_for_step(tab.step + 1)
    page.click("#pause")
    tab.wait_for_phase("paused")
    page.click("[data-tab=results]")
    page.click("#results [data-hand-in]")
    page.fill("#handin [data-name]", "Ada <b>")
    with page.expect_download() as got:
        page.press("#handin [data-name]", "Enter")
    page.wait_for_selector("#handin a:not([hidden])")
    assert re.fullmatch(r"ada-b-sds-step\d+\.zip", got.value.suggested_filename)
    got.value.save_as(tmp_path / "class" / "a.zip")
    assert page.locator("#handin dialog").get_attribute("open") is not None, "Enter has not closed it"
    assert main(["grade", str(tmp_path / "class"), "--device", "cpu", "--trust"]) == 0  # the presets are not here
    assert "Ada <b>: same bits" in capsys.readouterr().out
    page.keyboard.press("Escape")


@pytest.mark.browser
def test_a_mesh_and_saved_settings_are_brought(open_tab: Callable[..., Tab], tmp_path: Path):
    tab = open_tab(view=True)
    page = tab.page
    (tmp_path / "box.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "box.glb").write_bytes(trimesh.creation.box((1, 2, 1)).export(file_type="glb"))
    (tmp_path / "own.toml").write_text(to_toml(settings().patch_all([("prompt.text", "a south bear"), ("seed", 7)])))
    (tmp_path / "bad.toml").write_text("[losses.sds]\ncfg = 1e9\n")

    def bring(button: str, name: str) -> None:
        with page.expect_file_chooser() as chooser:
            page.locator(button).click()
        chooser.value.set_files(tmp_path / name)

    knob = page.locator('[data-path="scene.file"]')
    knob.evaluate("(node) => { node.closest('details').open = true; }")
    button = '[data-path="scene.file"] .upload button'
    bring(button, "box.zip")
    until(lambda: "'box.zip' is an archive (ZIP)" in knob.locator("output").inner_text())
    knob.locator(".upload").evaluate("(node) => { node.dataset.upload = 3; }")
    bring(button, "box.zip")
    until(lambda: knob.locator("output").inner_text() == "box.zip has 4 bytes; at most 3 are allowed")
    knob.locator(".upload").evaluate("(node) => { node.dataset.upload = 1e6; }")
    assert tab.session.settings.knob("scene.start").value == "ball"
    bring(button, "box.glb")
    until(lambda: knob.locator("output").inner_text() == "box.glb is uploaded")
    until(lambda: tab.session.effective.knob("scene.start").value == "file")
    until(lambda: page.input_value('[data-owner="scene/splats"] [data-path="scene.start"] select') == "file")
    until(lambda: page.input_value('[data-path="scene.file"] [data-field]').endswith("1-box.glb"))
    means = tab.session.state.scene.params["means"].detach()
    assert (means.amax(0) - means.amin(0)).tolist() == pytest.approx([0.65, 0.65, 1.3], abs=0.05), (
        "a box, twice as high"
    )
    knob.scroll_into_view_if_needed()
    tab.shoot("file-brought")

    bring(".preset [data-open]", "bad.toml")
    page.wait_for_selector("#status :text('bad.toml')")
    bring(".preset [data-open]", "own.toml")
    until(lambda: page.input_value("#prompt textarea, #prompt input") == "a south bear")
    until(lambda: tab.session.settings.seed == 7)
    assert page.input_value("#preset") == ""


@pytest.mark.browser
def test_keys_pause_go_on_and_step_but_not_while_something_is_typed(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.page
    page.click("#start")
    tab.wait_for_step(3)
    until(lambda: page.locator("#pause").is_enabled())
    page.keyboard.press("Space")
    tab.wait_for_phase("paused")
    until(lambda: tab.session.status.phase == "paused")
    paused = tab.session.state.step
    until(lambda: page.locator("#step").is_enabled())
    page.keyboard.press(".")
    until(lambda: tab.session.state.step == paused + 1)
    page.click("#prompt textarea, #prompt input")
    page.keyboard.type(" a. b")
    time.sleep(0.5)
    assert tab.session.state.step == paused + 1
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    until(lambda: page.locator("#start").is_enabled())
    page.keyboard.press("Space")
    tab.wait_for_phase("running")


@pytest.mark.browser
def test_losses_and_tabs_are_chosen_with_arrow_keys(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.page
    focused = "document.activeElement.dataset.value ?? document.activeElement.dataset.tab"
    assert page.locator('#form .losses [tabindex="0"]').all_inner_texts() == ["SDS"], (
        "the Tab key reaches what is chosen"
    )
    page.focus('#form [data-value="sds"]')
    page.keyboard.press("ArrowRight")
    until(lambda: tab.session.settings.active == "vsd")
    assert page.evaluate(focused) == "vsd"
    assert page.locator('#form .losses [tabindex="0"]').all_inner_texts() == ["VSD"]
    page.keyboard.press("End")
    until(lambda: tab.session.settings.active == "jsd")
    page.keyboard.press("ArrowDown")
    until(lambda: tab.session.settings.active == "sds")
    page.focus("#tabs [data-tab=lens]")
    page.keyboard.press("ArrowLeft")
    until(lambda: page.is_visible("#results .kinds button"))
    assert page.evaluate(focused) == "results"
    for button in page.locator("#tabs [data-tab]").all():
        assert page.locator(f"#{button.get_attribute('aria-controls')}").count() == 1


@pytest.mark.browser
def test_a_key_turns_the_lens_to_the_next_view(open_tab: Callable[..., Tab]):
    tab = open_tab()
    page = tab.page
    tab.session.send(Patch((("camera.views", 3),)))
    page.click("#step")
    until(lambda: page.locator("#preview [data-row]").count() == 3)
    for expected in (1, 2, 0):
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("v")
        page.wait_for_selector(f'#preview [data-row="{expected}"].chosen')
        until(lambda expected=expected: tab.session.watched[0] == expected)


@pytest.mark.browser
def test_a_second_press_makes_no_second_lane(open_tab: Callable[..., Tab], manager: Manager):
    tab = open_tab()
    tab.page.dblclick(".lane.focus [data-do=branch]")
    until(lambda: tab.page.locator(".lane").count() == 2)
    time.sleep(1.0)
    assert manager.count() == 2
    tab.page.click(".lane.focus [data-do=branch]")
    until(lambda: tab.page.locator(".lane").count() == 3)
    until(lambda: all(seated.ends_at is None for seated in manager._seats.values()))  # the page has said that it lives


@pytest.mark.browser
def test_the_system_turning_dark_is_followed_until_somebody_has_chosen(
    open_tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
):
    tab = open_tab(color_scheme="light")
    told: list[bool] = []
    monkeypatch.setattr(SplatView, "set_dark", lambda view, dark: told.append(dark))
    dark = "document.body.classList.contains('dark')"
    assert not tab.page.evaluate(dark)
    for scheme in ("dark", "light"):
        tab.page.emulate_media(color_scheme=scheme)
        until(lambda scheme=scheme: tab.page.evaluate(dark) == (scheme == "dark"))
        until(lambda scheme=scheme: told and told[-1] == (scheme == "dark"))
    tab.page.click("[data-theme]")
    assert tab.page.evaluate(dark)
    tab.page.emulate_media(color_scheme="dark")
    tab.page.emulate_media(color_scheme="light")
    time.sleep(0.5)
    assert tab.page.evaluate(dark), "what was chosen stays"


@pytest.mark.browser
def test_a_view_is_drawn_for_what_is_new_and_for_a_hand(open_tab: Callable[..., Tab]):
    tab = open_tab(view=True)
    until(lambda: any("viewport" in frame.url for frame in tab.page.frames))
    view = next(frame for frame in tab.page.frames if "viewport" in frame.url)
    drawn = "Number(document.documentElement.dataset.drawn ?? 0)"
    until(lambda: view.evaluate(drawn) > 2)
    settled(lambda: view.evaluate(drawn))
    before = view.evaluate(drawn)
    time.sleep(2.5)
    assert view.evaluate(drawn) <= before + 2, "nothing is new"
    page, box = tab.page, tab.page.locator(".lane iframe").bounding_box()
    for i in range(8):
        page.mouse.move(box["x"] + 100 + 5 * i, box["y"] + 100)
        time.sleep(0.05)
    until(lambda: view.evaluate(drawn) > before + 2)
    settled(lambda: view.evaluate(drawn))
    before = view.evaluate(drawn)
    page.click("#start")
    until(lambda: view.evaluate(drawn) > before + 4)


def settled(count: Callable[[], int]) -> None:
    """Until it does not change in a second."""

    def same() -> bool:
        before = count()
        time.sleep(1)
        return count() == before

    until(same)


def test_what_is_new_is_told_to_no_other_page(address: str):
    def ask(path: str, **headers: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    status, told = ask("news/no-such-token?page=x")
    assert status == 200
    assert json.loads(told)["token"] == ""
    assert ask("news/no-such-token", Origin="https://evil.example")[0] == 403


def test_presets_are_all_on_the_page(address: str):
    body = urllib.request.urlopen(address).read().decode()
    for name in preset_names():
        assert f'value=\\"{name}\\"' in body


@pytest.mark.slow
def test_a_locked_prior_is_not_got_round_with_a_preset():
    open_to_all = Visitors(preset("elsewhere"))
    assert set(open_to_all.presets) == set(preset_names())
    ours = preset("elsewhere").patch_all([("prior.path", "/ours"), ("scene.shap_e", "")])
    locked = Visitors(ours, ("prior.path", "scene.shap_e"))
    assert "elsewhere" not in locked.presets, "it would load another folder"
    assert "mixture" in locked.presets, "it loads none"
    assert locked.fit(preset("mixture")).scene.shap_e == ""


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_link_is_copied_in_one_browser_and_opens_the_same_run_in_another(
    browser, open_tab: Callable[..., Tab], manager: Manager, address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(manager, "grace", 60.0)  # the others' second is too short for a page to load
    teacher = open_tab(permissions=["clipboard-read", "clipboard-write"])
    page = teacher.page
    teacher.type("#prompt textarea", "<i>a south & east</i>")
    page.fill('[data-owner="losses.sds"] [data-path="losses.sds.cfg"] [data-field]', "3.3333333333")
    page.press('[data-owner="losses.sds"] [data-path="losses.sds.cfg"] [data-field]', "Enter")
    until(lambda: teacher.session.settings.knob("losses.sds.cfg").value == 3.3333333333)
    until(lambda: "losses.sds.cfg=3.3333333333" in page.evaluate("location.search"))
    page.click("[data-share]")
    page.check('[data-hide="lens"]')
    page.check('[data-hide="link"]')
    page.check('[data-lock="losses"]')
    page.check("[data-text]")
    page.click("[data-copy]")
    page.wait_for_selector(".share output:text('Copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.input_value(".share textarea")

    student = Tab(browser, manager, f"{link}&no.such=<b>knob&seed=-1", view=False)
    student.wait_for_phase("ready")
    assert student.session.settings == teacher.session.settings
    page = student.page
    page.wait_for_selector(".link-notes:visible")
    said = page.locator(".link-notes li").all_inner_texts()
    assert said[0].startswith("there is no knob 'no.such'")
    assert said[1].startswith("seed = -1: must be a whole number")
    assert page.locator(".link-notes b").count() == 0
    for hidden in ("#tabs [data-tab=lens]", "#lens-panel", "[data-share]"):
        assert not page.locator(hidden).is_visible()
    assert page.locator("#tabs [data-tab=charts][aria-selected=true]").is_visible(), "the first tab that is left"
    assert page.locator('[data-owner="losses.sds"] [data-path="losses.sds.cfg"] [data-field]').is_disabled()
    assert page.evaluate("document.documentElement.classList.contains('large')")
    for tab in (teacher, student):
        tab.session.send(Advance(50))
    until(lambda: all(tab.session.status.phase == "paused" for tab in (teacher, student)))
    ran = [tab.session.state.scene.params for tab in (teacher, student)]
    assert all(torch.equal(ran[0][name], ran[1][name]) for name in ran[0]), "bit for bit"
    token = student.token
    page.reload()
    student.wait_for_phase("paused")
    assert student.token == token, "a reload goes on, whatever the address says by now"
    student.close()


DROP = """([name, bytes]) => {
  const dataTransfer = new DataTransfer(), place = document.querySelector("#stage");
  dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
  const say = (what) => place.dispatchEvent(new DragEvent(what, { dataTransfer, bubbles: true, cancelable: true }));
  say("dragover");
  const shown = !document.querySelector(".drop-here").hidden;
  say("drop");
  return shown && document.querySelector(".drop-here").hidden;
}"""


@pytest.mark.browser
def test_settings_and_a_run_are_dropped_onto_the_page(browser, tmp_path: Path):
    def drop(name: str, content: bytes) -> None:
        assert tab.page.evaluate(DROP, [name, list(content)]), "a sign is shown while the file is over the page"

    with visitor_of(browser, settings(), view=False) as tab:
        tab.wait_for_phase("ready")
        drop("own.toml", to_toml(settings().patch("seed", 6)).encode())
        until(lambda: tab.session.settings.seed == 6)
        tab.session.send(Advance(10))
        until(lambda: tab.session.state.step == 10)
        run = zipped(run_folder(tab.session, tmp_path))
        tab.session.send(Reset())
        drop("cat.png", b"x")
        tab.page.wait_for_selector(".offer:visible :text('neither settings')")
        drop("bear.zip", b"PK")
        tab.page.wait_for_selector(".offer:visible :text('is no ZIP file')")
        drop("bear.zip", run)
        tab.page.click(".offer button:text('Continue from step 10')")
        until(lambda: tab.session.state.step == 10 and tab.step == 10)


# ---- lessons ---------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_lesson_from_its_menu_to_its_last_page(
    open_tab: Callable[..., Tab], manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(manager, "grace", 60.0)  # the others' second is too short for a page to load
    tab = open_tab()
    page = tab.page
    page.click("[data-lessons]")
    page.click('[data-lesson="short"]')
    page.wait_for_selector(".lesson h2:has-text('Points walk')")
    page.wait_for_selector(".lesson .waits.reached")
    page.click(".lesson [data-next]")
    page.wait_for_selector(".lesson.asks .question:has-text('Where to?')")
    assert page.evaluate("document.activeElement.textContent") == "They turn"
    assert not page.is_visible(".lesson .after"), "the effect comes after the prediction"
    assert page.locator("#prompt.pointed, #stage.pointed").count() == 2
    assert tab.session.settings.prompt.text == "north west"
    page.wait_for_function("location.search.startsWith('?lesson=short&page=2')")
    page.click('.lesson [data-choice="0"]')
    page.wait_for_selector(".lesson .verdict:has-text('It is “East”: the score does.')")
    page.wait_for_selector(".lesson .waits.reached")
    assert page.input_value("#prompt textarea") == "east", "the controls follow"
    page.reload()
    page.wait_for_selector('.lesson [data-choice="0"][aria-pressed="true"]')
    page.wait_for_selector(".lesson .waits.reached")
    page.click("[data-leave]")
    page.wait_for_selector(".lesson", state="hidden")
    page.wait_for_function("!location.search.includes('lesson')")
