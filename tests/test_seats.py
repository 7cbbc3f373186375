"""Seats whose page nobody sees: they are slowed, and pause after a while."""

import contextlib
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from test_channel import together, worker
from test_handlers import Browser as Tab
from test_handlers import Views, presets_are_read_once, ready, settings  # noqa: F401
from waiting import until

from sdlab.bench.intruder import Seat, attempts, succeeded
from sdlab.channel import SLACK, Account, Turnstile
from sdlab.live import capacity
from sdlab.live import manager as manager_module
from sdlab.live.capacity import LOG_BYTES, Capacity
from sdlab.live.clients import UNSEEN_SHARE, Client
from sdlab.live.manager import Manager
from sdlab.live.memory import Memory
from sdlab.live.messages import Noted, Resume
from sdlab.live.timeline import FILM_BYTES, MOMENT_BYTES
from sdlab.ui.page import Page
from sdlab.ui.server import build
from sdlab.ui.visitors import Visitors

UNSEEN = 0.6  # seconds


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manager_module, "SWEEP_EVERY", 0.05)
    manager = Manager(max_sessions=3, unseen=UNSEEN)
    yield manager
    manager.shutdown()


@pytest.fixture
def tab(manager: Manager) -> Tab:
    long = settings().patch("steps", 100_000)
    tab = Tab(Page(manager, Views(), Visitors(long), "mixture"), "page")
    ready(tab)
    return tab


def test_an_account_with_a_quarter_of_a_share_gets_a_quarter_of_the_time():
    gate, seen, unseen = Turnstile(), Account(), Account()
    unseen.share = UNSEEN_SHARE
    turns: dict[Account, list[float]] = {seen: [], unseen: []}
    together(*(worker(gate, account, 0.01, 0.0, turns[account]) for account in turns))
    share = len(turns[unseen]) / len(turns[seen])  # threads wake late on a busy machine
    assert 0.5 * UNSEEN_SHARE < share < 2 * UNSEEN_SHARE, turns


def test_an_account_that_nobody_competes_with_has_all_the_time_whatever_its_share():
    gate, unseen = Turnstile(), Account()
    unseen.share = UNSEEN_SHARE
    waits: list[float] = []
    worker(gate, unseen, 0.01, 0.0, waits, 0.3)()
    assert sum(waits) < SLACK


def test_a_hidden_page_has_less_time_until_it_is_seen_again_and_so_has_a_closed_one(tab: Tab):
    account = tab.desk.client.account
    tab.poll()
    assert account.share == 1.0
    tab.page.poll(tab.token, tab.name, hidden=True)
    assert account.share == UNSEEN_SHARE
    tab.poll()
    assert account.share == 1.0
    tab.leave()
    tab.poll()  # was under way when the page was closed
    assert account.share == UNSEEN_SHARE


def test_a_run_that_nobody_sees_pauses_says_so_and_goes_on_at_a_click(tab: Tab):
    tab.act(do="start")
    session = tab.desk.focus.seat.session
    end = time.monotonic() + 2 * UNSEEN
    while time.monotonic() < end:  # seen
        tab.poll()
        assert session.running or session.status.step == 0
        time.sleep(0.05)
    until(lambda: not session.running)
    until(lambda: session.status.phase == "paused")
    status = tab.page.poll(tab.token, tab.name, hidden=True)["panels"]["status"]
    assert "nobody has looked at this page for 0.01 min; press Start to continue" in status
    before = session.state.step
    tab.act(do="start")
    until(lambda: session.state.step > before)
    assert "nobody has looked" not in tab.panels()["status"]


def test_a_hidden_page_in_which_something_is_done_runs_on(tab: Tab):
    tab.act(do="start")
    end = time.monotonic() + 2 * UNSEEN
    while time.monotonic() < end:
        tab.page.poll(tab.token, tab.name, hidden=True)
        tab.act(do="look", dark=True)
        time.sleep(0.05)
    assert tab.desk.focus.seat.session.running


def test_a_run_that_stands_still_is_not_told_that_it_pauses(manager: Manager, quick):
    seat = manager.open(quick, Client())
    until(lambda: seat.session.status.phase == "ready")
    time.sleep(2 * UNSEEN)
    assert not [event for event in seat.session.events.since()[0] if isinstance(event, Noted)]
    seat.client.acted()
    seat.session.send(Resume())
    until(lambda: seat.session.state.step > 0)


# ---- how many seats there can be -------------------------------------------------------------------------


def test_a_server_says_how_many_seats_it_carries(quick, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(manager_module, "tell", told.append)
    monkeypatch.setattr(capacity, "SECONDS", 0.05)
    manager = Manager(max_sessions=4, memory=Memory(64_000_000_000))
    manager.preload(quick, 4)
    until(lambda: told)
    manager.shutdown()
    found = manager.capacity
    assert found is not None
    assert found.rate(4) == pytest.approx(found.rate(1) / 4)
    assert 1e-4 < found.step < 0.5, "a step takes milliseconds"
    assert FILM_BYTES + LOG_BYTES < found.seat_bytes < FILM_BYTES + LOG_BYTES + manager.history
    assert f"Seats: {found}" in told


@pytest.mark.parametrize(
    ("step", "seat_bytes", "room", "most"),
    [(0.1, 10, None, 10), (0.1, 10, 55, 5), (3.0, 10, None, 1), (0.1, 10, 0, 1)],
)
def test_seats_are_limited_by_time_and_by_memory(step: float, seat_bytes: int, room: int | None, most: int):
    assert Capacity(step, seat_bytes, 8, room).most == most


def test_what_is_said_of_a_capacity():
    said = str(Capacity(0.05, 300_000_000, 8, None))
    assert said == (
        "20 steps a second alone, 2.5 each when all 8 run; this machine carries 20 seats at 1 step a second, "
        "each with up to 300 MB of memory"
    )
    assert str(Capacity(0.05, 300_000_000, 1)).startswith("20 steps a second alone; this")


def test_with_many_seats_each_keeps_a_smaller_history(quick):
    few, many = (Manager(max_sessions=n, memory=Memory(4_000_000_000)) for n in (2, 40))
    assert (few.history, many.history) == (MOMENT_BYTES, 50_000_000)
    seat = many.open(quick)
    until(lambda: seat.session.status.phase == "ready")
    assert seat.session.timeline.budget == 50_000_000
    branch = many.branch(seat.id)
    until(lambda: branch.session.status.phase == "ready")
    assert branch.session.timeline.budget == 50_000_000
    for manager in (few, many):
        manager.shutdown()


# ---- kept apart ------------------------------------------------------------------------------------------


class Requests:
    """A page's browser, as far as it makes requests."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def evaluate(self, script: str, asked: dict[str, Any]) -> list[Any]:
        if asked["method"] == "WS":
            with (
                contextlib.suppress(WebSocketDisconnect),
                self._client.websocket_connect(f"/{asked['path']}") as socket,
            ):
                return [101, str(socket.receive_bytes())]
            return [403, ""]
        answer = self._client.request(asked["method"], f"/{asked['path']}", json=asked["body"])
        return [answer.status_code, answer.text]


def test_a_page_cannot_read_or_steer_the_run_of_another():
    """The same attempts as `bench seats` makes with real browsers."""
    manager = Manager(max_sessions=2)
    app = build(manager, settings().patch("steps", 100_000), "mixture", locked=["prior.path"])
    with TestClient(app, "http://127.0.0.1:7860", raise_server_exceptions=False) as client:
        given = [client.post("/desk", json={"dark": False}).json() for _ in range(2)]
        views = list(manager._seats)
        own, other = (Seat(each["token"], each["page"], view) for each, view in zip(given, views, strict=True))
        for each in (own, other):
            until(lambda each=each: manager._seats[each.view].session.status.phase == "ready")
            client.post(f"/do/{each.desk}", json=[{"do": "start"}])
        session = manager._seats[other.view].session
        until(lambda: session.state.step > 0)
        before = session.settings
        page: Any = Requests(client)
        tried = attempts(own, other)
        assert not [why for each in tried if (why := succeeded(page, own, {"the other": other}, each))]
        step = session.state.step
        until(lambda: session.state.step > step)
        assert session.settings == before
        assert manager._seats[own.view].session.running
