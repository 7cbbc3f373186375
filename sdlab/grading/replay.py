"""Repeat the runs in a hand-in: every stretch from its start, every change at its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sdlab.errors import reason
from sdlab.handin.history import Told
from sdlab.live.building import LoadPrior
from sdlab.live.copies import Fork
from sdlab.live.messages import Event, Failed, Patch, Rejected
from sdlab.live.moments import Moment, bytes_of
from sdlab.live.session import Session
from sdlab.live.state import Admit, Run
from sdlab.live.tape import Changes, Print, print_of
from sdlab.live.timeline import Timeline
from sdlab.settings import Settings

MOST_HELD = 2_000_000_000  # bytes of the states that later stretches come from

Spot = tuple[str, int, int]  # a stretch's id, ticks and changes on it
Visit = Callable[[Spot, Session], None]  # sees every state


class Impossible(Exception):
    """A stretch cannot be repeated; the text says why."""


class TimeUp(Exception):
    """The time for a hand-in is over."""


@dataclass
class Repeated:
    """What came of repeating a stretch: its prints at the ticks where the hand-in has some, how many ticks it has been
    repeated for, and why no further, "" if to its end."""

    prints: dict[int, Print] = field(default_factory=dict)
    ticks: int = 0
    problem: str = ""


@dataclass
class Replay:
    """Repeats the stretches of one hand-in until `deadline` (time.monotonic). They begin with `settings`, of which some
    are only a text that says why they cannot be read. `admit` raises ValueError for settings that may not run."""

    stretches: Sequence[Told]
    settings: Mapping[str, Settings | str]
    device: torch.device
    load: LoadPrior
    admit: Admit
    deadline: float
    visit: Visit
    results: dict[str, Repeated] = field(default_factory=dict)

    def run(self, moved: Callable[[int], object]) -> dict[str, Repeated]:
        """Return what came of each stretch, by id; `moved` is told ticks as they are done."""
        self._moved = moved
        self._held: dict[Spot, Moment] = {}
        self._refusals: list[Failed | Rejected] = []
        origins: dict[str, set[tuple[int, int]]] = {}
        for stretch in self.stretches:
            if stretch.origin is not None:
                origins.setdefault(stretch.origin[0], set()).add(stretch.origin[1:])
        for stretch in self.stretches:
            result = self.results.setdefault(stretch.id, Repeated())
            try:
                self._repeat(stretch, result, origins.get(stretch.id, set()))
            except Impossible as e:
                result.problem = str(e)
            except TimeUp:
                result.problem = "there was no time left"
            except Exception as e:  # a hand-in must not end the others
                result.problem = f"it could not be repeated: {reason(e)}"
        return self.results

    def _repeat(self, told: Told, result: Repeated, kept: Collection[tuple[int, int]]) -> None:
        session = self._begun(told)
        printed = {p.tick for p in told.prints}
        made = 0
        for tick in range(told.ticks + 1):
            if tick:
                self._advance(session)
                result.ticks = tick
            if tick in printed:
                result.prints[tick] = print_of(tick, session.state.step, session.state.scene.params)
            self._arrive(session, (told.id, tick, made), kept)
            while made < len(told.changes) and told.changes[made][0] == tick:
                undone = told.changes[made][1] is None  # a branch from here has what was rolled back afterwards
                self._change(session, told.changes[made][1])
                made += 1
                self._arrive(session, (told.id, tick, made), () if undone else kept)

    def _arrive(self, session: Session, spot: Spot, kept: Collection[tuple[int, int]]) -> None:
        """Show the present state to the visitor, and keep it if a later stretch comes from it."""
        self.visit(spot, session)
        if spot[1:] in kept:
            self._held[spot] = session.moment()
            if bytes_of(self._held.values()) > MOST_HELD:
                raise Impossible(f"its branches need more than {MOST_HELD / 1e9:g} GB of memory")

    def _begun(self, told: Told) -> Session:
        """Return a session at the start of a stretch."""
        if told.lacks:
            raise Impossible(f"it needs {told.lacks}")
        if told.settings:
            settings = self.settings[told.settings]
            if isinstance(settings, str):
                raise Impossible(settings)
            session = self._session(settings)
            session.prepare()
        elif told.origin is not None:
            moment = self._held.get(told.origin)
            if moment is None:
                raise Impossible("it comes from a state that was not reached")
            session = self._session(moment.settings)
            session.take_over(Fork(moment, Timeline(), False, None, None))
        else:
            raise Impossible("it continues from a checkpoint, which is not part of the hand-in")
        return session

    def _session(self, settings: Settings) -> Session:
        self._must_have_time()
        self.admit(settings, Run.of(settings))
        session = Session(settings, self.device, self.load, admit=self.admit)
        session.in_detail = True  # statistics as on a page
        session.listen(self._hear)
        return session

    def _hear(self, event: Event) -> None:
        if isinstance(event, (Failed, Rejected)):
            self._refusals.append(event)

    def _change(self, session: Session, changes: Changes | None) -> None:
        """Make a change, unless it was undone."""
        if not changes:
            return
        self._refusals.clear()
        session.do(Patch(changes))
        for event in self._refusals:
            raise Impossible(f"a change at step {session.state.step} is refused: {event.reason}")

    def _must_have_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeUp

    def _advance(self, session: Session) -> None:
        """Take one step or warm-up step."""
        self._must_have_time()
        before = session.tape.stretches[-1].tick
        self._refusals.clear()
        session.advance()
        if session.tape.stretches[-1].tick == before:
            why = self._refusals[-1].reason if self._refusals else "it was halted"
            raise Impossible(f"step {session.state.step + 1} fails: {why}")
        self._moved(1)
