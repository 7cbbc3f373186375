"""What a teacher sees of a class and does with it.

Whatever is done to several desks goes through the acts of a page (`sdlab.ui.acts`), as if each student had done it,
within the limits of visitors; only what a link has locked, the teacher unlocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sdlab.lessons import Lesson, Walk, listed, load
from sdlab.live.manager import Manager
from sdlab.live.messages import Hold
from sdlab.live.session import Session
from sdlab.ui import acts, lessons, thumbnails
from sdlab.ui.desk import Desk
from sdlab.ui.lesson_page import inline
from sdlab.ui.places import MESSAGE, Place, Room, line_of
from sdlab.ui.wording import PHASE_WORDS, number

if TYPE_CHECKING:
    from sdlab.ui.page import Page

GONE = "this seat is empty now"
GIVEN = 80  # characters of what latecomers get


class Classroom:
    """The class whose desks are those of `page`, which has a room. Students open one of `addresses`."""

    def __init__(self, page: Page, room: Room, manager: Manager, addresses: Sequence[str] = ()) -> None:
        self._page = page
        self._room = room
        self._manager = manager
        self._addresses = list(addresses)
        self._late = ""  # what latecomers get

    # ---- what the teacher sees ---------------------------------------------------------------------------

    def board(self) -> dict[str, Any]:
        """Return the state of the class as JSON, seats by number."""
        room = self._room
        return {
            "addresses": self._addresses,
            "seats": room.seats,
            "waiting": len(self._page.line),
            "frozen": room.frozen,
            "message": room.message,
            "capacity": "" if self._manager.capacity is None else str(self._manager.capacity),
            "late": self._late if room.latecomer is not None else "",
            "desks": [_entry(desk, place) for desk, place in self._desks()],
        }

    def choices(self) -> dict[str, Any]:
        """Return what can be given to desks."""
        offered = [
            {
                "name": lesson.name,
                "title": lesson.title,
                "pages": [page.title for page in lesson.pages],
                "notes": _notes(lesson),
            }
            for lesson in listed()
            if lesson.preset in self._page.visitors.presets and not lesson.needs_own_loss
        ]
        return {"presets": self._page.visitors.presets, "lessons": offered}

    def picture(self, key: str, kind: thumbnails.Kind) -> bytes | None:
        """Return a picture of a desk's run as JPEG, None if there is none."""
        desk = self._find(key)
        return None if desk is None or not desk.lanes else thumbnails.picture(desk.focus.seat.session, kind)

    def _desks(self) -> list[tuple[Desk, Place]]:
        found = [(desk, desk.place) for desk in self._page.desks() if desk.place is not None and desk.lanes]
        return sorted(found, key=lambda each: each[1].number)

    def _find(self, key: str) -> Desk | None:
        return next((desk for desk, place in self._desks() if place.key == key), None)

    # ---- what the teacher does ---------------------------------------------------------------------------

    def act(self, said: Mapping[str, Any]) -> str:
        """Do something to one desk, whose key is `said["seat"]`, or to all; return what the teacher should know about
        it, or "". ValueError for what cannot be done."""
        match said:
            case {"do": "freeze", "on": bool(on)}:
                self._freeze(on)
                return ""
            case {"do": "message", "text": str(text)}:
                self._room.message = line_of(text, MESSAGE)
                return ""
            case {"do": "forget"}:
                self._room.latecomer = None
                return ""
        return self._give(said, self._work(said))

    def _work(self, said: Mapping[str, Any]) -> Callable[[Desk], str]:
        """Return what is to be done to each desk; it returns what is wrong. ValueError if there is no such thing."""
        match said:
            case {"do": "reset"}:
                return lambda desk: self._perform(desk, {"do": "reset"})
            case {"do": "end"}:
                return self._end
            case {"do": "preset", "preset": str(name)}:
                if name not in self._page.visitors.presets:
                    raise ValueError(f"preset = {line_of(name, 60)}: this server does not offer it")
                return lambda desk: self._perform(desk, {"do": "preset", "preset": name}, unlocked=True)
            case {"do": "lesson", "name": str(name), "page": int(number)}:
                Walk(load(name), number)  # ValueError
                act = {"do": "lesson", "name": name, "page": number}
                return lambda desk: self._perform(desk, act, unlocked=True)
            case {"do": "link", "link": str(link)}:
                query = query_of(link)
                return lambda desk: self._follow(desk, query)
        raise ValueError("this is nothing that a teacher's page can do")

    def _give(self, said: Mapping[str, Any], work: Callable[[Desk], str]) -> str:
        """Do `work` to the desk that is meant, or to all, and then also to those that come later if it sets how a run
        begins."""
        key = said.get("seat")
        if key is not None:
            desk = self._find(str(key))
            if desk is None:
                raise ValueError(GONE)
            return work(desk)
        if said["do"] in ("preset", "link", "lesson"):
            self._late = line_of(_given(said), GIVEN)
            self._room.latecomer = work
        return "; ".join(dict.fromkeys(filter(None, [work(desk) for desk, _ in self._desks()])))

    def _perform(self, desk: Desk, act: dict[str, Any], unlocked: bool = False) -> str:
        if unlocked:
            unlock(desk)
        acts.perform(self._page, desk, act)
        return ""

    def _freeze(self, on: bool) -> None:
        """Let no run take a step, or let them again."""
        with self._room.gate:
            self._room.frozen = on
            for session in self._manager.sessions():
                session.send(Hold(on))

    def _follow(self, desk: Desk, query: str) -> str:
        """Let a desk open a link, in place of all its lanes; return what is wrong with the link."""
        opened, kept = self._page.opened(query), desk.focus
        link = opened.link
        self._page.close(*(lane for lane in desk.lanes if lane is not kept))
        unlock(desk)
        desk.client.locks = link.must_keep
        desk.opened, desk.walk = opened, None
        self._page.replace(desk, kept, link.settings, link.preset)
        if link.lesson and desk.lanes:
            lessons.begin(self._page, desk, link)
        return "; ".join(link.problems)

    def _end(self, desk: Desk) -> str:
        self._page.close(*desk.lanes)
        return ""


def _notes(lesson: Lesson) -> dict[str, Any]:
    """Return the notes for the instructor, whose texts are HTML."""
    notes = lesson.notes
    return {
        "minutes": lesson.minutes if notes.minutes is None else notes.minutes,
        "wrong": [inline(text) for text in notes.wrong],
        "answers": [inline(text) for text in notes.answers],
    }


def _given(said: Mapping[str, Any]) -> str:
    """Return in words what a teacher gives."""
    match said:
        case {"do": "lesson", "name": name, "page": page}:
            return f"the lesson “{load(name).title}”, page {page + 1}"
        case {"do": "preset", "preset": name}:
            return f"the preset {name}"
    return f"the link {said['link']}"


def unlock(desk: Desk) -> None:
    """End what the link of a desk has locked."""
    if desk.opened is not None:
        desk.opened.link = desk.opened.link._replace(lock=())
        desk.client.locks = desk.opened.link.must_keep
        desk.forget("link")


def query_of(link: str) -> str:
    """Return the query of a link to a page, whole or in part. ValueError if it has none."""
    link = link.strip()
    try:
        query = urlsplit(link).query if "?" in link else link
    except ValueError:  # such as half of an IPv6 address
        query = ""
    if "=" not in query:
        raise ValueError("a link needs settings, such as ?preset=gallery-esd; the Link button of a page makes one")
    return query


def _entry(desk: Desk, place: Place) -> dict[str, Any]:
    """Return one desk as the teacher sees it."""
    lane = desk.focus
    session, settings = lane.seat.session, lane.settings
    return {
        "key": place.key,
        "number": place.number,
        "name": place.name,
        "preset": lane.preset or "",
        "prompt": " / ".join(settings.prompts),
        "loss": settings.loss.title,
        "step": lane.step,
        "planned": settings.planned_end,
        "phase": session.status.phase,
        "said": _state(session),
        "rate": _rate(session),
        "lanes": len(desk.lanes),
        "last": place.last,
        "ago": round(time.monotonic() - place.last_at),
        "left": desk.has_left,
        "hidden": not desk.client.visible,
        "picture": thumbnails.version(session),
        "around": session.around.get() is not None,
        "lesson": None if desk.walk is None else desk.walk.record(),
    }


def _state(session: Session) -> str:
    """Return in a word what a run does."""
    frame, phase = session.latest.get(), session.status.phase
    at_end = frame is not None and frame.step == session.settings.planned_end
    return "Finished" if phase == "paused" and at_end else PHASE_WORDS[phase]


def _rate(session: Session) -> str:
    """Return steps per second in words, "" while the run takes none."""
    frame = session.latest.get()
    rate = frame.stats.get("steps_per_s", 0.0) if frame is not None else 0.0
    return f"{number(rate)} steps/s" if rate > 0 and session.status.phase == "running" else ""
