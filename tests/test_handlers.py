"""The page's handlers, called as Gradio calls them, with real sessions and no browser: what people do twice, too late,
or in two tabs at once."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from waiting import until

import app
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Advance, Reset
from sdlab.settings import Settings, default_settings, preset, to_toml
from sdlab.ui.desk import MOST_LANES, Desk
from sdlab.ui.page import Answer, Page
from sdlab.viewport.splat_view import SplatView, Viewports


class View(SplatView):
    """The view of a lane, without a server."""

    def __init__(self) -> None:
        self._film_at = None

    def link(self, peers: Any) -> None: ...
    def begin_like(self, other: Any) -> None: ...
    def set_dark(self, dark: bool) -> None: ...


class Views(Viewports):
    """`opening` is called first."""

    def __init__(self) -> None:
        self.opening: Callable[[], object] = lambda: None

    def open(self, seat: Seat, dark: bool = False) -> View:
        self.opening()
        return View()


class Browser:
    """One page of one browser."""

    def __init__(self, page: Page, name: str, kept: str = "") -> None:
        self.page, self.name = page, name
        self.first = Answer(*page._arrive(False, kept, self.request))
        self.token = self.first.token

    @property
    def request(self) -> gr.Request:
        return gr.Request(session_hash=self.name)

    @property
    def desk(self) -> Desk:
        return self.page._desks[self.token]

    def act(self, **asked: Any) -> Any:
        return self.page._act(self.token, False, gr.EventData(None, asked))

    def tick(self) -> tuple[dict[str, Any], Any]:
        """What a poll brings, and what is fetched after it."""
        news = self.page.poll(self.token, self.name)
        return news, self.page._refresh(self.token, self.request) if news["refresh"] else gr.skip()

    def leave(self) -> None:
        self.page._leave(self.request)


def settings() -> Settings:
    return default_settings("mixture").patch_all([("scene.n_init", 20), ("camera.resolution", 16)])


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=MOST_LANES + 2)
    yield manager
    manager.shutdown()


@pytest.fixture
def page(manager: Manager) -> Page:
    return Page(manager, Views(), settings(), "mixture", ())


@pytest.fixture
def browser(page: Page) -> Browser:
    return Browser(page, "page")


def ready(browser: Browser) -> None:
    for lane in browser.desk.lanes:
        until(lambda lane=lane: lane.seat.session.status.phase in ("ready", "paused", "running"))


def branched(browser: Browser, lanes: int) -> list[str]:
    ready(browser)
    while len(browser.desk.lanes) < lanes:
        browser.act(do="branch", lane=browser.desk.focus.seat.id)
        ready(browser)
    return [lane.seat.id for lane in browser.desk.lanes]


@pytest.mark.parametrize("what", ["close", "keep"])
def test_a_second_press_on_a_lane_that_has_gone_does_nothing_to_the_others(browser: Browser, what: str):
    gone, *others = branched(browser, 3)
    browser.act(do="close", lane=gone)
    browser.act(do=what, lane=gone)
    assert [lane.seat.id for lane in browser.desk.lanes] == others


def test_lanes_asked_for_at_once_leave_no_seat_behind(browser: Browser, page: Page, manager: Manager):
    branched(browser, MOST_LANES - 1)
    both = threading.Barrier(2)
    page._viewports.opening = both.wait  # pyright: ignore[reportAttributeAccessIssue]
    first = browser.desk.lanes[0].seat.id
    pressed = [threading.Thread(target=browser.act, kwargs={"do": "branch", "lane": first}) for _ in range(2)]
    for press in pressed:
        press.start()
    for press in pressed:
        press.join(60)
    assert len(browser.desk.lanes) == MOST_LANES
    assert manager.count() == MOST_LANES


def test_a_lane_asked_for_by_a_page_that_is_closed_meanwhile_ends_with_it(browser: Browser, manager: Manager):
    branched(browser, 2)
    browser.leave()
    new = manager.get(browser.desk.lanes[-1].seat.id)
    assert new is not None
    branched(browser, 3)  # was under way
    assert all(manager._seats[lane.seat.id].ends_at is not None for lane in browser.desk.lanes[2:])


def test_what_is_new_may_be_asked_for_while_a_lane_is_put_in_the_place_of_another(browser: Browser):
    desk = browser.desk
    lane = desk.focus
    tone = desk.take_out(lane)
    browser.tick()
    desk.turn_to("charts")
    browser.tick()
    desk.put_in(lane, tone)
    assert desk.lanes == [lane]


def test_a_preset_without_a_seat_leaves_the_other_lanes(browser: Browser, page: Page, manager: Manager):
    one, two = branched(browser, 2)
    desk = browser.desk

    def refuse() -> None:
        raise OSError("no socket is left")

    page._viewports.opening = refuse  # pyright: ignore[reportAttributeAccessIssue]
    page._replace(desk, desk.focus, settings(), "mixture", False)
    assert [lane.seat.id for lane in desk.lanes] == [one]
    assert "No socket is left" in (desk.focus.look().status or "") + str(desk.focus._last)
    assert not manager.exists(two)
    assert page._desks


def test_a_tab_that_is_copied_has_the_run_and_the_first_says_so(browser: Browser, page: Page):
    copy = Browser(page, "copy", browser.token)
    assert copy.token == browser.token
    told = Answer(*browser.tick()[1])
    assert told.token == told.news["token"] == ""
    assert "another tab" in told.news["panels"]["status"]
    browser.leave()
    assert copy.desk.is_there(ticking=False), "the other tab does not take the run with it"


def test_a_page_whose_connection_failed_once_still_frees_its_seat_when_it_is_closed(browser: Browser, manager: Manager):
    seat = browser.desk.focus.seat
    browser.leave()
    assert seat.ends_at is not None
    browser.tick()
    browser.tick()
    assert seat.ends_at is None, "it lives"
    browser.leave()
    assert seat.ends_at is not None


def test_buttons_and_prompt_come_when_they_are_due_and_once(browser: Browser):
    ready(browser)
    browser.tick()
    browser.page._press_step(browser.token, "a red bear")
    until(lambda: browser.desk.focus.seat.session.status.phase == "paused")
    browser.desk.focus.patch([("prompt.text", "a blue bear")])
    browser.desk.focus._shown.clear()  # as if it had been changed elsewhere
    until(lambda: browser.desk.focus.settings.prompt.text == "a blue bear")
    news, rest = browser.tick()
    assert {"stage", "status", "timeline"} <= set(news["panels"])
    due = Answer(*rest)
    assert due.prompt == "a blue bear"
    assert [due.start["interactive"], due.pause["interactive"], due.step["interactive"]] == [True, False, True]
    assert due.token == due.news == gr.skip()
    assert browser.tick()[0]["refresh"] is False


def test_what_is_told_later_has_a_higher_number(browser: Browser):
    first = browser.first.news["number"]
    polled = browser.tick()[0]["number"]
    whole = Answer(*browser.act(do="focus", lane=browser.desk.focus.seat.id)).news
    assert first < polled < whole["number"]
    assert {"stage", "status", "timeline", "preview", "lens", "charts", "versus", "form"} <= set(whole["panels"])


@pytest.mark.parametrize("asks", [("", ""), ("no such token", "page"), ("no such token", "")])
def test_a_poll_for_nothing_that_is_there_brings_nothing(browser: Browser, asks: tuple[str, str]):
    assert browser.page.poll(*asks) == {"refresh": True}
    assert browser.page.poll(browser.token, "other page") == {"refresh": True}


def test_a_page_loaded_anew_begins_with_the_lens_as_each_step_sees_it(browser: Browser, page: Page):
    ready(browser)
    session = browser.desk.focus.seat.session
    browser.act(do="probe", t=20)
    until(lambda: session.watched[1] == 20)
    browser.act(do="tab", tab="charts")
    until(lambda: session.watched[0] is None)
    browser.act(do="tab", tab="lens")
    until(lambda: session.watched[0] is not None)
    assert session.watched[1] == 20, "the slider stands there still"
    browser.act(do="tab", tab="results")
    Browser(page, "anew", browser.token)
    until(lambda: session.watched == (0, None))
    assert browser.desk.tab == "lens"


@pytest.mark.parametrize("said", [None, [], "close", 3, {"do": []}, {"do": "goto", "step": float("inf")}, {"lane": {}}])
def test_whatever_json_a_page_sends_is_no_error(browser: Browser, page: Page, said: Any):
    event = gr.EventData(None, said)
    page._act(browser.token, False, event)
    page._change_knob(browser.token, event)
    page._pick_preset(browser.token, False, event)
    assert browser.desk.lanes


# ---- what people bring ---------------------------------------------------------------------------------------------


LINE = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
LINE += b"0 0 -1\n0 0 0\n0 0 1\n"


def gaussians(browser: Browser) -> int:
    return len(browser.desk.focus.seat.session.state.scene.params["means"])


def test_a_run_begins_with_a_file_at_once_and_one_under_way_at_the_next_reset(browser: Browser, page: Page):
    ready(browser)
    lane = browser.desk.focus
    bring(browser, "scene.file", "line.ply", LINE)
    until(lambda: gaussians(browser) == 3)
    lane.send(Advance(1))
    until(lambda: lane.step == 1)
    bring(browser, "scene.file", "two.ply", LINE.replace(b"vertex 3", b"vertex 2")[: -len(b"0 0 1\n")])
    said: dict[str, Any] = {}
    until(lambda: said.update(browser.tick()[0]["panels"]) or "File: in force at the next reset" in said["status"])
    assert gaussians(browser) == 3
    assert said["form"]["values"]["scene.file"].endswith("2-two.ply")
    lane.send(Reset())
    until(lambda: gaussians(browser) == 2)
    kept = Path(lane.settings.knob("scene.file").value)
    assert kept.is_file()
    page._close(browser.desk)
    until(lambda: not kept.exists())


def test_a_file_for_another_kind_of_scene_or_a_session_that_ended_is_refused(browser: Browser, page: Page):
    ready(browser)
    with pytest.raises(ValueError, match=r"this run does not start from a file of this kind: it has no scene\.picture"):
        bring(browser, "scene.picture", "x.png", b"")
    branched(browser, 2)
    bringing = page.bringing(browser.token)
    assert bringing is not None
    browser.act(do="close", lane=browser.desk.focus.seat.id)
    with pytest.raises(RuntimeError, match="the run that this file is for has ended"):
        bringing.receive("scene.file", "line.ply", LINE)
    page._close(browser.desk)
    assert page.bringing(browser.token) is None
    with pytest.raises(RuntimeError, match="the session of this file has ended"):
        bringing.receive("scene.file", "line.ply", LINE)


def test_visitors_bring_files_where_the_path_is_locked(manager: Manager):
    page = Page(manager, Views(), settings(), "mixture", ("scene.file",))
    browser = Browser(page, "page")
    ready(browser)
    page._change_knob(browser.token, gr.EventData(None, {"knob": "scene.file", "value": "/etc/passwd", "number": 1}))
    page._change_knob(browser.token, gr.EventData(None, {"knob": "seed", "value": 9, "number": 1}))
    until(lambda: browser.desk.focus.settings.seed == 9)
    assert browser.desk.focus.settings.knob("scene.file").value == ""
    bring(browser, "scene.file", "line.ply", LINE)
    until(lambda: gaussians(browser) == 3)


def bring(browser: Browser, knob: str, name: str, raw: bytes) -> None:
    bringing = browser.page.bringing(browser.token)
    assert bringing is not None
    bringing.receive(knob, name, raw)


def opened(browser: Browser, text: str, name: str = "own.toml") -> Any:
    return browser.page._pick_preset(browser.token, False, gr.EventData(None, {"settings": text, "name": name}))


def test_settings_that_were_saved_are_opened(browser: Browser):
    ready(browser)
    saved = settings().patch_all([("active", "csd"), ("prompt.text", "north"), ("losses.sds.cfg", 2.5)])
    answer = Answer(*opened(browser, to_toml(saved)))
    assert answer.prompt == "north"
    assert answer.news["panels"]["form"]["preset"] is None
    until(lambda: browser.desk.focus.settings == saved)
    kept = browser.desk.focus
    flat = preset("playground")
    opened(browser, to_toml(flat))
    assert browser.desk.focus is not kept, "another kind of scene is a new run"
    assert browser.desk.focus.settings == flat


def test_saved_settings_do_not_get_round_a_lock(manager: Manager):
    """Neither that of a knob that this server's own settings do not have."""
    browser = Browser(Page(manager, Views(), settings(), "mixture", ("scene.file", "scene.picture")), "page")
    ready(browser)
    opened(browser, 'seed = 9\n[prior]\nkind = "mixture"\n[scene]\nstart = "file"\nfile = "/etc/passwd"')
    until(lambda: browser.desk.focus.settings.seed == 9)
    now = browser.desk.focus.settings
    assert (now.knob("scene.file").value, now.scene.start) == ("", "ball")
    opened(browser, '[scene]\nkind = "image"\nstart = "picture"\npicture = "/home/me/a.png"\n[prior]\nkind = "mixture"')
    now = browser.desk.focus.settings
    assert now.scene.kind == "image"
    assert (now.knob("scene.picture").value, now.scene.start) == ("", "noise")


@pytest.mark.parametrize("own", ["toybox", "mixture", "playground", "toybox-2d"])
def test_a_public_server_offers_every_preset_of_its_prior_and_those_without_one(manager: Manager, own: str):
    """Whatever kind its own settings are of, and never a download."""
    page = Page(manager, Views(), *_public(preset(own)))
    assert {"mixture", "playground", "toybox", "toybox-2d"} <= set(page._presets)
    assert "dreammapping" not in page._presets, "it wants Stable Diffusion"
    asked = preset("toybox").patch_all([("scene.start", "shap-e")])
    assert page._for_visitors(asked).knob("scene.shap_e").value == ""


def _public(s: Settings) -> tuple[Settings, None, tuple[str, ...]]:
    shown, locked = app.for_visitors(s)
    return shown, None, locked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml [", "own.toml is not valid TOML"),
        ("[losses.sds]\ncfg = 'high'", "own.toml: "),
        ("[losses.sds]\nspeed = 3", "own.toml: "),
        ("prior = 3", "own.toml: "),
        ("#" * 20_001, "own.toml has 20,001 characters; settings have at most 20,000"),
        ("[prior]\nkind = []", "own.toml: "),
        ("seed = 1" + 400 * "0", "own.toml: seed = "),
        ("a = " + 3000 * "[", "own.toml is not valid TOML"),
        (".".join(3000 * "a") + " = 1", "own.toml: "),
        ('[prior]\nkind = "diffusers"\npath = "/etc"', "own.toml: it is for another prior"),
    ],
)
def test_settings_that_are_none_are_refused_and_nothing_changes(manager: Manager, text: str, said: str):
    browser = Browser(Page(manager, Views(), settings(), "mixture", ("prior.path", "prior.kind")), "page")
    ready(browser)
    before = browser.desk.focus.settings
    opened(browser, text)
    assert said in browser.tick()[0]["panels"]["status"]
    assert browser.desk.focus.settings == before
