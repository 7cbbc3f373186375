"""The desks of a server's pages: pages arrive, poll, act and leave.

A page uses the routes of `sdlab.ui.answers`: it is told its desk's token when it arrives, polls for news twice a
second, posts what the user does, and keeps a stream open whose end says that it has left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Resume
from sdlab.settings import Settings
from sdlab.ui import acts
from sdlab.ui.answers import another_tab, no_seat, session_over
from sdlab.ui.desk import Desk
from sdlab.ui.dropped import Offer, read_run
from sdlab.ui.lane import Lane
from sdlab.ui.links import Links, Opened
from sdlab.ui.results import Shelves
from sdlab.ui.uploads import RUN, UPLOADS, Bringing, name_shown
from sdlab.ui.visitors import ARRIVING, PATIENCE, Visitors, limits
from sdlab.viewport.splat_view import Viewports


class Page:
    """Keeps the desks by token. Everybody starts with the settings of `visitors`, which are `preset` or a variation
    of it, or with those of the link that they open, as far as `links` allow it."""

    def __init__(
        self,
        manager: Manager,
        viewports: Viewports,
        visitors: Visitors,
        preset: str | None = None,
        links: Links | None = None,
    ) -> None:
        self.visitors = visitors
        self._links = links or Links(visitors)
        self.shelves = Shelves(visitors.shared)  # by token of a desk
        self._manager = manager
        self._viewports = viewports
        self._preset = preset
        self._lock = threading.Lock()
        self._desks: dict[str, Desk] = {}  # by token
        self._refused: dict[str, str] = {}  # page -> why its desk could not be given another run

    # ---- pages come, poll and go -------------------------------------------------------------------------

    def arrive(
        self,
        page: str,
        token: str = "",
        dark: bool = False,
        address: str = "",
        query: str = "",
        fresh: bool = False,
    ) -> dict[str, Any]:
        """Return the desk for a page that was loaded: the existing desk of `token`, or a new one if there is none or
        the page was opened with a `fresh` link. `address` is that of the browser, "" if unknown; `query` is that of
        the page's address."""
        with self._lock:
            desk = self._desks.get(token)
        if desk is not None and fresh:
            if desk.has_left:  # its tab has opened the link, and its seat may be the last one
                self.close(*desk.lanes)
            desk = None
        if desk is None:
            try:
                desk = self._open(page, dark, address, query)
            except (RuntimeError, OSError) as e:
                return no_seat(self.visitors.told(str(e)), page)
        else:
            desk.come_back(page)
            self._find(desk.id)
            desk.set_dark(dark)
        return {"token": desk.id, "page": page}

    def poll(self, token: str, page: str, missed: bool = False) -> dict[str, Any]:
        """Return the panels that changed on a desk, for the page that shows it; all if it `missed` the last answer."""
        own = self._of_page(page)
        if own is not None and own.id != token:
            return {}  # the page has just been given another desk
        if own is None:
            with self._lock:
                known, refused = token in self._desks, self._refused.pop(page, None)
            if refused is not None:
                return no_seat(refused, page)
            return another_tab(page) if known else session_over(page)
        if self._find(token, polling=True) is None:
            return session_over(page)
        if missed:
            own.forget()
        return {"panels": self.visitors.told(own.news())}

    def delay(self, token: str, acts: int = 0) -> float:
        """Return how many seconds a request has to wait that brings this number of acts, or asks for news (0): requests
        that come too fast are held up. Above `PATIENCE`, refuse it."""
        with self._lock:
            desk = self._desks.get(token)
        if desk is None or not desk.lanes:
            return 0.0
        client = desk.focus.seat.client
        return client.messages.take(acts, PATIENCE) if acts else client.polls.take(1, PATIENCE)

    def act(self, token: str, said: Any) -> bool:
        """Perform acts on a desk, one or a list; return False when the desk is gone."""
        desk = self._find(token)
        if desk is None:
            return False
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict) and desk.lanes:
                acts.perform(self, desk, one)
        return True

    def shows(self, token: str, page: str) -> bool:
        """Return whether a page shows the desk of `token`."""
        desk = self._of_page(page)
        return desk is not None and desk.id == token

    def leave(self, page: str) -> None:
        """Start the grace period of a page that was closed or reloaded."""
        desk = self._of_page(page)  # None after a reload, which may be reported first
        if desk is not None:
            desk.leave()
            for lane in desk.lanes:
                self._manager.leave(lane.seat.id)

    def bringing(self, token: str) -> Bringing | None:
        """Return where a desk's uploads go from now on: to the lane that has the focus now."""
        desk = self._find(token)
        if desk is None:
            return None
        lane = desk.focus

        def receive(knob: str, name: str, raw: bytes) -> None:
            if knob == RUN:
                self._bring_run(desk, lane, name, raw)
            else:
                self._bring(desk, lane, knob, name, raw)

        return Bringing(desk.uploads, receive)

    def _bring_run(self, desk: Desk, lane: Lane, name: str, raw: bytes) -> None:
        """Open the settings of a run that was dropped onto the page, and offer to continue it. ValueError when the file
        cannot be used."""
        shared = bool(self.visitors.locked)
        self.visitors.charge_upload(lane.seat.client, len(raw))
        run = read_run(raw, name_shown(name), limits(shared), shared)
        if acts.pick_file(self, desk, run.settings, name, run.remark) and run.step >= 0:
            desk.offer = Offer(name_shown(name), run)

    def _bring(self, desk: Desk, lane: Lane, knob: str, name: str, raw: bytes) -> None:
        """Let a run use a file, a scene's after a reset if it has started. ValueError when the file cannot be used,
        RuntimeError when the run has ended."""
        if not UPLOADS[knob].fits(lane.settings):
            group = knob.partition(".")[0]
            raise ValueError(
                f"this run does not use a file of this kind: {knob} takes one if {group}.kind is "
                f"{UPLOADS[knob].kind!r}, and it is {getattr(lane.settings, group).kind!r}"
            )
        in_use = {Path(path) for other in desk.lanes for path in other.files()}
        self.visitors.charge_upload(lane.seat.client, len(raw))
        path = desk.uploads.keep(knob, name, raw, in_use, limits(bool(self.visitors.locked)))
        if lane not in desk.lanes:
            raise RuntimeError("the run that this file is for has ended")
        lane.use_file(knob, path, UPLOADS[knob].use(raw))

    def _of_page(self, page: str) -> Desk | None:
        """Return the desk that a page shows."""
        with self._lock:
            return next((desk for desk in self._desks.values() if page and desk.page == page), None)

    def _find(self, token: str, polling: bool = False) -> Desk | None:
        """Return a desk and keep its seats alive, unless its page was closed and this is one of its late requests."""
        with self._lock:
            desk = self._desks.get(token)
        if desk is None or not desk.is_there(polling):
            return desk
        for lane in desk.lanes:
            self._manager.get(lane.seat.id)
        return desk

    # ---- lanes -------------------------------------------------------------------------------------------

    def _open(self, page: str, dark: bool, address: str, query: str) -> Desk:
        """Open a desk for a page in place of the one it had; RuntimeError when all seats are taken."""
        previous = self._of_page(page)
        if previous is not None:
            self.close(*previous.lanes)
        client = self.visitors.client(address, self._manager.max_sessions)
        link = self._links.read(query, self._preset)
        client.locks = link.must_keep
        lane = self._lane(self._manager.open(link.settings, client), link.preset, dark)
        desk = Desk(lane, page, dark, self.visitors.most_lanes, Opened(self._links, link))
        try:
            desk.shelf = self.shelves.open(desk.id)
        except OSError:
            self.close(lane)
            raise
        with self._lock:
            self._desks[desk.id] = desk
        self._manager.leave(lane.seat.id, at_least=ARRIVING)  # the page may be closed before its first poll
        return desk

    def _lane(self, seat: Seat, preset: str | None, dark: bool) -> Lane:
        """Return the lane of a seat just opened; OSError when the machine has no socket left for its view."""
        try:
            view = self._viewports.open(seat, dark)
        except OSError:
            self._manager.close(seat.id)
            raise
        lane = Lane(seat, view, preset)
        seat.on_close.append(lambda: self._forget(lane))
        return lane

    def branch(self, desk: Desk, lane: Lane) -> None:
        """Add a lane that continues from the current step of another; a refusal goes to the status line."""
        self._add(desk, lane, lambda: self._manager.branch(lane.seat.id))

    def beside(self, desk: Desk, lane: Lane, settings: Settings) -> None:
        """Add a lane that runs `settings` from the first step, without taking the focus from `lane`; a refusal goes to
        the status line."""
        if desk.opened is not None:
            settings = desk.opened.link.kept(lane.settings, settings)
        other = self._add(desk, lane, lambda: self._manager.open(settings, lane.seat.client))
        if other is not None:
            other.is_beside = True
            other.send(Resume())
            desk.look_at(lane)

    def _add(self, desk: Desk, lane: Lane, open_seat: Callable[[], Seat]) -> Lane | None:
        """Add a lane with the view of another and return it, None if it is refused; the status line says why."""
        try:
            self.visitors.must_have_lane(len(desk.lanes))
            other = self._lane(open_seat(), lane.preset, desk.dark)
            other.view.begin_like(lane.view)
            try:
                desk.add(other)
            except ValueError:  # another request was quicker
                self.close(other)
                raise
        except (RuntimeError, ValueError, OSError) as e:
            lane.say("error", str(e))
            return None
        self._manager.leave(other.seat.id, at_least=ARRIVING)  # the page may have been closed meanwhile
        return other

    def replace(self, desk: Desk, lane: Lane, settings: Settings, preset: str | None) -> bool:
        """Put a new run in the place of a lane, whose seat is given back first: it may be the last free one. Return
        False if there is no seat."""
        tone = desk.take_out(lane)
        self.close(lane)
        try:
            other = self._lane(self._manager.open(settings, lane.seat.client), preset, desk.dark)
        except (RuntimeError, OSError) as e:
            if desk.lanes:
                desk.look_at(desk.lanes[0])
                desk.focus.say("error", str(e))
            else:
                self._refused[desk.page] = str(e)
                self._drop(desk)
            return False
        desk.put_in(other, tone)
        self._manager.leave(other.seat.id, at_least=ARRIVING)  # the page may have been closed meanwhile
        return True

    def close(self, *lanes: Lane) -> None:
        """End the sessions of lanes; a desk ends with its last lane."""
        for lane in lanes:
            self._manager.close(lane.seat.id)

    def _forget(self, lane: Lane) -> None:
        """A seat has ended: remove its lane, and its desk with the last lane."""
        with self._lock:
            desk = next((d for d in self._desks.values() if lane in d.lanes), None)
        if desk is not None and not desk.remove(lane):
            self._drop(desk)

    def _drop(self, desk: Desk) -> None:
        """Forget a desk that has no lane any more."""
        self.shelves.close(desk.id)
        desk.uploads.close()
        with self._lock:
            self._desks.pop(desk.id, None)
