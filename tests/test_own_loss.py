"""A loss of the user's own: read from a file, followed as it changes, typed on the page, never on a public server."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_handin import graded, handed_in, took
from test_handlers import Browser, Views, manager, ready, settings  # noqa: F401  (fixtures)
from waiting import until

import app
from sdlab import cli, links, own_loss
from sdlab.live.manager import Manager
from sdlab.live.messages import Goto, Patch, Rejected, Rewrite
from sdlab.live.session import Session
from sdlab.own_loss import EXERCISE, OwnLoss
from sdlab.settings import Settings, adopt, disown, from_toml, losses, preset
from sdlab.ui import acts
from sdlab.ui.editor import Editor, beside
from sdlab.ui.page import Page
from sdlab.ui.server import build
from sdlab.ui.server import server as page_server
from sdlab.ui.visitors import LOCKED, Visitors
from sdlab.web import Site

SOLVED = EXERCISE.replace(
    "residual = eps_c - eps_u\n", "residual = eps_u + self.cfg * (eps_c - eps_u) - x.noise\n"
).replace("A first attempt at SDS", "SDS by myself")
FAILS_LATE = EXERCISE.replace("residual = eps_c - eps_u\n", "residual = {8: eps_c}[x.z0.shape[-1]]\n")
LINE = FAILS_LATE[: FAILS_LATE.index("{8:")].count("\n") + 1


@pytest.fixture(autouse=True)
def no_own_loss_is_left() -> Iterator[None]:
    yield
    disown()


@pytest.fixture
def own(tmp_path: Path) -> OwnLoss:
    own_loss.begin(tmp_path / "mine.py")
    return OwnLoss(tmp_path / "mine.py")


@pytest.fixture
def page(manager: Manager, own: OwnLoss) -> Page:  # noqa: F811
    return Page(manager, Views(), Visitors(settings()), "mixture", editor=Editor(own, manager))


@pytest.fixture
def browser(page: Page) -> Browser:
    return Browser(page, "page")


def key(page: Page) -> str:
    return page.editor.fragment.partition("=")[2]


def change(own: OwnLoss, text: str) -> None:
    """As another program does, at another time than the last."""
    own.path.write_text(text)
    os.utime(own.path, ns=(0, own.path.stat().st_mtime_ns + 1_000_000))


# ---- the file ------------------------------------------------------------------------------------------------------


def test_the_file_becomes_the_loss_own_whatever_it_calls_itself(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(SOLVED.replace("    cfg:", '    kind: ClassVar[str] = "sds"\n    cfg:'))
    own = OwnLoss(file)
    assert list(losses())[-1] == "own"
    assert losses()["own"] is own.loss
    assert losses()["sds"] is not own.loss
    assert own.loss.code == own.text


FLAWED = {
    "x = (": "mine.py, line 1: SyntaxError: '(' was never closed",
    "import nothing_of_the_kind": "mine.py, line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'",
    "x = 1\n\nraise SystemExit": "mine.py, line 3: SystemExit",
    "x = 1": "mine.py has no loss",
    EXERCISE + EXERCISE.replace("MyLoss", "Other"): "mine.py has 2 losses (MyLoss, Other)",
    EXERCISE.replace("def gradient", "def gradeint"): "mine.py: MyLoss has no method `gradient",
    EXERCISE.replace("@dataclass(frozen=True)\n", ""): "needs @dataclass(frozen=True)",
    EXERCISE.replace("eps_c - eps_u\n", "eps_x\n"): "NameError: name 'eps_x' is not defined",
    EXERCISE.replace('"uncond")', '"neg")'): "role 'neg' is not bound",
    EXERCISE.replace("return Guidance(residual, {", "return (residual, {"): "must return Guidance",
    EXERCISE.replace("eps_c - eps_u\n", "(eps_c - eps_u)[:, :1]\n"): "[2, 1, 8, 8]",
}


@pytest.mark.parametrize("text", FLAWED, ids=lambda text: FLAWED[text][:40])
def test_an_error_names_file_and_line_and_the_version_before_it_stays(own: OwnLoss, text: str):
    before = own.loss
    own.write(text)
    assert FLAWED[text] in own.error
    if "gradient" in text and "Error" in own.error:
        assert own.error.startswith("mine.py, line 3")
    assert own.loss is losses()["own"] is before
    assert own.path.read_text() == text, "nothing typed is lost"
    own.write(SOLVED)
    assert own.error == ""
    assert own.loss is losses()["own"] is not before


def test_it_is_read_again_when_it_changes_on_disk(own: OwnLoss):
    assert not own.look()
    before = own.loss
    change(own, SOLVED)
    assert own.look()
    assert own.loss is not before
    assert not own.look()
    own.path.unlink()
    assert own.look()
    assert "cannot be read" in own.error
    assert losses()["own"] is own.loss
    change_back = own.text
    own.write(change_back)
    assert own.error == ""


def test_knobs_keep_their_values_as_far_as_the_new_version_has_them(own: OwnLoss):
    s = Settings().patch("losses.own.cfg", 5.0)
    own.write(SOLVED.replace("    cfg:", '    share: float = knob(0.5, 0.0, 1.0, "a share")\n    cfg:'))
    wider = s.with_losses_of(Settings())
    assert (wider.knob("losses.own.cfg").value, wider.knob("losses.own.share").value) == (5.0, 0.5)
    own.write(SOLVED.replace("200.0", "2.0").replace("knob(3.0", "knob(1.0"))
    assert wider.with_loss(own.loss).knob("losses.own.cfg").value == 1.0, "5 is no longer allowed"


# ---- in a hand-in --------------------------------------------------------------------------------------------------


def test_a_hand_in_of_an_own_loss_is_graded_with_its_code_alone(browser: Browser, own: OwnLoss, tmp_path: Path):
    session, loss = browser.desk.focus.seat.session, own.loss
    until(lambda: session.status.phase == "ready")
    browser.act(do="knob", knob="active", value="own")
    took(session, 2)
    file = handed_in(browser, tmp_path, "Ada")
    for given in (None, own_loss.compiled(f"{own.text}# more", own.path)):
        row = graded(file, own=given)
        assert row.outcome == "not repeated"
        assert sum("read own_loss.py in the file, then grade it with --own-loss" in note for note in row.notes) == 1
    assert graded(file, own=loss).outcome == "same bits"


# ---- in a run ------------------------------------------------------------------------------------------------------


def own_session(quick: Settings, **changes: Any) -> Session:
    session = Session(quick.with_losses_of(Settings()).patch_all([("active", "own"), *changes.items()]))
    session.prepare()
    return session


def test_a_solved_exercise_takes_the_steps_of_sds(own: OwnLoss, quick: Settings):
    own.write(SOLVED)
    session = own_session(quick, **{"losses.sds.cfg": 3.0})
    session.run(until=3)
    reference = Session(quick.patch("losses.sds.cfg", 3.0))
    reference.run(until=3)
    for name, found in session.state.scene.params.items():
        torch.testing.assert_close(found, reference.state.scene.params[name], rtol=1e-4, atol=1e-5)


def test_a_new_version_is_followed_between_steps_and_undone_if_its_first_step_fails(own: OwnLoss, quick: Settings):
    session = own_session(quick)
    session.run(until=2)
    own.write(SOLVED)
    solved = own.loss
    session.do(Rewrite(solved))
    session.run(until=4)
    assert type(session.settings.losses["own"]) is solved
    own.write(FAILS_LATE)  # the rehearsal has images of 8 pixels, a step of 16
    assert own.error == ""
    before = session.state.step
    session.do(Rewrite(own.loss))
    session.run(until=6)
    assert session.state.step == 6 > before
    assert type(session.settings.losses["own"]) is solved
    why = [e.reason for e in session.events.since()[0] if isinstance(e, Rejected)]
    assert why == [f"rolled back, its first step failed: mine.py, line {LINE}: KeyError: 16"]


def test_a_new_version_is_no_change_of_a_knob_on_the_tape(own: OwnLoss, quick: Settings):
    session = own_session(quick)
    session.run(until=2)
    own.write(SOLVED)
    session.do(Rewrite(own.loss))
    stretch = session.tape.stretches[-1]
    assert (stretch.changes, stretch.remarks) == ([], [(2, "the code of losses.own was changed")])


def test_going_back_in_time_keeps_the_newest_code(own: OwnLoss, quick: Settings):
    session = own_session(quick)
    session.run(until=2)
    own.write(SOLVED)
    session.do(Rewrite(own.loss))
    session.run(until=3)
    session.do(Goto(0))
    assert session.state.step == 0
    assert type(session.settings.losses["own"]) is own.loss is type(session.effective.losses["own"])
    session.run(until=1)


# ---- on the page ---------------------------------------------------------------------------------------------------


def test_what_is_typed_is_written_followed_and_compared_with_sds(browser: Browser, page: Page, own: OwnLoss):
    ready(browser)
    lane = browser.desk.focus
    lane.send(Patch((("losses.sds.cfg", 3.0),)))
    told = browser.panels()
    assert (told["own"]["text"], told["own"]["beside"]) == (EXERCISE, None)
    assert "A first attempt" in told["card"]["html"]
    browser.act(do="own", text=SOLVED, key=key(page))
    assert own.path.read_text() == SOLVED
    until(lambda: beside(lane.seat.session.comparison.get()) is not None)
    told = browser.panels()
    assert told["own"]["beside"]["cosine"] == 1.0
    assert told["own"]["beside"]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert "SDS by myself" in told["card"]["html"]
    assert told["card"]["values"] == {"losses.own.cfg": 3.0}


def test_the_exercise_is_not_yet_sds(browser: Browser):
    ready(browser)
    session = browser.desk.focus.seat.session
    session.send(Patch((("losses.sds.cfg", 1.0),)))
    browser.act(do="beside")
    until(lambda: beside(session.comparison.get()) is not None)
    assert beside(session.comparison.get())["cosine"] < 0.9


def test_an_error_is_shown_on_the_status_line_and_the_run_goes_on(browser: Browser, page: Page, own: OwnLoss):
    ready(browser)
    session, before = browser.desk.focus.seat.session, own.loss
    browser.act(do="knob", knob="active", value="own")
    browser.act(do="start")
    until(lambda: session.status.phase == "running")
    browser.poll()
    browser.act(do="own", text=EXERCISE.replace("eps_c - eps_u\n", "eps_x\n"), key=key(page))
    told = browser.panels()
    assert "line 33: NameError" in told["own"]["error"]
    assert f"{told['own']['error']}; {acts.STAYS}".replace("&#x27;", "'") in told["status"].replace("&#x27;", "'")
    at = session.latest.get().step
    until(lambda: session.latest.get().step > at + 2)
    assert type(session.settings.losses["own"]) is before
    browser.act(do="pause")


def test_a_file_that_another_program_changes_is_followed_by_every_run(browser: Browser, page: Page, own: OwnLoss):
    other = Browser(page, "other")
    for each in (browser, other):
        ready(each)
        each.poll()
    change(own, SOLVED)
    browser.poll()
    for each in (browser, other):
        until(lambda each=each: type(each.desk.focus.settings.losses["own"]) is own.loss)
        assert "SDS by myself" in each.panels()["card"]["html"]
    change(own, "x = (")
    browser.poll()
    assert "line 1: SyntaxError" in other.panels()["status"]


def test_runs_that_begin_later_have_the_newest_version(browser: Browser, page: Page, own: OwnLoss):
    ready(browser)
    browser.act(do="own", text=SOLVED, key=key(page))
    later = Browser(page, "later")
    assert type(later.desk.focus.settings.losses["own"]) is own.loss


# ---- who may not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "wrong", "\N{SNOWMAN}"])
def test_a_tab_without_the_key_writes_nothing(browser: Browser, own: OwnLoss, given: str):
    browser.act(do="own", text=SOLVED, key=given)
    assert own.path.read_text() == EXERCISE
    assert "may not write mine.py" in browser.panels()["status"]


def test_a_link_can_lock_it(page: Page, own: OwnLoss):
    browser = Browser.__new__(Browser)
    browser.page, browser.name = page, "locked"
    browser.token = page.arrive("locked", query="lock=losses")["token"]
    browser.act(do="own", text=SOLVED, key=key(page))
    assert own.path.read_text() == EXERCISE
    assert "locked by the link" in browser.panels()["status"]


def test_a_page_without_the_option_has_no_editor(manager: Manager, tmp_path: Path):  # noqa: F811
    browser = Browser(Page(manager, Views(), Visitors(settings()), "mixture"), "page")
    browser.act(do="own", text=SOLVED, key="")
    browser.act(do="beside")
    assert not {"own", "card"} & browser.panels().keys()
    assert "own" not in losses()


NOT_LOCAL = {"site": Site.of(["https://lab.example"]), "space": Site(loopback=True), "locked": Site(loopback=True)}


@pytest.mark.parametrize("case", NOT_LOCAL)
def test_a_server_that_others_can_reach_takes_no_code(manager: Manager, own: OwnLoss, case: str):  # noqa: F811
    locked, on_space = LOCKED if case == "locked" else (), case == "space"
    with pytest.raises(ValueError, match="only a server of your own runs"):
        build(manager, settings(), "mixture", locked, on_space, NOT_LOCAL[case], own=own)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (("--host", "0.0.0.0"), {}),
        (("--host", "192.0.2.1"), {}),
        (("--public-url", "https://lab.example"), {}),
        (("--classroom", "--seats", "2"), {}),
        (("--host", "127.0.0.1"), {"SPACE_ID": "somebody/lab"}),
        (("--host", "127.0.0.1"), {"SPACE_HOST": "somebody-lab.hf.space"}),
    ],
)
def test_the_option_is_refused_in_one_line_and_the_file_neither_run_nor_made(
    arguments, environment, tmp_path: Path, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ran, new = tmp_path / "ran", tmp_path / "new.py"
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(ran)!r}, 'w')")
    for path in (file, new):
        args = app.parser().parse_args(["--preset", "mixture", "--own-loss", str(path), *arguments])
        with pytest.raises(ValueError, match=f"--own-loss {path}: it is code") as refused:
            app.build(args, 7860, contextlib.ExitStack())
        assert "\n" not in str(refused.value)
    assert not ran.exists()
    assert not new.exists()


def test_settings_and_links_name_no_code_and_say_what_is_missing(own: OwnLoss):
    text = 'active = "own"\n[losses.own]\ncfg = 2.0\n[prior]\nkind = "mixture"\n'
    assert from_toml(text).knob("losses.own.cfg").value == 2.0
    disown()
    with pytest.raises(ValueError, match="start it with --own-loss FILE"):
        from_toml(text, "their settings")
    found = links.read("active=own&losses.own.cfg=2&own-loss=/tmp/x.py&own_loss=/tmp/x.py", preset("mixture"), {})
    assert found.settings == preset("mixture")
    assert len(found.problems) == 4
    assert "--own-loss FILE" in " ".join(found.problems[:2])


# ---- without a page ------------------------------------------------------------------------------------------------


def test_a_run_keeps_the_code_and_opens_elsewhere_only_with_it(tmp_path: Path, capsys):
    file, out = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(SOLVED)
    short = ["--set", "scene.n_init=60", "--steps", "3", "--size", "32", "--out", str(out)]
    assert cli.main(["run", "mixture", "--own-loss", str(file), "--set", "active=own", *short]) == 0
    assert (out / "own_loss.py").read_text() == SOLVED
    disown()
    capsys.readouterr()
    assert cli.main(["resume", str(out), "--steps", "4"]) == 2
    assert "start it with --own-loss FILE" in capsys.readouterr().err
    assert cli.main(["resume", str(out), "--steps", "4", "--own-loss", str(out / "own_loss.py"), "--size", "32"]) == 0
    capsys.readouterr()
    again = ["--out", str(tmp_path / "again"), "--size", "32"]
    file.write_text(EXERCISE)
    assert cli.main(["replay", str(out), "--own-loss", str(file), *again]) == 0
    assert "differs from the file of --own-loss" in capsys.readouterr().err
    assert cli.main(["run", "mixture", "--own-loss", str(tmp_path / "none.py"), *again]) == 2
    assert "none.py cannot be read" in capsys.readouterr().err


def test_an_adopted_loss_is_forgotten(own: OwnLoss):
    assert "own" in Settings().losses
    disown()
    assert "own" not in Settings().losses
    adopt(own.loss)
    assert list(Settings().losses)[-1] == "own"


# ---- in Chromium --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(with_browser) -> Iterator[Any]:
    from sdlab.bench import visitor

    with visitor.chromium() as found:
        yield found


@pytest.mark.nightly
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_editor_as_a_student_uses_it(chromium, own: OwnLoss, width: int):
    manager = Manager(max_sessions=2, grace=1.0)  # noqa: F811
    lab = build(manager, settings(), "mixture", site=Site(loopback=True), own=own)
    server = page_server(lab, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    page, errors = chromium.new_context(viewport={"width": width, "height": 800}).new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address + lab.state.fragment)
    page.click("#tabs [data-tab=own]")
    page.wait_for_function("document.querySelector('#own-text').value.includes('class MyLoss')")
    assert "#" not in page.url, "the key is not left in the address"
    assert page.is_disabled("#own [data-apply]")
    page.fill("#own-text", EXERCISE.replace("eps_c - eps_u\n", "eps_x\n"))
    page.press("#own-text", "Control+Enter")
    page.wait_for_function("document.querySelector('#own-error').textContent.includes('line 33: NameError')")
    page.fill("#own-text", SOLVED)
    page.click("#own [data-apply]")
    page.wait_for_function("document.querySelector('#own [data-cosine]').textContent !== '\\u2013'")
    assert page.text_content("#own-error") == ""
    page.click("#form .losses [data-value=own]")
    page.wait_for_function(
        "document.querySelector('#form section:not([hidden]) .does').textContent === 'SDS by myself.'"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    other = page.context.new_page()
    other.goto(address)
    other.click("#tabs [data-tab=own]")
    other.wait_for_function("document.querySelector('#own-text').value.includes('by myself')")
    assert other.is_editable("#own-text") is False
    server.should_exit = True
    thread.join(20)
    assert not errors
