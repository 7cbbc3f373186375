"""Lessons on the page: acts and locks without a browser; nightly, every lesson in one from first to last page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from test_handlers import Views
from test_lessons import SHORT
from test_links_page import Tab
from waiting import LONG, until

from sdlab import lessons, own_loss
from sdlab.lessons import library
from sdlab.lessons.lesson import Do
from sdlab.live.manager import Manager
from sdlab.live.messages import Rejected
from sdlab.own_loss import OwnLoss
from sdlab.settings import disown, preset
from sdlab.ui.page import Page
from sdlab.ui.server import build
from sdlab.ui.server import server as page_server
from sdlab.ui.visitors import Visitors
from sdlab.ui.watch import Watch
from sdlab.web import Site

PATIENCE = 600.0  # seconds for one page of a lesson in a browser that draws without a GPU
WIDTHS = (1280, 400)


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short lesson, except for the test of all others."""
    if "nightly" not in request.keywords:
        (tmp_path / "short.toml").write_text(SHORT)
        monkeypatch.setattr(library, "FOLDER", tmp_path)
        monkeypatch.setattr("sdlab.ui.watch.TICK_EVERY", 0.0)


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=3)
    yield manager
    manager.shutdown()


def page_of(manager: Manager, *locked: str) -> Page:
    return Page(manager, Views(), Visitors(preset("playground"), locked))


def walk(tab: Tab, told: str = "walk") -> Any:
    return tab.panels()[told]


def reached(tab: Tab) -> bool:
    wait = walk(tab)["wait"]
    return wait is not None and wait["reached"]


def test_a_lesson_is_walked_by_acts(manager: Manager):
    tab = Tab(page_of(manager), "tab")
    assert walk(tab) is None
    tab.act(do="lesson", name="short")
    assert walk(tab, "lesson")["where"] == "1. Short"
    until(lambda: reached(tab))
    assert tab.session.settings.knob("scene.n").value == 20
    tab.act(do="lesson", name="short", page=1)
    assert walk(tab)["asks"]
    assert tab.session.settings.prompt.text == "north west"
    tab.act(do="predict", choice=0)
    told = walk(tab)
    assert (told["choice"], told["right"]) == (0, 1)
    assert told["because"] == "<b>It is “East”</b>: the score does."
    until(lambda: reached(tab))
    assert tab.session.settings.prompt.text == "east"
    record = tab.desk.walk.record()
    assert [each["page"] for each in record["reached"]] == [0, 1]
    assert record["predictions"] == [{"page": 1, "choice": 0, "right": False}]
    tab.act(do="lesson", name="short", page=0)
    assert reached(tab), "back: the run goes on"
    assert tab.session.settings.prompt.text == "east"
    tab.act(do="lesson", name="short", page=0, again=True)
    until(lambda: tab.session.settings.prompt.text == "north west")
    until(lambda: reached(tab))
    tab.act(do="lesson", name="")
    assert walk(tab) is None


def test_a_reloaded_page_finds_its_lesson(manager: Manager):
    page = page_of(manager)
    tab = Tab(page, "tab")
    tab.act(do="lesson", name="short", page=1)
    tab.act(do="predict", choice=1)
    again = Tab(page, "again", kept=tab.token, fresh=False)
    assert walk(again, "lesson")["page"] == 1
    assert walk(again)["choice"] == 1


@pytest.mark.parametrize(
    "act",
    [
        {"name": "nothing"},
        {"name": "short", "page": 9},
        {"name": "short", "page": -1},
        {"name": "short", "page": True, "again": "yes"},
        {"name": ["short"]},
        {"name": "../presets/gallery"},
        {"name": "x" * 9000},
    ],
)
def test_odd_acts_are_refused_or_ignored(manager: Manager, act: dict[str, Any]):
    tab = Tab(page_of(manager), "tab")
    tab.act(do="predict", choice=1)
    tab.act(do="lesson", **act)
    tab.act(do="predict", choice={"a": 1})
    assert tab.desk.walk is None or tab.desk.walk.page == 1
    assert "status" in tab.panels()


def test_a_link_opens_a_page_and_the_page_tells_its_link(manager: Manager):
    tab = Tab(page_of(manager), "tab", "?lesson=short&page=2&seed=4")
    assert tab.panels()["link"]["problems"] == ()
    assert tab.panels()["link"]["query"] == "lesson=short&page=2&seed=4"
    assert walk(tab)["asks"]
    assert (tab.session.settings.seed, tab.session.settings.knob("scene.n").value) == (4, 20)
    unknown = Tab(page_of(manager), "unknown", "?lesson=shrt")
    assert "did you mean short?" in unknown.panels()["link"]["problems"][0]
    assert walk(unknown) is None


def test_what_a_link_locks_a_lesson_does_not_change(manager: Manager):
    tab = Tab(page_of(manager), "tab", "?lesson=short&page=2&lock=prompt")
    tab.act(do="predict", choice=1)
    until(lambda: any(isinstance(event, Rejected) for event in tab.session.events.since(0)[0]))
    assert "it is locked by the link" in tab.panels()["status"]
    assert tab.session.settings.prompt.text == "north west"
    until(lambda: tab.session.status.phase == "running")  # the lesson goes on


def test_what_a_server_locks_a_lesson_does_not_change(manager: Manager):
    tab = Tab(page_of(manager, "prompt.text"), "tab")
    tab.act(do="lesson", name="short", page=1)
    tab.act(do="predict", choice=1)
    assert "prompt.text is fixed on this server" in tab.panels()["status"]
    assert tab.session.settings.prompt.text == "north west"


def test_nothing_is_read_before_the_acts_are_carried_out(manager: Manager):
    tab = Tab(page_of(manager), "tab")
    tab.act(do="lesson", name="short")
    until(lambda: reached(tab))
    desk, sent, watch = tab.desk, Future(), Watch()
    watch._sent = [sent]
    desk.walk.again()
    desk.walk.due(desk.focus.reader.step)
    watch.tick(desk.walk, desk.focus, desk.lanes)
    assert desk.walk.value is None
    sent.set_result(None)
    watch.tick(desk.walk, desk.focus, desk.lanes)
    assert desk.walk.value is not None


def test_a_page_gets_its_steps_although_the_plan_ends(manager: Manager, tmp_path: Path):
    text = SHORT.replace("steps = 300", "steps = 20").replace("steps = 5, limit", "steps = 40, limit")
    (tmp_path / "short.toml").write_text(text)
    tab = Tab(page_of(manager), "tab")
    tab.act(do="lesson", name="short")
    until(lambda: reached(tab))
    assert tab.session.settings.steps == 20
    assert tab.desk.walk is not None
    assert tab.desk.walk.reached[0].step >= 40


def test_an_answer_on_an_earlier_page_begins_it_anew(manager: Manager, tmp_path: Path):
    third = '[[pages]]\ntitle = "Elsewhere"\ntext = "Another run."\ndo = [{preset = "playground-esd"}]\n\n[notes]'
    (tmp_path / "short.toml").write_text(SHORT.replace("[notes]", third))
    tab = Tab(page_of(manager), "tab")
    for number in (0, 1, 2, 1):  # without an answer
        tab.act(do="lesson", name="short", page=number)
    until(lambda: tab.session.settings.active == "esd")
    tab.act(do="predict", choice=1)
    until(lambda: tab.session.settings.prompt.text == "east")
    assert tab.session.settings.active == "sds", "the question is about the run of its own page"
    tab.act(do="lesson", name="short", page=2)
    until(lambda: tab.session.settings.active == "esd")


# ---- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of a server with an editor for the user's own loss, and the fragment that lets a tab write it."""
    manager = Manager(max_sessions=3, grace=1.0)
    own_loss.begin(tmp_path / "mine.py")
    own = OwnLoss(tmp_path / "mine.py")  # before settings are read, which then have it
    app = build(manager, preset("gallery"), "gallery", site=Site(loopback=True), own=own)
    server = page_server(app, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", app.state.fragment
    server.should_exit = True
    thread.join(20)
    disown()


def as_learners_do(page, acts: Sequence[Do]) -> None:
    """Do on the page what a lesson leaves to learners."""
    for act in acts:
        if act.what == "write":
            page.click("#tabs [data-tab=own]")
            page.fill("#own-text", act.value)
            page.click("#own [data-apply]")
        elif act.what == "set":
            assert act.value == (("active", "own"),), "the page has other ways for other knobs"
            page.click("#form .losses [data-value=own]")
        elif act.what in ("run", "reset"):
            page.click(f"#{'start' if act.what == 'run' else 'reset'}")
        page.wait_for_timeout(500)


@pytest.mark.nightly
@pytest.mark.browser
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", lessons.names())
def test_every_lesson_shows_what_it_promises_on_the_page(browser, address: tuple[str, str], name: str, width: int):
    """From the first page to the last; every predicate is reached, nothing is outlined that is not there."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(1000 * LONG)
    started = time.monotonic()
    page.goto(f"{address[0]}?lesson={name}{address[1]}")
    for number in range(len(lessons.load(name).pages)):
        page.wait_for_function(
            f"document.querySelector('.lesson .where')?.textContent.includes('page {number + 1} of')"
        )
        page.wait_for_timeout(1000)
        if page.is_visible(".lesson.asks"):
            page.click('.lesson [data-choice="0"]')
        page.wait_for_selector(".lesson:not(.asks)")
        page.wait_for_timeout(1000)
        as_learners_do(page, lessons.load(name).pages[number].student)
        if page.locator(".lesson .waits").count():
            page.wait_for_selector(".lesson .waits.reached", timeout=1000 * PATIENCE)
        for place in page.query_selector_all(".lesson [data-point]"):
            assert page.locator(".pointed:visible").count(), f"page {number + 1} points at {place.text_content()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if number + 1 < len(lessons.load(name).pages):
            page.click(".lesson [data-next]")
    print(f"{name} at {width} px: {time.monotonic() - started:.0f} s")
    context.close()
    assert not errors
