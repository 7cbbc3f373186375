"""The line of pages that wait for a seat: first come, first served, of limited length.

A page that waits polls, which shows it its number, and holds a stream open (`sdlab.ui.answers`), by which the server
learns that it has gone. Pages that cannot have the seat that is free, because their address has its share, and those
that do not ask for it any more, are passed by and keep their place.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sdlab.live.clients import Client

MOST_WAITING = 100  # pages
MOST_OF_ADDRESS = 10  # of them, where seats of an address are limited
BACK_WITHIN = 15.0  # seconds within which a page that was reloaded finds its place again
SILENT = 12.0  # seconds without a poll after which a page is passed by
LATE = 1.0  # seconds for which a poll of a page that was closed may still be under way
GONE = (
    120.0  # seconds without a poll after which it has gone, whatever its stream says; hidden pages poll once a minute
)


@dataclass(eq=False)
class Ticket:
    """A page that asks for a seat, with what its desk needs. `id` is unguessable and the page's token."""

    page: str
    client: Client
    dark: bool = False
    query: str = ""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    heard: float = field(default_factory=time.monotonic)  # time of its last poll
    left: float | None = None  # time when its stream ended
    told: Any = None  # what it was last told


class Line:
    """Thread-safe."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[str, Ticket] = {}  # by id, in order

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._waiting)

    def add(self, ticket: Ticket) -> None:
        """Let a page wait, at the end unless it waits already. RuntimeError when there is no room for it."""
        with self._lock:
            self._sweep()
            if ticket.id in self._waiting:
                return
            if len(self._waiting) >= self._most:
                raise RuntimeError(f"{len(self._waiting)} pages wait for a seat already")
            client = ticket.client
            same = sum(bool(client.address) and t.client.address == client.address for t in self._waiting.values())
            if client.most_seats is not None and same >= MOST_OF_ADDRESS:
                raise RuntimeError(f"{same} pages of your address wait for a seat already")
            self._waiting[ticket.id] = ticket

    def find(self, ticket_id: str, page: str = "") -> Ticket | None:
        """Return a ticket whose page is still waiting, by its id or by its page."""
        with self._lock:
            self._sweep()
            of_page = (ticket for ticket in self._waiting.values() if page and ticket.page == page)
            return self._waiting.get(ticket_id) or next(of_page, None)

    def number(self, ticket: Ticket) -> int:
        """Return which number a page has, 1 for the first; 0 when it does not wait."""
        with self._lock:
            return next((n for n, id in enumerate(self._waiting, 1) if id == ticket.id), 0)

    def heard(self, ticket: Ticket) -> None:
        """Note that a page has polled, which proves that it is there, unless it was closed just now."""
        now = time.monotonic()
        if ticket.left is None or now - ticket.left > LATE:
            ticket.heard, ticket.left = now, None

    def leave(self, page: str) -> None:
        """A page's stream has ended: it was closed or reloaded."""
        with self._lock:
            for ticket in self._waiting.values():
                if ticket.page == page:
                    ticket.left = time.monotonic()

    def remove(self, ticket: Ticket) -> None:
        """Take a page out, which has its seat."""
        with self._lock:
            self._waiting.pop(ticket.id, None)

    def before(self, ticket: Ticket, could: Callable[[Client], bool]) -> bool:
        """Return whether a page that came earlier, and is there, could have a seat now."""
        now = time.monotonic()
        with self._lock:
            self._sweep()
            others = list(self._waiting.values())
        if ticket in others:
            others = others[: others.index(ticket)]
        return any(now - other.heard < SILENT and could(other.client) for other in others)

    def _sweep(self) -> None:
        """Take out pages that have gone."""
        now = time.monotonic()
        for ticket in list(self._waiting.values()):
            if now - ticket.heard > GONE or (ticket.left is not None and now - ticket.left > BACK_WITHIN):
                del self._waiting[ticket.id]
