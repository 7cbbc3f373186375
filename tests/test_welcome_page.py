"""The first minute in a browser: the recording gives way, an example opens, the tour is taken with the keyboard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import LONG, until

from sdlab.live.manager import Manager
from sdlab.settings import Settings, preset
from sdlab.ui.server import build
from sdlab.ui.server import server as page_server

pytestmark = pytest.mark.browser
WIDE, NARROW = {"width": 1280, "height": 720}, {"width": 400, "height": 800}
STOPS = 7  # of the whole tour
NEVER_PATIENT = "const plain = setTimeout; window.setTimeout = (f, ms, ...a) => ms === 4000 ? 0 : plain(f, ms, ...a);"
TITLE = "document.querySelector('.driver-popover-title').textContent"


def settings() -> Settings:
    changes = [("steps", 100_000), ("scene.n_init", 60), ("scene.max_gaussians", 90), ("camera.views", 1)]
    return preset("mixture").patch_all(changes)


@pytest.fixture(scope="module")
def manager(unhurried: None) -> Manager:
    return Manager(max_sessions=12, grace=10.0)  # a busy machine takes seconds to open a page again


@pytest.fixture(scope="module")
def address(manager: Manager) -> Iterator[str]:
    server = page_server(build(manager, settings(), "mixture"), port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def visit(browser, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page in a browser that has not seen it before; what its console complains of fails the test."""
    contexts, errors = [], []

    def open_one(query: str = "", view: bool = False, size: dict = WIDE, script: str = "", **options: Any) -> Any:
        contexts.append(browser.new_context(viewport=size, **options))
        contexts[-1].add_init_script(script)
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * LONG)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        if not view:
            page.route("**/viewport/**", lambda route: route.fulfill(body="", content_type="text/html"))
        page.goto(address + query)
        page.wait_for_selector('#status [data-phase="ready"]', state="attached")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not errors


def at(page, selector: str) -> str:
    """What a click on the middle of an element would reach."""
    return page.evaluate(
        """selector => {
            const box = document.querySelector(selector).getBoundingClientRect();
            return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).tagName;
        }""",
        selector,
    )


# ---- the recording ---------------------------------------------------------------------------------------------------


def test_the_recording_gives_way_to_the_view_and_ends_with_the_first_run(visit):
    page = visit(view=True)
    assert page.is_visible(".opening")
    assert "recording" in page.inner_text(".opening figcaption")
    assert at(page, "#stage") == "IFRAME", "the view can be turned"
    page.wait_for_selector(".opening.beside")  # when the view says that it shows the scene
    box, stage = page.locator(".opening").bounding_box(), page.locator("#stage").bounding_box()
    assert box["width"] < 0.25 * stage["width"]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.wait_for_selector(".opening", state="detached")
    page.reload()
    page.wait_for_selector('#status [data-phase="running"]')
    page.wait_for_selector(".opening", state="detached")
    assert page.is_hidden(".tour-offer"), "a visitor who has started a run knows the way"


def test_the_recording_can_be_stopped_and_respects_reduced_motion(visit):
    page = visit()
    shown = "document.querySelector('.opening img').currentSrc.split('/').at(-1)"
    assert page.evaluate(shown) == "opening.webp"
    page.click(".opening button")
    until(lambda: page.evaluate(shown) == "opening-end.webp")
    assert page.inner_text(".opening button") == "Play"
    page.wait_for_selector(".opening.beside")  # a view that says nothing is shown after a while
    page.click(".opening button")
    page.wait_for_selector(".opening", state="detached")
    calm = visit(reduced_motion="reduce")
    assert calm.evaluate(shown) == "opening-end.webp"
    calm.click(".opening button")
    until(lambda: calm.evaluate(shown) == "opening.webp")


def test_the_recording_of_an_object_is_not_shown_for_the_plane(visit):
    page = visit("?preset=playground", script=NEVER_PATIENT)
    page.wait_for_selector(".opening", state="detached")


# ---- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_an_example_opens_by_key_and_starts_two_lanes(visit, size: dict[str, int], manager: Manager):
    before = set(manager._seats)
    page = visit(size=size)
    assert page.is_visible("#examples ul")
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    page.focus("#examples [data-example]")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
        if page.evaluate("document.activeElement.dataset.example") == "plane":
            break
    assert "JSD" in page.inner_text("#examples p"), "the sentence of the example in focus"
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.lane').length === 2")
    new = [seat for token, seat in manager._seats.items() if token not in before]
    until(lambda: all(seat.session.status.phase == "running" for seat in new))
    assert page.input_value(".preset select") == "playground"
    page.wait_for_selector(".opening", state="detached")
    page.click("#title [data-examples]")
    assert page.is_hidden("#examples ul")
    page.reload()
    page.wait_for_selector("#status .status")
    assert page.is_hidden("#examples ul"), "as it was left"


def test_a_link_opens_without_examples_or_with_none_at_all(visit):
    page = visit("?seed=3")
    assert page.is_hidden("#examples ul")
    page.click("#title [data-examples]")
    assert page.is_visible("#examples ul")
    for query in ("?hide=examples,tour", "?lock=preset"):
        page = visit(query)
        assert page.is_hidden("#title [data-examples]")
        assert page.is_hidden("#title [data-tour]") == ("tour" in query)


# ---- the tour --------------------------------------------------------------------------------------------------------


def titles(page) -> list[str]:
    """Go through the tour with the keyboard; return the titles of its stops."""
    found = []
    for _ in range(STOPS + 1):
        page.wait_for_function(
            "t => document.querySelector('.driver-popover-title')?.textContent !== t", arg=found[-1:]
        )
        found.append(page.inner_text(".driver-popover-title"))
        assert page.locator(".driver-popover").bounding_box()["x"] >= 0
        assert page.is_visible(".driver-popover-next-btn")
        if page.inner_text(".driver-popover-next-btn") == "Done":
            return found
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(50)
    raise AssertionError(found)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_the_tour_is_offered_once_and_taken_with_the_keyboard(visit, size: dict[str, int]):
    page = visit(size=size, reduced_motion="reduce")
    loaded = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('driver')).length"
    assert page.evaluate(loaded) == 0
    page.focus(".tour-offer [data-tour]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".driver-popover")
    assert page.evaluate(loaded) == 2
    assert len(set(titles(page))) == STOPS
    box = page.locator(".driver-popover").bounding_box()
    assert box["x"] + box["width"] <= size["width"]
    page.keyboard.press("Escape")
    page.wait_for_selector(".driver-popover", state="detached")
    page.reload()
    page.wait_for_selector("#status .status")
    assert page.is_hidden(".tour-offer")
    page.click("#title [data-tour]")
    page.wait_for_selector(".driver-popover")


def test_the_tour_skips_what_a_link_hides_and_a_lesson_has_none(visit):
    page = visit("?hide=prompt,link,examples", reduced_motion="reduce")
    page.click(".tour-offer [data-tour]")
    page.wait_for_selector(".driver-popover")
    assert titles(page) == ["Start", "The loss", "The object", "What the loss sees"]
    assert visit("?lesson=what").is_hidden(".tour-offer")
