"""The desk of one page: one to four lanes, each with its own run, one of them in focus.

The run buttons act on all lanes, but start none whose steps come in bursts on a shared GPU; knobs and the prompt act on
the lane in focus. The panels show the lane in focus, and the
charts overlay the curves of all lanes. The browser holds only the desk's token, with which a reloaded page finds its
runs.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection
from typing import Any

from sdlab.cameras import transforms_of
from sdlab.lens import Comparison, LensPictures
from sdlab.lessons import Walk
from sdlab.live.clients import Client
from sdlab.live.messages import Command, Phase, Resume
from sdlab.live.tape import Tape
from sdlab.settings import OWN
from sdlab.ui import charts, panels
from sdlab.ui.dropped import Offer
from sdlab.ui.editor import Editor, card
from sdlab.ui.flat_view import is_flat
from sdlab.ui.form import form_state
from sdlab.ui.keeper import Returned
from sdlab.ui.lane import WAITS_FOR_READY, Lane, view_modes
from sdlab.ui.lesson_page import lesson_page, page_key, walk_told
from sdlab.ui.links import Opened
from sdlab.ui.places import Place
from sdlab.ui.results import FORMATS, HAND_IN, OF_PICTURES, OF_SPLATS, Result, Shelf
from sdlab.ui.uploads import Uploads
from sdlab.ui.visitors import MAX_LANES
from sdlab.ui.watch import Watch
from sdlab.ui.wording import MODE_LABELS, duration, short, size

LETTERS = "ABCD"
TABS = ("lens", "charts", "versus", "results", "own")
MOST_TAPES = 50  # of the sessions that a page has had


class Desk:
    """Shared by the requests of one page, which run in several threads."""

    shelf: Shelf  # files made from its lanes

    def __init__(
        self,
        first: Lane,
        page: str = "",
        dark: bool = False,
        most_lanes: int = MAX_LANES,
        opened: Opened | None = None,
        token: str = "",
        editor: Editor | None = None,
    ) -> None:
        self.most_lanes = most_lanes
        self.opened = opened  # the link that the page was opened with
        self.editor = editor  # of the user's own loss
        self.id = token or secrets.token_urlsafe(16)
        self.page = page  # the page that shows it (Gradio's session hash): each piece of news is sent once
        self.dark = dark  # theme of the page, also for views still to be opened
        self.tab = TABS[0]
        self.uploads = Uploads()
        self.offer: Offer | Returned | None = None  # to continue a run, dropped onto the page or from before a restart
        self.walk: Walk | None = None  # through the lesson that is open
        self.watch = Watch()
        self.place: Place | None = None  # in a classroom
        self.row = 0  # the lens shows this view
        self.t: int | None = None  # the lens asks at this timestep, None for each step's own
        self.exact = False  # whether the lens shows exact predictions beside the network's
        self.camera = ""  # of a view, as text to be copied
        self._lock = threading.Lock()
        self._tones = {first: 0}  # colour of each lane, in order of appearance
        self._focus = first
        self.tapes: list[Tape] = [first.seat.session.tape]  # of all lanes so far, the newest
        self.handing_in = threading.Lock()  # held while a hand-in is being collected
        self._late_polls: int | None = None  # polls that a closed page may still send; None while the page is open
        self._shown: dict[str, Any] = {}  # panel -> key of what the page last received
        self._telling = threading.Lock()  # news is sent once and in order
        self._watch()

    # ---- lanes -------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> list[Lane]:
        with self._lock:
            return list(self._tones)

    @property
    def focus(self) -> Lane:
        return self._focus

    @property
    def client(self) -> Client:
        """Whose the desk is."""
        return self._focus.seat.client

    def lane(self, seat_id: str) -> Lane | None:
        """Return the lane of a seat."""
        return next((lane for lane in self.lanes if lane.seat.id == seat_id), None)

    def add(self, lane: Lane) -> None:
        """Add a lane. ValueError when there is no room; the caller then closes its seat."""
        with self._lock:
            if len(self._tones) >= self.most_lanes:
                raise ValueError(f"there are {self.most_lanes} lanes already: close one first")
            self._tones[lane] = min(set(range(MAX_LANES)) - set(self._tones.values()))
            self._remember(lane)
        self._link()
        self.look_at(lane)

    def _remember(self, lane: Lane) -> None:
        """Keep what a lane does for a hand-in."""
        self.tapes = [*self.tapes, lane.seat.session.tape][-MOST_TAPES:]

    def letter(self, lane: Lane) -> str:
        """Return the letter by which the page names a lane."""
        with self._lock:
            return LETTERS[self._tones.get(lane, 0)]

    def _link(self) -> None:
        """Make the cameras of all views move together."""
        views = [lane.view for lane in self.lanes]
        for view in views:
            view.link(views)

    def remove(self, lane: Lane) -> bool:
        """Remove a lane; return False when none is left."""
        with self._lock:
            self._tones.pop(lane, None)
            left = list(self._tones)
        self._link()
        if left and self._focus is lane:
            self.look_at(left[0])
        return bool(left)

    def take_out(self, lane: Lane) -> int:
        """Remove a lane that another will replace; return its tone for `put_in`."""
        with self._lock:
            return self._tones.pop(lane)

    def put_in(self, lane: Lane, tone: int) -> None:
        """Put a lane where another was taken out."""
        with self._lock:
            self._tones[lane] = tone
            self._tones = dict(sorted(self._tones.items(), key=lambda entry: entry[1]))
            self._remember(lane)
        self._link()
        self.look_at(lane)

    def look_at(self, lane: Lane) -> None:
        """Give a lane the focus."""
        self._focus.seat.session.watch_lens(False)
        self._focus = lane
        self._watch()
        self.forget()

    def turn_to(self, tab: str) -> None:
        """Show one of `TABS` below the scene."""
        self.tab = tab
        self._watch()
        self.forget("lens", "charts", "versus")

    def _watch(self) -> None:
        self._focus.seat.session.watch_lens(self.tab == "lens", self.row, self.t, self.exact)

    def choose_view(self, row: int) -> None:
        """Let the lens show another of the step's views."""
        self.row = row
        self._watch()
        self.forget("preview")

    def ask_at(self, t: int | None) -> None:
        """Let the lens ask at another timestep, whichever lane has the focus; None for each step's own."""
        self.t = t
        self._watch()

    def show_exact(self, on: bool) -> None:
        """Let the lens show exact predictions beside the network's, or not."""
        self.exact = on
        self._watch()

    def set_dark(self, dark: bool) -> None:
        """Follow the theme of the page."""
        self.dark = dark
        for lane in self.lanes:
            lane.view.set_dark(dark)

    def forget(self, *names: str) -> None:
        """Send these panels again, or all of them if none is named: the page was reloaded or shows another lane."""
        for name in names or tuple(self._shown):
            self._shown.pop(name, None)

    # ---- presence ----------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The page's connection has ended: the page was closed, or the network failed for a moment."""
        with self._lock:
            self._late_polls = 1

    def come_back(self, page: str = "") -> None:
        """The page was reloaded; it begins with the first tab, the lens at each step's own timestep and nothing exact
        in it. What was wrong with its link was said."""
        self.page = page
        if self.opened is not None:
            self.opened.link = self.opened.link._replace(problems=())
        with self._lock:
            self._late_polls = None
        self.tab, self.t, self.exact = TABS[0], None, False
        self._watch()
        self.forget()

    def claim(self) -> bool:
        """Return whether the page that showed the desk has left; True to one caller only, whose page may show it."""
        with self._lock:
            left, self._late_polls = self._late_polls is not None, None
        return left

    def copy_camera(self, lane: Lane) -> None:
        """Tell the page the camera of a lane's view, in the form of exported cameras (transforms.json)."""
        cams = lane.view.cameras()
        if cams is None:
            lane.say("error", "the view has not told its camera yet: turn it a little, then copy the camera")
            return
        self.camera = json.dumps(transforms_of(cams), indent=1)
        self.forget("camera")  # the page waits for it, also if it is the same

    @property
    def has_left(self) -> bool:
        """Whether the page's connection has ended and nothing was heard from it since."""
        with self._lock:
            return self._late_polls is not None

    def is_there(self, polling: bool) -> bool:
        """Return whether a request proves that the page is still open. A page has one poll under way at a time, so the
        first poll after its connection ended may be a late one; the second proves that it is open."""
        with self._lock:
            if self._late_polls is not None and polling:
                self._late_polls = self._late_polls - 1 if self._late_polls > 0 else None
            return self._late_polls is None

    # ---- from the page to the sessions -------------------------------------------------------------------

    def send(self, *commands: Command, note: str = "", prompt: str | None = None) -> None:
        """Send commands to all lanes; the prompt as it is typed now goes first, to the lane in focus only."""
        for lane in self.lanes:
            lane.send(*commands, note=note, prompt=prompt if lane is self._focus else None)

    def start(self, prompt: str | None = None) -> None:
        """Let all lanes run, as soon as they can, but none in bursts."""
        loading = self._focus.seat.session.status.phase in ("loading", "compiling")
        self.send(Resume(), note=WAITS_FOR_READY if loading else "", prompt=prompt)

    # ---- from the sessions to the page -------------------------------------------------------------------

    def news(self) -> dict[str, Any]:
        """Return the panels that changed since the last call, by name."""
        with self._telling:
            return self._news()

    def _news(self) -> dict[str, Any]:
        lane = self._focus  # read once: another request may move the focus or take the lane out
        read = {each: each.read() for each in dict.fromkeys((lane, *self.lanes))}
        told: dict[str, Any] = {} if self._shown else nothing()
        phases: list[tuple[Phase, bool]] = [(each.seat.session.status.phase, each.in_bursts) for each in read]
        self._put(told, "status", read[lane].status)
        frozen = self.place is not None and self.place.room.frozen
        self._put(told, "controls", {"can": pressable(phases, frozen), "again": ""})
        self._put(told, "stage", self._stage())
        self._put(told, "timeline", lane.history())
        self._put(told, "live", _live(lane))
        if self.camera:
            self._put(told, "camera", self.camera)
        self._put(told, "preset", lane.preset)
        offer = self.offer
        self._put(told, "offer", None if offer is None else offer.told)
        walk = self.walk
        if (place := self.place) is not None:
            self._put(told, "room", place.told())
        if (opened := self.opened) is not None:
            self._put(told, "link", opened.key(lane, walk), lambda: opened.told(lane, walk))
        self.watch.tick(walk, lane, self.lanes)
        self._put(told, "lesson", page_key(walk), lambda: lesson_page(walk))
        self._put(told, "walk", walk_told(walk))
        self._put(told, "handin", self._handed_in())
        self._put_form(told, lane, read[lane].stale)
        if (editor := self.editor) is not None:
            self._put(told, "card", (lane.seat.id, type(lane.settings.losses[OWN])), lambda: card(lane))
            self._put(told, "own", editor.key(lane), lambda: editor.told(lane))
        match self.tab:
            case "lens":
                self._put_lens(told, lane)
            case "charts":
                self._put_charts(told, lane, list(read))
            case "versus":
                comparison = lane.seat.session.comparison
                self._put(told, "versus", (comparison.version, lane.seat.id), lambda: _comparison(comparison.get()))
            case "results":
                self._put(told, "results", self._results(lane))
        return told

    def _put(self, told: dict[str, Any], panel: str, key: Any, content: Callable[[], Any] | None = None) -> None:
        """Add a panel to `told` if its `key` changed: its `content`, or the key itself."""
        if panel not in self._shown or self._shown[panel] != key:
            self._shown[panel] = key
            told[panel] = key if content is None else content()

    def _put_form(self, told: dict[str, Any], lane: Lane, stale: Collection[str]) -> None:
        """Send all controls of a lane once, then only those that differ from the settings."""
        settings = lane.settings
        if "form" not in self._shown:
            self._shown["form"] = None
            told["form"] = form_state(settings)
            told["prompt"] = settings.prompt.text
        elif stale:
            told["form"] = form_state(settings, stale)
            if "prompt.text" in stale:
                told["prompt"] = settings.prompt.text

    def _put_lens(self, told: dict[str, Any], lane: Lane) -> None:
        session = lane.seat.session
        seen, version = session.lens.get(), (session.lens.version, lane.seat.id)
        frame = session.latest.version, lane.seat.id, self.row
        beside = (version, self.row) if seen is not None and len(seen.renders) else frame
        self._put(told, "preview", beside, lambda: self._preview(lane, seen))
        self._put(told, "lens", version, lambda: panels.no_lens() if seen is None else panels.lens(seen))

    def _put_charts(self, told: dict[str, Any], lane: Lane, lanes: list[Lane]) -> None:
        for each in lanes:
            each.ask_the_judge()
            each.measure()
        versions = tuple((each.seat.id, each.version) for each in lanes)
        frame = lane.seat.session.latest.version if not lane.stats else 0
        self._put(told, "charts", (versions, frame), lambda: self._charts(lane))

    def _stage(self) -> list[dict[str, Any]]:
        """Return what the stage shows of each lane."""
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
                "trouble": lane.view.trouble,
                "modes": [[mode, MODE_LABELS[mode]] for mode in view_modes(lane.seat.session.effective.scene)],
                "mode": lane.view.mode,
                "legend": lane.legend,
                "burst": lane.burst and lane.burst._asdict(),
            }
            for lane, tone in tones.items()
        ]

    def _results(self, lane: Lane) -> dict[str, Any]:
        """Return the formats that a lane offers and the files made on this desk."""
        kinds = OF_PICTURES if is_flat(lane.seat.session.effective) else OF_SPLATS
        return {
            "lane": lane.seat.id,
            "offers": [{"kind": k, "title": FORMATS[k].title, "about": FORMATS[k].about} for k in kinds],
            "items": [_item(self.id, result) for result in self.shelf.list()],
        }

    def _handed_in(self) -> dict[str, Any] | None:
        """Return the newest hand-in of this desk, finished or not."""
        found = (result for result in self.shelf.list() if result.kind == HAND_IN)
        return next((_item(self.id, result) for result in found), None)

    def _preview(self, lane: Lane, seen: LensPictures | None) -> str:
        """Return all views of the step that the lens shows, or of the last frame while the lens shows none."""
        frame = lane.seat.session.latest.get()
        if frame is None:
            return panels.no_preview()
        if seen is not None and len(seen.renders):
            return panels.preview(seen.renders, seen.views, frame.step, self.row)
        return panels.preview(frame.preview, frame.views, frame.step, self.row)

    def _charts(self, lane: Lane) -> str:
        """Return charts and table: the lane in focus first, then the others."""
        frame = lane.seat.session.latest.get()
        with self._lock:
            tones = dict(self._tones)
        tones.setdefault(lane, 0)  # it was just taken out for another
        order = sorted(tones, key=lambda each: (each is not lane, tones[each]))
        curves = [(tones[each], each.curves) for each in order]
        rows = [
            charts.LaneRow(
                tone,
                LETTERS[tone],
                each.settings.loss.title,
                " / ".join(each.settings.prompts),
                each.step,
                {**each.stats, **each.measured, **({} if each.judged is None else {"judge": each.judged})},
            )
            for each, tone in tones.items()
        ]
        scene = frame.stats if frame is not None else {}
        return charts.lanes_table(rows) + charts.charts(curves, lane.marks, scene, lane.stats)


def nothing() -> dict[str, Any]:
    """Return the panels below the scene while there is nothing to show in them."""
    return {
        "preview": panels.no_preview(),
        "lens": panels.no_lens(),
        "charts": charts.no_charts(),
        "versus": panels.no_comparison(),
    }


def pressable(lanes: Collection[tuple[Phase, bool]], frozen: bool = False) -> dict[str, bool]:
    """Return which run buttons make sense while the lanes are in these phases, each in bursts or not: none while the
    class is `frozen`. Start may be pressed while a lane is still loading."""
    if frozen:
        return dict.fromkeys(("start", "pause", "step", "reset"), False)
    phases = {phase for phase, _ in lanes}
    own = {phase for phase, in_bursts in lanes if not in_bursts}  # that Start and Step act on
    runs, idle = "running" in phases, {"ready", "paused", "failed"}
    can_reset = runs or not idle.isdisjoint(phases)
    return {"start": bool(own - {"running"}), "pause": runs, "step": not idle.isdisjoint(own), "reset": can_reset}


def _item(token: str, result: Result) -> dict[str, Any]:
    """Return one line of the list of results."""
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


def _comparison(seen: Comparison | None) -> str:
    return panels.no_comparison() if seen is None else panels.comparison(seen)


def _live(lane: Lane) -> dict[str, Any]:
    """Return which formula of the active loss applies, and the values of symbols that only a step determines."""
    frame, s = lane.seat.session.latest.get(), lane.settings
    stats = frame.stats if frame is not None else {}
    found = {"t": stats.get("t"), "w(t)": stats.get("weight"), "noise": stats.get("rms_noise")}
    found |= {term.written: stats.get(f"rms_{term.name}") for term in s.loss.terms}
    values = {symbol: short(value) for symbol, value in found.items() if value is not None}
    now = s.loss.formula_at(s.progress(lane.step))
    return {"loss": s.active, "formula": s.loss.formulas.index(now), "values": values}
