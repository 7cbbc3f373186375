"""What the page says when something is missing: the server, the 3D view, a GPU. In a real browser."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from waiting import LONG, until

from sdlab.live.manager import Manager
from sdlab.live.messages import Patch
from sdlab.settings import Settings, preset
from sdlab.ui.server import build
from sdlab.ui.server import server as page_server
from sdlab.viewport.client import CORNERS, LIGHTS, STATIC, client_html

SOON = 3.0  # seconds within which a lost connection is said
HEAVY = 3.0  # seconds more that a loaded machine may take

pytestmark = pytest.mark.browser


def settings() -> Settings:
    changes = [("steps", 100_000), ("scene.n_init", 50), ("scene.max_gaussians", 50), ("camera.views", 1)]
    return preset("mixture").patch_all(changes)


class Site:
    """A server that can be stopped and started again on its port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        self.manager = Manager(max_sessions=3, grace=0.5)
        self._server = page_server(build(self.manager, settings(), "mixture"), port=self.port)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="module")
def site(unhurried: None) -> Iterator[Site]:
    made = Site()
    yield made
    made.stop()


@pytest.fixture
def page(browser, site: Site):
    context = browser.new_context(viewport={"width": 960, "height": 700})
    page = context.new_page()
    page.set_default_timeout(1000 * LONG)
    page.route("**/viewport/**", lambda route: route.fulfill(body="", content_type="text/html"))
    page.goto(site.address)
    page.wait_for_selector('#status [data-phase="ready"]')
    page.click("#start")
    page.wait_for_function("Number(document.querySelector('#status .status').dataset.step) > 3")
    yield page
    context.close()


def is_lost(page) -> bool:
    return page.evaluate("document.body.classList.contains('lost')")


def no_answers(page) -> Callable[[], None]:
    """Requests wait for ever, as behind a network that swallows them."""
    page.route("**/news/**", lambda route: None)
    return lambda: (page.unroute("**/news/**"), page.evaluate("dispatchEvent(new Event('online'))"))


def errors(page) -> Callable[[], None]:
    """A proxy answers in the place of a server that has gone."""
    page.route("**/news/**", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    return lambda: page.unroute("**/news/**")


def offline(page) -> Callable[[], None]:
    page.context.set_offline(True)
    return lambda: page.context.set_offline(False)


@pytest.mark.parametrize("cut", [no_answers, errors, offline])
def test_a_lost_connection_is_said_within_seconds_and_taken_back(cut: Callable, page):
    assert page.inner_text("#connection-line") == ""
    restore = cut(page)
    begun = time.monotonic()
    until(lambda: is_lost(page), SOON + HEAVY)
    page.wait_for_timeout(100)
    took = time.monotonic() - begun
    said = page.inner_text("#connection-line")
    assert "The page keeps trying." in said
    assert ("offline" in said) == (cut is offline)
    assert page.get_attribute("#connection-line", "role") == "alert"
    assert not page.is_visible("#status .facts span + span"), "no time left is told that nobody knows"
    step = int(page.get_attribute("#status .status", "data-step"))
    restore()
    until(lambda: not is_lost(page), 5 + HEAVY)
    assert page.inner_text("#connection-line") == ""
    page.wait_for_function(f"Number(document.querySelector('#status .status').dataset.step) > {step}")
    assert took < SOON + HEAVY


def test_news_that_was_lost_on_its_way_is_told_again(page, site: Site):
    """The server tells each change once; an answer that never arrived must not leave a control wrong for good."""
    lost = []

    def swallow(route) -> None:
        lost.append(route.fetch().text())  # the server has answered
        route.abort()

    page.route("**/news/**", swallow)
    token = page.get_attribute(".lane iframe", "src").split("/")[1]
    site.manager._seats[token].session.send(Patch.one("losses.sds.cfg", 33.0))
    end = time.monotonic() + LONG
    while not any("33" in text for text in lost) and time.monotonic() < end:
        page.wait_for_timeout(50)  # which also serves the routes
    assert any('"form"' in text and "33" in text for text in lost), "the page was told, and did not hear it"
    page.unroute("**/news/**")
    page.wait_for_function("document.querySelector('#knob-losses-sds-cfg').value === '33'")


def test_a_server_that_was_started_again_takes_the_line_back_and_the_session_is_over(page, site: Site):
    begun = time.monotonic()
    site.stop()
    stopped = time.monotonic()
    until(lambda: is_lost(page), SOON + HEAVY)
    assert time.monotonic() - stopped < SOON + HEAVY
    assert "The server has not answered since" in page.inner_text("#connection-line")
    site.start()
    until(lambda: not is_lost(page), 10 + HEAVY)
    page.wait_for_selector("#status :text('Session ended')")
    assert page.is_visible("#again")
    assert time.monotonic() - begun < 60


def test_what_the_status_says_is_read_out_once(page):
    read = "document.querySelector('#status [data-live]').textContent"
    assert page.get_attribute("#status [data-live]", "role") == "status"
    page.wait_for_function(f"{read}.startsWith('Running')")
    page.evaluate(
        "window.changes = 0;"
        "new MutationObserver(() => window.changes++).observe(document.querySelector('#status [data-live]'),"
        " { childList: true, characterData: true, subtree: true })"
    )
    page.wait_for_timeout(1500)
    assert page.evaluate("window.changes") == 0, "steps and rates change twice a second"
    page.click("#pause")
    page.wait_for_function(f"{read}.startsWith('Paused')")


# ---- views -----------------------------------------------------------------------------------------------

RENDERERS = {
    "ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device (Subzero) (0x0000C0DE)), SwiftShader driver)": "software",
    "ANGLE (Mesa, llvmpipe (LLVM 17.0.6, 256 bits), OpenGL 4.5)": "software",
    "Mesa/X.org, softpipe": "software",
    "Apple Software Renderer": "software",
    "ANGLE (Microsoft, Microsoft Basic Render Driver Direct3D11 vs_5_0 ps_5_0, D3D11)": "software",
    "ANGLE (NVIDIA, NVIDIA GeForce RTX 3060 Direct3D11 vs_5_0 ps_5_0, D3D11)": "gpu",
    "Apple M1": "gpu",
    "": "gpu",  # a browser that does not tell
}


@pytest.fixture(scope="module")
def blank(browser):
    page = browser.new_page()
    page.route("http://view.test/", lambda route: route.fulfill(body="<canvas></canvas>", content_type="text/html"))
    yield page
    page.close()


@pytest.mark.parametrize(("renderer", "drawing"), [*RENDERERS.items(), (None, "off")])
def test_a_view_knows_how_it_is_drawn(renderer: str | None, drawing: str, blank):
    blank.goto("http://view.test/")
    blank.evaluate(
        """renderer => {
            const gl = renderer === null ? null : {
                getExtension: () => renderer ? { UNMASKED_RENDERER_WEBGL: 1 } : null, getParameter: () => renderer };
            HTMLCanvasElement.prototype.getContext = () => gl;
            window.said = [];
            addEventListener("message", ({ data }) => said.push(data));
        }""",
        renderer,
    )
    blank.add_script_tag(path=STATIC / "view.js")
    blank.evaluate("for (let i = 0; i < 3; i++) document.querySelector('canvas').getContext('webgl2')")
    blank.wait_for_function("said.length")
    assert blank.evaluate("said") == [{"drawing": drawing}], "once"


def test_a_press_on_the_page_shows_its_effect_at_the_full_rate(browser):
    page = browser.new_page()
    page.route("http://view.test/", lambda route: route.fulfill(body="<p>", content_type="text/html"))
    page.clock.install(time=0)
    page.goto("http://view.test/")
    page.clock.pause_at(60_000)  # or time also passes between the calls below, as it does on the wall
    page.add_script_tag(path=STATIC / "view.js")
    page.evaluate(
        "const draw = () => requestAnimationFrame(draw); draw();"
        "window.worker = new Worker(URL.createObjectURL(new Blob([''])))"
    )
    page.clock.run_for(2000)

    def pictures(pressed: bool, ms: int) -> int:
        """How many are drawn within `ms` of something new."""
        page.clock.run_for(1000)
        before = page.evaluate("Number(document.documentElement.dataset.drawn)")
        if pressed:
            page.evaluate("dispatchEvent(new MessageEvent('message', { source: parent, data: { pressed: true } }))")
        page.evaluate("worker.dispatchEvent(new MessageEvent('message'))")
        page.clock.run_for(ms)
        return page.evaluate("Number(document.documentElement.dataset.drawn)") - before

    assert pictures(False, 90) == 1, "pictures of a run leave time for it"
    assert pictures(False, 900) == 3
    assert [pictures(True, 90), pictures(False, 90), pictures(False, 90)] == [3, 3, 1], "two changes, then as before"
    page.close()


def test_what_is_changed_in_the_client_is_there_once(blank):
    blank.route("http://view.test/client", lambda route: route.fulfill(body=client_html(), content_type="text/html"))
    blank.add_init_script(
        "const plain = TextDecoder.prototype.decode;"
        "TextDecoder.prototype.decode = function (...given) {"
        "  const text = plain.apply(this, given); if (text.length >= 1e6) window.code = text; return text; };"
    )
    blank.goto("http://view.test/client")
    blank.wait_for_function("window.code")
    for old, _ in (CORNERS, LIGHTS):
        assert blank.evaluate("old => window.code.split(old).length - 1", old) == 1


@pytest.fixture
def stage(page) -> Callable[[str], None]:
    """Tells the page what its view says."""
    frame = page.query_selector(".lane iframe").content_frame()
    page.wait_for_function("document.querySelector('.lane iframe').contentDocument?.readyState === 'complete'")
    return lambda drawing: frame.evaluate("drawing => parent.postMessage({ drawing }, location.origin)", drawing)


def test_software_and_no_webgl_are_said_once_below_the_view(page, stage: Callable[[str], None]):
    line = "#drawing-line"
    for drawing, said in (("off", "WebGL is off in this browser"), ("software", "software WebGL"), ("gpu", "")):
        stage(drawing)
        page.wait_for_function(f"document.querySelector('{line}').textContent.includes('{said}')")
        assert page.is_visible(line) == bool(said)
    assert page.get_attribute(line, "role") == page.get_attribute(".lane .notes", "role") == "status"
    page.evaluate("postMessage({ drawing: 'off' }, location.origin)")  # not from a view
    page.wait_for_timeout(200)
    assert page.inner_text(line) == ""


@pytest.mark.parametrize("width", [390, 1280])
def test_notices_fit_the_window(width: int, page, stage: Callable[[str], None], site: Site):
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate(
        "document.querySelector('.lane .trouble').textContent = 'The 3D view has stopped (' + 'x y '.repeat(60) + ')'"
    )
    stage("off")
    with contextlib.ExitStack() as stack:
        restore = offline(page)
        stack.callback(restore)
        until(lambda: is_lost(page), SOON + HEAVY)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in ("#connection-line", "#drawing-line", ".lane .notes"):
            box = page.query_selector(selector).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["height"] > 0
        stage_box, notes = (page.query_selector(s).bounding_box() for s in (".lane", ".lane .notes"))
        assert notes["y"] + notes["height"] <= stage_box["y"] + stage_box["height"]
