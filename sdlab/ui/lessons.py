"""Lessons on the page: opening one, turning its pages, predictions, and the acts of its pages.

The acts go the ways of a user's acts, so that locks and budgets hold. What is refused is said on the status line, and
the lesson goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdlab.lessons import Walk, load
from sdlab.lessons.lesson import Do
from sdlab.lessons.walk import SKIPPED
from sdlab.links import Link
from sdlab.live.messages import Advance, Compare, Pause, Reset
from sdlab.ui.desk import Desk
from sdlab.ui.picking import pick, pick_preset

if TYPE_CHECKING:
    from sdlab.ui.page import Page


def perform(page: Page, desk: Desk, act: Mapping[str, Any]) -> None:
    """Perform {"do": "lesson", "name": ..., "page": ...}, whose page counts from 0 and may be left out, and whose name
    is "" to leave the lesson; or {"do": "predict", "choice": ...}, which skips the question with a choice of -1."""
    match act:
        case {"do": "lesson", "name": ""}:
            desk.walk = None
        case {"do": "lesson", "name": str(name)}:
            number = act.get("page")
            try:
                _open(page, desk, name, number if isinstance(number, int) else None, act.get("again") is True)
            except ValueError as e:
                desk.focus.say("error", str(e))
        case {"do": "predict", "choice": choice} if desk.walk is not None and desk.walk.asks:
            desk.walk.predict(choice if isinstance(choice, int) else SKIPPED)
            if desk.walk.rewind():  # back from a page with another run
                _begin(page, desk, desk.walk)
            else:
                carry_out(page, desk, desk.walk)


def begin(page: Page, desk: Desk, link: Link) -> None:
    """Open the lesson of a link, whose settings the run has already."""
    try:
        desk.walk = Walk(load(link.lesson), link.page)
    except ValueError as e:  # its file has changed since the server was started
        desk.focus.say("error", str(e))
        return
    carry_out(page, desk, desk.walk)


def _open(page: Page, desk: Desk, name: str, number: int | None, again: bool) -> None:
    """Show a page of a lesson. The next page goes on with the run, one before it does nothing to it; any other begins
    with the settings that its lesson has there, at step 0. ValueError if there is no such page."""
    walk = desk.walk
    if walk is None or walk.lesson.name != name:
        _begin(page, desk, Walk(load(name), number or 0))
        return
    before, number = walk.page, walk.page if number is None else number
    walk.turn_to(number)
    if again or number > before + 1:
        walk.again()
        _begin(page, desk, walk)
    elif number == before + 1:
        carry_out(page, desk, walk)


def _begin(page: Page, desk: Desk, walk: Walk) -> None:
    """Begin a page of a lesson with its own settings."""
    lesson, lane, refused = walk.lesson, desk.focus, []
    desk.walk = walk
    try:
        pick(page, desk, lesson.preset, page.visitors.admitted(lesson.starts[walk.page], page.visitors.settings))
    except ValueError as e:
        refused.append(f"the lesson goes on with the present settings: {e}")
    if desk.focus is lane:  # otherwise the run is new
        lane.send(Pause(), Reset())
    carry_out(page, desk, walk, refused)


def carry_out(page: Page, desk: Desk, walk: Walk, refused: Sequence[str] = ()) -> None:
    """Carry out the acts of the page that are due: all, or none while its question is open. Say which of them, and what
    before them, was `refused`: after the acts, some of which have messages of their own."""
    problems = [*refused]
    for act in walk.due(desk.focus.reader.step):
        problems += _carry_out(page, desk, walk, act)
    desk.watch.after(desk.lanes)
    if problems:
        desk.focus.say("error", "; ".join(problems))


def _carry_out(page: Page, desk: Desk, walk: Walk, act: Do) -> list[str]:
    """Carry out one act; return what the server does not allow of it."""
    match act.what:
        case "set":
            return _set(page, desk, act.value)
        case "preset" if act.value in page.visitors.presets:
            pick_preset(page, desk, act.value)
        case "preset":
            return [f"preset = {act.value}: this server does not offer it"]
        case "mark":
            walk.keep(act.value, desk.focus.reader.read)
        case "branch":
            page.branch(desk, desk.focus)
        case "compare":
            desk.focus.send(Compare(act.value))
        case "run":
            desk.start()
        case "pause":
            desk.send(Pause())
        case "reset":
            desk.send(Pause(), Reset())
        case "advance":
            desk.send(Advance(act.value))
    return []


def _set(page: Page, desk: Desk, changes: Sequence[tuple[str, Any]]) -> list[str]:
    if allowed := [(path, value) for path, value in changes if path not in page.visitors.locked]:
        desk.focus.set(allowed)
    return [f"{path} is fixed on this server" for path, _ in changes if path in page.visitors.locked]
