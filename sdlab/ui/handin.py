"""Hand-ins made by the page: what all lanes of a desk did, packed into a file on its shelf.

The sessions copy what is needed between two steps; the rest is made beside them, as all results are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.export.writers import Material, Tally, slug
from sdlab.handin import archive, facts, history, manifest, preview
from sdlab.live.tape import Changes, Stretch, Taken
from sdlab.live.timeline import Shot
from sdlab.settings import Settings, codes_of, to_toml
from sdlab.ui.uploads import FOLDER, UPLOADS, without_uploads
from sdlab.ui.veil import name_of
from sdlab.ui.visitors import PATHS, Visitors

if TYPE_CHECKING:
    from sdlab.ui.desk import Desk
    from sdlab.ui.lane import Lane
    from sdlab.ui.page import Page

QUESTION = "What did you see?"


@dataclass(frozen=True, eq=False)
class Work(Material):
    """What a hand-in is made of. `settings` and `step` are those of the lane in focus, which its film shows."""

    name_given: str = ""
    answers: Sequence[tuple[str, str]] = ()
    lanes: Sequence[tuple[str, Taken]] = ()  # by letter
    stretches: Sequence[Stretch] = ()
    dropped: int = 0
    lesson: Mapping[str, Any] | None = None
    shots: Sequence[tuple[int, Shot]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    visitors: Visitors | None = None

    @property
    def name(self) -> str:
        """File name without suffix."""
        lesson = str((self.lesson or {}).get("lesson", "")) or self.settings.active
        return f"{slug(self.name_given) if self.name_given else 'hand-in'}-{slug(lesson)}-step{self.step}"


class Writer:
    """Writes settings as everybody may see them: with names in place of paths and uploads."""

    def __init__(self, visitors: Visitors) -> None:
        self.files: dict[str, bytes] = {}
        self._visitors = visitors
        self._written: dict[str, str] = {}  # text -> name

    def settings(self, settings: Settings) -> tuple[str, str]:
        shared, uploads = without_uploads(settings)
        text = to_toml(self._visitors.shared(shared))
        name = self._written.setdefault(text, f"settings/{len(self._written)}.toml")
        self.files[name] = text.encode("utf-8")
        return name, _lack(uploads.values())

    def changes(self, changes: Changes) -> tuple[Changes, str]:
        said, uploads = [], []
        for path, value in changes:
            if path in UPLOADS and Path(str(value)).parent.name.startswith(FOLDER):
                value = Path(value).name.partition("-")[2]
                uploads.append(value)
            elif path in PATHS and value and self._visitors.veil is not None:
                value = name_of(value)
            said.append((path, value))
        return tuple(said), _lack(uploads)


def _lack(uploads: Any) -> str:
    names = ", ".join(uploads)
    return f"a file that was uploaded: {names}" if names else ""


def write(path: Path, material: Material, progress: Tally) -> None:
    """Write a hand-in. Raises OSError if it cannot be written."""
    assert isinstance(material, Work)
    assert material.visitors is not None
    writer = Writer(material.visitors)
    lanes = [manifest.lane(letter, taken) for letter, taken in material.lanes]
    about = manifest.manifest(
        material.name_given, material.facts, material.lesson, material.answers, lanes, material.dropped
    )
    stretches = history.closure([*material.stretches, *(s for _, taken in material.lanes for s in taken.stretches)])
    files = {
        archive.MANIFEST: _json(about),
        archive.HISTORY: _json({"stretches": history.told(stretches, writer)}),
    }
    if material.shots:
        files[archive.PREVIEW] = preview.film(material.shots, material.settings.camera, progress)
    for _, taken in material.lanes:
        files |= {name: code.encode("utf-8") for name, code in codes_of(taken.settings).items()}
    archive.write(path, {**files, **writer.files}, facts.key())


def _json(tree: Any) -> bytes:
    return json.dumps(tree, indent=1, ensure_ascii=False).encode("utf-8")


# ---- from the page -----------------------------------------------------------------------------------------------


def hand_in(page: Page, desk: Desk, name: str, answer: str) -> None:
    """Make a hand-in of all lanes of a desk, one at a time; a refusal goes to the status line. Never blocks."""
    if not desk.handing_in.acquire(blocking=False):
        return
    try:
        _must_have_room(page, desk)
    except ValueError as e:
        desk.handing_in.release()
        desk.focus.say("error", str(e))
        return
    focus = desk.focus
    asked = {lane: lane.seat.session.taken() for lane in desk.lanes}

    def put() -> None:
        try:
            _put(page, desk, focus, asked, name.strip(), answer.strip())
        except Exception as e:  # in a session's thread: any failure: the run continues
            focus.say("error", str(e))
        finally:
            desk.handing_in.release()

    _when_all(asked.values(), put)


def _put(page: Page, desk: Desk, focus: Lane, asked: Mapping[Lane, Future[Taken]], name: str, answer: str) -> None:
    """Queue the file; lanes that have nothing to hand in are left out. Raises the error of the last one if no lane
    has."""
    taken = {lane: future.result() for lane, future in asked.items() if future.exception() is None}
    own = taken.get(focus) or next(iter(taken.values()), None) or asked[focus].result()
    walk = desk.walk
    work = Work(
        own.settings,
        own.print.step,
        name_given=(name or (desk.place.name if desk.place is not None else ""))[: manifest.NAME],
        answers=[(QUESTION, answer[: manifest.ANSWER])] if answer else [],
        lanes=[(desk.letter(lane), found) for lane, found in taken.items()],
        stretches=[stretch for tape in desk.tapes for stretch in tape.stretches],
        dropped=sum(tape.dropped for tape in desk.tapes),
        lesson=None if walk is None else walk.record(),
        shots=focus.seat.session.timeline.film(),
        facts=page.facts(),
        visitors=page.visitors,
    )
    _must_have_room(page, desk)
    desk.shelf.start("handin", work)


def _must_have_room(page: Page, desk: Desk) -> None:
    page.visitors.must_have_room(sum(result.phase in ("waiting", "working") for result in desk.shelf.list()))


def _when_all(futures: Collection[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once all futures are done, in the thread of the last one."""
    lock, left = threading.Lock(), len(futures)

    def one(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            over = left == 0
        if over:
            then()

    for future in futures:
        future.add_done_callback(one)
