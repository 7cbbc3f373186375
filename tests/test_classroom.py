"""A class and its teacher: what the teacher sees and does, and that nobody else can."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect
from test_guard import HERE, mounted, samples
from test_handlers import Browser, Views, ready, settings
from waiting import until

from app import addresses, check_class, parser
from sdlab.live import clients
from sdlab.live.capacity import Capacity
from sdlab.live.manager import Manager
from sdlab.live.session import Session
from sdlab.machine import network_addresses
from sdlab.ui import door as doors
from sdlab.ui.classroom import Classroom, query_of
from sdlab.ui.door import ADDRESS_BURST, ALL_BURST, MOST_OPEN, Door, TooMany
from sdlab.ui.flat_view import FlatViews
from sdlab.ui.guard import CLASSROOM, routes_at
from sdlab.ui.page import Page
from sdlab.ui.places import LOOKING, MESSAGE, NAME, PAUSED, Room, worded
from sdlab.ui.server import Class, build
from sdlab.ui.thumbnails import THUMBNAIL
from sdlab.ui.visitors import Visitors, public

PIN = "481516"
LESSON = """
title = "A short one"
number = 1
minutes = 1
summary = "It is short."
preset = "mixture"
[[pages]]
title = "One"
text = "Nothing."
[[pages]]
title = "Two"
text = "Something."
ask = {question = "What?", choices = ["this", "that"], answer = 1, because = "so"}
[notes]
answers = ["**So** <it> is."]
"""


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=9)
    yield manager
    manager.shutdown(0.5)


@pytest.fixture(scope="module")
def visitors() -> Visitors:
    """All presets are read, once."""
    return Visitors(*public(settings()))


@pytest.fixture
def page(manager: Manager, visitors: Visitors) -> Page:
    return Page(manager, Views(), visitors, "mixture", room=Room(3))


@pytest.fixture
def classroom(page: Page, manager: Manager) -> Classroom:
    assert page.room is not None
    return Classroom(page, page.room, manager, ["http://10.0.0.5:7860/"])


@pytest.fixture
def ann(page: Page) -> Browser:
    browser = Browser(page, "ann")
    ready(browser)
    return browser


@pytest.fixture
def bob(page: Page) -> Browser:
    browser = Browser(page, "bob")
    ready(browser)
    return browser


def session(browser: Browser) -> Session:
    return browser.desk.focus.seat.session


def phase(browser: Browser) -> str:
    return session(browser).status.phase


def key(browser: Browser) -> str:
    assert browser.desk.place is not None
    return browser.desk.place.key


def entry(classroom: Classroom, number: int) -> dict[str, Any]:
    return next(desk for desk in classroom.board()["desks"] if desk["number"] == number)


def running(browser: Browser) -> None:
    browser.act(do="start")
    until(lambda: session(browser).state.step > 2)


# ---- the board -------------------------------------------------------------------------------------------


def test_the_board_says_who_is_there_and_what_each_run_does(classroom: Classroom, ann: Browser, bob: Browser):
    ann.act(do="name", name="  Ann \u202e<b> \n of a name that is much too long")
    ann.act(do="knob", knob="losses.sds.cfg", value=20.0)
    running(ann)
    until(lambda: entry(classroom, 1)["rate"])
    assert classroom.board()["capacity"] == "", "not measured yet"
    classroom._manager.capacity = Capacity(0.02, 50_000_000, 3)
    board = classroom.board()
    assert board["capacity"].startswith("50 steps a second alone, 17 each when all 3 run")
    assert (board["seats"], board["waiting"], board["addresses"]) == (3, 0, ["http://10.0.0.5:7860/"])
    first, second = board["desks"]
    assert first["name"] == "Ann <b> of a name that …"
    assert len(first["name"]) <= NAME
    assert (first["number"], first["preset"], first["loss"], first["prompt"]) == (1, "mixture", "SDS", "a red bear")
    assert first["phase"] == "running"
    assert first["step"] > 0
    assert first["last"] == "pressed Start"
    assert first["lesson"] is None
    assert not first["left"]
    assert (second["number"], second["phase"], second["last"]) == (2, "ready", "opened the page")
    assert (second["left"], second["hidden"]) == (False, False)
    bob.page.poll(bob.token, bob.name, hidden=True)
    assert entry(classroom, 2)["hidden"]
    bob.leave()
    assert entry(classroom, 2)["left"]
    assert ann.panels()["room"]["number"] == 1


def test_acts_are_told_in_words_and_looking_around_is_none():
    assert worded({"do": "knob", "knob": "losses.sds.cfg", "value": 20.0}) == "CFG = 20.0"
    assert worded({"do": "knob", "knob": "active", "value": "esd"}) == "loss esd"
    assert worded({"do": "prompt", "text": "a\nred\u202e" + "bear" * 40}).startswith("prompt: a red bearbear")
    assert len(worded({"do": "preset", "preset": "x" * 1000})) == 60
    assert worded({"do": ["start"]}) == ""
    assert [verb for verb in LOOKING if worded({"do": verb})] == ["hand-in"]  # which changes nothing either


def test_numbers_are_used_again_and_keys_are_not(page: Page, classroom: Classroom, ann: Browser, bob: Browser):
    old = key(ann)
    assert classroom.act({"do": "end", "seat": old}) == ""
    assert "the teacher ended it" in ann.panels()["status"]
    carl = Browser(page, "carl")
    assert carl.desk.place is not None
    assert carl.desk.place.number == 1
    with pytest.raises(ValueError, match="this seat is empty now"):
        classroom.act({"do": "end", "seat": old})
    assert {desk["number"] for desk in classroom.board()["desks"]} == {1, 2}


def test_pictures_are_small_and_made_once(classroom: Classroom, ann: Browser):
    ready(ann)
    until(lambda: entry(classroom, 1)["around"])
    front, around, seen = (classroom.picture(key(ann), kind) for kind in ("front", "around", "seen"))
    assert front is not None
    assert around is not None
    assert seen is not None
    assert max(Image.open(io.BytesIO(front)).size) <= THUMBNAIL
    width, height = Image.open(io.BytesIO(around)).size
    assert (width * 3, len(front) < 8000) == (height * 4, True), "twelve views, four in a row"
    assert classroom.picture(key(ann), "front") is front
    before = entry(classroom, 1)["picture"]
    ann.act(do="step")
    until(lambda: entry(classroom, 1)["picture"] != before)
    assert classroom.picture("nobody", "front") is None


# ---- what the teacher does -------------------------------------------------------------------------------


def test_a_frozen_class_stands_still_and_then_continues_as_it_was(
    page: Page, classroom: Classroom, ann: Browser, bob: Browser
):
    running(ann)
    classroom.act({"do": "freeze", "on": True})
    until(lambda: phase(ann) == "paused")
    step = session(ann).state.step
    told = ann.panels()
    assert told["room"]["frozen"] is True
    assert not any(told["controls"]["can"].values())
    late = Browser(page, "late")
    ready(late)
    for act in ({"do": "start"}, {"do": "step"}, {"do": "reset"}, {"do": "prompt", "text": "a car"}, {"do": "branch"}):
        for browser in (ann, bob, late):
            browser.act(**act)
    ann.act(do="tab", tab="charts")
    assert ann.desk.tab == "charts", "looking around is allowed"
    bringing = page.bringing(bob.token)
    assert bringing is not None
    with pytest.raises(ValueError, match=PAUSED):
        bringing.receive("scene.file", "a.ply", b"ply")
    classroom.act({"do": "preset", "preset": "mixture", "seat": key(bob)})  # the teacher may
    session(ann).branch().result(10)  # all commands so far are carried out
    assert session(ann).state.step == step
    assert (session(bob).state.step, session(late).state.step) == (0, 0)
    assert session(bob).settings.prompt.text == "a red bear"
    assert len(ann.desk.lanes) == 1
    classroom.act({"do": "freeze", "on": False})
    until(lambda: session(ann).state.step > step)
    until(lambda: (phase(bob), phase(late)) == ("ready", "ready"))  # what did not run does not start
    assert ann.panels()["controls"]["can"]["pause"]
    late.act(do="start")
    until(lambda: session(late).state.step > 0)


def test_points_cannot_be_dragged_while_the_class_is_frozen(classroom: Classroom, ann: Browser, manager: Manager):
    classroom.act({"do": "link", "link": "preset=playground"})
    ready(ann)
    classroom.act({"do": "freeze", "on": True})
    until(lambda: session(ann).on_hold)
    with pytest.raises(PermissionError, match=PAUSED):
        FlatViews(manager).move_start(session(ann), 0.5, 0.5)


def test_a_reset_and_a_preset_reach_one_or_all(page: Page, classroom: Classroom, ann: Browser, bob: Browser):
    running(ann)
    classroom.act({"do": "reset", "seat": key(ann)})
    until(lambda: session(ann).state.step == 0)
    classroom.act({"do": "preset", "preset": "playground", "seat": key(bob)})
    assert bob.desk.focus.settings.scene.kind == "points"
    assert ann.desk.focus.settings.scene.kind != "points"
    assert classroom.board()["late"] == ""
    classroom.act({"do": "preset", "preset": "playground"})
    assert ann.desk.focus.preset == "playground"
    assert classroom.board()["late"] == "the preset playground"
    late = Browser(page, "late")
    assert late.desk.focus.preset == "playground", "who comes later is where the class is"
    classroom.act({"do": "forget"})
    assert classroom.board()["late"] == ""
    with pytest.raises(ValueError, match="preset = nowhere: this server does not offer it"):
        classroom.act({"do": "preset", "preset": "nowhere"})


def test_a_link_sets_hides_and_locks_and_the_next_one_unlocks(classroom: Classroom, ann: Browser):
    said = classroom.act({"do": "link", "link": f"{HERE}/?seed=7&hide=lens&lock=preset,losses&text=large&nonsense=1"})
    assert "nonsense" in said
    ready(ann)
    told = ann.panels()["link"]
    assert (told["hide"], told["lock"], told["text"]) == (["lens"], ["preset", "losses"], "large")
    assert ann.desk.focus.settings.seed == 7
    ann.act(do="preset", preset="playground")
    ann.act(do="knob", knob="losses.sds.cfg", value=33.0)
    session(ann).branch().result(10)
    assert (ann.desk.focus.preset, ann.desk.focus.settings.loss.cfg == 33.0) == (None, False)  # type: ignore[attr-defined]
    classroom.act({"do": "preset", "preset": "playground"})
    assert ann.desk.focus.preset == "playground"
    assert ann.panels()["link"]["lock"] == []


def test_a_page_of_a_lesson_reaches_the_class_and_its_progress_the_teacher(
    page: Page, classroom: Classroom, ann: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "short.toml").write_text(LESSON)
    (tmp_path / "own.toml").write_text(LESSON.replace('"Nothing."', '"Nothing."\nhighlight = ["own"]'))
    monkeypatch.setattr("sdlab.lessons.library.FOLDER", tmp_path)
    notes = {"minutes": 1, "wrong": [], "answers": ["<strong>So</strong> &lt;it&gt; is."]}
    offered = {"name": "short", "title": "A short one", "pages": ["One", "Two"], "notes": notes}
    assert classroom.choices()["lessons"] == [offered]
    classroom.act({"do": "link", "link": "?lock=preset,losses&seed=3"})  # which a lesson unlocks
    classroom.act({"do": "lesson", "name": "short", "page": 1})
    ready(ann)
    progress = entry(classroom, 1)["lesson"]
    assert (progress["title"], progress["page"], progress["pages"]) == ("A short one", 1, 2)
    ann.act(do="predict", choice=1)
    assert [each["right"] for each in entry(classroom, 1)["lesson"]["predictions"]] == [True]
    assert entry(classroom, 1)["last"] == "made a prediction"
    late = Browser(page, "late")
    assert late.desk.walk is not None
    assert late.desk.walk.page == 1
    assert classroom.board()["late"] == "the lesson “A short one”, page 2"
    for wrong, page_number in (("nowhere", 0), ("short", 2), ("short", -1)):
        with pytest.raises(ValueError, match="lesson"):
            classroom.act({"do": "lesson", "name": wrong, "page": page_number})
    classroom.act({"do": "link", "link": "?seed=4"})
    assert ann.desk.walk is None


@pytest.mark.parametrize("link", ["", "hello", "http://10.0.0.5:7860/", "http://[::1/?seed"])
def test_a_link_without_settings_is_refused(link: str):
    with pytest.raises(ValueError, match="a link needs settings"):
        query_of(link)


def test_a_message_is_one_line_on_all_pages(classroom: Classroom, ann: Browser, bob: Browser):
    classroom.act({"do": "message", "text": "look\nhere " + "x" * 1000})
    for browser in (ann, bob):
        message = browser.panels()["room"]["message"]
        assert message.startswith("look here xx")
        assert len(message) == MESSAGE
    classroom.act({"do": "message", "text": ""})
    assert ann.panels()["room"]["message"] == ""


def test_lanes_of_students_take_no_seats_and_a_seat_that_ends_goes_to_the_first_in_line(
    page: Page, classroom: Classroom, ann: Browser, bob: Browser, manager: Manager
):
    ann.act(do="branch")
    carl = Browser(page, "carl")
    assert carl.desk.place is not None
    waits = page.arrive("dora")
    assert "All 3 seats of this classroom are taken" in waits["panels"]["status"]
    assert classroom.board()["waiting"] == 1
    classroom.act({"do": "end", "seat": key(ann)})
    assert page.poll(waits["ticket"], "dora")["token"]
    assert classroom.board()["waiting"] == 0


@pytest.mark.parametrize("said", [{}, {"do": "fly"}, {"do": "freeze"}, {"do": "preset"}, {"do": ["end"]}])
def test_nonsense_of_a_teacher_is_refused(classroom: Classroom, said: dict[str, Any]):
    with pytest.raises(ValueError, match="nothing that a teacher's page can do"):
        classroom.act(said)


def test_a_class_behind_one_address_finds_room(page: Page):
    answered = [page.arrive(f"page {n}", address="10.0.0.7") for n in range(3)]
    assert all(answer["token"] for answer in answered)


# ---- the door --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (doors, clients):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_pin_opens_and_a_cookie_keeps_open(clock: Clock):
    door = Door(PIN)
    assert door.enter("000000", "") is None
    assert door.enter("\uff14\uff18\uff11\uff15\uff11\uff16", "") is None, "other digits are other characters"
    cookie = door.enter(PIN, "")
    assert cookie is not None
    assert door.admits(cookie)
    assert not any(door.admits(guess) for guess in ("", PIN, cookie[:-1], "é\udc80"))
    door.leave(cookie)
    assert not door.admits(cookie)
    again = door.enter(PIN, "")
    assert again is not None
    clock.now += 13 * 3600
    assert not door.admits(again), "a cookie does not last for ever"


def test_only_so_many_cookies_open_at_once(clock: Clock):
    door, cookies = Door(PIN), []
    for _ in range(MOST_OPEN + 1):
        clock.now += 60
        cookies.append(door.enter(PIN, "") or "")
    assert [door.admits(cookie) for cookie in cookies] == [False] + [True] * MOST_OPEN


def test_attempts_of_one_address_are_limited_and_the_right_pin_does_not_help(clock: Clock):
    door = Door(PIN)
    for _ in range(int(ADDRESS_BURST)):
        assert door.enter("000000", "10.0.0.7") is None
    with pytest.raises(TooMany):
        door.enter(PIN, "10.0.0.7")
    assert door.enter(PIN, "10.0.0.8") is not None
    clock.now += 31
    assert door.enter(PIN, "10.0.0.7") is not None


def test_attempts_of_all_together_are_limited_and_leave_the_teachers_computer_its_own(clock: Clock):
    door = Door(PIN)
    tried = 0
    for n in range(100):
        try:
            door.enter("000000", f"10.0.0.{n}")
            tried += 1
        except TooMany:
            pass
    assert tried == ALL_BURST
    assert door.enter(PIN, "") is not None


# ---- over HTTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    manager = Manager(max_sessions=9)
    start, locked = public(settings())
    yield build(manager, start, "mixture", locked=locked, classroom=Class(4, PIN, ("http://10.0.0.5:7860/",)))
    manager.shutdown()


@pytest.fixture(scope="module")
def server(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, HERE, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def students(server: TestClient) -> list[dict[str, str]]:
    """Two of them, with the token of their runs."""
    found = []
    for _ in range(2):
        given = server.post("/desk", json={}).json()
        told: dict[str, Any] = {}

        def has_stage(given: dict[str, str] = given, told: dict[str, Any] = told) -> bool:
            told |= server.get(f"/news/{given['token']}?page={given['page']}").json()["panels"]
            return bool(told.get("stage"))

        until(has_stage)
        found.append({**given, "seat": told["stage"][0]["token"], "told": json.dumps(told)})
    return found


@pytest.fixture(scope="module")
def cookie(server: TestClient) -> dict[str, str]:
    answer = server.post("/teacher/pin", json={"pin": PIN})
    server.cookies.clear()
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


BEHIND = [
    ("GET", "/teacher/room"),
    ("GET", "/teacher/choices"),
    ("GET", "/teacher/picture/abc/front"),
    ("POST", "/teacher/do"),
]


def ask(server: TestClient, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    body = {"json": {"do": "freeze", "on": True}} if method == "POST" else {}
    return server.request(method, path, headers=headers, **body).status_code  # type: ignore[arg-type]


def test_every_route_of_the_teacher_is_tried_here(app: FastAPI):
    found = {(m, p) for m, p in mounted(app.routes) if p.startswith("/teacher") and m != "HEAD"}
    assert found == {
        ("GET", "/teacher"),
        ("GET", "/teacher/"),
        ("GET", "/teacher/code/{name}"),
        ("POST", "/teacher/pin"),
        ("POST", "/teacher/out"),
        ("GET", "/teacher/room"),
        ("GET", "/teacher/choices"),
        ("GET", "/teacher/picture/{key}/{kind}"),
        ("POST", "/teacher/do"),
    }
    for method, path in found:
        address = next(samples(path))
        assert any(route.method == method for route in routes_at(address, classroom=True)), path
        assert not routes_at(address), "without a classroom there is no such route"
    assert all(route.pattern.startswith("/teacher") for route in CLASSROOM)


def test_without_the_pin_there_is_only_the_door(server: TestClient, students: list[dict[str, str]]):
    assert server.get("/teacher").headers["location"] == "teacher/"
    assert 'id="pin"' in server.get("/teacher/").text
    assert server.get("/teacher/code/teacher.js").headers["content-type"].startswith("text/javascript")
    assert server.get("/teacher/code/teacher.py").status_code == 404
    for method, path in BEHIND:
        tokens = [students[0][name] for name in ("token", "page", "seat")]
        for cookie in ("", "x", PIN, *tokens):
            assert ask(server, method, path, {"Cookie": f"sdlab-teacher={cookie}"}) == 401, (path, cookie)
        assert ask(server, method, f"{path}?pin={PIN}") == 401


def test_the_pin_gives_a_cookie_that_scripts_and_other_sites_cannot_use(server: TestClient):
    assert server.post("/teacher/pin", json={"pin": "000000"}).status_code == 403
    assert server.post("/teacher/pin", json={"pin": [PIN]}).status_code == 403
    assert server.post("/teacher/pin", content=f"pin={PIN}").status_code == 415
    assert server.get(f"/teacher/pin?pin={PIN}").status_code == 405, "a PIN is never part of an address"
    answer = server.post("/teacher/pin", json={"pin": PIN})
    server.cookies.clear()
    given = answer.headers["set-cookie"]
    assert answer.status_code == 204
    assert "HttpOnly" in given
    assert "SameSite=strict" in given
    assert "Path" not in given, "browsers send it below /teacher/ only, wherever that is published"
    assert "Secure" not in given
    assert PIN not in given
    headers = {"Cookie": given.partition(";")[0]}
    assert ask(server, "GET", "/teacher/room", headers) == 200
    server.post("/teacher/out", headers=headers)
    assert ask(server, "GET", "/teacher/room", headers) == 401


def test_other_sites_and_other_hosts_get_nothing_even_with_the_cookie(server: TestClient, cookie: dict[str, str]):
    for method, path in (*BEHIND, ("POST", "/teacher/pin"), ("POST", "/teacher/out")):
        for origin in ("https://evil.example", "http://127.0.0.1:7861", "null"):
            assert ask(server, method, path, {**cookie, "Origin": origin}) == 403, path
        assert ask(server, method, path, {**cookie, "Sec-Fetch-Site": "cross-site"}) == 403, path
        assert ask(server, method, path, {**cookie, "Host": "evil.example"}) == 421, path
    policy = server.get("/teacher/").headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_the_teacher_sees_the_class_and_no_key_to_it(
    server: TestClient, students: list[dict[str, str]], cookie: dict[str, str]
):
    board = server.get("/teacher/room", headers=cookie)
    assert [desk["number"] for desk in board.json()["desks"]] == [1, 2]
    for student in students:
        assert student["token"] not in board.text
        assert student["page"] not in board.text
        assert student["seat"] not in board.text
        assert not any(desk["key"] in student["told"] for desk in board.json()["desks"]), "nor students the teacher's"
    assert "mixture" in server.get("/teacher/choices", headers=cookie).json()["presets"]
    refused = server.post("/teacher/do", json={"do": "preset", "preset": "<b>"}, headers=cookie)
    assert (refused.status_code, "<" in refused.text) == (422, False)
    assert server.post("/teacher/do", json={"x": "y" * 30_000}, headers=cookie).status_code == 413


def test_a_student_reaches_no_other_seat_and_not_the_teachers_part(
    app: FastAPI, server: TestClient, students: list[dict[str, str]], cookie: dict[str, str]
):
    """By address, by WebSocket and by acts."""
    ann, bob = students

    def state() -> Any:
        board = server.get("/teacher/room", headers=cookie).json()
        return {name: board[name] for name in ("frozen", "message", "late")}, [
            (desk["name"], desk["preset"], desk["prompt"], desk["step"], desk["lanes"]) for desk in board["desks"]
        ]

    before = state()
    key = server.get("/teacher/room", headers=cookie).json()["desks"][1]["key"]
    acts: list[dict[str, Any]] = [
        *(
            {"do": verb, "lane": bob["seat"]}
            for verb in ("start", "step", "reset", "branch", "close", "front", "replay")
        ),
        {"do": "prompt", "text": "a blue car", "lane": bob["seat"]},
        {"do": "knob", "knob": "seed", "value": 5, "lane": bob["seat"]},
        *({"do": verb, "seat": key} for verb in ("end", "freeze", "forget", "unlock")),
        {"do": "freeze", "on": True},
        {"do": "message", "text": "hello", "seat": key},
        {"do": "link", "link": "?seed=5", "seat": key},
    ]
    for act in acts:
        assert server.post(f"/do/{ann['token']}", json=act).status_code == 204
    for wrong in (key, "2", bob["page"], bob["seat"], f"{bob['token']}x"):
        assert server.post(f"/do/{wrong}", json={"do": "reset"}).status_code == 404
        told = server.get(f"/news/{wrong}?page={ann['page']}").json()
        assert bob["seat"] not in json.dumps(told)
        assert server.get(f"/here/{wrong}?page={ann['page']}").status_code == 204
    told = server.get(f"/news/{bob['token']}?page={ann['page']}").json()  # a page shows its own desk only
    assert "stage" not in told.get("panels", {})
    for wrong in (key, "2", bob["page"], bob["token"]):
        assert server.get(f"/viewport/{wrong}/").status_code == 404
        assert server.get(f"/flat/{wrong}/now").status_code == 205  # there is no such run, or none any more
        assert server.post(f"/flat/{wrong}/start", json={"x": 0, "y": 0}).status_code == 404
        assert server.get(f"/results/{wrong}/1").status_code == 404
        with pytest.raises(WebSocketDisconnect), server.websocket_connect(f"/viewport/{wrong}"):
            pass
    for path in ("room", "do", "picture/x/front"):
        with pytest.raises(WebSocketDisconnect), server.websocket_connect(f"/teacher/{path}", headers=cookie):
            pass
    assert state() == before


def test_attempts_over_http_are_limited(app: FastAPI, server: TestClient):
    answers = [server.post("/teacher/pin", json={"pin": f"{n:06}"}) for n in range(8)]
    server.cookies.clear()
    assert answers[-1].status_code == 429
    assert "too many attempts: try again in" in answers[-1].text
    assert server.post("/teacher/pin", json={"pin": PIN}).status_code == 429


# ---- the command line ------------------------------------------------------------------------------------


def test_arguments_of_a_classroom():
    args = parser().parse_args(["--classroom", "--host", "0.0.0.0"])
    check_class(args)
    assert args.seats == 20
    assert args.pin.isdigit()
    assert len(args.pin) == 6
    for wrong in (["--pin", "12345"], ["--pin", "12345a"], ["--seats", "0"]):
        given = parser().parse_args(["--classroom", *wrong])
        with pytest.raises(ValueError, match=f"^{wrong[0]}") as refused:
            check_class(given)
        assert "12345" not in str(refused.value), "a PIN is not repeated"


def test_students_are_told_addresses_that_others_can_reach():
    args = parser().parse_args(["--classroom", "--host", "0.0.0.0"])
    found = addresses(args, 7860)
    assert found == [f"http://{host}:7860/" for host in network_addresses() or ["127.0.0.1"]]
    assert addresses(args, 7860, ["https://lab.example/"]) == ["https://lab.example/"]
    assert addresses(parser().parse_args(["--classroom"]), 80) == ["http://127.0.0.1:80/"]
