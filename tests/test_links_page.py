"""Links and dropped runs on the page: what one page shows, another opens; what is locked stays; the files of a run."""

from __future__ import annotations

import functools
import random
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from run_folders import run_folder, zipped
from test_handlers import Views, ready
from test_links import broken
from waiting import until

from sdlab import packed
from sdlab.live.manager import Manager
from sdlab.live.messages import Advance, Rejected
from sdlab.live.session import Session
from sdlab.packed import SETTINGS, SUMS, TENSORS, VALUES
from sdlab.settings import Settings, default_settings, preset, to_toml
from sdlab.ui.answers import routes
from sdlab.ui.desk import Desk
from sdlab.ui.dropped import NO_STATE
from sdlab.ui.flat_view import FlatViews
from sdlab.ui.guard import Guard
from sdlab.ui.links import NO_PRESET
from sdlab.ui.page import Page
from sdlab.ui.uploads import RUN
from sdlab.ui.visitors import Visitors


def settings() -> Settings:
    changes = [("scene.n_init", 20), ("scene.max_gaussians", 60), ("camera.resolution", 16), ("steps", 60)]
    return default_settings("mixture").patch_all(changes)


@pytest.fixture(scope="module", autouse=True)
def presets_are_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.settings.preset", functools.cache(preset))
        yield


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(max_sessions=4)
    yield manager
    manager.shutdown()


@pytest.fixture
def page(manager: Manager) -> Page:
    return Page(manager, Views(), Visitors(settings()))


class Tab:
    """A browser's tab, without a browser."""

    def __init__(self, page: Page, name: str, query: str = "", kept: str = "", fresh: bool = True) -> None:
        self.page, self.name = page, name
        self.token = page.arrive(name, kept, query=query, fresh=fresh)["token"]
        ready(self)  # type: ignore[arg-type]  # it has a desk

    @property
    def desk(self) -> Desk:
        return self.page._desks[self.token]

    @property
    def session(self) -> Session:
        return self.desk.focus.seat.session

    def act(self, **asked: Any) -> None:
        self.page.act(self.token, asked)

    def panels(self) -> dict[str, Any]:
        return self.page.poll(self.token, self.name, missed=True)["panels"]

    def change(self, path: str, value: Any) -> None:
        self.act(do="knob", knob=path, value=value)
        until(lambda: self.session.settings.knob(path).value == value)

    def steps(self, count: int) -> dict[str, torch.Tensor]:
        """The parameters after so many more steps."""
        end = self.session.state.step + count
        self.session.send(Advance(count))
        until(lambda: self.session.status.phase == "paused" and self.session.state.step == end)
        return {name: value.detach().clone() for name, value in self.session.state.scene.params.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_link_of_one_page_opens_the_same_run_on_another(page: Page):
    first = Tab(page, "first")
    for path, value in (
        ("seed", 11),
        ("losses.sds.cfg", 7.0 / 3),
        ("prompt.text", "the <south> & east"),
        ("steps", 70),
    ):
        first.change(path, value)
    link = first.panels()["link"]
    assert link["query"].startswith("preset=mixture&prompt=the+%3Csouth%3E+%26+east&seed=11&steps=70&")
    second = Tab(page, "second", f"?{link['query']}&hide=lens&text=large")
    assert second.session.settings == first.session.settings
    told = second.panels()["link"]
    assert (told["query"], told["hide"], told["text"], told["problems"]) == (link["query"], ("lens",), "large", ())
    before = first.steps(50)
    assert equal(before, second.steps(50))
    assert not equal(before, second.steps(1))


def test_an_edited_link_opens_anew_and_a_reload_goes_on(page: Page, manager: Manager):
    tab = Tab(page, "tab", "?seed=3&no.such=1")
    assert len(tab.panels()["link"]["problems"]) == 1
    again = Tab(page, "again", "?seed=3", tab.token, fresh=False)
    assert again.token == tab.token, "a reload finds its run"
    assert again.panels()["link"]["problems"] == (), "said once"
    edited = Tab(page, "edited", "?seed=4", tab.token)
    assert (edited.session.settings.seed, manager.count()) == (4, 2), "the first may be another tab's, and goes on"
    page.leave("edited")
    other = Tab(page, "other", "?seed=5", edited.token)
    assert (other.session.settings.seed, manager.count()) == (5, 2), "the seat of a page that was left is free at once"


def test_what_a_link_locks_is_refused_by_the_server_and_comes_back(page: Page):
    tab = Tab(page, "tab", "?lock=losses.sds.cfg,prompt.text,preset")
    tab.act(do="knob", knob="losses.sds.cfg", value=3.0)
    tab.act(do="prompt", text="west")
    until(lambda: sum(isinstance(event, Rejected) for event in tab.session.events.since(0)[0]) == 2)
    assert tab.session.settings == settings()
    tab.act(do="knob", knob="losses.vdm.cfg", value=3.0)
    until(lambda: tab.session.settings.knob("losses.vdm.cfg").value == 3.0)

    def refused() -> bool:
        tab.act(do="preset", preset="playground")
        return NO_PRESET[1:] in tab.panels()["status"]

    until(refused)  # events of the changes before it may replace what is said
    tab.act(do="settings", settings=to_toml(settings().patch("seed", 3)), name="own.toml")
    assert tab.session.settings.seed == 0
    tab.act(do="branch")
    assert len(tab.desk.lanes) == 2
    ready(tab)  # type: ignore[arg-type]
    tab.act(do="knob", knob="losses.sds.cfg", value=3.0)
    until(lambda: any(isinstance(event, Rejected) for event in tab.session.events.since(0)[0]))


def test_a_locked_start_cannot_be_dragged_and_locks_outlive_a_preset(page: Page, manager: Manager):
    tab = Tab(page, "tab", "?preset=playground&lock=scene.start_x,seed")
    with pytest.raises(PermissionError, match=r"scene\.start_x = 0\.5: it is locked by the link"):
        FlatViews(manager).move_start(tab.session, 0.5, 0.5)
    tab.act(do="preset", preset="playground-esd")
    assert tab.session.settings.active == "esd"
    tab.act(do="knob", knob="seed", value=9)
    until(lambda: any(isinstance(event, Rejected) for event in tab.session.events.since(0)[0]))


def test_broken_links_over_http_are_answered_with_reasons_as_text(page: Page, manager: Manager):
    app = FastAPI()
    app.add_middleware(Guard)
    app.include_router(routes(page))
    client = TestClient(app, "http://127.0.0.1")
    rng = random.Random(5)
    queries = ["<script>alert(1)</script>=1&prompt=%00%ff", "preset=" + "%3Cimg+src=x+onerror=y%3E", "&" * 9000, "%"]
    queries += [broken("preset=mixture&seed=3&prompt=east&hide=lens", rng) for _ in range(4)]
    for query in queries:
        answer = client.post("/desk", json={"query": query.encode(errors="replace").decode(), "fresh": True})
        assert answer.status_code == 200
        token, name = answer.json()["token"], answer.json()["page"]
        link = page.poll(token, name, missed=True)["panels"]["link"]
        assert "<" not in link["query"], "it is encoded"
        page.close(*page._desks[token].lanes)
    assert client.post("/desk", json={"query": 3, "fresh": "yes"}).status_code == 200


# ---- runs in ZIP files -----------------------------------------------------------------------------------


def brought(tab: Tab, raw: bytes) -> dict[str, Any]:
    bringing = tab.page.bringing(tab.token)
    assert bringing is not None
    bringing.receive(RUN, "bear.zip", raw)
    return tab.panels()


@pytest.fixture
def saved(page: Page, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run's folder at step 10, and the parameters of that run at step 20."""
    tab = Tab(page, "first", "?seed=8&losses.sds.cfg=5")
    tab.steps(10)
    return run_folder(tab.session, tmp_path), tab.steps(10)


def test_a_dropped_run_opens_its_settings_and_continues_bit_for_bit(page: Page, saved):
    folder, later = saved
    tab = Tab(page, "second")
    panels = brought(tab, zipped(folder))
    until(lambda: tab.session.settings.seed == 8)
    assert panels["offer"]["step"] == 10
    assert "'bear.zip'" in panels["offer"]["said"]
    assert tab.session.state.step == 0, "only settings were opened"
    tab.act(do="continue")
    until(lambda: tab.session.state.step == 10)
    assert tab.panels()["offer"] is None
    assert equal(tab.steps(10), later)
    brought(tab, zipped(folder, below=""))
    tab.act(do="decline")
    tab.act(do="continue")
    assert tab.panels()["offer"] is None


def test_an_offer_is_gone_with_its_settings_and_not_made_where_they_are_locked(page: Page, saved):
    tab = Tab(page, "second")
    assert brought(tab, zipped(saved[0]))["offer"]
    tab.act(do="preset", preset="playground")
    assert tab.panels()["offer"] is None
    locked = Tab(page, "third", "?lock=preset")
    assert brought(locked, zipped(saved[0]))["offer"] is None
    assert "locked by the link" in locked.panels()["status"]


def test_on_a_shared_server_a_run_brings_its_settings_only(manager: Manager, saved):
    folder, _ = saved
    tab = Tab(Page(manager, Views(), Visitors(settings(), ("prior.seed",))), "visitor")
    panels = brought(tab, zipped(folder))
    assert panels["offer"] is None
    assert NO_STATE[:40].capitalize() in tab.panels()["status"]
    until(lambda: tab.session.settings.seed == 8)


def renamed(files: dict[str, bytes], name: str, to: str) -> None:
    files[to] = files.pop(name)


AT = "checkpoint/00000010/"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.update({AT + TENSORS: f[AT + TENSORS][:-1] + b"x"}), "does not have the hash in SHA256SUMS"),
        (lambda f: f.pop(AT + SUMS), "SHA256SUMS is missing"),
        (lambda f: f.pop(AT + VALUES), "values.json is missing"),
        (
            lambda f: f.update({SETTINGS: f[SETTINGS].replace(b"seed = 8", b"seed = 9")}),
            "it belongs to other settings than settings.toml",
        ),
        (lambda f: f.update({AT + SUMS: b"\xff\xfe"}), "SHA256SUMS is not encoded in UTF-8"),
        (lambda f: f.update({AT + SUMS: f[AT + SUMS][:-25]}), "SHA256SUMS"),
        (lambda f: f.update({AT + SUMS: b"12345"}), "SHA256SUMS is damaged"),
        (lambda f: renamed(f, AT + TENSORS, "../../" + AT + "x/" + TENSORS), "tensors.safetensors is missing"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_not_offered_and_said(page: Page, saved, change, said: str):
    panels = brought(tab := Tab(page, "second"), zipped(saved[0], change))
    assert panels["offer"] is None
    until(lambda: said in tab.panels()["status"])


def test_hashes_do_not_make_a_hostile_checkpoint_harmless_and_the_run_goes_on(page: Page, saved):
    """Pickles and odd tensors with right hashes: refused when they are read, in one sentence."""
    folder, _ = saved
    tab = Tab(page, "second")
    for name, content in ((TENSORS, b"\x80\x04cos\nsystem\n(S'echo'\ntR."), (VALUES, b'{"format": 2, "values": []}')):

        def change(files: dict[str, bytes], name: str = name, content: bytes = content) -> None:
            files[AT + name] = content
            (folder / AT / name).write_bytes(content)
            listed = [line.split("  ")[1] for line in files[AT + SUMS].decode().splitlines()]
            sums = "".join(f"{packed.hashlib.sha256(files[AT + n]).hexdigest()}  {n}\n" for n in listed)
            files[AT + SUMS] = sums.encode()

        assert brought(tab, zipped(folder, change))["offer"]["step"] == 10
        until(lambda: any(getattr(event, "path", "") == "losses.sds.cfg" for event in tab.session.events.since(0)[0]))
        tab.panels()  # what is said about the settings comes first
        tab.act(do="continue")
        until(lambda: "cannot be" in tab.panels()["status"])
        assert tab.session.state.step == 0
    tab.steps(1)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"no archive", "'bear.zip' is no ZIP file"),
        (b"PK\x03\x04 and so on", "'bear.zip' is a damaged ZIP file"),
        (None, "'bear.zip' holds no run: there is no settings.toml in it"),
        (("a/settings.toml", "b/settings.toml"), "'bear.zip' holds 2 runs (a/, b/): pack one of them"),
        (("settings.toml",), "bear.zip is not valid TOML"),
    ],
)
def test_a_file_that_holds_no_run_is_refused_and_nothing_changes(page: Page, raw, said: str):
    tab = Tab(page, "tab")
    if not isinstance(raw, bytes):
        stream = BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in raw or ("pictures/cat.png",):
                archive.writestr(name, "= no settings")
        raw = stream.getvalue()
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        brought(tab, raw)
    assert tab.session.settings == settings()
