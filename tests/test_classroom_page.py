"""A class in a browser: a student's page and the teacher's, without any other server."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from test_handlers import settings
from waiting import LONG, until

from sdlab.live.manager import Manager
from sdlab.ui.server import Class, build
from sdlab.ui.server import server as page_server
from sdlab.ui.visitors import public

PIN = "481516"
SEATS = 2


@pytest.fixture(scope="module")
def address(unhurried: None) -> Iterator[str]:
    manager = Manager(max_sessions=9, grace=8.0)  # a page takes some seconds to load on a busy machine
    start, locked = public(settings().patch("steps", 100_000))
    app = build(manager, start, "mixture", locked=locked, classroom=Class(SEATS, PIN, ("http://10.0.0.5:7860/",)))
    server = page_server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


class Seen:
    """A page, what it asked for, and its errors."""

    def __init__(self, browser: Any, address: str, path: str = "", views: bool = False) -> None:
        self.context = browser.new_context(viewport={"width": 1000, "height": 700})
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * LONG)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.context.on("request", lambda request: self._look(request.url, address))
        self.page.on("websocket", lambda socket: self._look(socket.url.replace("ws:", "http:"), address))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        if not views:
            self.page.route("**/viewport/**", lambda route: route.fulfill(body="", content_type="text/html"))
        self.page.goto(address + path)

    def _look(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def says(self, selector: str, text: str) -> None:
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
        )

    def close(self) -> None:
        self.context.close()
        assert not self.errors, self.errors
        assert not self.foreign, f"asked another server: {self.foreign}"


@pytest.mark.browser
def test_a_class_from_the_first_seat_to_the_line(browser, address: str):
    teacher = Seen(browser, address, "teacher/")
    teacher.page.fill("#pin", "000000")
    teacher.page.press("#pin", "Enter")
    teacher.says("#door .error", "this is not the PIN")
    teacher.page.fill("#pin", PIN)
    teacher.page.press("#pin", "Enter")
    teacher.says("#addresses", "http://10.0.0.5:7860/")
    teacher.says("#count", "0 of 2 seats taken")
    assert PIN not in teacher.page.content() + teacher.page.url
    assert teacher.page.evaluate("document.cookie") == "", "scripts cannot read it"

    student = Seen(browser, address)
    student.says(".room [data-number]", "Seat 1")
    student.page.fill(".room input", "<i>Ann</i>")
    student.page.press(".room input", "Enter")
    teacher.says(".seat h2", "1 · <i>Ann</i>")
    student.page.click("#start:enabled")
    teacher.says(".seat .state", "Running")
    teacher.says(".seat .last", "pressed Start")
    until(lambda: teacher.page.evaluate("document.querySelector('.seat img').naturalWidth") > 0)

    teacher.page.fill("[name=text]", "Look at <b>this</b>")
    teacher.page.press("[name=text]", "Enter")
    student.says(".room .message", "Look at <b>this</b>")
    height = student.page.evaluate("document.querySelector('.room').offsetHeight")
    teacher.page.click("#freeze")
    student.says(".room .frozen", "The teacher has paused everybody.")
    student.page.wait_for_selector("#pause:disabled")
    assert student.page.evaluate("document.querySelector('#form').inert")
    assert student.page.evaluate("document.querySelector('.room').offsetHeight") == height, "nothing jumps"
    student.page.evaluate("scrollTo(0, 2000)")
    student.page.wait_for_selector(".room.out")
    assert student.page.evaluate("document.querySelector('.room').getBoundingClientRect().top") == 0, "still in sight"
    student.page.evaluate("scrollTo(0, 0)")
    student.page.wait_for_selector(".room:not(.out)")
    teacher.says(".seat .state", "Paused")
    teacher.page.click("#freeze")
    student.page.wait_for_selector("#pause:enabled")
    student.says(".room .frozen", "")
    teacher.page.locator(".seat").get_by_text("Show", exact=True).click()
    teacher.says("#show-title", "<i>Ann</i>")
    until(lambda: teacher.page.evaluate("document.querySelector('#show .seen img').naturalWidth") > 0)
    teacher.page.keyboard.press("Escape")

    teacher.page.fill("[name=link]", "?seed=7&lock=losses&hide=timeline")
    teacher.page.press("[name=link]", "Enter")
    student.page.wait_for_selector("#knob-losses-sds-cfg:disabled")
    student.page.wait_for_selector("#timeline", state="hidden")
    teacher.page.select_option("[data-give=preset] select", "mixture")
    teacher.page.click("[data-give=preset] button")
    student.page.wait_for_selector("#knob-losses-sds-cfg:enabled")

    with httpx.Client(base_url=address) as other:  # takes the last seat
        assert other.post("/desk", json={}).json()["token"]
    late = Seen(browser, address)
    late.says("#status strong", "You are number 1 in the line")
    late.says(".room [data-number]", "No seat")
    teacher.says("#count", "2 of 2 seats taken, 1 waiting")
    teacher.page.on("dialog", lambda dialog: dialog.accept())
    teacher.page.locator(".seat", has_text="Seat 2").get_by_text("End").click()
    late.says(".room [data-number]", "Seat 2")
    late.page.wait_for_selector('#status [data-phase="ready"]')
    teacher.page.select_option("#target", "")
    teacher.page.click("#end")
    teacher.says("#said", "All seats have ended.")
    teacher.says("#count", "0 of 2 seats taken")
    for each in (student, late, teacher):
        each.close()


@pytest.mark.browser
def test_pages_ask_nobody_but_their_own_server(browser, address: str):
    """And look right with no network at all: nothing foreign is even asked for."""
    until(lambda: httpx.get(f"{address}teacher/").status_code == 200)
    student = Seen(browser, address, "?preset=playground", views=True)
    student.page.wait_for_selector('#status [data-phase="ready"]')
    student.page.frame_locator(".lane iframe").locator("canvas").first.wait_for()
    student.page.goto(f"{address}?seed=3")
    student.page.wait_for_selector('#status [data-phase="ready"]')
    student.page.frame_locator(".lane iframe").locator("canvas").first.wait_for()
    for tab in ("charts", "versus", "results"):
        student.page.click(f"[data-tab={tab}]")
    fonts = student.page.evaluate("[...document.fonts].filter((font) => font.status === 'error').length")
    assert fonts == 0
    student.close()


@pytest.mark.browser
def test_a_link_back_returns_to_the_run_in_another_browser(browser, address: str):
    first = Seen(browser, address)
    first.page.click("#start:enabled")
    until(lambda: int(first.page.get_attribute("#status .status", "data-step") or 0) > 3)
    first.page.click("[data-share]")
    first.page.evaluate("""() => {
        navigator.clipboard.writeText = () => Promise.reject();  // as over plain HTTP
        document.execCommand = () => { window.copied = document.activeElement.value; return true; };
    }""")
    first.page.click("[data-back]")
    until(lambda: first.page.evaluate("window.copied"))
    back = first.page.evaluate("window.copied")
    assert "#back=" in back
    first.context.close()
    second = Seen(browser, back.partition("#")[0], f"#{back.partition('#')[2]}")
    second.page.wait_for_selector('#status [data-phase="running"]')
    assert int(second.page.get_attribute("#status .status", "data-step")) > 3
    assert "#" not in second.page.url, "nobody reads the key over a shoulder"
    second.close()
