"""Hand-ins: made by a page with real sessions, repeated bit for bit, and found out when they were tampered with."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_handlers import Browser, Views
from waiting import until

from sdlab.grading import grade
from sdlab.grading.grade import Row, Terms
from sdlab.grading.policy import policy
from sdlab.handin import archive, facts
from sdlab.live.manager import Manager, PriorPool
from sdlab.live.messages import Advance, Goto, Patch, Reset, Resume
from sdlab.live.session import Session
from sdlab.settings import default_settings
from sdlab.ui.page import Page
from sdlab.ui.visitors import Visitors

KEY = bytes(32)
POOL = PriorPool()
START = default_settings("mixture").patch_all([("scene.n_init", 20), ("camera.resolution", 16), ("steps", 500)])


def took(session: Session, n: int) -> None:
    """Let a session take `n` steps and wait for them."""
    end = session.state.step + n
    session.send(Advance(n))
    until(lambda: session.state.step == end and session.status.phase == "paused")


def sent(session: Session, *commands: Any) -> None:
    """Send commands and wait until they have been carried out."""
    for command in commands:
        session.send(command)
    session.material().result(10)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    manager = Manager(max_sessions=6)
    yield Page(manager, Views(), Visitors(START), "mixture")
    manager.shutdown()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdlab.handin.facts.key", lambda: KEY)
        yield


def wandered(page: Page) -> Browser:
    """A page whose knobs were moved while it ran, that went back, changed losses, branched, and started over."""
    browser = Browser(page, "student")
    session = browser.desk.focus.seat.session
    until(lambda: session.status.phase == "ready", say=lambda: session.status.text)
    session.send(Resume())
    for scale in (20.0, 7.0, 30.0):
        before = session.state.step
        until(lambda before=before: session.state.step > before + 4)
        session.send(Patch.one("losses.sds.cfg", scale))
    browser.act(do="pause")
    until(lambda: session.status.phase == "paused")
    took(session, 60)
    sent(session, Goto(session.state.step - 40), Patch.one("active", "vsd"))
    took(session, 8)  # after the warm-up of psi
    browser.act(do="branch", lane=browser.desk.focus.seat.id)
    other = browser.desk.focus.seat.session
    assert other is not session
    until(lambda: other.status.phase == "paused")
    sent(other, Patch.one("active", "sds"))
    took(other, 25)
    sent(session, Patch.one("seed", 3), Reset())
    took(session, 45)
    return browser


def handed_in(browser: Browser, folder: Path, name: str, answer: str = "") -> Path:
    """Press the button and return the file."""
    known = {result.id for result in browser.desk.shelf.list()}
    browser.act(do="hand-in", name=name, answer=answer)
    shelf = browser.desk.shelf
    until(lambda: [r for r in shelf.list() if r.id not in known and r.phase in ("done", "failed")])
    result = shelf.list()[0]
    found = shelf.file(result.id)
    assert found is not None, result.message
    return Path(shutil.copy(found[0], folder / found[1].name))


@pytest.fixture(scope="module")
def made(page: Page, key: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handed_in(wandered(page), tmp_path_factory.mktemp("made"), "Ada Lovelace", "Two <faces>, then one.")


def terms(**others: Any) -> Terms:
    device = torch.device("cpu")
    return Terms(
        **{
            **{"device": device, "load": POOL.get, "admit": policy(False), "seconds": 60.0},
            **{"facts": facts.facts(device), "key": KEY},
            **others,
        }
    )


def graded(path: Path, **others: Any) -> Row:
    return grade.graded(grade.read(path), terms(**others), lambda n: None)


def edited(path: Path, to: Path, name: str, edit: Callable[[Any], Any], with_sums: bool = True) -> Path:
    """Write a hand-in of which one JSON file was edited, and, to hide it, its hash."""
    with zipfile.ZipFile(path) as old:
        files = {one: old.read(one) for one in old.namelist()}
    tree = json.loads(files[name])
    files[name] = json.dumps(edit(tree) or tree).encode()
    if with_sums:
        archive.write(to, {one: raw for one, raw in files.items() if one != archive.SUMS}, b"another key")
        return to
    with zipfile.ZipFile(to, "w") as new:
        for one, raw in files.items():
            new.writestr(one, raw)
    return to


def test_what_a_page_hands_in_is_repeated_bit_for_bit(made: Path):
    row = graded(made)
    assert (row.outcome, row.differences, row.notes) == ("same bits", [], [])
    assert row.student == "Ada Lovelace"
    assert row.answers == ["What did you see? Two <faces>, then one."]
    given = grade.read(made)
    kinds = [(stretch.origin is not None, bool(stretch.changes)) for stretch in given.stretches]
    assert {(True, True), (False, True), (False, False)} <= set(kinds)
    assert max(stretch.ticks for stretch in given.stretches) > 40
    assert [lane.letter for lane in given.manifest.lanes] == ["A", "B"]
    assert {"saturation", "sharpness", "n_gaussians"} <= given.manifest.lanes[0].readings.keys()
    with zipfile.ZipFile(made) as files:
        assert files.read(archive.PREVIEW)[8:12] == b"WEBP"
        assert made.stat().st_size < 400_000


# ---- tampered with -----------------------------------------------------------------------------------------------


def longest(tree: Any, changed: bool) -> Any:
    """The stretch with the most ticks, with changes or without."""
    return max((s for s in tree["stretches"] if bool(s["changes"]) == changed), key=lambda s: s["ticks"])


def another_reading(tree: Any) -> None:
    tree["lanes"][0]["readings"]["saturation"] += 0.1


def another_change(tree: Any) -> None:
    tick, made = longest(tree, True)["changes"][0]
    longest(tree, True)["changes"][0] = [tick, [[path, 19.0] for path, _ in made]]


def a_later_change(tree: Any) -> None:
    longest(tree, True)["changes"][0][0] += 1


def no_change(tree: Any) -> None:
    del longest(tree, True)["changes"][0]


def fewer_steps(tree: Any) -> None:
    tree["lanes"][0]["tick"] -= 5


def other_settings(tree: Any) -> None:
    first, *_, last = [s["from"] for s in tree["stretches"] if "settings" in s["from"]]
    first["settings"], last["settings"] = last["settings"], first["settings"]


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (archive.MANIFEST, another_reading, "saturation is"),
        (archive.MANIFEST, fewer_steps, "the final state at step"),
        (archive.HISTORY, another_change, "after the change losses.sds.cfg = 19.0"),
        (archive.HISTORY, a_later_change, "the bits differ at step"),
        (archive.HISTORY, no_change, "the bits differ at step"),
        (archive.HISTORY, other_settings, "the bits differ from the start on"),
    ],
)
def test_what_was_tampered_with_is_named(made: Path, tmp_path: Path, name: str, edit: Any, said: str):
    row = graded(edited(made, tmp_path / "x.zip", name, edit))
    assert row.outcome == "differs"
    assert any(said in text for text in row.differences), row.differences
    assert any("not sealed by this computer" in note for note in row.notes), "its hashes were made to fit"


def test_what_no_repetition_can_tell_is_told_by_hashes_and_seal(made: Path, tmp_path: Path):
    def another_name(tree: Any) -> None:
        tree["name"] = "Bob"

    plain = graded(edited(made, tmp_path / "a.zip", archive.MANIFEST, another_name, with_sums=False))
    assert plain.differences == ["manifest.json was edited after the file was made: its hash is another"]
    resealed = edited(made, tmp_path / "b.zip", archive.MANIFEST, another_name)
    assert graded(resealed).outcome == "same bits"
    assert [graded(resealed, sealed=True).differences] == [
        ["it is not sealed by this computer: nothing proves name, predictions and answers"]
    ]


def test_a_run_under_two_names_is_found(made: Path, tmp_path: Path):
    def another_name(tree: Any) -> None:
        tree["name"], tree["id"] = "Bob", "0" * 16

    both = [grade.read(made), grade.read(edited(made, tmp_path / "bob.zip", archive.MANIFEST, another_name))]
    rows = {given.file: Row(given.file, given.student, "same bits") for given in both}
    grade.copies(both, rows)
    assert rows["bob.zip"].differences == [f"it has the same run as {made.name} of Ada Lovelace"]
    assert rows[made.name].differences == ["it has the same run as bob.zip of Bob"]


def test_other_ids_do_not_hide_a_copy(made: Path, tmp_path: Path):
    def other_ids(tree: Any) -> Any:
        text = json.dumps(tree)
        for n, stretch in enumerate(tree["stretches"]):
            text = text.replace(stretch["id"], f"{n:016x}")
        return json.loads(text)

    both = [grade.read(made), grade.read(edited(made, tmp_path / "bob.zip", archive.HISTORY, other_ids))]
    rows = {given.file: Row(given.file, given.student, "same bits") for given in both}
    grade.copies(both, rows)
    assert ["same steps and changes" in note for note in rows["bob.zip"].notes] == [True]


# ---- elsewhere ---------------------------------------------------------------------------------------------------


def elsewhere(tree: Any) -> None:
    tree["facts"]["processor"] = "another"


def other_bits(tree: Any) -> Any:
    """As another machine would have them: other bits, nearly the same sizes."""
    for stretch in tree["stretches"]:
        for made in stretch["prints"]:
            made[2] = hashlib.sha256(made[2].encode()).hexdigest()[:32]
            made[3] = {name: size * 1.001 for name, size in made[3].items()}
    return tree


def test_another_machine_is_compared_within_a_tolerance(made: Path, tmp_path: Path):
    away = edited(made, tmp_path / "a.zip", archive.MANIFEST, elsewhere)
    row = graded(away)
    assert (row.outcome, row.differences) == ("same bits", [])
    assert any("processor another there" in note for note in row.notes)
    near = edited(away, tmp_path / "b.zip", archive.HISTORY, other_bits)
    assert (graded(near).outcome, graded(near).differences) == ("nearly same", [])
    far = graded(edited(near, tmp_path / "c.zip", archive.HISTORY, other_settings))
    assert any("a parameter differs by more than" in text for text in far.differences)


def test_what_cannot_run_here_is_not_repeated_and_says_why(made: Path, tmp_path: Path):
    def with_toml(text: str, to: str) -> Path:
        with zipfile.ZipFile(made) as old:
            files = {one: old.read(one) for one in old.namelist() if one != archive.SUMS}
        changed = {one: raw + text.encode() if one.endswith(".toml") else raw for one, raw in files.items()}
        archive.write(tmp_path / to, changed, KEY)
        return tmp_path / to

    for text, why in (
        ("\n[camera]\nviews = 64\n", "visitors"),
        ("\nactive = 3\n", "toml"),
    ):
        row = graded(with_toml(text, "x.zip"))
        assert row.outcome == "not repeated"
        assert any(why in note for note in row.notes), row.notes
    row = graded(made, seconds=-1.0)
    assert row.outcome == "not repeated"
    assert any("no time left" in note for note in row.notes)
