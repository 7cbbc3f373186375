"""Hand-ins: made by a page with real sessions, repeated bit for bit, and found out when they were tampered with."""

import csv
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

from sdlab.cli import main
from sdlab.grading import grade
from sdlab.grading.grade import Row, Terms
from sdlab.grading.policy import policy
from sdlab.handin import archive, facts
from sdlab.lessons import Lesson, Walk
from sdlab.lessons.parsing import read as lesson_in
from sdlab.lessons.readings import Reader
from sdlab.live.manager import Manager, PriorPool
from sdlab.live.messages import Advance, Goto, Patch, Reset, Resume
from sdlab.live.session import Session
from sdlab.settings import default_settings
from sdlab.ui.page import Page
from sdlab.ui.visitors import Visitors

KEY = bytes(32)
LESSON = """
title = "Two pages"
number = 1
minutes = 1
summary = "A lesson of the tests."
preset = "mixture"

[[pages]]
title = "First"
text = "Predict."
ask = {question = "What comes?", choices = ["red", "green"], answer = 1, because = "so it is."}
wait = {reading = "saturation", at_least = 0.0, steps = 2}

[[pages]]
title = "Second"
text = "Look."
ask = {question = "And now?", choices = ["more", "less"], answer = 0, because = "so it is."}
do = [{mark = "before"}]
wait = {reading = "sharpness", below = "before", times = 3.0}

[[pages]]
title = "Third"
text = "Wait."
wait = {step = 10}
"""
POOL = PriorPool()
START = default_settings("mixture").patch_all(
    [("scene.n_init", 20), ("camera.resolution", 16), ("steps", 500), ("losses.vsd.warm_up", 10)]
)


def took(session: Session, n: int) -> None:
    """Let a session take `n` steps and wait for them."""
    end = session.state.step + n
    session.send(Advance(n))
    until(lambda: session.state.step == end and session.status.phase == "paused")


def lesson() -> Lesson:
    return lesson_in(LESSON, "two-pages")


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
        patch.setattr("sdlab.grading.lessons.load", lambda name: lesson())
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
    took(session, 12)
    walk(browser, session)
    sent(session, Goto(session.state.step - 15), Patch.one("active", "vsd"))
    took(session, 4)  # after the warm-up of psi
    browser.act(do="branch", lane=browser.desk.focus.seat.id)
    other = browser.desk.focus.seat.session
    assert other is not session
    until(lambda: other.status.phase == "paused")
    sent(other, Patch.one("active", "sds"))
    took(other, 5)
    sent(session, Patch.one("seed", 3), Reset())
    took(session, 21)
    return browser


def walk(browser: Browser, session: Session) -> None:
    """Go through the lesson: predict right, then wrong, and reach all pages' predicates."""
    way = Walk(lesson())
    reader = Reader(session)
    for page in range(3):
        way.turn_to(page)
        way.predict(1)
        for act in way.due(reader.step):
            way.keep(act.value, reader.read)
        took(session, 3)
        until(lambda: (seen := session.around.get()) is not None and seen.step == session.state.step)
        way.tick(reader.step, reader.read)
    assert len(way.reached) == 3
    browser.desk.walk = way


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
    assert row.lesson is not None
    assert (row.lesson.title, row.lesson.page, row.lesson.pages) == ("Two pages", 3, 3)
    assert (row.lesson.right, row.lesson.wrong, row.lesson.skipped) == (1, 1, 0)
    assert (row.lesson.reached, row.confirmed) == (3, 3)
    assert row.student == "Ada Lovelace"
    assert row.answers == ["What did you see? Two <faces>, then one."]
    given = grade.read(made)
    kinds = [(stretch.origin is not None, bool(stretch.changes)) for stretch in given.stretches]
    assert {(True, True), (False, True), (False, False)} <= set(kinds)
    assert max(stretch.ticks for stretch in given.stretches) > 20
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


def a_better_reading(tree: Any) -> None:
    tree["lesson"]["reached"][0]["value"] += 0.1


def a_page_not_reached(tree: Any) -> None:
    tree["lesson"]["reached"][1]["value"] += 10.0


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


def test_readings_that_were_edited_are_named(made: Path, tmp_path: Path):
    def all_of_them(tree: Any) -> None:
        for edit in (another_reading, fewer_steps, a_better_reading, a_page_not_reached):
            edit(tree)

    row = graded(edited(made, tmp_path / "x.zip", archive.MANIFEST, all_of_them))
    assert row.outcome == "differs"
    for said in ("lane A: the final state at step", "page 1, step", "is not enough; the page waits until the"):
        assert any(said in text for text in row.differences), row.differences
    assert any("not sealed by this computer" in note for note in row.notes), "its hashes were made to fit"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (another_change, "after the change losses.sds.cfg = 19.0"),
        (other_settings, "the bits differ from the start on"),
        pytest.param(a_later_change, "the bits differ at step", marks=pytest.mark.nightly),
        pytest.param(no_change, "the bits differ at step", marks=pytest.mark.nightly),
    ],
)
def test_a_history_that_was_edited_is_located(made: Path, tmp_path: Path, edit: Any, said: str):
    row = graded(edited(made, tmp_path / "x.zip", archive.HISTORY, edit))
    assert row.outcome == "differs"
    assert any(said in text for text in row.differences), row.differences


def test_what_no_repetition_can_tell_is_told_by_hashes_and_seal(made: Path, tmp_path: Path):
    def another_name(tree: Any) -> None:
        tree["name"] = "Bob"

    plain = graded(edited(made, tmp_path / "a.zip", archive.MANIFEST, another_name, with_sums=False), seconds=-1.0)
    assert plain.differences == ["manifest.json was edited after the file was made: its hash is another"]
    resealed = edited(made, tmp_path / "b.zip", archive.MANIFEST, another_name)
    assert graded(resealed, seconds=-1.0).differences == []
    assert graded(resealed, seconds=-1.0, sealed=True).differences == [
        "it is not sealed by this computer: nothing proves name, predictions and answers"
    ]


def test_a_run_under_two_names_is_found(made: Path, tmp_path: Path):
    def another_name(tree: Any) -> None:
        tree["name"], tree["id"] = "Bob", "0" * 16

    both = [grade.read(made), grade.read(edited(made, tmp_path / "bob.zip", archive.MANIFEST, another_name))]
    rows = {given.file: Row(given.file, given.student, "same bits") for given in both}
    grade.copies(both, rows)
    assert [row.outcome for row in rows.values()] == ["copied", "copied"]
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
    near = edited(away, tmp_path / "b.zip", archive.HISTORY, other_bits)
    row = graded(near)
    assert (row.outcome, row.differences) == ("nearly same", [])
    assert any("processor another there" in note for note in row.notes)
    far = graded(edited(near, tmp_path / "c.zip", archive.HISTORY, other_settings))
    assert any("a parameter differs by more than" in text for text in far.differences)


def test_what_cannot_run_here_is_not_repeated_and_says_why(made: Path, tmp_path: Path):
    def with_toml(old: bytes, new: bytes) -> Path:
        with zipfile.ZipFile(made) as source:
            files = {one: source.read(one) for one in source.namelist() if one != archive.SUMS}
        changed = {one: raw.replace(old, new, 1) if one.endswith(".toml") else raw for one, raw in files.items()}
        archive.write(tmp_path / "x.zip", changed, KEY)
        return tmp_path / "x.zip"

    for old, new, why in (
        (b"resolution = 16", b"resolution = 1024", "visitors of this server may"),
        (b"resolution = 16", b"resolution = -1", "camera.resolution"),
    ):
        row = graded(with_toml(old, new))
        assert row.outcome == "not repeated"
        assert any(why in note for note in row.notes), row.notes
    row = graded(made, seconds=-1.0)
    assert row.outcome == "not repeated"
    assert any("no time left" in note for note in row.notes)


def test_a_plane_is_repeated_and_its_lack_of_readings_is_told(page: Page, key: None, tmp_path: Path):
    browser = Browser(page, "plane")
    browser.act(do="preset", preset="playground")
    session = browser.desk.focus.seat.session
    until(lambda: session.status.phase == "ready")
    took(session, 3)
    row = graded(handed_in(browser, tmp_path, "Ada"))
    assert (row.outcome, row.differences) == ("same bits", [])
    assert row.notes == ["lane A: points in the plane have no final readings; the points themselves are compared"]


def test_a_change_that_was_rolled_back_is_not_repeated(
    page: Page, key: None, tmp_path: Path, no_room_for_four_views: Callable[[], None]
):
    browser = Browser(page, "rolled back")
    session = browser.desk.focus.seat.session
    until(lambda: session.status.phase == "ready", say=lambda: session.status.text)
    sent(session, Patch.one("camera.views", 2))
    took(session, 5)
    no_room_for_four_views()
    sent(session, Patch.one("camera.views", 4))
    took(session, 5)
    assert session.settings.camera.views == 2
    row = graded(handed_in(browser, tmp_path, ""))
    assert (row.outcome, row.differences, row.notes) == ("same bits", [], [])


def test_an_uploaded_file_is_named_and_not_repeated(page: Page, key: None, tmp_path: Path):
    from sdlab.ui.handin import Writer
    from sdlab.ui.uploads import FOLDER

    writer = Writer(Visitors(START, ["scene.file"]))
    said = writer.changes((("scene.start", "file"), ("scene.file", f"/tmp/{FOLDER}x/1-bear.glb"), ("seed", 3)))
    assert said == (
        (("scene.start", "file"), ("scene.file", "bear.glb"), ("seed", 3)),
        "a file that was uploaded: bear.glb",
    )
    name, lacks = writer.settings(
        default_settings("mixture").patch_all([("scene.start", "file"), ("scene.file", f"/tmp/{FOLDER}x/1-bear.glb")])
    )
    assert lacks == "a file that was uploaded: bear.glb"
    assert FOLDER not in writer.files[name].decode()


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_grades_a_folder_and_goes_on_after_a_bad_file(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "class"
    folder.mkdir()
    shutil.copy(made, folder / "ada.zip")
    (folder / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    (folder / "notes.txt").write_text("not a hand-in")
    edited(made, folder / "eve.zip", archive.MANIFEST, another_reading)
    table = tmp_path / "grades.csv"
    assert main(["grade", str(folder), "--csv", str(table), "--device", "cpu"]) == 1
    told = capsys.readouterr().out
    assert "eve.zip" in told
    assert "lane A: saturation is" in told
    rows = list(csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()))
    assert [row["outcome"] for row in rows] == ["same bits", "unreadable", "differs"]
    assert "it has the same run as eve.zip" in rows[0]["notes"], "of the same name: she may hand in twice"
    assert (rows[2]["right"], rows[2]["wrong"], rows[2]["reached"], rows[2]["again"]) == ("1", "1", "3", "3")
    assert main(["grade", str(tmp_path / "nowhere")]) == 2


# ---- hostile files -----------------------------------------------------------------------------------------------

HOSTILE: dict[str, Any] = {
    "deep": lambda tree: json.loads("[" * 500 + "]" * 500),
    "a number for a name": lambda tree: {**tree, "name": 3},
    "no lanes": lambda tree: {**tree, "lanes": {}},
    "an infinite reading": lambda tree: {**tree, "lanes": [{**tree["lanes"][0], "readings": {"x": float("inf")}}]},
    "a huge tick": lambda tree: {**tree, "lanes": [{**tree["lanes"][0], "tick": 10**30}]},
    "another format": lambda tree: {**tree, "format": 99},
    "a lesson that is none": lambda tree: {**tree, "lesson": {"lesson": "two-pages", "page": -1}},
    "a long answer": lambda tree: {**tree, "answers": [{"question": "?", "answer": "x" * 10_000}]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_manifest_that_no_page_writes_is_refused_in_one_sentence(made: Path, tmp_path: Path, what: str):
    path = edited(made, tmp_path / "x.zip", archive.MANIFEST, HOSTILE[what])
    with pytest.raises(ValueError, match=r"x\.zip: manifest\.json"):
        grade.read(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.update({"from": {"stretch": s["id"], "tick": 0, "changes": 0}}),
        lambda s: s.update(changes=[[5, [["seed", 1]]], [3, [["seed", 1]]]]),
        lambda s: s.update(prints=[[0, 0, "x" * 500, {}]]),
        lambda s: s.update(ticks=-1),
        lambda s: s.update({"from": {"settings": "../../etc/passwd"}}),
        lambda s: s.update(changes=[[0, [["seed", {}]]]]),
    ],
)
def test_a_history_that_no_page_writes_is_refused_in_one_sentence(made: Path, tmp_path: Path, edit: Any):
    path = edited(made, tmp_path / "x.zip", archive.HISTORY, lambda tree: edit(tree["stretches"][0]))
    with pytest.raises(ValueError, match=r"x\.zip: history\.json"):
        grade.read(path)


def test_what_is_too_large_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(archive.MANIFEST, b"0" * (archive.MOST_TEXT + 1))
        file.writestr(archive.HISTORY, b"{}")
        file.writestr(archive.SUMS, b"")
    with pytest.raises(ValueError, match=r"x\.zip: manifest\.json has more than"):
        grade.read(tmp_path / "x.zip")


def test_strangers_texts_neither_move_the_cursor_nor_become_formulas(tmp_path: Path):
    assert grade.printable("\x1b[2Jred\nline") == "[2Jred line"
    grade.write_csv(tmp_path / "x.csv", [Row("a.zip", '=HYPERLINK("x")')])
    assert "'=HYPERLINK" in (tmp_path / "x.csv").read_text(encoding="utf-8-sig")
