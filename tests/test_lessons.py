"""Lessons: what their files may say, what predicates read, a learner's way, the check and its exit code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sdlab import cli, lessons
from sdlab.lessons import Walk, library
from sdlab.lessons.check import Row, cells, check
from sdlab.lessons.docs import HEADING, write_page
from sdlab.lessons.lesson import Wait
from sdlab.lessons.parsing import read
from sdlab.lessons.promises import SUBJECTS
from sdlab.lessons.readings import READINGS, Reader, Reading, meaning_of, must_be_reading
from sdlab.lessons.walk import SKIPPED, Reached
from sdlab.live.messages import Patch, Reset
from sdlab.live.session import Session
from sdlab.own_loss import EXERCISE
from sdlab.settings import losses, preset
from sdlab.ui.lesson_page import inline, prose, walk_told

SHORT = """
title = "Short"
number = 1
minutes = 1
summary = "For *tests*."
preset = "playground"

[settings]
scene.n = 20
steps = 300

[[pages]]
title = "Points walk"
text = "They start at one place."
do = [{run = true}]
wait = {reading = "found", at_least = 0.9, steps = 5, limit = 100}

[[pages]]
title = "They turn"
text = "The prompt changes."
formula = "eps_c - noise"
source = "DreamFusion, Equation 3"
highlight = ["view", "prompt", "losses.sds.cfg"]
ask = {question = "Where to?", choices = ["Nowhere", "East"], answer = 1, because = "the score does."}
do = [{mark = "before"}, {set = {prompt.text = "east", optim.lr_points = 0.001}}, {run = true}]
wait = {reading = "distance", above = "before", by = 0.2}
look = "All of them."
answer = "It is the prior's score."

[notes]
minutes = 2
wrong = ["Nothing moves: press Start."]
"""


def short(*changes: tuple[str, str]) -> lessons.Lesson:
    """The short lesson with some of its lines changed."""
    text = SHORT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return read(text, "short")


# ---- files -------------------------------------------------------------------------------------------------


def test_a_lesson_is_read_whole():
    lesson = short()
    assert [page.title for page in lesson.pages] == ["Points walk", "They turn"]
    assert lesson.notes.wrong == ("Nothing moves: press Start.",)
    assert lesson.starts[0] == preset("playground").patch_all([("scene.n", 20), ("steps", 300)])
    assert lesson.pages[1].do[1].value == (("prompt.text", "east"), ("optim.lr_points", 0.001))
    assert lesson.readings_of("before") == ("distance",)
    assert lesson.pages[1].wait is not None
    assert lesson.pages[1].wait.promise().endswith("hill of the prompt is at least 0.2 above the value marked “before”")


def test_later_pages_start_with_the_changes_of_earlier_ones():
    more = '\n[[pages]]\ntitle = "Third"\ntext = "Here."\n\n[notes]'
    lesson = read(SHORT.replace("\n[notes]", more), "short")
    assert [start.prompt.text for start in lesson.starts] == ["north west", "north west", "east"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('preset = "playground"', 'preset = "playgroud"', "short: there is no preset 'playgroud'; did you mean"),
        ("scene.n = 20", "scene.m = 20", "short, settings: there is no knob 'scene.m'"),
        ("scene.n = 20", "scene.n = 0", "short, settings: scene.n = 0: must be a whole number from 1 to 2000"),
        ('summary = "For *tests*."', 'sumary = "x"', "short: summary is missing"),
        ("number = 1", "number = 0", "short, number = 0: must be a whole number of at least 1"),
        ("minutes = 1\n", 'minutes = "one"\n', "short, minutes = 'one': must be a number of at least 0"),
        ('text = "The prompt changes."', 'txt = "x"', "short, page 2: text is missing"),
        ('look = "All', 'lok = "All', "short, page 2: there is no key 'lok'; did you mean look?"),
        ('source = "DreamFusion, Equation 3"\n', "", "short, page 2: source is missing"),
        ('"prompt", "losses', '"promt", "losses', "highlight: there is no part of the page 'promt'; did you mean"),
        ("losses.sds.cfg", "losses.sds.cgf", "page 2, highlight: there is no knob 'losses.sds.cgf'"),
        ("do = [{run = true}]", "do = [{go = true}]", "page 1, do 1 has the keys go: must be one of set, preset"),
        ("do = [{run = true}]", "do = [{run = false}]", "page 1, do 1, run = False: must be true"),
        ("do = [{run = true}]", "do = [{advance = 0}]", "do 1, advance = 0: must be a whole number of at least 1"),
        ('prompt.text = "east"', 'prompt.txt = "east"', "page 2, do 2: there is no knob 'prompt.txt'"),
        ('{mark = "before"}, ', "", "page 2, wait: there is no mark 'before'; set are none"),
        ('{mark = "before"}', '{mark = "other"}', "'other' stands for the other lane"),
        ('"found", at', '"fond", at', "page 1, wait: reading = 'fond': there is no such reading; did you mean found"),
        ("at_least = 0.9, ", "", "page 1, wait: it needs at_least or at_most, or one of above and below"),
        ("at_least = 0.9, ", "at_least = 0.9, times = 2, ", "page 1, wait: by and times need above or below"),
        ('reading = "found", at_least = 0.9, steps = 5, ', "", "page 1, wait: it needs a reading, or a number"),
        ("answer = 1", "answer = 2", "page 2, ask, answer = 2: must be the index of the right choice, 0 to 1"),
        ('["Nowhere", "East"]', '["East"]', "page 2, ask, choices = ['East']: must be at least two texts"),
        ("wrong = [", "wrng = [", "short, notes: there is no key 'wrng'; did you mean wrong?"),
        ("[notes]", "[notes", "short is not valid TOML"),
    ],
)  # fmt: skip
def test_what_a_file_must_not_say_is_named(old: str, new: str, says: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the text is compared below
        short((old, new))
    assert says in str(error.value)


def test_shipped_lessons_are_sound_and_in_order():
    found = [lessons.load(name) for name in lessons.names()]
    assert found
    assert [lesson.number for lesson in found] == sorted({lesson.number for lesson in found})
    assert lessons.listed() == found


def test_an_unknown_lesson_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="there is no lesson 'whta'; did you mean what"):
        lessons.load("whta")
    with pytest.raises(ValueError, match="there is no lesson"):
        lessons.load("../presets/gallery")


def test_a_broken_file_is_left_out_of_the_menu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "broken.toml").write_text("title = 3")
    (tmp_path / "short.toml").write_text(SHORT)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert lessons.names() == ["short", "broken"]
    assert [lesson.name for lesson in lessons.listed()] == ["short"]
    assert "the lesson broken is left out" in capsys.readouterr().err


# ---- predicates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "marked", "bounds"),
    [
        (Wait("a", at_least=2.0), None, (2.0, math.inf)),
        (Wait("a", at_least=2.0, at_most=3.0), None, (2.0, 3.0)),
        (Wait("a", above="m", times=1.5), 2.0, (3.0, math.inf)),
        (Wait("a", below="m", by=0.5), 2.0, (-math.inf, 1.5)),
        (Wait("a", below="m", times=0.5, by=0.5), 2.0, (-math.inf, 0.5)),
        (Wait("a", above="m"), None, None),
    ],
)
def test_the_bounds_of_a_predicate(wait: Wait, marked: float | None, bounds: tuple[float, float] | None):
    assert wait.bounds(marked) == bounds


@pytest.mark.parametrize(
    ("wait", "said"),
    [
        (Wait(steps=50), "the run has taken 50 steps on this page"),
        (Wait(step=200, steps=1), "the run has reached step 200 and taken 1 step on this page"),
        (Wait("fronts", at_least=2.0, at_most=4.0), "the number of views that show a front is between 2 and 4"),
        (Wait("spread", at_most=0.05, steps=100), "the spread of the points is at most 0.05, after at least 100 steps"),
        (Wait("t", above="m", times=1.5), "the mean timestep is at least 1.5 times the value marked “m”"),
        (Wait("t", at_least=500.0, step=9), "the mean timestep is at least 500, at step 9 or later"),
        (Wait("t", below="m", by=2.0), "the mean timestep is at least 2 below the value marked “m”"),
        (Wait("t", above="m", times=2.0, by=1.0), "the mean timestep is at least 2 times the value marked “m” plus 1"),
        (Wait("t", below="other"), "the mean timestep is at most that of the other lane"),
        (Wait("compare.nfe.vsd", at_least=3.0), "the number of network evaluations of VSD per view is at least 3"),
        (Wait("compare.rms.own", at_most=0.6), "the root mean square of the gradient of your own loss is at most 0.6"),
        (Wait("rms_pos", at_most=1.0), "the root mean square of pos is at most 1"),
    ],
)  # fmt: skip
def test_a_promise_is_a_clause(wait: Wait, said: str):
    assert wait.promise() == said


@pytest.mark.parametrize("name", ["compare.rms.sds", "compare.cosine.sds.ism", "rms_pos", "rms_noise", "psi_error"])
def test_readings_that_depend_on_losses_have_names(name: str):
    must_be_reading(name)


@pytest.mark.parametrize("name", ["compare.cosine.sds", "compare.rms.nothing", "compare.size.sds", "rms_nothing", ""])
def test_other_names_are_no_readings(name: str):
    with pytest.raises(ValueError, match="there is no such reading"):
        must_be_reading(name)


def session(**changes) -> Session:
    wanted = [(path.replace("__", "."), value) for path, value in changes.items()]
    made = Session(preset("playground").patch_all([("scene.n", 10), *wanted]))
    made.in_detail = True
    made.prepare()
    return made


def steps(run: Session, count: int) -> None:
    for _ in range(count):
        run.advance()
    run.show()


def value(reader: Reader, name: str) -> float:
    found = reader.read(name)
    assert found is not None, name
    return found.value


def test_points_are_read_against_the_modes_of_the_prompt():
    run = session(scene__start_x=2.5, scene__start_y=0.0, prompt__text="east")
    reader = Reader(run)
    assert reader.read("grad_rms") is None, "no step yet"
    assert [value(reader, name) for name in ("found", "modes", "spread", "strayed")] == [0, 0, 0, 1]
    assert value(reader, "distance") == pytest.approx(1.5, abs=0.02)
    steps(run, 150)
    assert value(reader, "found") > 0.9
    assert value(reader, "strayed") == 0
    assert value(reader, "spread") > 0


def test_statistics_of_steps_are_means_since_the_last_change():
    run, expected = session(), []
    reader = Reader(run)
    for _ in range(30):
        steps(run, 1)
        expected.append(run.latest.get().stats["grad_rms"])
    assert reader.read("grad_rms") == Reading(pytest.approx(np.mean(expected[-20:])), 30)
    run.do(Patch.one("losses.sds.cfg", 3.0))
    assert reader.read("grad_rms") is None
    steps(run, 1)
    assert value(reader, "grad_rms") == run.latest.get().stats["grad_rms"]
    run.do(Reset())
    steps(run, 2)
    assert reader.read("grad_rms").step == 2


def test_a_comparison_is_read_when_it_is_whole():
    from sdlab.live.messages import Compare

    run = session()
    reader = Reader(run)
    assert reader.read("compare.rms.sds") is None
    steps(run, 1)
    run.do(Compare())
    run.show()
    seen = run.comparison.get()
    assert value(reader, "compare.rms.sds") == seen.rms[seen.losses.index("sds")]
    assert value(reader, "compare.cosine.sds.sds") == 1
    assert value(reader, "compare.nfe.sds") == seen.nfe[seen.losses.index("sds")]


def test_every_documented_reading_is_one():
    for name in READINGS:
        must_be_reading(name)


# ---- a learner's way ---------------------------------------------------------------------------------------


def reads(step: int, number: float):
    return lambda name: Reading(number, step)


def test_acts_wait_for_the_prediction_and_come_once():
    walk = Walk(short(), 1)
    assert walk.asks
    assert walk.due() == ()
    assert walk.told()["right"] is None, "nobody may look it up"
    walk.predict(0)
    walk.predict(1)
    assert walk.choice == 0, "the first counts"
    assert walk.told()["right"] == 1
    assert [act.what for act in walk.due()] == ["mark", "set", "run"]
    assert walk.due() == ()
    walk.again()
    assert len(walk.due()) == 3


@pytest.mark.parametrize("choice", [-1, 2, 1000])
def test_anything_else_skips_the_question(choice: int):
    walk = Walk(short(), 1)
    walk.predict(choice)
    assert walk.choice == SKIPPED
    assert walk.record()["predictions"] == [{"page": 1, "choice": SKIPPED, "right": False}]


def test_a_threshold_counts_after_the_steps_on_the_page():
    walk = Walk(short())
    assert not walk.tick(50, reads(50, 1.0)), "nothing before the acts"
    walk.due(50)
    assert not walk.tick(54, reads(54, 1.0)), "too early"
    assert not walk.tick(60, reads(54, 1.0)), "the reading is old"
    assert not walk.tick(60, reads(60, 0.8))
    assert walk.told()["wait"]["value"] == 0.8
    assert walk.tick(61, reads(61, 0.95))
    assert walk.reached == {0: Reached(61, 0.95)}
    assert not walk.tick(62, reads(62, 0.1)), "it stays reached"
    assert walk.record()["reached"] == [{"page": 0, "step": 61, "value": 0.95}]


def test_steps_are_counted_across_a_reset():
    walk = Walk(short())
    walk.due(200)
    walk.tick(3, reads(3, 0.0))
    assert walk.taken == 3
    walk.tick(101, reads(101, 0.0))
    assert walk.taken == 101
    assert walk.missed


def test_what_is_waited_for_is_said_in_words():
    waits = [page.wait for name in lessons.names() for page in lessons.load(name).pages if page.wait is not None]
    without = {wait.reading for wait in waits if wait.reading and not meaning_of(wait.reading)}
    assert without <= {"operator_error"}, "the loss itself has words for it"
    errors = {error for loss in losses().values() for error in loss.aux_errors}
    assert {*READINGS, *errors} == SUBJECTS.keys()
    assert (
        meaning_of("compare.cosine.own.sds") == "cosine of the gradients of your own loss and SDS at the compared state"
    )


def test_bounds_on_both_sides_are_both_said():
    walk = Walk(short(('reading = "found", at_least = 0.9', 'reading = "found", at_least = 0.2, at_most = 0.4')))
    walk.due(0)
    walk.tick(9, reads(9, 0.9))
    told = walk_told(walk)
    assert told is not None
    assert told["wait"]["said"] == "Now 0.9, must be between 0.2 and 0.4; 9 steps on this page."
    walk.tick(12, reads(12, 0.3))
    told = walk_told(walk)
    assert told is not None
    assert told["wait"]["said"] == "Reached at step 12: it is 0.3."


def test_a_mark_is_what_was_read_when_it_was_set():
    walk = Walk(short(), 1)
    walk.predict(1)
    walk.due(10)
    assert not walk.tick(11, reads(11, 9.0))
    assert walk.told()["wait"]["lacks"], "the mark is not set"
    walk.keep("before", reads(10, 0.5))
    assert walk.marks == {"before": {"distance": 0.5}}
    assert not walk.tick(12, reads(12, 0.69))
    assert walk.tick(13, reads(13, 0.71))
    assert walk.bounds == (0.7, math.inf)


def test_a_walk_goes_on_after_a_restart():
    walk = Walk(short())
    walk.due(step=0)
    walk.tick(6, lambda name: Reading(0.95, 6))
    walk.turn_to(1)
    walk.predict(0)
    walk.due(step=6)
    walk.keep("before", lambda name: Reading(0.4, 6))
    walk.tick(8, lambda name: Reading(0.5, 8))
    told = json.loads(json.dumps(walk.kept()))
    again = Walk.restored(short(), told)
    assert again.kept() | {"seconds": 0} == walk.kept() | {"seconds": 0}
    assert again.kept()["seconds"] >= told["seconds"]
    assert again.due(step=8) == (), "the acts were carried out"
    assert not again.tick(8, lambda name: Reading(0.5, 8))
    assert again.tick(9, lambda name: Reading(0.7, 9)), "0.2 above what was marked before"


@pytest.mark.parametrize("change", [{"page": 7}, {"page": None}, {"reached": [{"page": 2, "step": 1, "value": 1}]}])
def test_a_walk_that_does_not_fit_its_lesson_is_refused(change: dict):
    with pytest.raises((IndexError, KeyError, TypeError, ValueError)):
        Walk.restored(short(), Walk(short()).kept() | change)


def test_the_other_lane_is_compared_at_the_same_moment():
    lesson = short(('{mark = "before"}', "{branch = true}"), ('above = "before", by = 0.2', 'below = "other"'))
    walk = Walk(lesson, 1)
    walk.predict(1)
    walk.due(0)
    assert not walk.tick(5, reads(5, 0.5))
    assert not walk.tick(5, reads(5, 0.5), reads(5, 0.4))
    assert walk.tick(5, reads(5, 0.5), reads(5, 0.6))


def test_steps_alone_need_no_reading():
    walk = Walk(short(('reading = "found", at_least = 0.9, steps = 5, ', "steps = 5, ")))
    walk.due(10)
    assert not walk.tick(14, lambda name: pytest.fail("nothing to read"))
    assert walk.tick(15, lambda name: pytest.fail("nothing to read"))
    assert walk.reached[0] == Reached(15, None)


def test_a_page_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="page = 3: the lesson short has pages 1 to 2"):
        Walk(short(), 2)


# ---- the check ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return check(short(), 2, torch.device("cpu"))


def test_a_lesson_that_keeps_its_promise(rows: list[Row]):
    assert [(row.page, row.n_reached, row.holds) for row in rows] == [(0, 2, True), (1, 2, True)]
    assert rows[0].threshold == "0.9"
    assert all(each.reached.step <= 20 and each.value >= 0.9 for each in rows[0].outcomes)
    seeds = [each.threshold for each in rows[1].outcomes]
    assert seeds[0] != seeds[1], "each seed has its own mark"
    promised = "the share of points on a hill of the prompt is at least 0.9, after at least 5 steps"
    assert cells(rows[0])[:3] == ("short", "1. Points walk", promised)


def test_equal_seeds_give_equal_figures(rows: list[Row]):
    again = check(short(), 1, torch.device("cpu"))
    assert [row.outcomes[0].value for row in again] == [row.outcomes[0].value for row in rows]


def test_a_promise_that_is_not_kept_ends_at_its_limit():
    lesson = short(("at_least = 0.9", "at_most = -1"), ("limit = 100", "limit = 30"))
    row = check(lesson, 1, torch.device("cpu"), page=0)[0]
    assert not row.holds
    assert row.outcomes[0].steps == 30
    assert row.threshold == "-1"


def test_acts_that_are_refused_are_told(monkeypatch: pytest.MonkeyPatch):
    def broken(*args) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("sdlab.live.loop.step", broken)
    row = check(short(), 1, torch.device("cpu"), page=0)[0]
    assert (row.holds, row.problems) == (False, ["RuntimeError: no such luck"])


def test_a_page_can_branch_and_compare():
    acts = "do = [{advance = 30}, {branch = true}, {set = {prompt.text = 'south east'}}, {compare = true}]"
    wait = "wait = {reading = 'distance', above = 'other', by = 1}"
    pages = f"[[pages]]\ntitle = 'Two'\ntext = 'Lanes.'\n{acts}\n{wait}\n"
    lesson = read(SHORT.partition("[[pages]]")[0] + pages, "two")
    row = check(lesson, 1, torch.device("cpu"))[0]
    assert row.problems == []
    assert row.holds, row.figure


WRITTEN = """
title = "Written"
number = 1
minutes = 1
summary = "A loss of one's own."
preset = "playground"

[[pages]]
title = "SDS"
text = "Write it."
do = [{set = {losses.sds.cfg = 3.0}}]
student = [{write = '''CODE'''}, {set = {active = "own"}}]
wait = {reading = "compare.cosine.own.sds", at_least = 0.999}
"""


def test_what_a_learner_writes_is_used_in_a_check_alone():
    right = EXERCISE.replace("eps_c - eps_u\n", "eps_u + self.cfg * (eps_c - eps_u) - x.noise\n")
    for code, holds in ((right, True), (EXERCISE, False)):
        lesson = read(WRITTEN.replace("CODE", code), "written")
        assert [act.what for act in lesson.pages[0].student] == ["write", "set"]
        found = check(lesson, 1, torch.device("cpu"))[0]
        assert found.holds is holds
        assert not found.problems
    assert "own" not in losses()


def test_some_losses_are_compared_alone():
    lesson = short(
        ("do = [{run = true}]", 'do = [{compare = ["sds", "sdi"]}]'),
        ('reading = "found", at_least = 0.9, steps = 5', 'reading = "compare.nfe.sdi", at_least = 1'),
    )
    assert lesson.pages[0].do[0].value == ("sds", "sdi")
    assert check(lesson, 1, torch.device("cpu"), 0)[0].holds
    with pytest.raises(ValueError, match="compare = 'sdx': must be true, or a list of asd"):
        short(("do = [{run = true}]", 'do = [{compare = ["sdx"]}]'))


def test_the_commands_exit_code_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "short.toml").write_text(SHORT)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    page = tmp_path / "lessons.md"
    page.write_text(f"# Lessons\n\nBy hand.\n\n{HEADING}\n\n| yesterday |\n")
    common = ["lessons", "--check", "--seeds", "1", "--device", "cpu"]
    assert cli.main([*common, "--page", str(page)]) == 0
    assert "2 of 2 effects appear with every one of 1 seeds" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("# Lessons\n\nBy hand.\n")
    assert "| short | 1. Points walk | the share of points on a hill of the prompt is at least 0.9," in text
    assert "yesterday" not in text
    (tmp_path / "short.toml").write_text(SHORT.replace("at_least = 0.9", "at_most = -1").replace("= 100", "= 20"))
    assert cli.main([*common, "--page-number", "1"]) == 1
    assert "0 of 1 effects" in capsys.readouterr().out
    assert cli.main([*common, "--page-number", "3"]) == 2
    assert cli.main(["lessons", "nothing"]) == 2
    assert cli.main(["lessons", "short"]) == 0
    told = capsys.readouterr().out
    assert "1. Points walk (until the share of points on a hill of the prompt is at most -1," in told
    assert "   What goes wrong:\n   - Nothing moves: press Start.\n" in told


def test_rows_of_other_lessons_stay_on_the_page(tmp_path: Path, rows: list[Row]):
    page = tmp_path / "lessons.md"
    page.write_text(f"Said.\n\n{HEADING}\n\n| what | kept |\n| short | replaced |\n| gone | dropped |\n")
    write_page(page, [short()], rows)
    text = page.read_text()
    assert text.startswith(f"Said.\n\n{HEADING}\n")
    assert "| what | kept |\n| short | 1. Points walk |" in text
    assert "replaced" not in text
    assert "dropped" not in text


def test_the_page_explains_every_reading():
    text = (Path(__file__).parents[1] / "docs" / "lessons.md").read_text(encoding="utf-8")
    missing = [name for name, meaning in READINGS.items() if f"| `{name}` | {meaning} |" not in text]
    assert not missing


def test_a_page_without_a_hand_written_part_begins_with_a_title(tmp_path: Path, rows: list[Row]):
    write_page(tmp_path / "new.md", [short()], rows)
    assert (tmp_path / "new.md").read_text().startswith(f"# Lessons\n\n{HEADING}\n")


# ---- texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a *b* **c** `d*e*`", "a <em>b</em> <strong>c</strong> <code>d*e*</code>"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("<b>&`<i>`", "&lt;b&gt;&amp;<code>&lt;i&gt;</code>"),
        ("[x](javascript:1)", "[x](javascript:1)"),
    ],
)
def test_markdown_in_a_line(text: str, shown: str):
    assert inline(text) == shown


def test_paragraphs_and_lists():
    assert prose("One\nline.\n\nTwo:\n- a\n  b\n- c") == "<p>One line.</p><p>Two:</p><ul><li>a b</li><li>c</li></ul>"
