"""Lessons read from TOML. docs/lessons.md lists the keys.

A lesson is checked whole: ValueError names the file, the page and the key, says what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sdlab.knobs import shown
from sdlab.lessons.lesson import ACTS, LIMIT, OTHER, PLACES, STUDENTS, Ask, Do, Lesson, Notes, Page, Wait
from sdlab.lessons.readings import must_be_reading
from sdlab.settings import OWN, Settings, losses, preset, with_prompt_of

T = TypeVar("T")


class _Table:
    """A table of the file, whose keys are taken one by one; `where` begins each message."""

    def __init__(self, where: str, given: Any) -> None:
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} = {shown(given)}: must be a table")
        self.where = where
        self._given = dict(given)
        self._taken: list[str] = []

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.wrong(key, value, "a text")
        return value.strip()

    def number(self, key: str, default: float | None = None, low: float = -math.inf) -> float:
        value = self._take(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < low:
            raise self.wrong(key, value, "a number" if low == -math.inf else f"a number of at least {low:g}")
        return float(value)

    def perhaps(self, key: str, low: float = -math.inf) -> float | None:
        """Return a number, None where there is none."""
        self._taken.append(key)
        return self.number(key, low=low) if key in self._given else None

    def whole(self, key: str, default: int | None = None, low: int = 0) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self.wrong(key, value, f"a whole number of at least {low}")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self._take(key, default)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) and each.strip() for each in value):
            raise self.wrong(key, value, "a list of texts")
        return tuple(each.strip() for each in value)

    def table(self, key: str) -> _Table:
        return _Table(self._at(key), self._take(key, {}))

    def part(self, key: str, make: Callable[[_Table], T]) -> T | None:
        """Return what `make` reads of a table, None where there is none."""
        table = self.table(key)
        return make(table) if key in self._given else None

    def tables(self, key: str, name: str = "") -> list[_Table]:
        value = self._take(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list of tables")
        return [_Table(f"{self.where}, {name or key} {i}", each) for i, each in enumerate(value, 1)]

    def items(self) -> list[tuple[str, Any]]:
        """Take all that is left."""
        self._taken += self._given
        return list(self._given.items())

    def done(self) -> None:
        """Raise ValueError if there is a key that was not taken."""
        for key in self._given:
            if key not in self._taken:
                near = difflib.get_close_matches(key[:100], self._taken, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._taken)}"
                raise ValueError(f"{self.where}: there is no key {shown(key)}; {hint}")

    def wrong(self, key: str, value: Any, allowed: str) -> ValueError:
        """Return an error about the value of a key."""
        return ValueError(f"{self._at(key)} = {shown(value)}: must be {allowed}")

    def _take(self, key: str, default: Any) -> Any:
        self._taken.append(key)
        if key not in self._given and default is None:
            raise ValueError(f"{self.where}: {key} is missing")
        return self._given.get(key, default)

    def _at(self, key: str) -> str:
        return f"{self.where}, {key}"


def read(text: str, name: str, where: str = "") -> Lesson:
    """Return the lesson in a text. ValueError that begins with `where`, by default the name."""
    where = where or name
    try:
        doc = _Table(where, tomllib.loads(text))
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{where} is not valid TOML: {e}") from e
    start = doc.text("preset")
    settings = _within(where, lambda: preset(start))
    changes = doc.table("settings")
    settings = _within(changes.where, lambda: settings.patch_all(flat(dict(changes.items()))))
    given = doc.tables("pages", "page")
    if not given:
        raise ValueError(f"{where}: it has no pages")
    pages, starts = [], []
    for table in given:
        starts.append(settings)
        page, settings = _page(table, settings)
        pages.append(page)
    _must_set_marks(pages, where)
    lesson = Lesson(
        name,
        doc.text("title"),
        doc.whole("number", low=1),
        doc.number("minutes", low=0),
        doc.text("summary"),
        start,
        tuple(pages),
        _notes(doc.table("notes")),
        tuple(starts),
    )
    doc.done()
    return lesson


def _notes(t: _Table) -> Notes:
    notes = Notes(t.perhaps("minutes", 0.0), t.texts("wrong", ()), t.texts("answers", ()))
    t.done()
    return notes


def flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the (path, value) of nested tables of settings."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return found


def _within(where: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e


def _page(t: _Table, settings: Settings) -> tuple[Page, Settings]:
    """Return a page that begins with `settings`, and the settings after its acts."""
    acts = []
    for table in t.tables("do"):
        act, settings = _act(table, settings)
        acts.append(act)
    highlight = t.texts("highlight", ())
    _within(f"{t.where}, highlight", lambda: _must_be_shown(highlight, settings))
    formula = t.text("formula", "")
    page = Page(
        t.text("title"),
        t.text("text"),
        formula,
        t.text("source", None if formula else ""),
        highlight,
        tuple(acts),
        t.part("ask", _ask),
        t.part("wait", _wait),
        t.text("look", ""),
        t.text("answer", ""),
        tuple(_student(table) for table in t.tables("student")),
    )
    t.done()
    return page, settings


def _must_be_shown(names: Sequence[str], settings: Settings) -> None:
    """Raise ValueError unless all names are parts of the page, groups or knobs."""
    for name in names:
        if name in PLACES or name in settings.groups():
            continue
        near = difflib.get_close_matches(name[:100], PLACES, n=1)
        if near and "." not in name:
            raise ValueError(f"there is no part of the page {shown(name)}; did you mean {near[0]}?")
        settings.knob(name)


def _act(t: _Table, settings: Settings) -> tuple[Do, Settings]:
    """Return an act, and the settings after it."""
    given = t.items()
    if len(given) != 1 or given[0][0] not in ACTS:
        keys = ", ".join(key for key, _ in given) or "none"
        raise ValueError(f"{t.where} has the keys {keys}: must be one of {', '.join(ACTS)}")
    what, value = given[0]
    match what:
        case "set":
            changes = tuple(flat(dict(t.table(what).items())))
            return Do(what, changes), _within(t.where, lambda: settings.patch_all(changes))
        case "preset":
            wanted = _within(t.where, lambda: preset(t.text(what)))
            return Do(what, value), with_prompt_of(wanted, settings)
        case "advance":
            return Do(what, t.whole(what, low=1)), settings
        case "mark" if t.text(what) == OTHER:
            raise t.wrong(what, value, f"another name: {OTHER!r} stands for the other lane")
        case "mark":
            return Do(what, t.text(what)), settings
        case "compare" if value is not True:
            return Do(what, _losses(t, what)), settings
        case "compare":
            return Do(what, None), settings
    if value is not True:
        raise t.wrong(what, value, "true")
    return Do(what, True), settings


def _losses(t: _Table, key: str) -> tuple[str, ...]:
    """Return the names of losses."""
    names = t.texts(key)
    for name in names:
        if name not in losses() and name != OWN:
            raise t.wrong(key, name, f"true, or a list of {', '.join(losses())}")
    return names


def _student(t: _Table) -> Do:
    """Return what a learner does. It may set knobs of a loss that the program does not have, so it is checked only when
    it is carried out."""
    given = t.items()
    if len(given) != 1 or given[0][0] not in STUDENTS:
        keys = ", ".join(key for key, _ in given) or "none"
        raise ValueError(f"{t.where} has the keys {keys}: must be one of {', '.join(STUDENTS)}")
    what = given[0][0]
    match what:
        case "write":
            return Do(what, t.text(what))
        case "set":
            return Do(what, tuple(flat(dict(t.table(what).items()))))
    return _act(t, preset("mixture"))[0]


def _ask(t: _Table) -> Ask:
    choices = t.texts("choices")
    if len(choices) < 2:
        raise t.wrong("choices", list(choices), "at least two texts")
    answer = t.whole("answer")
    if answer >= len(choices):
        raise t.wrong("answer", answer, f"the index of the right choice, 0 to {len(choices) - 1}")
    ask = Ask(t.text("question"), choices, answer, t.text("because"))
    t.done()
    return ask


def _wait(t: _Table) -> Wait:
    wait = Wait(
        t.text("reading", ""),
        t.perhaps("at_least"),
        t.perhaps("at_most"),
        above=t.text("above", ""),
        below=t.text("below", ""),
        by=t.number("by", 0.0, 0.0),
        times=t.number("times", 1.0, 0.0),
        step=t.whole("step", 0),
        steps=t.whole("steps", 0),
        limit=t.whole("limit", LIMIT, 1),
    )
    t.done()
    absolute = wait.at_least is not None or wait.at_most is not None
    if not wait.reading:
        if absolute or wait.mark or not (wait.step or wait.steps):
            raise ValueError(f"{t.where}: it needs a reading, or a number of steps alone")
        return wait
    _within(t.where, lambda: must_be_reading(wait.reading))
    if bool(wait.above) + bool(wait.below) + absolute != 1:
        raise ValueError(f"{t.where}: it needs at_least or at_most, or one of above and below, which name a mark")
    if absolute and (wait.by or wait.times != 1):
        raise ValueError(f"{t.where}: by and times need above or below")
    return wait


def _must_set_marks(pages: Sequence[Page], where: str) -> None:
    """Raise ValueError if a page compares with a mark that no act before it sets."""
    known = {OTHER} if any(act.what == "branch" for page in pages for act in page.do) else set()
    for number, page in enumerate(pages, 1):
        known |= {act.value for act in page.do if act.what == "mark"}
        if page.wait is not None and page.wait.mark and page.wait.mark not in known:
            raise ValueError(
                f"{where}, page {number}, wait: there is no mark {shown(page.wait.mark)}; set are "
                f"{', '.join(sorted(known)) or 'none'}"
            )
