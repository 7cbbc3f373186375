"""Keeps the runs of all desks on disk while they go, and gives them back to their pages when their session is gone.

A page is offered the run of the token that its browser kept; see `sdlab.live.kept`. Visitors' limits apply to it as to
a file of settings: a run that this server would refuse is not offered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlab.console import say
from sdlab.errors import reason
from sdlab.lessons import Walk, load
from sdlab.live import checkpoint
from sdlab.live.checkpoint import Saved
from sdlab.live.kept import MOST_AGE, KeptLane, KeptRun, Store, ago
from sdlab.settings import Settings, to_toml
from sdlab.ui.lane import Lane
from sdlab.ui.links import Opened
from sdlab.ui.uploads import Uploads, uploaded, without_uploads
from sdlab.ui.visitors import Visitors

if TYPE_CHECKING:
    from sdlab.ui.desk import Desk
    from sdlab.ui.page import Page

EVERY = 20.0  # seconds between two checkpoints of a run that goes on
DUTY = 0.05  # share of the time that is spent on writing
LOOK_EVERY = 1.0  # seconds
PRUNE_EVERY = 600.0  # seconds
PATIENCE = 60.0  # seconds within which a session must answer, between two of its steps
CLOSING = 2.0  # seconds, the same when the server ends


class Returned:
    """The run of a page that came back after its session had ended, which it may continue; its desk does not write over
    it before that is decided."""

    def __init__(self, run: KeptRun, lanes: list[tuple[Saved, Settings, str | None]], uploads: Uploads) -> None:
        self._lanes = lanes
        self._walk = run.walk
        self.uploads = uploads  # which the desk gets
        first, others = run.lanes[0], len(run.lanes) - 1
        lost = f"; {others + 1 - len(lanes)} of its lanes cannot" if len(lanes) <= others else ""
        more = f" with {len(lanes)} lanes" if len(lanes) > 1 else ""
        when = ago(time.time() - run.at)
        self.told = {
            "step": first.step,
            "said": f"Your last run{more} was kept, and can be continued from where it was {when} ago{lost}.",
        }

    @property
    def first(self) -> tuple[Settings, str | None]:
        """The settings of the first lane, and its preset."""
        return self._lanes[0][1:]

    def accept(self, page: Page, desk: Desk) -> None:
        """Continue all lanes, paused; a status line says what fails."""
        first = desk.focus
        for i, (saved, settings, preset) in enumerate(self._lanes):
            if (lane := first if i == 0 else page.add(desk, settings, preset)) is not None:
                lane.continue_from(saved, "your run")
        desk.look_at(first)
        if self._walk is not None:
            try:
                desk.walk = Walk.restored(load(self._walk["lesson"]), self._walk)
            except (KeyError, TypeError, ValueError, IndexError) as e:  # its file has changed since
                desk.focus.say("error", f"the lesson does not go on: {reason(e)}")


class Written(NamedTuple):
    """What was written of a desk last: by seat the state of its run and the checkpoint, and the place in a lesson."""

    lanes: dict[str, tuple[Any, KeptLane]]
    place: Any


class Keeper:
    """Writes the runs of `desks` to `store`, each when it has changed, but seldom."""

    def __init__(self, store: Store, visitors: Visitors, desks: Callable[[], Iterable[Desk]]) -> None:
        self._store = store
        self._visitors = visitors
        self._desks = desks
        self._written: dict[str, Written] = {}  # by token
        self._due: dict[str, float] = {}  # by token
        self._refused: set[str] = set()  # what was said on the console
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sdlab-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Keep what has changed once more, as far as sessions answer quickly."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSING)
        if self._thread.is_alive():  # it waits for a session whose step takes long
            return
        for desk in list(self._desks()):
            self.keep(desk, CLOSING)

    def _work(self) -> None:
        prune_at = 0.0
        while not self._closing.wait(LOOK_EVERY):
            desks = {desk.id: desk for desk in self._desks()}
            for memory in (self._written, self._due):
                for gone in memory.keys() - desks.keys():
                    del memory[gone]
            for token, desk in desks.items():
                began = time.monotonic()
                if began >= self._due.setdefault(token, began + EVERY) and not self._closing.is_set():
                    self.keep(desk)
                    now = time.monotonic()
                    self._due[token] = now + max(EVERY, (now - began) / DUTY)
            if time.monotonic() >= prune_at:
                prune_at = time.monotonic() + PRUNE_EVERY
                self._try(self._store.prune)

    def keep(self, desk: Desk, patience: float = PATIENCE) -> None:
        """Write the lanes of a desk that have changed since the last time."""
        if not isinstance(desk.offer, Returned):
            self._try(lambda: self._keep(desk, patience))

    def _keep(self, desk: Desk, patience: float) -> None:
        before, now = self._written.get(desk.id, Written({}, None)), {}
        lanes = [lane for lane in desk.lanes if lane.step > 0]
        states = {lane: _state_of(lane) for lane in lanes}
        changed = [lane for lane in lanes if before.lanes.get(lane.seat.id, (None,))[0] != states[lane]]
        walk = None if desk.walk is None else desk.walk.kept()
        place = None if walk is None else {name: walk[name] for name in walk if name not in ("seconds", "taken")}
        if not changed and (not lanes or place == before.place):
            return
        asked = {lane: lane.seat.session.saved() for lane in changed}
        for lane in lanes:
            if lane in asked:
                saved = asked[lane].result(patience)
                files = uploaded(checkpoint.settings_of(saved))
                kept = self._store.write(desk.id, saved, lane.preset, lane.settings.prompt.text, files)
                now[lane.seat.id] = states[lane], kept
            else:
                now[lane.seat.id] = before.lanes[lane.seat.id]
        self._store.commit(desk.id, [kept for _, kept in now.values()], walk)
        self._written[desk.id] = Written(now, place)

    def _try(self, work: Callable[[], object]) -> None:
        """Do what may fail without harm; the owner is told each reason once."""
        try:
            work()
        except Exception as e:
            if (why := reason(e)) not in self._refused and len(self._refused) < 20:
                self._refused.add(why)
                say(f"a run could not be kept: {why}")

    # ---- for pages that come back ------------------------------------------------------------------------

    def find(self, token: str, opened: Opened) -> Returned | None:
        """Return the run that a page with this token left, opened with this link; None if there is none, or none that
        it may have."""
        run = self._store.find(token) if token else None
        if run is None or time.time() - run.at > MOST_AGE:
            return None
        lanes, uploads = [], Uploads()
        for lane in run.lanes:
            try:
                saved = run.load(lane)
                settings = checkpoint.settings_of(saved)
                self._must_be_allowed(settings, opened)
                files = {knob: str(uploads.adopt(path)) for knob, path in run.files(lane).items()}
                settings = settings.patch_all(list(files.items()))
            except (ValueError, OSError) as e:
                say(f"a kept run cannot be offered: {reason(e)}")
                continue
            saved = saved._replace(texts={**saved.texts, checkpoint.SETTINGS: to_toml(settings)})
            lanes.append((saved, settings, lane.preset))
        return Returned(run, lanes, uploads) if lanes else None

    def _must_be_allowed(self, settings: Settings, opened: Opened) -> None:
        """Raise ValueError if a page may not have these settings, uploaded files aside, on this server."""
        opened.link.must_keep(opened.link.settings, settings)
        plain, _ = without_uploads(settings)
        if self._visitors.admitted(plain, plain) != plain:
            raise ValueError("its settings are not those that visitors of this server may have")


def _state_of(lane: Lane) -> tuple[int, int]:
    """Return what changes when a run does: its step, and the number of changes to its settings."""
    return lane.step, lane.seat.session.timeline.number
