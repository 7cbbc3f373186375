"""Runs kept on disk: what survives the death of a server, and who gets it back."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import trimesh
from test_handlers import Browser, Views, presets_are_read_once, ready, settings  # noqa: F401
from waiting import LONG, until

from sdlab.bench import visitor
from sdlab.live import kept
from sdlab.live.checkpoint import Saved
from sdlab.live.kept import INDEX, MOST_AGE, Store
from sdlab.live.manager import Manager
from sdlab.live.messages import Advance, Pause, Resume
from sdlab.settings import Settings
from sdlab.ui.keeper import Keeper
from sdlab.ui.links import Links
from sdlab.ui.page import Page
from sdlab.ui.visitors import Visitors, public

ROOT = Path(__file__).parents[1]
SAVED = Saved(7, {"scene": {"means": torch.arange(6.0)}}, {"settings.toml": ""}, True)


class Server:
    """A server that keeps its runs in a folder; `end` takes it away as a crash does."""

    def __init__(self, folder: Path, own: Settings | None = None, shared: bool = False, seats: int = 4) -> None:
        own, locked = public(own or settings()) if shared else (own or settings(), ())
        self.manager = Manager(max_sessions=seats)
        visitors = Visitors(own, locked)
        self.page = Page(self.manager, Views(), visitors, "mixture", Links(visitors), store=Store(folder))

    @property
    def keeper(self) -> Keeper:
        assert self.page.keeper is not None
        return self.page.keeper

    def keep(self, browser: Browser) -> None:
        self.keeper.keep(browser.desk)

    def end(self) -> None:
        self.manager.shutdown()


def arrived(server: Server, name: str, token: str = "", **more: Any) -> Browser:
    browser = Browser.__new__(Browser)
    browser.page, browser.name = server.page, name
    browser.token = server.page.arrive(name, token, **more)["token"]
    return browser


def walked(browser: Browser, steps: int) -> None:
    """Take a number of steps in all lanes."""
    ready(browser)
    sessions = [lane.seat.session for lane in browser.desk.lanes]
    goals = [session.state.step + steps for session in sessions]
    for session in sessions:
        session.send(Advance(steps))
    until(lambda: all(s.state.step == goal and not s.running for s, goal in zip(sessions, goals, strict=True)))
    until(lambda: all(lane.step == goal for lane, goal in zip(browser.desk.lanes, goals, strict=True)))


def means(browser: Browser, lane: int = 0) -> torch.Tensor:
    return browser.desk.lanes[lane].seat.session.moment().parts["scene"]["means"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def server(folder: Path):
    server = Server(folder)
    yield server
    server.end()


# ---- the store -------------------------------------------------------------------------------------------


def test_a_token_is_not_on_disk_and_the_folder_is_private(folder: Path):
    store = Store(folder)
    store.commit("a-token", [store.write("a-token", SAVED, "mixture", "a red bear")])
    for path in folder.rglob("*"):
        assert "a-token" not in path.name
        assert path.is_dir() or b"a-token" not in path.read_bytes()
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700}
    found = store.find("a-token")
    assert found is not None
    assert found.load(found.lanes[0]).parts["scene"]["means"].equal(SAVED.parts["scene"]["means"])
    assert store.find("another") is None
    assert str(found).startswith("'a red bear', mixture, step 7, ")


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_folder_that_others_can_read_is_closed_or_refused(tmp_path: Path):
    for name, content in (("empty", ""), ("full", "notes.txt")):
        (tmp_path / name).mkdir(mode=0o755)
        (tmp_path / name).chmod(0o755)
        if content:
            (tmp_path / name / content).write_text("mine")
    assert stat.S_IMODE(Store(tmp_path / "empty").folder.stat().st_mode) == 0o700
    with pytest.raises(ValueError, match=r"--resume .*full: others can read this folder"):
        Store(tmp_path / "full")
    assert stat.S_IMODE((tmp_path / "full").stat().st_mode) == 0o755


def test_two_servers_do_not_share_a_folder(folder: Path):
    with Store(folder).held(), pytest.raises(ValueError, match="keeps its runs there"), Store(folder).held():
        pass


def test_only_the_last_checkpoint_stays_and_an_interrupted_one_changes_nothing(folder: Path):
    store = Store(folder)
    for step in (10, 5, 20):  # a run may go back
        store.commit("t", [store.write("t", SAVED._replace(step=step), None, "")])
    store.write("t", SAVED._replace(step=30), None, "")  # killed before the commit
    found = store.find("t")
    assert found is not None
    assert found.load(found.lanes[0]).step == 20
    store.commit("t", [store.write("t", SAVED._replace(step=40), None, "")])
    assert len([path for path in found.folder.iterdir() if path.name != INDEX]) == 1


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "at": 1, "lanes": []}',
        '{"at": 1, "format": 1, "lanes": [{"part": "../x", "files": {}}]}',
    ],
)
def test_a_damaged_index_is_no_run(folder: Path, index: str):
    store = Store(folder)
    store.commit("t", [store.write("t", SAVED, None, "")])
    next(folder.glob(f"*/{INDEX}")).write_text(index)
    assert (store.find("t"), store.list()) == (None, [])


def test_old_runs_go_and_the_oldest_when_all_are_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(folder)
    for i, token in enumerate("abcd"):
        store.commit(token, [store.write(token, SAVED, None, token)])
        path = next(p for p in folder.glob(f"*/{INDEX}") if json.loads(p.read_text())["lanes"][0]["prompt"] == token)
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "at": time.time() - (MOST_AGE + 60 if i == 0 else 100 * (4 - i))}))
    store.prune()
    assert [run.lanes[0].prompt for run in store.list()] == ["d", "c", "b"]
    size = sum(path.stat().st_size for path in store.list()[0].folder.rglob("*") if path.is_file())
    monkeypatch.setattr(kept, "MOST_BYTES", int(2.5 * size))
    store.prune()
    assert [run.lanes[0].prompt for run in store.list()] == ["d", "c"]


def test_a_run_too_large_to_keep_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "MOST_RUN", 8)
    with pytest.raises(ValueError, match="larger than"):
        Store(folder).write("t", SAVED, None, "")


# ---- a page that comes back ------------------------------------------------------------------------------


def test_a_run_is_offered_after_a_restart_and_goes_on_bit_for_bit(folder: Path, server: Server):
    before = arrived(server, "page")
    before.act(do="knob", knob="losses.sds.cfg", value=31.0)
    walked(before, 5)
    server.keep(before)
    walked(before, 3)
    wanted = means(before)
    server.end()

    again = Server(folder)
    try:
        after = arrived(again, "other page", before.token)
        assert after.token == before.token, "the browser need not keep another"
        panels = after.panels()
        assert panels["offer"]["step"] == 5
        assert "can be continued" in panels["offer"]["said"]
        after.act(do="continue")
        until(lambda: after.desk.lanes[0].step == 5)
        assert after.panels()["offer"] is None
        assert after.desk.focus.settings.knob("losses.sds.cfg").value == 31.0
        walked(after, 3)
        assert means(after).equal(wanted)
    finally:
        again.end()


def test_all_lanes_come_back(folder: Path, server: Server):
    before = arrived(server, "page")
    walked(before, 2)
    before.act(do="branch")
    before.act(do="knob", knob="losses.sds.cfg", value=3.0)
    walked(before, 2)
    server.keep(before)
    wanted = [means(before, lane) for lane in (0, 1)]
    server.end()

    again = Server(folder)
    try:
        after = arrived(again, "page", before.token)
        after.act(do="continue")
        until(lambda: [lane.step for lane in after.desk.lanes] == [4, 4])
        assert [means(after, lane).equal(wanted[lane]) for lane in (0, 1)] == [True, True]
    finally:
        again.end()


def test_the_place_in_a_lesson_comes_back(folder: Path, server: Server):
    before = arrived(server, "page")
    before.act(do="lesson", name="what")
    page = next(n for n, page in enumerate(before.desk.walk.lesson.pages) if page.ask is not None)
    before.act(do="lesson", name="what", page=page)
    walked(before, 2)
    server.keep(before)
    before.act(do="predict", choice=1)
    server.keep(before)  # though the run may stand still
    server.end()

    again = Server(folder)
    try:
        after = arrived(again, "page", before.token)
        assert after.desk.walk is None, "nothing before it is wanted"
        after.act(do="continue")
        panels = after.panels()
        assert (panels["lesson"]["page"], panels["walk"]["choice"]) == (page, 1)
    finally:
        again.end()


def test_a_run_that_started_from_an_uploaded_file_comes_back_with_it(folder: Path, server: Server, tmp_path: Path):
    box = trimesh.creation.box()
    bringing = server.page.bringing((before := arrived(server, "page")).token)
    assert bringing is not None
    ready(before)
    bringing.receive("scene.file", "a box.ply", box.export(file_type="ply"))
    until(lambda: before.desk.focus.settings.knob("scene.start").value == "file")
    walked(before, 2)
    server.keep(before)
    walked(before, 1)
    wanted = means(before)
    server.end()

    again = Server(folder)
    try:
        after = arrived(again, "page", before.token)
        path = Path(after.desk.focus.settings.knob("scene.file").value)
        assert path.read_bytes() == box.export(file_type="ply")
        assert path.name.endswith("-a-box.ply")
        after.act(do="continue")
        until(lambda: after.desk.lanes[0].step == 2)
        walked(after, 1)
        assert means(after).equal(wanted)
        again.keep(after)  # under its new name
        kept_files = [path.name for path in folder.glob("*/files/*")]
        assert len(kept_files) == 1
        assert path.parent.name in kept_files[0]
    finally:
        again.end()


def test_nobody_else_gets_a_run_and_of_two_tabs_one_does(folder: Path, server: Server):
    before = arrived(server, "page")
    walked(before, 2)
    server.keep(before)
    server.end()

    again = Server(folder, seats=8)
    try:
        for token in ("", before.token[:-1], before.token.swapcase(), "../" + before.token):
            assert arrived(again, f"stranger {token}", token).panels()["offer"] is None
        first = arrived(again, "one", left=[before.token])
        second = arrived(again, "two", left=[before.token])
        assert first.panels()["offer"]["step"] == 2
        assert second.token != before.token
        assert second.panels()["offer"] is None
    finally:
        again.end()


def test_a_run_is_not_overwritten_before_it_was_declined(folder: Path, server: Server):
    before = arrived(server, "page")
    walked(before, 9)
    server.keep(before)
    server.end()

    again = Server(folder)
    try:
        after = arrived(again, "page", before.token)
        walked(after, 1)
        again.keep(after)
        assert [run.lanes[0].step for run in Store(folder).list()] == [9]
        after.act(do="decline")
        again.keep(after)
        assert [run.lanes[0].step for run in Store(folder).list()] == [1]
    finally:
        again.end()


def test_what_a_visitor_may_not_have_is_not_offered(folder: Path, server: Server, capsys: pytest.CaptureFixture):
    before = arrived(server, "page")
    before.act(do="knob", knob="prior.seed", value=5)
    walked(before, 2)
    server.keep(before)
    server.end()

    again = Server(folder, shared=True)
    try:
        assert arrived(again, "page", before.token).panels()["offer"] is None
        assert "a kept run cannot be offered" in capsys.readouterr().err
    finally:
        again.end()


def test_a_lock_of_a_link_holds_for_a_run_that_comes_back(folder: Path, server: Server):
    before = arrived(server, "page")
    before.act(do="knob", knob="losses.sds.cfg", value=31.0)
    walked(before, 2)
    server.keep(before)
    server.end()

    again = Server(folder)
    try:
        locked = arrived(again, "page", before.token, query="?lock=losses")
        assert locked.panels()["offer"] is None
        free = arrived(again, "another", before.token, query="?lock=camera")
        assert free.panels()["offer"]["step"] == 2
    finally:
        again.end()


def test_a_run_that_goes_on_is_written_now_and_then_and_one_that_stands_still_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sdlab.ui.keeper.EVERY", 0.1)
    monkeypatch.setattr("sdlab.ui.keeper.LOOK_EVERY", 0.02)
    monkeypatch.setattr("sdlab.ui.keeper.DUTY", 1.0)
    server = Server(folder, settings().patch("steps", 100_000))
    try:
        browser = arrived(server, "page")
        ready(browser)
        server.keeper.start()
        time.sleep(0.3)
        assert Store(folder).list() == [], "nothing is lost before the first step"
        session = browser.desk.focus.seat.session
        session.send(Resume())
        seen: set[int] = set()
        until(lambda: len(seen.union(run.lanes[0].step for run in Store(folder).list())) and session.state.step > 20)
        session.send(Pause())
        until(lambda: not session.running)
        until(lambda: [run.lanes[0].step for run in Store(folder).list()] == [session.state.step])

        def stands_still() -> bool:
            at = Store(folder).list()[0].at
            time.sleep(0.5)
            return Store(folder).list()[0].at == at

        until(stands_still)  # the pause itself may be written after its last step
        session.send(Advance(1))
        until(lambda: browser.desk.focus.step == session.state.step and not session.running)
        server.keeper.close()
        assert [run.lanes[0].step for run in Store(folder).list()] == [session.state.step], "the last thing it does"
    finally:
        server.end()


# ---- a browser that was closed ---------------------------------------------------------------------------


def test_a_page_opened_again_finds_the_desk_that_was_left_and_no_other(server: Server):
    first, second = arrived(server, "one"), arrived(server, "two")
    first.leave()
    again = arrived(server, "three", left=[second.token, first.token])
    assert again.token == first.token
    assert "status" in again.panels()
    assert arrived(server, "four", left=[second.token, first.token]).token not in (first.token, second.token)
    assert "status" in second.panels()


# ---- the program -----------------------------------------------------------------------------------------


class Program:
    """`app.py --resume` in a process of its own, spoken to as its page does."""

    def __init__(self, folder: Path) -> None:
        command = [
            sys.executable,
            "app.py",
            "--no-browser",
            "--port",
            "0",
            "--preset",
            "mixture",
            "--resume",
            str(folder),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = []
        while " is at " not in (line := self.process.stdout.readline()):
            assert self.process.poll() is None
            self.said.append(line)
        address = line.split(" is at ")[1].split()[0]
        self.client = httpx.Client(base_url=address, timeout=LONG)

    def arrive(self, token: str = "") -> str:
        told = self.client.post("/desk", json={"token": token, "dark": False, "query": ""}).json()
        self.token, self.name = told["token"], told["page"]
        return self.token

    def act(self, **asked: Any) -> None:
        assert self.client.post(f"/do/{self.token}", json=[asked]).status_code == 204

    def panels(self) -> dict[str, Any]:
        return self.client.get(f"/news/{self.token}", params={"page": self.name, "missed": True}).json()["panels"]

    def step(self) -> int:
        return int(re.search(r'data-step="(\d+)"', self.panels()["status"]).group(1))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def checkpoint_of(folder: Path) -> Saved:
    (run,) = Store(folder).list()
    return run.load(run.lanes[0])


@pytest.mark.nightly
def test_a_server_killed_in_mid_run_offers_the_run_again_bit_for_bit(folder: Path):
    first = Program(folder)
    try:
        token = first.arrive()
        until(lambda: 'data-phase="ready"' in first.panels()["status"])
        first.act(do="start")
        until(lambda: Store(folder).list() and first.step() > 0, 120)
        first.act(do="pause")
        paused = first.step()
        until(lambda: Store(folder).list()[0].lanes[0].step == paused, 120)
        kept_at = checkpoint_of(folder)
        for _ in range(3):
            first.act(do="step")
        until(lambda: first.step() == paused + 3)
        until(lambda: Store(folder).list()[0].lanes[0].step == paused + 3, 120)
        wanted = checkpoint_of(folder)
    finally:
        first.kill()
    store = Store(folder)
    store.commit(token, [store.write(token, kept_at, "mixture", "")])  # as if it had been killed three steps earlier

    second = Program(folder)
    try:
        assert any("there are 1" in line for line in second.said)
        assert second.arrive(token) == token
        assert second.panels()["offer"]["step"] == paused
        second.act(do="continue")
        until(lambda: second.step() == paused)
        for _ in range(3):
            second.act(do="step")
        until(lambda: Store(folder).list()[0].lanes[0].step == paused + 3, 120)
    finally:
        second.kill()
    found = checkpoint_of(folder)
    assert found.texts == wanted.texts
    assert found.parts["scene"]["means"].equal(wanted.parts["scene"]["means"])
    assert found.parts["optim"].keys() == wanted.parts["optim"].keys()
    assert found.parts["session"]["regime"] == wanted.parts["session"]["regime"]


@pytest.mark.nightly
@pytest.mark.browser
@pytest.mark.usefixtures("with_browser")
def test_a_browser_that_was_killed_finds_its_run_at_the_same_address(folder: Path, tmp_path: Path):
    from playwright.sync_api import sync_playwright

    server = Program(folder)
    seen: list[tuple[str, int]] = []
    try:
        for _ in range(2):
            with sync_playwright() as p:
                context = p.chromium.launch_persistent_context(
                    tmp_path / "profile", executable_path=visitor._chromium(), args=list(visitor.SOFTWARE_GL)
                )
                page = context.new_page()
                page.set_default_timeout(1000 * 2 * LONG)
                page.goto(str(server.client.base_url))
                page.wait_for_selector('#status [data-phase="ready"], #status [data-phase="paused"]')
                if not seen:
                    page.click("#start")
                    page.wait_for_selector('#status [data-step]:not([data-step="0"])')
                    page.click("#pause")
                page.wait_for_selector('#status [data-phase="paused"]')
                time.sleep(8)  # browsers write their storage after some seconds
                seen.append(
                    (
                        page.evaluate("sessionStorage.getItem('sdlab-desk')"),
                        int(page.get_attribute("#status .status", "data-step") or 0),
                    )
                )
                for process in psutil.Process().children(recursive=True):
                    if "chrom" in process.name():
                        process.kill()
    finally:
        server.kill()
    assert seen[0] == seen[1]
    assert seen[0][1] > 0
