"""One page: one to four lanes, each a run of its own, of which one has the focus.

The run buttons act on all lanes, knobs and the prompt on the lane in focus, and the panels show that one; the charts
lay the lanes over each other. The browser holds nothing but the desk's token, with which a page that is loaded anew
finds its runs again.
"""

from __future__ import annotations

import secrets
import threading
from typing import Any

from sdlab.lens import Comparison, LensPictures
from sdlab.live.messages import Command
from sdlab.ui import charts, panels
from sdlab.ui.flat_view import is_flat
from sdlab.ui.lane import Lane, Look
from sdlab.ui.results import FORMATS, OF_PICTURES, OF_SPLATS, Result, Shelf
from sdlab.ui.uploads import Uploads
from sdlab.ui.wording import duration, short, size

MOST_LANES = 4
LETTERS = "ABCD"
TABS = ("lens", "charts", "versus", "results")


class Desk:
    """Shared by the handlers of one page, which run in several threads."""

    shelf: Shelf  # of the files made here

    def __init__(self, first: Lane, page: str = "") -> None:
        self.id = secrets.token_urlsafe(16)
        self.page = page  # the one that shows it (Gradio's session hash): each piece of news is told once
        self.tab = TABS[0]
        self.uploads = Uploads()  # what was brought for its lanes to start from
        self.row = 0  # the view that the lens looks at
        self.t: int | None = None  # the timestep that it asks about, None for that of each step
        self._lock = threading.Lock()
        self._tones = {first: 0}  # of each lane, in order of appearance
        self._focus = first
        self._late_ticks: int | None = None  # that may still come from a page that was closed; None: it is there
        self._shown: dict[str, Any] = {}  # what the page was last given, by panel
        self.due: dict[str, Any] = {}  # what Gradio's own components are to become, by name
        self.telling = threading.Lock()  # of whoever reads what is new: each piece is told once, and in order
        self._watch()

    # ---- lanes -------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> list[Lane]:
        with self._lock:
            return list(self._tones)

    @property
    def focus(self) -> Lane:
        return self._focus

    def lane(self, seat_id: str) -> Lane | None:
        """The lane of a seat."""
        return next((lane for lane in self.lanes if lane.seat.id == seat_id), None)

    def add(self, lane: Lane) -> None:
        """A lane beside the others. ValueError when there are four; the caller then closes its seat."""
        with self._lock:
            if len(self._tones) >= MOST_LANES:
                raise ValueError(f"{MOST_LANES} lanes are there already: close one first")
            self._tones[lane] = min(set(range(MOST_LANES)) - set(self._tones.values()))
        self._link()
        self.look_at(lane)

    def _link(self) -> None:
        """Whoever turns one view turns all."""
        views = [lane.view for lane in self.lanes]
        for view in views:
            view.link(views)

    def remove(self, lane: Lane) -> bool:
        """Take a lane away; False when none is left."""
        with self._lock:
            self._tones.pop(lane, None)
            left = list(self._tones)
        self._link()
        if left and self._focus is lane:
            self.look_at(left[0])
        return bool(left)

    def take_out(self, lane: Lane) -> int:
        """Take a lane away for another that comes in its place; the tone of that place."""
        with self._lock:
            return self._tones.pop(lane)

    def put_in(self, lane: Lane, tone: int) -> None:
        """Put a lane where one was taken out."""
        with self._lock:
            self._tones[lane] = tone
            self._tones = dict(sorted(self._tones.items(), key=lambda entry: entry[1]))
        self._link()
        self.look_at(lane)

    def look_at(self, lane: Lane) -> None:
        """Give a lane the focus."""
        self._focus.seat.session.watch_lens(False)
        self._focus = lane
        self._watch()
        self.forget_what_was_shown()

    def turn_to(self, tab: str) -> None:
        """Show another of `TABS` below the scene."""
        self.tab = tab
        self._watch()
        for panel in ("lens", "charts", "versus"):
            self._shown.pop(panel, None)

    def _watch(self) -> None:
        self._focus.seat.session.watch_lens(self.tab == "lens", self.row, self.t)

    def choose_view(self, row: int) -> None:
        """The lens looks at another of the step's views."""
        self.row = row
        self._shown.pop("preview", None)
        self._watch()

    def ask_at(self, t: int | None) -> None:
        """The lens asks about another timestep, for whichever lane has the focus; None for that of each step."""
        self.t = t
        self._watch()

    def forget_what_was_shown(self) -> None:
        """The page was loaded anew or shows another lane: everything is news to it."""
        self._shown.clear()
        for lane in self.lanes:
            lane.forget_what_was_shown()

    # ---- presence ----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The page's connection has ended: it was closed, or the network failed for a moment."""
        with self._lock:
            self._late_ticks = 1

    def come_back(self, page: str = "") -> None:
        """The page was loaded anew, and begins with the first tab and the lens as it was."""
        self.page = page
        with self._lock:
            self._late_ticks = None
        self.tab, self.t = TABS[0], None
        self._watch()
        self.forget_what_was_shown()

    def is_there(self, ticking: bool) -> bool:
        """Whether a request says that the page is still there. A page has one tick under way at a time, so after its
        connection has ended the first may be a late one; the second says that it lives."""
        with self._lock:
            if self._late_ticks is not None and ticking:
                self._late_ticks = self._late_ticks - 1 if self._late_ticks > 0 else None
            return self._late_ticks is None

    # ---- from the page to the sessions -------------------------------------------------------------------

    def send(self, *commands: Command, note: str = "", prompt: str | None = None) -> None:
        """Hand commands to all lanes, after the prompt as it is typed now, which is that of the lane in focus."""
        for lane in self.lanes:
            own = lane is self._focus
            lane.send(*commands, note=note, prompt=prompt if own else None)

    # ---- from the sessions to the page -------------------------------------------------------------------

    def news(self) -> tuple[Look, dict[str, Any]]:
        """What is new in the lane in focus, and the panels that have changed. Called by one tick at a time."""
        lane = self._focus  # as of now: it may move on, or be taken out, while this is read
        looks = {each: each.look() for each in dict.fromkeys((lane, *self.lanes))}
        session = lane.seat.session
        found: dict[str, Any] = {}
        phases = frozenset(each.seat.session.status.phase for each in looks)
        values = {"phases": phases, "stage": self._stage(), "timeline": lane.history(), "live": _live(lane)}
        if self.tab == "results":
            values["results"] = self._results(lane)
        for panel, value in values.items():
            self._put(found, panel, value, lambda value=value: value)
        frame = session.latest.version, lane.seat.id, self.row
        if self.tab == "lens":
            seen, version = session.lens.get(), (session.lens.version, lane.seat.id)
            beside = (version, self.row) if seen is not None and len(seen.renders) else frame
            self._put(found, "preview", beside, lambda: self._preview(lane, seen))
            self._put(found, "lens", version, lambda: _lens(seen))
        elif self.tab == "charts":
            for each in looks:
                each.ask_the_judge()
            versions = tuple((each.seat.id, each.version) for each in looks)
            self._put(found, "charts", (versions, frame[0] if not lane.figures else 0), lambda: self._charts(lane))
        elif self.tab == "versus":
            version = (session.comparison.version, lane.seat.id)
            self._put(found, "versus", version, lambda: _comparison(session.comparison.get()))
        return looks[lane], found

    def _put(self, found: dict[str, Any], panel: str, key: Any, content: Any) -> None:
        if self._shown.get(panel) != key:
            self._shown[panel] = key
            found[panel] = content()

    def _stage(self) -> list[dict[str, Any]]:
        """What the stage shows of each lane."""
        with self._lock:
            tones = dict(self._tones)
        return [
            {
                "desk": self.id,
                "token": lane.seat.id,
                "address": lane.address,
                "tone": tone,
                "letter": LETTERS[tone],
                "loss": lane.settings.loss.title,
                "step": lane.step,
                "phase": lane.seat.session.status.phase,
                "focus": lane is self._focus,
            }
            for lane, tone in tones.items()
        ]

    def _results(self, lane: Lane) -> dict[str, Any]:
        """What can be made of a lane, and what has been made on this desk."""
        kinds = OF_PICTURES if is_flat(lane.seat.session.effective) else OF_SPLATS
        return {
            "lane": lane.seat.id,
            "offers": [{"kind": k, "title": FORMATS[k].title, "about": FORMATS[k].about} for k in kinds],
            "items": [_item(self.id, result) for result in self.shelf.list()],
        }

    def _preview(self, lane: Lane, seen: LensPictures | None) -> str:
        """All views of the step that the lens shows; of the last one while it shows none."""
        frame = lane.seat.session.latest.get()
        if frame is None:
            return panels.no_preview()
        if seen is not None and len(seen.renders):
            return panels.preview(seen.renders, seen.views, frame.step, self.row)
        return panels.preview(frame.preview, frame.views, frame.step, self.row)

    def _charts(self, lane: Lane) -> str:
        """The lane in focus first, then the others."""
        frame = lane.seat.session.latest.get()
        with self._lock:
            tones = dict(self._tones)
        tones.setdefault(lane, 0)  # it has just been taken out for another
        order = sorted(tones, key=lambda each: (each is not lane, tones[each]))
        curves = [(tones[each], each.curves) for each in order]
        rows = [
            charts.LaneRow(
                tone,
                LETTERS[tone],
                each.settings.loss.title,
                each.settings.prompt.text,
                each.step,
                each.figures if each.judged is None else {**each.figures, "judge": each.judged},
            )
            for each, tone in tones.items()
        ]
        scene = frame.stats if frame is not None else {}
        return charts.lanes_table(rows) + charts.charts(curves, lane.marks, scene, lane.figures)


def _item(token: str, result: Result) -> dict[str, Any]:
    """A line of the shelf."""
    if result.phase == "working":
        left = f", {duration(result.seconds_left)} left" if result.seconds_left is not None else ""
        said = f"{100 * result.share:.0f} %{left}"
    elif result.phase == "done":
        said = size(result.size)
    else:
        said = result.message or result.phase
    return {
        "id": result.id,
        "name": result.name,
        "state": result.phase,
        "share": result.share,
        "said": said,
        "address": f"results/{token}/{result.id}" if result.phase == "done" else "",
    }


def _lens(seen: LensPictures | None) -> str:
    return panels.no_lens() if seen is None else panels.lens(seen)


def _comparison(seen: Comparison | None) -> str:
    return panels.no_comparison() if seen is None else panels.comparison(seen)


def _live(lane: Lane) -> dict[str, Any]:
    """Which formula of which loss holds, and the values of its symbols that only a step can tell, by the symbol's
    name."""
    frame, s = lane.seat.session.latest.get(), lane.settings
    stats = frame.stats if frame is not None else {}
    found = {"t": stats.get("t"), "w(t)": stats.get("weight"), "noise": stats.get("rms_noise")}
    found |= {term.written: stats.get(f"rms_{term.name}") for term in s.loss.terms}
    values = {symbol: short(value) for symbol, value in found.items() if value is not None}
    now = s.loss.formula_at(s.progress(lane.step))
    return {"loss": s.active, "formula": s.loss.formulas.index(now), "values": values}
