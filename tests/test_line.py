"""Pages that wait for a seat: in order, of limited number, and only as long as they are there."""

import threading
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from test_handlers import Browser, Views, settings

from sdlab.live.clients import Client
from sdlab.live.manager import Manager
from sdlab.ui import line as lines
from sdlab.ui.answers import routes
from sdlab.ui.guard import Guard
from sdlab.ui.line import BACK_WITHIN, GONE, LATE, MOST_OF_ADDRESS, SILENT, Line, Ticket
from sdlab.ui.page import Page
from sdlab.ui.visitors import Visitors, public


class Clock:
    """Time that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lines, "time", clock)
    return clock


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=1)
    yield manager
    manager.shutdown(0.5)


@pytest.fixture(scope="module")
def public_visitors() -> Visitors:
    """All presets are read, once."""
    return Visitors(*public(settings()))


@pytest.fixture(scope="module")
def visitors() -> Visitors:
    return Visitors(settings())


@pytest.fixture
def page(manager: Manager, visitors: Visitors) -> Page:
    return Page(manager, Views(), visitors)


def ticket(page: str, client: Client | None = None) -> Ticket:
    found = Ticket(page, client or Client())
    found.heard = lines.time.monotonic()
    return found


class Waiting:
    """A page without a seat."""

    def __init__(self, page: Page, name: str, kept: str = "") -> None:
        self.page, self.name = page, name
        told = page.arrive(name, kept)
        assert told["token"] == ""
        self.ticket = told["ticket"]
        self.status = told["panels"]["status"]

    def poll(self) -> dict:
        return self.page.poll(self.ticket, self.name)

    def has_seat(self) -> bool:
        return bool(self.poll().get("token"))


def test_pages_get_seats_in_the_order_in_which_they_came(page: Page, manager: Manager):
    seated = Browser(page, "seated")
    first, second = Waiting(page, "first"), Waiting(page, "second")
    assert "You are number 1 in the line" in first.status
    assert "You are number 2 of 2 in the line" in second.status
    assert "All 1 seats of this server are taken" in second.status
    assert second.poll() == {}, "nothing is new"
    assert "number 1 of 2" in first.poll()["panels"]["status"], "but for the number of those that wait"
    seated.page.close(*seated.desk.lanes)
    assert not second.has_seat(), "the first one is before it"
    told = page.arrive("newcomer")
    assert told["token"] == ""
    assert "You are number 3 of 3" in told["panels"]["status"]
    assert first.has_seat()
    assert "number 1 of 2" in second.poll()["panels"]["status"]
    assert page.shows(page.poll(first.ticket, "first")["token"], "first"), "an answer that got lost is given again"


def test_a_seat_that_is_given_back_to_be_taken_again_is_nobody_elses(page: Page, manager: Manager):
    """A preset with another prior needs a new run, in the last seat there is."""
    seated, waits = Browser(page, "seated"), Waiting(page, "waits")
    asked: list[bool] = []
    poll = threading.Thread(target=lambda: asked.append(waits.has_seat()))

    def ask_now() -> None:
        """While there is no run in the seat."""
        poll.start()
        poll.join(0.2)

    seated.desk.focus.seat.on_close.append(ask_now)
    page.replace(seated.desk, seated.desk.focus, settings(), None)
    poll.join(20)
    assert asked == [False]
    assert len(seated.desk.lanes) == 1


def test_nobody_adds_a_lane_while_others_wait(page: Page, manager: Manager):
    manager.max_sessions = 2
    first, second = Browser(page, "first"), Browser(page, "second")
    Waiting(page, "waits")
    page.close(*second.desk.lanes)
    first.act(do="branch")
    assert "1 page waits for a seat" in first.panels()["status"]
    assert len(first.desk.lanes) == 1


def test_a_page_that_goes_leaves_the_line(clock: Clock):
    line = Line()
    gone, stays = ticket("gone"), ticket("stays")
    line.add(gone)
    line.add(stays)
    line.leave("gone")
    clock.now += LATE / 2
    line.heard(gone)  # a poll that was under way when it was closed
    clock.now += BACK_WITHIN + 1
    assert (line.number(gone), line.number(stays), len(line)) == (1, 2, 1)
    assert line.number(stays) == 1
    clock.now += GONE
    assert len(line) == 0, "nothing was heard of the other for long"


def test_a_page_that_is_reloaded_keeps_its_place(page: Page, manager: Manager, clock: Clock):
    Browser(page, "seated")
    first, second = Waiting(page, "first"), Waiting(page, "second")
    page.leave("first")
    clock.now += BACK_WITHIN - 1
    second.poll()
    back = Waiting(page, "first, loaded again", first.ticket)
    assert back.ticket == first.ticket
    assert "number 1 of 2" in back.status
    assert "Open in another tab" in first.poll()["panels"]["status"]
    clock.now += BACK_WITHIN
    assert page.line.number(page.line.find(back.ticket)) == 1  # type: ignore[arg-type]


def test_a_page_that_does_not_ask_is_passed_by_and_keeps_its_place(page: Page, manager: Manager, clock: Clock):
    seated = Browser(page, "seated")
    sleeper, second = Waiting(page, "sleeper"), Waiting(page, "second")
    page.close(*seated.desk.lanes)
    assert not second.has_seat()
    clock.now += SILENT + 1
    assert second.has_seat()
    assert sleeper.poll() == {}, "it still is number 1, as it was told"


def test_an_address_with_all_its_seats_does_not_hold_up_others(clock: Clock):
    line = Line()
    full, other = ticket("full", Client("10.0.0.7", 1)), ticket("other", Client("10.0.0.8", 1))
    line.add(full)
    assert line.before(other, lambda client: client.address == "10.0.0.7")
    assert not line.before(other, lambda client: client.address == "10.0.0.8")


def test_the_line_is_bounded_in_all_and_for_one_address():
    line = Line(most=MOST_OF_ADDRESS + 2)
    for n in range(MOST_OF_ADDRESS):
        line.add(ticket(f"{n}", Client("10.0.0.7", 4)))
    with pytest.raises(RuntimeError, match=f"{MOST_OF_ADDRESS} pages of your address wait"):
        line.add(ticket("one more", Client("10.0.0.7", 4)))
    line.add(ticket("other", Client("10.0.0.8", 4)))
    line.add(ticket("unknown", Client("", 4)))
    with pytest.raises(RuntimeError, match=f"{MOST_OF_ADDRESS + 2} pages wait for a seat already"):
        line.add(ticket("too many", Client("10.0.0.9", 4)))


def test_a_page_for_which_the_line_is_full_is_told_so(page: Page, manager: Manager):
    Browser(page, "seated")
    page.line._most = 0
    told = page.arrive("late")
    assert told["token"] == ""
    assert "ticket" not in told
    assert "0 pages wait for a seat already" in told["panels"]["status"]
    assert told["panels"]["controls"]["again"] == "Try again"


def test_a_ticket_opens_nothing_but_the_line(manager: Manager, public_visitors: Visitors):
    page = Page(manager, Views(), public_visitors)
    seated, waits = Browser(page, "seated"), Waiting(page, "waits")
    app = FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(page))
    client = TestClient(app, "http://127.0.0.1")
    assert client.post(f"/do/{waits.ticket}", json={"do": "start"}).status_code == 404
    assert client.get(f"/here/{waits.ticket}", params={"page": "seated"}).status_code == 204
    told = client.get(f"/news/{waits.ticket}", params={"page": "guess"}).json()
    assert told["token"] == ""
    assert "number" not in told["panels"]["status"]
    assert client.get(f"/news/{seated.token}", params={"page": "waits"}).json()["panels"]["stage"] == []


def test_polls_of_waiting_pages_are_limited(manager: Manager, public_visitors: Visitors):
    page = Page(manager, Views(), public_visitors)
    Browser(page, "seated")
    waits = Waiting(page, "waits")
    assert max(page.delay(waits.ticket) for _ in range(100)) > 0
