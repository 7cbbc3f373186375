"""What a user does on the page: each act is JSON of the form {"do": verb, ...} and takes milliseconds.

The browser is not trusted: unknown verbs, wrong types and closed lanes are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sdlab.export.writers import Material
from sdlab.live.messages import Advance, Burst, Compare, Goto, Pause, Reset
from sdlab.own_loss import Flawed
from sdlab.settings import OWN
from sdlab.ui import lessons
from sdlab.ui.desk import TABS, Desk
from sdlab.ui.editor import Editor
from sdlab.ui.handin import hand_in
from sdlab.ui.lane import Lane, view_modes
from sdlab.ui.picking import open_example, pick_file, pick_preset
from sdlab.ui.results import HAND_IN

if TYPE_CHECKING:
    from sdlab.ui.page import Page

STAYS = "the version before it stays in use"  # after an error in the user's own loss


def perform(page: Page, desk: Desk, act: Mapping[str, Any]) -> None:
    """Perform one act on a desk. An act that names a lane which has closed does nothing: a second press of its button
    must not act on another lane."""
    lane = desk.lane(str(act["lane"])) if act.get("lane") is not None else desk.focus
    if lane is None:
        return
    _run(desk, act)
    _burst(lane, act)
    _set(page, desk, act)
    _arrange(page, desk, lane, act)
    _show(page, desk, lane, act)
    lessons.perform(page, desk, act)


def _run(desk: Desk, act: Mapping[str, Any]) -> None:
    """Handle the run buttons, whose acts include the prompt as currently typed."""
    typed = act.get("prompt")
    prompt = typed if isinstance(typed, str) else None
    match act.get("do"):
        case "start":
            desk.start(prompt)
        case "pause":
            desk.send(Pause())
        case "step":
            desk.send(Advance(1), prompt=prompt)
        case "reset":
            desk.send(Pause(), Reset(), prompt=prompt)
        case "compare":
            desk.focus.send(Compare())


def _burst(lane: Lane, act: Mapping[str, Any]) -> None:
    """Start or end a burst on a shared GPU, of a lane that takes its steps so."""
    match act.get("do"):
        case "burst":
            lane.send(Burst())
        case "end":
            lane.send(Pause())


def _set(page: Page, desk: Desk, act: Mapping[str, Any]) -> None:
    """Change settings or the theme."""
    match act:
        case {"do": "prompt", "text": str(text)}:
            desk.focus.send(prompt=text)
        case {"do": "knob", "knob": str(path), "value": value} if path not in page.visitors.locked:
            desk.focus.change(path, value)
        case {"do": "preset", "preset": str(name)} if name in page.visitors.presets:
            pick_preset(page, desk, name)
        case {"do": "example", "name": str(name)} if name in page.visitors.examples:
            open_example(page, desk, page.visitors.examples[name])
        case {"do": "settings", "settings": str(text), "name": str(name)}:
            try:
                pick_file(page, desk, text, name)
            except ValueError as e:
                desk.focus.say("error", str(e))
        case {"do": "continue"} if desk.offer is not None:
            offer, desk.offer = desk.offer, None
            offer.accept(page, desk)
        case {"do": "decline"}:
            desk.offer = None
        case {"do": "look", "dark": bool(dark)}:
            desk.set_dark(dark)
        case {"do": "own", "text": str(text), "key": str(key)} if page.editor is not None:
            _rewrite(page.editor, desk, text, key)
        case {"do": "beside"} if page.editor is not None:
            page.editor.compare(desk.focus)


def _rewrite(editor: Editor, desk: Desk, text: str, key: str) -> None:
    """Write the file of the user's own loss, unless the link that opened the page locks it."""
    if desk.opened is not None and desk.opened.link.locks(f"losses.{OWN}"):
        desk.focus.say("error", "your own loss is locked by the link that opened this page")
        return
    try:
        editor.write(desk.focus, text, key)
    except Flawed as e:
        desk.focus.say("error", f"{e}; {STAYS}")
    except ValueError as e:
        desk.focus.say("error", str(e))


def _arrange(page: Page, desk: Desk, lane: Lane, act: Mapping[str, Any]) -> None:
    """Focus, branch or close lanes."""
    match act.get("do"):
        case "focus":
            desk.look_at(lane)
        case "branch":
            page.branch(desk, lane)
        case "gpu":
            page.open_gpu(desk)
        case "close" if len(desk.lanes) > 1:
            page.close(lane)
        case "keep":
            desk.look_at(lane)
            for other in desk.lanes:
                if other is not lane:
                    page.close(other)


def _show(page: Page, desk: Desk, lane: Lane, act: Mapping[str, Any]) -> None:
    """Control views, the timeline, the tabs and results."""
    match act:
        case {"do": "front"}:
            lane.view.look_from_front()
        case {"do": "camera"}:
            desk.copy_camera(lane)
        case {"do": "draw", "mode": str(mode)} if mode in view_modes(lane.seat.session.effective.scene):
            lane.view.show_as(mode)
        case {"do": "goto", "step": step}:
            lane.send(Goto(_whole(step)))
        case {"do": "replay"}:
            lane.view.replay(lane.seat.session.timeline.film())
        case {"do": "live"}:
            lane.view.replay(())
        case {"do": "tab", "tab": str(tab)} if tab in TABS:
            desk.turn_to(tab)
        case {"do": "view", "row": row}:
            desk.choose_view(_whole(row))
        case {"do": "probe", "t": t}:
            desk.ask_at(None if t is None else _whole(t))
        case {"do": "exact", "on": bool(on)}:
            desk.show_exact(on)
        case {"do": "make", "kind": kind} if kind != HAND_IN:
            _make(page, desk, lane, str(kind))
        case {"do": "hand-in", "name": str(name), "answer": str(answer)}:
            hand_in(page, desk, name, answer)
        case {"do": "cancel", "id": result}:
            desk.shelf.cancel(str(result))
        case {"do": "name", "name": str(name)} if desk.place is not None:
            desk.place.call(name)


def _make(page: Page, desk: Desk, lane: Lane, kind: str) -> None:
    """Make a file of a lane's current state: the session copies it between two steps, the shelf does the rest."""

    def put(answer: Future[Material]) -> None:
        try:
            page.visitors.must_have_room(sum(result.phase in ("waiting", "working") for result in desk.shelf.list()))
            desk.shelf.start(kind, answer.result())
        except Exception as e:  # in the session's thread: any failure: the run continues
            lane.say("error", str(e))

    lane.seat.session.material().add_done_callback(put)


def _whole(value: Any) -> int:
    """Return a whole number, 0 for anything else."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
