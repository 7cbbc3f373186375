"""The page's handlers, called as Gradio calls them, with real sessions and no browser: what people do twice, too late,
or in two tabs at once."""

import functools
import json
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trimesh
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from waiting import until

from sdlab.cameras import CameraSettings, transforms_of, turntable
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Advance, Patch, Reset
from sdlab.settings import Settings, default_settings, preset, priors, scenes, to_toml
from sdlab.types import Cameras
from sdlab.ui import visitors as visitors_module
from sdlab.ui.answers import MAX_BODY, routes
from sdlab.ui.desk import Desk
from sdlab.ui.guard import Guard
from sdlab.ui.page import Page
from sdlab.ui.results import FORMATS
from sdlab.ui.uploads import FOLDER, UPLOADS, without_uploads
from sdlab.ui.visitors import MAX_LANES, Visitors, public
from sdlab.viewport.splat_view import SplatView, Viewports


class View(SplatView):
    """The view of a lane, without a server."""

    def __init__(self) -> None:
        self._film_at = None
        self._rendered = None
        self.seen: Cameras | None = None  # the browser's camera

    def link(self, peers: Any) -> None: ...
    def begin_like(self, other: Any) -> None: ...
    def set_dark(self, dark: bool) -> None: ...
    def cameras(self) -> Cameras | None:
        return self.seen


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
        self.token = page.arrive(name, kept)["token"]

    @property
    def desk(self) -> Desk:
        return self.page._desks[self.token]

    def act(self, **asked: Any) -> None:
        self.page.act(self.token, asked)

    def poll(self) -> dict[str, Any]:
        return self.page.poll(self.token, self.name)

    def panels(self) -> dict[str, Any]:
        return self.poll()["panels"]

    def leave(self) -> None:
        self.page.leave(self.name)


def settings() -> Settings:
    return default_settings("mixture").patch_all([("scene.n_init", 20), ("camera.resolution", 16)])


@pytest.fixture(scope="module", autouse=True)
def presets_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.preset", functools.cache(preset))
        yield


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=MAX_LANES + 2)
    yield manager
    manager.shutdown()


@pytest.fixture
def page(manager: Manager) -> Page:
    return Page(manager, Views(), Visitors(settings()), "mixture")


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


def test_a_views_camera_is_told_once_for_each_press(browser: Browser):
    ready(browser)
    browser.act(do="camera")
    panels = browser.panels()
    assert "camera" not in panels
    assert "has not told its camera yet" in panels["status"]
    browser.desk.focus.view.seen = turntable(1, CameraSettings(), 300)  # type: ignore[attr-defined]
    for _ in range(2):
        browser.act(do="camera")
        assert json.loads(browser.panels()["camera"]) == transforms_of(turntable(1, CameraSettings(), 300))
        assert "camera" not in browser.panels()


@pytest.mark.parametrize("what", ["close", "keep"])
def test_a_second_press_on_a_lane_that_has_gone_does_nothing_to_the_others(browser: Browser, what: str):
    gone, *others = branched(browser, 3)
    browser.act(do="close", lane=gone)
    browser.act(do=what, lane=gone)
    assert [lane.seat.id for lane in browser.desk.lanes] == others


def test_lanes_asked_for_at_once_leave_no_seat_behind(browser: Browser, page: Page, manager: Manager):
    branched(browser, MAX_LANES - 1)
    both = threading.Barrier(2)
    page._viewports.opening = both.wait  # pyright: ignore[reportAttributeAccessIssue]
    first = browser.desk.lanes[0].seat.id
    pressed = [threading.Thread(target=browser.act, kwargs={"do": "branch", "lane": first}) for _ in range(2)]
    for press in pressed:
        press.start()
    for press in pressed:
        press.join(60)
    assert len(browser.desk.lanes) == MAX_LANES
    assert manager.count() == MAX_LANES


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
    browser.poll()
    desk.turn_to("charts")
    browser.poll()
    desk.put_in(lane, tone)
    assert desk.lanes == [lane]


def test_a_page_that_missed_an_answer_is_told_everything_again(browser: Browser, page: Page):
    ready(browser)
    told = browser.panels()
    assert {"status", "controls", "stage", "timeline", "form", "prompt", "lens"} <= set(told)
    assert "form" not in browser.panels()
    app = FastAPI()
    app.include_router(routes(page))
    with TestClient(app) as client:
        address = f"/news/{browser.token}?page=page"
        assert "form" not in client.get(address).json()["panels"]
        again = client.get(f"{address}&missed=1").json()["panels"]
        assert set(again) == set(told)
        assert "form" not in client.get(address).json()["panels"], "once"


def test_a_view_that_has_stopped_is_said_on_the_stage(browser: Browser):
    assert browser.panels()["stage"][0]["trouble"] == ""
    browser.desk.focus.view.trouble = "The 3D view has stopped."
    assert browser.panels()["stage"][0]["trouble"] == "The 3D view has stopped."


def test_a_preset_without_a_seat_leaves_the_other_lanes(browser: Browser, page: Page, manager: Manager):
    one, two = branched(browser, 2)
    desk = browser.desk

    def refuse() -> None:
        raise OSError("no socket is left")

    page._viewports.opening = refuse  # pyright: ignore[reportAttributeAccessIssue]
    page.replace(desk, desk.focus, settings(), "mixture")
    assert [lane.seat.id for lane in desk.lanes] == [one]
    assert "No socket is left" in desk.focus.read().status
    assert not manager.exists(two)
    assert page._desks


def test_a_tab_that_is_copied_has_the_run_and_the_first_says_so(browser: Browser, page: Page):
    copy = Browser(page, "copy", browser.token)
    assert copy.token == browser.token
    told = browser.poll()
    assert told["token"] == ""
    assert "another tab" in told["panels"]["status"]
    browser.leave()
    assert copy.desk.is_there(polling=False), "the other tab does not take the run with it"


def test_a_page_whose_connection_failed_once_still_frees_its_seat_when_it_is_closed(browser: Browser, manager: Manager):
    seat = browser.desk.focus.seat
    browser.leave()
    assert seat.ends_at is not None
    browser.poll()
    browser.poll()
    assert seat.ends_at is None, "it lives"
    browser.leave()
    assert seat.ends_at is not None


def test_buttons_and_prompt_come_when_they_change_and_once(browser: Browser):
    ready(browser)
    can = browser.panels()["controls"]["can"]
    assert can == {"start": True, "pause": False, "step": True, "reset": True}
    browser.act(do="step", prompt="a red bear")
    until(lambda: browser.desk.focus.seat.session.status.phase == "paused")
    browser.desk.focus.seat.session.send(Patch.one("prompt.text", "a blue bear"))  # changed elsewhere
    until(lambda: browser.desk.focus.settings.prompt.text == "a blue bear")
    told: dict[str, Any] = {}
    until(lambda: told.update(browser.panels()) or "prompt" in told)
    assert {"stage", "status", "timeline"} <= set(told)
    assert told["prompt"] == "a blue bear"
    assert told.get("controls", {"can": can})["can"] == can, "paused: the same buttons make sense"
    assert not {"controls", "prompt"} & set(browser.panels())
    browser.act(do="start", prompt="a blue bear")
    until(lambda: told.update(browser.panels()) or told.get("controls", {"can": can})["can"] != can)
    assert told["controls"]["can"] == {"start": False, "pause": True, "step": False, "reset": True}


def test_a_lane_in_focus_is_told_as_a_whole(browser: Browser):
    ready(browser)
    browser.poll()
    browser.act(do="focus", lane=browser.desk.focus.seat.id)
    whole = {"stage", "status", "timeline", "preview", "lens", "charts", "versus", "form", "prompt", "controls"}
    assert whole <= set(browser.panels())


def test_a_page_is_told_why_it_has_no_desk(browser: Browser, page: Page, manager: Manager):
    """And gets one when there is a seat again."""
    assert page.poll(browser.token, "other page")["token"] == ""
    for asks in (("no such token", "other page"), ("no such token", ""), ("", "")):
        told = page.poll(*asks)
        assert told["token"] == ""
        assert told["panels"]["stage"] == []
        assert "Session ended" in told["panels"]["status"]
    assert page.poll("an older token", browser.name) == {"token": browser.token}, "it has just been given another desk"
    others = [manager.open(settings()) for _ in range(manager.max_sessions - manager.count())]
    told = page.arrive("late")
    assert (told["token"], told["page"]) == ("", "late")
    assert "You are number 1 in the line" in told["panels"]["status"]
    assert told["panels"]["controls"] == {"can": dict.fromkeys(("start", "pause", "step", "reset"), False), "again": ""}
    manager.close(others[0].id)
    assert page.arrive("late")["token"]


def test_acts_are_taken_in_order_and_from_the_page_itself_only(browser: Browser, page: Page):
    app = FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(page))
    client = TestClient(app, "http://127.0.0.1")
    ready(browser)
    acts = [{"do": "knob", "knob": "seed", "value": n} for n in (3, 5)]

    def post(acts: Any, token: str = browser.token, **headers: str) -> int:
        return client.post(f"/do/{token}", json=acts, headers=headers).status_code

    assert post(acts) == 204
    until(lambda: browser.desk.focus.settings.seed == 5)
    assert post(acts, token="guess") == 404
    assert post(acts, Origin="https://evil.example") == 403
    assert post({"do": "settings", "settings": "x" * MAX_BODY}) == 413
    assert client.post(f"/do/{browser.token}", content="seed = 7").status_code == 415
    nothing = {"content-type": "application/json"}
    assert client.post(f"/do/{browser.token}", content="[" * 100_000, headers=nothing).status_code == 422
    assert client.get(f"/news/{browser.token}", params={"page": "page"}).json()["panels"]
    assert client.get("/news/guess", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post("/desk", json={}, headers={"Origin": "https://evil.example"}).status_code == 403
    new = client.post("/desk", params={"page": "page"}, json={"dark": True}).json()
    assert new["page"] == "page"
    assert new["token"] != browser.token
    assert page._desks[new["token"]].dark
    assert post(acts) == 404, "the page has another desk now"


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
    browser.act(do="exact", on=True)
    browser.act(do="exact", on="yes")
    until(lambda: session._watching.exact)
    browser.act(do="tab", tab="results")
    Browser(page, "anew", browser.token)
    until(lambda: session.watched == (0, None) and not session._watching.exact)
    assert browser.desk.tab == "lens"


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "close",
        3,
        [3],
        {"do": []},
        {"do": "goto", "step": float("inf")},
        {"do": "tab", "tab": []},
        {"lane": {}},
    ],
)
def test_whatever_json_a_page_sends_is_no_error(browser: Browser, page: Page, said: Any):
    page.act(browser.token, said)
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
    until(lambda: said.update(browser.panels()) or "File: applied at the next reset" in said["status"])
    assert gaussians(browser) == 3
    assert said["form"]["values"]["scene.file"].endswith("2-two.ply")
    lane.send(Reset())
    until(lambda: gaussians(browser) == 2)
    kept = Path(lane.settings.knob("scene.file").value)
    assert kept.is_file()
    page.close(*browser.desk.lanes)
    until(lambda: not kept.exists())


def test_a_file_for_another_kind_of_scene_or_a_session_that_ended_is_refused(browser: Browser, page: Page):
    ready(browser)
    said = "this run does not use a file of this kind: {0}.{1} takes one if {0}.kind is {2!r}, and it is {3!r}"
    for group, name, needed, own in (("scene", "picture", "image", "splats"), ("prior", "path", "gallery", "mixture")):
        with pytest.raises(ValueError, match=said.format(group, name, needed, own)):
            bring(browser, f"{group}.{name}", "x.png", b"")
    branched(browser, 2)
    bringing = page.bringing(browser.token)
    assert bringing is not None
    browser.act(do="close", lane=browser.desk.focus.seat.id)
    with pytest.raises(RuntimeError, match="the run that this file is for has ended"):
        bringing.receive("scene.file", "line.ply", LINE)
    page.close(*browser.desk.lanes)
    assert page.bringing(browser.token) is None
    with pytest.raises(RuntimeError, match="the session of this file has ended"):
        bringing.receive("scene.file", "line.ply", LINE)


def test_visitors_bring_files_where_the_path_is_locked(manager: Manager):
    page = Page(manager, Views(), Visitors(settings(), ("scene.file",)), "mixture")
    browser = Browser(page, "page")
    ready(browser)
    browser.act(do="knob", knob="scene.file", value="/etc/passwd")
    browser.act(do="knob", knob="seed", value=9)
    until(lambda: browser.desk.focus.settings.seed == 9)
    assert browser.desk.focus.settings.knob("scene.file").value == ""
    bring(browser, "scene.file", "line.ply", LINE)
    until(lambda: gaussians(browser) == 3)


def pets() -> bytes:
    """A ZIP with three pictures: two of a cat, one of a dog."""
    file, picture = BytesIO(), BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(picture, "PNG")
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
            archive.writestr(name, picture.getvalue())
    return file.getvalue()


def of_gallery() -> Settings:
    """A run on the gallery prior, whose images are small."""
    small = [("prior.size", 16), ("prior.images", 4), ("prior.null_images", 4), ("prompt.text", "a cat")]
    return default_settings("gallery").patch_all([("scene.n_init", 20), *small])


@pytest.mark.parametrize("locked", [(), ("prior.path", "scene.file")])
def test_a_gallery_is_brought(manager: Manager, locked: tuple[str, ...]):
    page = Page(manager, Views(), Visitors(of_gallery(), locked), "gallery")
    browser = Browser(page, "page")
    ready(browser)
    lane = browser.desk.focus
    bring(browser, "prior.path", "pets.zip", pets())
    until(lambda: lane.settings.knob("prior.source").value == "folder")
    kept = Path(lane.settings.knob("prior.path").value)
    assert kept.is_file()
    assert str(kept) in lane.files(), "it is not deleted while it is used"
    until(lambda: lane.seat.session.status.phase == "ready")
    assert lane.seat.session.prior.name == "gallery of folder 1-pets.zip"
    lane.send(Advance(2))
    until(lambda: lane.step == 2)
    assert lane.seat.session.prior.source.available("cat") == 2
    with pytest.raises(ValueError, match=r"^'x\.zip' is a damaged ZIP file"):
        bring(browser, "prior.path", "x.zip", pets()[:-30])
    assert lane.settings.knob("prior.path").value == str(kept), "the run goes on"
    bring(browser, "prior.path", "box.glb", trimesh.creation.box().export(file_type="glb"))
    until(lambda: lane.settings.knob("prior.path").value.endswith("2-box.glb"))
    assert lane.settings.knob("prior.source").value == "mesh"
    lane.send(Advance(1))
    until(lambda: lane.step == 3)
    assert lane.seat.session.prior.name == "gallery of mesh 2-box.glb"


def test_saved_settings_of_a_gallery_come_back_without_its_file(manager: Manager):
    visitors = Visitors(of_gallery(), ("prior.path", "scene.file"))
    saved = to_toml(of_gallery().patch_all([("prior.source", "folder"), ("prior.path", "/etc"), ("seed", 7)]))
    found = visitors.read(saved, "own.toml")
    assert (found.seed, found.knob("prior.source").value, found.knob("prior.path").value) == (7, "toybox", "")
    with pytest.raises(ValueError, match="it is for another prior"):
        Visitors(preset("toybox"), ("prior.path",)).read('[prior]\nkind = "diffusers"\npath = "/etc"', "own.toml")


def bring(browser: Browser, knob: str, name: str, raw: bytes) -> None:
    bringing = browser.page.bringing(browser.token)
    assert bringing is not None
    bringing.receive(knob, name, raw)


def opened(browser: Browser, text: str, name: str = "own.toml") -> None:
    browser.act(do="settings", settings=text, name=name)


def test_settings_that_were_saved_are_opened(browser: Browser):
    ready(browser)
    saved = settings().patch_all([("active", "csd"), ("prompt.text", "north"), ("losses.sds.cfg", 2.5)])
    browser.poll()
    opened(browser, to_toml(saved))
    until(lambda: browser.desk.focus.settings == saved)
    told: dict[str, Any] = {}
    until(lambda: told.update(browser.panels()) or told.get("prompt") == "north")
    assert told["preset"] is None
    assert told["form"]["values"].items() >= {"active": "csd", "prompt.text": "north"}.items()
    kept = browser.desk.focus
    flat = preset("playground")
    opened(browser, to_toml(flat))
    assert browser.desk.focus is not kept, "another kind of scene is a new run"
    assert browser.desk.focus.settings == flat


@pytest.mark.parametrize("same_run", [True, False], ids=["in the same run", "in a new run"])
def test_saved_settings_name_no_uploaded_file_and_ask_for_it(same_run: bool, browser: Browser, tmp_path: Path):
    """The file goes with its session."""
    ready(browser)
    bring(browser, "scene.file", "my bear.glb", trimesh.creation.box().export(file_type="glb"))
    until(lambda: browser.desk.focus.settings.knob("scene.start").value == "file")
    FORMATS["toml"].write(tmp_path / "x.toml", browser.desk.focus.seat.session.material().result(30), lambda *_: None)
    text = (tmp_path / "x.toml").read_text()
    assert "my-bear.glb" in text
    assert "uploads-" not in text
    assert str(Path(tempfile.gettempdir())) not in text
    later = browser if same_run else Browser(browser.page, "later")
    if not same_run:
        opened(later, to_toml(preset("playground")))
    opened(later, text)
    ready(later)
    until(lambda: later.desk.focus.settings.knob("scene.start").value == "ball")
    assert later.desk.focus.settings.knob("scene.file").value == ""
    assert "Upload again what these settings were used with: my-bear.glb (scene.file)." in later.panels()["status"]
    bring(later, "scene.file", "my bear.glb", trimesh.creation.box().export(file_type="glb"))
    until(lambda: "Upload again" not in later.desk.focus.read().status)


@pytest.mark.parametrize("path", UPLOADS)
def test_settings_without_uploads_keep_everything_else(path: str, tmp_path: Path):
    folder = tmp_path / f"{FOLDER}1"
    folder.mkdir()
    (folder / "3-a-b.bin").write_bytes(b"")
    s = next(s for s in every_kind() if UPLOADS[path].fits(s))
    switch, uses = UPLOADS[path].switch, UPLOADS[path].uses
    for use in uses:
        own = s.patch_all([(path, str(tmp_path / "own.bin")), (switch, use), ("seed", 3)])
        assert without_uploads(own) == (own, {})
        found, names = without_uploads(own.patch(path, str(folder / "3-a-b.bin")))
        assert names == {path: "a-b.bin"}
        assert found == s.patch("seed", 3)


def every_kind() -> list[Settings]:
    return [default_settings(p, s) for p in priors() for s in scenes()]


def test_saved_settings_do_not_get_round_a_lock(manager: Manager):
    """Neither that of a knob that this server's own settings do not have."""
    browser = Browser(Page(manager, Views(), Visitors(settings(), ("scene.file", "scene.picture")), "mixture"), "page")
    ready(browser)
    opened(browser, 'seed = 9\n[prior]\nkind = "mixture"\n[scene]\nstart = "file"\nfile = "/etc/passwd"')
    until(lambda: browser.desk.focus.settings.seed == 9)
    now = browser.desk.focus.settings
    assert (now.knob("scene.file").value, now.scene.start) == ("", "ball")
    opened(browser, '[scene]\nkind = "image"\nstart = "picture"\npicture = "/home/me/a.png"\n[prior]\nkind = "mixture"')
    now = browser.desk.focus.settings
    assert now.scene.kind == "image"
    assert (now.knob("scene.picture").value, now.scene.start) == ("", "noise")


@pytest.mark.parametrize("own", ["gallery", "toybox", "mixture", "playground", "toybox-2d"])
def test_a_public_server_offers_every_preset_of_its_prior_and_those_without_one(own: str):
    """Whatever kind its own settings are of, and never a download."""
    visitors = Visitors(*public(preset(own)))
    assert {"gallery", "janus", "mixture", "playground", "toybox", "toybox-2d"} <= set(visitors.presets)
    assert "dreammapping" not in visitors.presets, "it wants Stable Diffusion"
    asked = preset("toybox").patch_all([("scene.start", "shap-e")])
    assert visitors.fit(asked).knob("scene.shap_e").value == ""


@pytest.mark.parametrize("own", ["gallery", "toybox"])
def test_visitors_have_the_galleries_of_presets_and_no_others(own: str, monkeypatch: pytest.MonkeyPatch):
    served = public(preset(own))
    small = preset("gallery").patch_all([("prior.size", 16), ("prior.shift", False)])
    shipped = {"gallery": preset("gallery"), "small": small, "theirs": small.patch("prior.path", "/etc")}
    monkeypatch.setattr(visitors_module.catalogue, "preset_names", lambda: list(shipped))
    monkeypatch.setattr(visitors_module.catalogue, "preset", shipped.__getitem__)
    visitors = Visitors(*served)
    assert visitors.presets == ["gallery", "small"]
    assert visitors.fit(small).prior == small.prior
    for path, value in (("prior.size", 256), ("prior.images", 16384), ("prior.seed", 3), ("prior.path", "/etc")):
        asked = small.patch(path, value)
        assert visitors.fit(asked).knob(path).value == shipped["gallery"].knob(path).value
        if path != "prior.path":
            with pytest.raises(ValueError, match="it is for another prior"):
                visitors.read(to_toml(asked), "own.toml")


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
    browser = Browser(Page(manager, Views(), Visitors(settings(), ("prior.path", "prior.kind")), "mixture"), "page")
    ready(browser)
    before = browser.desk.focus.settings
    opened(browser, text)
    assert said in browser.panels()["status"]
    assert browser.desk.focus.settings == before


def test_the_view_shows_only_what_its_scene_can_show(browser: Browser):
    ready(browser)
    lane, asked = browser.desk.focus, []
    lane.view.show_as = asked.append
    for mode in ("depth", "x-ray", 3, "count", "splats"):
        browser.act(do="draw", mode=mode, lane=lane.seat.id)
    assert asked == ["depth", "count", "splats"]
    stage = browser.panels()["stage"][0]
    assert [mode for mode, _ in stage["modes"]] == ["splats", "color", "depth", "opacity", "normals", "count"]
    assert (stage["mode"], stage["legend"]) == ("splats", "")
