"""The desks of a server's pages: pages arrive, poll, act and leave.

A page uses the routes of `sdlab.ui.answers`: it is told its desk's token when it arrives, polls for news twice a
second, posts what the user does, and keeps a stream open whose end says that it has left. While no seat is free, it has
a ticket in the place of a desk (`sdlab.ui.line`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdlab.handin.facts import facts
from sdlab.links import PRESET
from sdlab.live.clients import Client
from sdlab.live.kept import Store
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Hold
from sdlab.settings import Settings, needs_new_run
from sdlab.ui import acts, lessons
from sdlab.ui.answers import another_tab, in_line, no_seat, session_over
from sdlab.ui.desk import Desk
from sdlab.ui.dropped import Offer, read_run
from sdlab.ui.editor import Editor
from sdlab.ui.keeper import Keeper, Returned
from sdlab.ui.lane import Lane
from sdlab.ui.line import Line, Ticket
from sdlab.ui.links import NO_PRESET, Links, Opened
from sdlab.ui.picking import pick_file
from sdlab.ui.places import PAUSED, Room
from sdlab.ui.results import Shelves
from sdlab.ui.uploads import RUN, UPLOADS, Bringing, name_shown
from sdlab.ui.visitors import ARRIVING, PATIENCE, Visitors, limits
from sdlab.viewport.splat_view import Viewports

GONE = "the run that this link returns to has ended; this is a new one"
OTHERS_FIRST = "pages that came earlier have their turn first"


class Page:
    """Keeps the desks by token. Everybody starts with the settings of `visitors`, which are `preset` or a variation
    of it, or with those of the link that they open, as far as `links` allow it. In a classroom, `room` has the desks'
    places."""

    def __init__(
        self,
        manager: Manager,
        viewports: Viewports,
        visitors: Visitors,
        preset: str | None = None,
        links: Links | None = None,
        room: Room | None = None,
        editor: Editor | None = None,
        store: Store | None = None,
    ) -> None:
        self.visitors = visitors
        self.room = room
        self.editor = editor  # of the user's own loss
        self.line = Line()
        self.keeper = Keeper(store, visitors, self.desks) if store is not None else None
        self._links = links or Links(visitors)
        self.shelves = Shelves(visitors.shared)  # by token of a desk
        self._manager = manager
        self._viewports = viewports
        self._preset = preset
        self._lock = threading.Lock()
        self._door = threading.Lock()  # held while a seat is given, or given back to be taken again
        self._returning: set[str] = set()  # tokens of kept runs for which a desk is being opened
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
        left: Sequence[str] = (),
        back: bool = False,
    ) -> dict[str, Any]:
        """Return the desk for a page that was loaded: the existing desk of `token`, or a new one if there is none or
        the page was opened with a `fresh` link, or a place in the line. Before a new one comes the first of the tokens
        in `left`, which the browser has kept of pages with the same address, whose desk no page shows, or whose run was
        kept on disk. `address` is that of the browser, "" if unknown; `query` is that of the page's address. With
        `back`, the token is that of a link back to a run."""
        with self._lock:
            desk = self._desks.get(token)
        if desk is not None and fresh:
            if desk.has_left:  # its tab has opened the link, and its seat may be the last one
                self.close(*desk.lanes)
            desk = None
        desk = desk or self._left(left)
        if desk is not None:
            desk.come_back(page)
            self._find(desk.id)
            desk.set_dark(dark)
            return {"token": desk.id, "page": page}
        ticket = self.line.find(token, page)
        if ticket is None:
            ticket = Ticket(page, self._client(address))
        ticket.page, ticket.dark, ticket.query, ticket.told = page, dark, query, None
        ticket.kept = tuple(left if fresh else (token, *left))
        return self._admit(ticket, GONE if back else "")

    def _admit(self, ticket: Ticket, remark: str = "") -> dict[str, Any]:
        """Return a new desk for a page, with a `remark` about it, or its place in the line."""
        self.line.heard(ticket)
        try:
            desk = self._open(ticket)
        except OSError as e:
            return no_seat(self.visitors.told(str(e)), ticket.page)
        except RuntimeError as e:
            try:
                self.line.add(ticket)
            except RuntimeError as full:
                return no_seat(self.visitors.told(f"{_short(e)}; {full}"), ticket.page)
            return self._waiting(ticket, _short(e))
        self.line.remove(ticket)
        if remark and desk.offer is None:
            desk.focus.say("warning", remark)
        return {"token": desk.id, "page": ticket.page}

    def _waiting(self, ticket: Ticket, why: str) -> dict[str, Any]:
        """Return the answer to a page that has a place in the line, with panels if it is told something new."""
        said = self.line.number(ticket), len(self.line), why
        if said == ticket.told:
            return {}
        ticket.told = said
        return in_line(ticket.id, *said[:2], self.visitors.told(why), ticket.page)

    def _client(self, address: str) -> Client:
        """Return a new client. A class may sit behind one address, and its teacher sees who has which seat."""
        client = self.visitors.client(address, self._manager.max_sessions)
        if self.room is not None:
            client.most_seats = None
        return client

    def poll(self, token: str, page: str, missed: bool = False, hidden: bool = False) -> dict[str, Any]:
        """Return the panels that changed on a desk, for the page that shows it; all if it `missed` the last answer.
        `hidden` says that nobody can see the page now: it is behind other tabs or windows."""
        own = self._of_page(page)
        if own is not None and own.id != token:
            return {"token": own.id}  # the page has just been given another desk
        if own is None and (ticket := self.line.find(token)) is not None and ticket.page == page:
            if missed:
                ticket.told = None
            return self._admit(ticket)
        if own is None:
            with self._lock:
                known, refused = token in self._desks, self._refused.pop(page, None)
            known = known or self.line.find(token) is not None
            if refused is not None:
                return no_seat(refused, page)
            return another_tab(page) if known else session_over(page, self.room is not None)
        if self._find(token, polling=True) is None:
            return session_over(page, self.room is not None)
        if not own.has_left:
            own.client.look(not hidden)
        if missed:
            own.forget()
        if self.editor is not None:
            self._follow(self.editor)
        return {"panels": self.visitors.told(own.news())}

    def _follow(self, editor: Editor) -> None:
        """Let all runs follow the file of the user's own loss, or tell all pages what is wrong with it."""
        if not (problem := editor.look()):
            return
        with self._lock:
            desks = list(self._desks.values())
        for lane in [lane for desk in desks for lane in desk.lanes]:
            lane.say("error", f"{problem}; {acts.STAYS}")

    def _seat(self, settings: Settings, client: Client) -> Seat:
        """Open the seat of a new run, with the newest version of the user's own loss."""
        return self._manager.open(settings if self.editor is None else self.editor.renewed(settings), client)

    def delay(self, token: str, acts: int = 0) -> float:
        """Return how many seconds a request has to wait that brings this number of acts, or asks for news (0): requests
        that come too fast are held up. Above `PATIENCE`, refuse it."""
        with self._lock:
            desk = self._desks.get(token)
        ticket = self.line.find(token) if desk is None else None
        if desk is not None and desk.lanes:
            client = desk.client
        elif ticket is not None:
            client = ticket.client
        else:
            return 0.0
        return client.messages.take(acts, PATIENCE) if acts else client.polls.take(1, PATIENCE)

    def act(self, token: str, said: Any, quota: str = "") -> bool:
        """Perform acts on a desk, one or a list; return False when the desk is gone. `quota` is what the platform tells
        of whose time on a shared GPU the request may use, "" if nothing."""
        desk = self._find(token)
        if desk is None:
            return False
        desk.client.acted()
        desk.client.quota = quota or desk.client.quota
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict) and desk.lanes and (self.room is None or self.room.lets(desk.place, one)):
                acts.perform(self, desk, one)
        return True

    def shows(self, token: str, page: str) -> bool:
        """Return whether a page shows the desk of `token`, or waits with that ticket."""
        desk = self._of_page(page)
        return desk.id == token if desk is not None else self.waits(token, page)

    def waits(self, token: str, page: str) -> bool:
        """Return whether a page waits for a seat with the ticket `token`."""
        ticket = self.line.find(token)
        return ticket is not None and ticket.page == page

    def leave(self, page: str) -> None:
        """Start the grace period of a page that was closed or reloaded."""
        self.line.leave(page)
        desk = self._of_page(page)  # None after a reload, which may be reported first
        if desk is not None:
            desk.leave()
            desk.client.look(False)
            for lane in desk.lanes:
                self._manager.leave(lane.seat.id)

    def bringing(self, token: str) -> Bringing | None:
        """Return where a desk's uploads go from now on: to the lane that has the focus now."""
        desk = self._find(token)
        if desk is None:
            return None
        lane = desk.focus

        def receive(knob: str, name: str, raw: bytes) -> None:
            if self.room is not None and self.room.frozen:
                raise ValueError(PAUSED)
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
        if pick_file(self, desk, run.settings, name, run.remark) and run.step >= 0:
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

    def facts(self) -> dict[str, Any]:
        """Return what a hand-in says of this server."""
        return facts(self._manager.device, batching=self._manager.turnstile is None)

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

    def _left(self, tokens: Sequence[str]) -> Desk | None:
        """Return the first desk of `tokens` that no page shows."""
        with self._lock:
            desks = [self._desks[token] for token in tokens if token in self._desks]
        return next((desk for desk in desks if desk.claim()), None)

    # ---- lanes -------------------------------------------------------------------------------------------

    def _open(self, ticket: Ticket) -> Desk:
        """Open a desk for a page in place of the one it had, and offer the run that was kept for it, if one was;
        RuntimeError when it cannot have a seat now."""
        page, client, token = ticket.page, ticket.client, ""
        previous = self._of_page(page)
        if previous is not None:
            self.close(*previous.lanes)
        self._must_have_room(client)  # pages that wait ask often
        opened = self.opened(ticket.query)
        link = opened.link
        client.locks = link.must_keep
        try:
            with self._door:
                self._must_have_room(client)
                if self.line.before(ticket, self._has_room):
                    raise RuntimeError(OTHERS_FIRST)
                token, returned = self._returned(ticket.kept, opened)
                settings, preset = returned.first if returned is not None else (link.settings, link.preset)
                seat = self._seat(settings, client)
                place = self.room.place() if self.room is not None else None
            try:
                lane = self._lane(seat, preset, ticket.dark)
                desk = Desk(lane, page, ticket.dark, self.visitors.most_lanes, opened, token, self.editor)
                desk.place, desk.offer = place, returned
                desk.uploads = returned.uploads if returned is not None else desk.uploads
                desk.shelf = self.shelves.open(desk.id)
            except OSError:
                self._manager.close(seat.id)
                if place is not None:
                    place.give_back()
                raise
            with self._lock:
                self._desks[desk.id] = desk
        finally:
            with self._lock:
                self._returning.discard(token)
        if link.lesson and returned is None:
            lessons.begin(self, desk, link)
        self._manager.leave(seat.id, at_least=ARRIVING)  # the page may be closed before its first poll
        if self.room is not None and self.room.latecomer is not None and not ticket.query and returned is None:
            self.room.latecomer(desk)
        return desk

    def _returned(self, tokens: Sequence[str], opened: Opened) -> tuple[str, Returned | None]:
        """Return the first of `tokens` under which a run was kept that this page may have, and the run; "" and None if
        there is none. Until `_returning` lets go of the token, no other page gets the run."""
        if (keeper := self.keeper) is None:
            return "", None
        for token in tokens:
            with self._lock:
                if token in self._desks or token in self._returning:
                    continue
                self._returning.add(token)
            if (returned := keeper.find(token, opened)) is not None:
                return token, returned
            with self._lock:
                self._returning.discard(token)
        return "", None

    def opened(self, query: str) -> Opened:
        """Return the link that an address with this query opens."""
        return Opened(self._links, self._links.read(query, self._preset))

    def _must_have_room(self, client: Client) -> None:
        """Raise RuntimeError, which says why, when a client cannot have another desk now."""
        if self.room is not None:
            self.room.must_have_room()
        self._manager.must_have_room(client)

    def _has_room(self, client: Client) -> bool:
        try:
            self._must_have_room(client)
        except RuntimeError:
            return False
        return True

    def _lane(self, seat: Seat, preset: str | None, dark: bool) -> Lane:
        """Return the lane of a seat just opened; OSError when the machine has no socket left for its view."""
        try:
            view = self._viewports.open(seat, dark)
        except OSError:
            self._manager.close(seat.id)
            raise
        lane = Lane(seat, view, preset)
        if self.room is not None:
            with self.room.gate:
                if self.room.frozen:
                    seat.session.send(Hold())
        seat.on_close.append(lambda: self._forget(lane))
        return lane

    def branch(self, desk: Desk, lane: Lane) -> None:
        """Add a lane that continues from the current step of another; a refusal goes to the status line."""
        self._add(desk, lane, lambda: self._manager.branch(lane.seat.id), lane.preset)

    def add(self, desk: Desk, settings: Settings, preset: str | None) -> Lane | None:
        """Add a lane with a new run and return it; a refusal goes to the status line, and None is returned."""
        lane = desk.focus
        return self._add(desk, lane, lambda: self._seat(settings, lane.seat.client), preset)

    def _add(self, desk: Desk, lane: Lane, seat: Callable[[], Seat], preset: str | None) -> Lane | None:
        """Add a lane with the seat that `seat` opens; `lane` is told why if that fails."""
        try:
            self.visitors.must_have_lane(len(desk.lanes))
            if waiting := len(self.line):
                raise RuntimeError(f"no lane can be added: {_pages(waiting)} for a seat")
            other = self._lane(seat(), preset, desk.dark)
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

    def open_gpu(self, desk: Desk) -> None:
        """Show the desk's lane whose steps come in bursts on a GPU. If there is none, add it, with the prompt of the
        lane in focus. A refusal goes to the status line."""
        there = next((lane for lane in desk.lanes if lane.in_bursts), None)
        if there is not None:
            desk.look_at(there)
        elif desk.opened is not None and desk.opened.link.locks(PRESET):
            desk.focus.say("error", NO_PRESET)
        elif self.visitors.gpu is not None:
            self.add(desk, self.visitors.gpu.patch("prompt.text", desk.focus.settings.prompt.text), None)

    def needs_new_run(self, lane: Lane, wanted: Settings) -> bool:
        """Return whether a lane cannot turn to the `wanted` settings, but has to be replaced."""
        return needs_new_run(wanted, lane.settings) or lane.in_bursts != self._manager.in_bursts(wanted)

    def replace(self, desk: Desk, lane: Lane, settings: Settings, preset: str | None) -> bool:
        """Put a new run in the place of a lane, whose seat is given back first: it may be the last free one. Return
        False if there is no seat."""
        tone = desk.take_out(lane)
        try:
            with self._door:  # or a page that waits would get the seat
                self.close(lane)
                seat = self._seat(settings, lane.seat.client)
            other = self._lane(seat, preset, desk.dark)
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

    def desks(self) -> list[Desk]:
        """Return all desks, in the order in which they were opened."""
        with self._lock:
            return list(self._desks.values())

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
        if desk.place is not None:
            desk.place.give_back()
        with self._lock:
            self._desks.pop(desk.id, None)


def _pages(waiting: int) -> str:
    return "1 page waits" if waiting == 1 else f"{waiting} pages wait"


def _short(error: Exception) -> str:
    """Return why a page cannot have a seat, without what to try."""
    return str(error).partition(";")[0]
