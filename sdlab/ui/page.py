"""The page: its layout, and handlers that only send commands or read what is there.

Every visitor has a desk (`sdlab.ui.desk`) with a seat for each lane; the browser holds nothing but the desk's token.
A handler takes milliseconds; what a session answers is picked up by the page, which asks twice a second.

The parts that Gradio has no component for (the stage, the timeline, the lens's slider, the form, results) are `gr.HTML`
with a script of ours (sdlab/ui/static/page.js). They say what a person did as {"do": verb, ...} in an `input` event.

What changes while a run goes on are the panels (`Desk.news`), which the page asks for by a route of ours and fills in
itself: Gradio takes 40 ms on the server and as many in the browser for an event with a dozen outputs. Its own
components (the run buttons, the prompt) change seldom; that they are due comes with the panels, and they are then
fetched by an event.
"""

from __future__ import annotations

import html
import itertools
import threading
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from gradio.themes.utils import fonts

from sdlab import settings as catalogue
from sdlab.export.writers import Material
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Advance, Compare, Goto, Pause, Phase, Reset, Resume
from sdlab.settings import Settings
from sdlab.ui.charts import no_charts
from sdlab.ui.desk import MOST_LANES, TABS, Desk
from sdlab.ui.form import form_html, form_state
from sdlab.ui.lane import WAITS_FOR_READY, Lane
from sdlab.ui.panels import no_comparison, no_lens, no_preview, no_session
from sdlab.ui.results import Shelves
from sdlab.ui.uploads import UPLOADS, Bringing
from sdlab.viewport.splat_view import Viewports

STATIC = Path(__file__).parent / "static"
TITLE = "Score Distillation Lab"
ARRIVING = 60.0  # seconds that a page just given a seat has for its first tick
MOST_SETTINGS = 20_000  # characters of a settings file
# what is fixed where the server's own settings, of another kind, do not say: nothing is downloaded for a visitor
UNLESS_SAID = {"scene.shap_e": ""}

QUICK = {  # of every handler: it takes milliseconds, so it neither waits in the queue nor shows a spinner
    "queue": False,
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}


def theme() -> gr.themes.Base:
    """Neutral greys and one accent; fonts of the system, so that no network is asked for any."""
    sans = [fonts.Font(f) for f in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [fonts.Font(f) for f in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")]
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="zinc", radius_size="md", text_size="md", font=sans, font_mono=mono
    ).set(
        body_background_fill="#f4f4f6",
        body_text_color_subdued="#63636e",
        body_text_color_subdued_dark="#9d9da8",
        body_background_fill_dark="#0e0e10",
        background_fill_primary_dark="#18181b",
        background_fill_secondary_dark="#131316",
        block_background_fill_dark="#18181b",
        block_border_width="0px",
        block_shadow="none",
        border_color_primary="#e2e2e7",
        border_color_primary_dark="#2c2c32",
        input_background_fill_dark="#101012",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#232328",
        button_secondary_border_color="#d6d6dc",
        button_secondary_border_color_dark="#34343b",
    )


class Page:
    """Builds the Blocks and keeps the desks."""

    def __init__(
        self, manager: Manager, viewports: Viewports, settings: Settings, preset: str | None, locked: Collection[str]
    ) -> None:
        self._manager = manager
        self._viewports = viewports
        self._settings = settings
        self._preset = preset
        self._locked = frozenset(locked)
        self._presets = [name for name in catalogue.preset_names() if self._is_open(catalogue.preset(name))]
        self._lock = threading.Lock()
        self._desks: dict[str, Desk] = {}  # by token
        self.shelves = Shelves()  # by token of a desk

    def _is_open(self, wanted: Settings) -> bool:
        """Whether a visitor may have these settings: with another prior than the server's they would get round the
        lock of the prior's path."""
        theirs = wanted.knobs()
        return all(theirs[path].value == value for path, value in self._fixed(wanted) if path.startswith("prior."))

    def _fixed(self, wanted: Settings) -> list[tuple[str, Any]]:
        """What is fixed on this server of the knobs that `wanted` has: they are as in the server's own settings, or
        where its scene or prior is of another kind, as they are by default."""
        usual = catalogue.default_settings(wanted.prior.kind, wanted.scene.kind)
        ours = {
            group: self._settings if getattr(self._settings, group).kind == getattr(wanted, group).kind else usual
            for group in ("prior", "scene")
        }
        fixed = []
        for path in self._locked.intersection(wanted.knobs()):
            of = ours.get(path.partition(".")[0], self._settings)
            value = of.knob(path).value
            fixed.append((path, UNLESS_SAID.get(path, value) if of is usual else value))
        return fixed

    def _for_visitors(self, wanted: Settings) -> Settings:
        """The same with what is fixed on this server; without the file that a run started from it starts as usual."""
        changes, knobs = self._fixed(wanted), wanted.knobs()
        lost = [path for path, value in changes if path in UPLOADS and knobs[path].value != value]
        if any(knobs["scene.start"].value == UPLOADS[path].start for path in lost):
            usual = catalogue.default_settings(wanted.prior.kind, wanted.scene.kind)
            changes.append(("scene.start", usual.knob("scene.start").value))
        return wanted.patch_all(changes)

    # ---- seats and desks -------------------------------------------------------------------------------

    def _lane(self, seat: Seat, preset: str | None, dark: bool) -> Lane:
        """A lane for a seat just opened; OSError when the machine has no socket left for its view."""
        try:
            view = self._viewports.open(seat, dark)
        except OSError:
            self._manager.close(seat.id)
            raise
        lane = Lane(seat, view, preset)
        seat.on_close.append(lambda: self._forget(lane))
        return lane

    def _open(self, page: str, settings: Settings, preset: str | None, dark: bool) -> Desk:
        """A desk for a page in place of the one it had; RuntimeError when all seats are taken."""
        previous = self._of_page(page)
        if previous is not None:
            self._close(previous)
        desk = Desk(self._lane(self._manager.open(settings), preset, dark), page)
        try:
            desk.shelf = self.shelves.open(desk.id)
        except OSError:
            self._close(desk)
            raise
        with self._lock:
            self._desks[desk.id] = desk
        for lane in desk.lanes:  # for a page that was closed before it came to tick
            self._manager.leave(lane.seat.id, at_least=ARRIVING)
        return desk

    def _close(self, desk: Desk) -> None:
        for lane in desk.lanes:
            self._manager.close(lane.seat.id)

    def _forget(self, lane: Lane) -> None:
        """A seat has ended: its lane goes, and with the last lane the desk."""
        with self._lock:
            desk = next((b for b in self._desks.values() if lane in b.lanes), None)
        if desk is not None and not desk.remove(lane):
            self._drop(desk)

    def _drop(self, desk: Desk) -> None:
        """It has no lane any more."""
        self.shelves.close(desk.id)
        desk.uploads.close()
        with self._lock:
            self._desks.pop(desk.id, None)

    def _of_page(self, page: str) -> Desk | None:
        """The desk that a page shows."""
        with self._lock:
            return next((desk for desk in self._desks.values() if desk.page == page), None)

    def _find(self, token: str, ticking: bool = False) -> Desk | None:
        """The desk; a sign of life, unless the page was closed and this is its last request, however late."""
        with self._lock:
            desk = self._desks.get(token)
        if desk is None or not desk.is_there(ticking):
            return desk
        for lane in desk.lanes:
            self._manager.get(lane.seat.id)
        return desk

    # ---- layout and wiring -------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """The page; to be mounted with `theme`, page.css and page.js."""
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
            token = gr.Textbox(visible="hidden", elem_id="token")
            look = _scripted("title", "sdlTheme(element, props, trigger)", _title_bar(self._manager.device), False)
            kept = gr.Textbox(visible=False)
            with gr.Row(elem_id="desk"):
                with gr.Column(elem_id="view"):
                    stage = _scripted("stage", "sdlStage(element, trigger)", _STAGE)
                    with gr.Column(elem_id="progress", elem_classes=["card"]):
                        _panel("status")
                        timeline = _scripted("timeline", "sdlTimeline(element, trigger)", _TIMELINE)
                with gr.Column(elem_id="side"):
                    with gr.Column(elem_classes=["card"]):
                        prompt = gr.Textbox(
                            self._settings.prompt.text,
                            label="Prompt",
                            placeholder="what to make, for example: a red bear",
                            max_lines=3,
                            elem_id="prompt",
                        )
                        with gr.Row(elem_id="run-buttons"):
                            start = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
                            pause = gr.Button("Pause", interactive=False, elem_id="pause")
                            step = gr.Button("Step", interactive=False, elem_id="step")
                            reset = gr.Button("Reset", interactive=False, elem_id="reset")
                        again = gr.Button("New session", variant="primary", visible=False, elem_id="again")
                    form = _scripted(
                        "form",
                        "sdlForm(element, props, trigger)",
                        form_html(self._settings, self._presets, self._locked),
                        form_state(self._settings, self._preset),
                    )
                with gr.Column(elem_id="readings", elem_classes=["card"]):
                    tabs = _scripted("tabs", "sdlTabs(element, trigger)", _TABS)
                    with gr.Row(elem_id="lens-panel"):
                        _panel("preview", no_preview())
                        _panel("lens", no_lens())
                        scrub = _scripted("scrub", "sdlScrub(element, trigger)", _SCRUB)
                    _panel("charts", no_charts())
                    with gr.Column(elem_id="versus-panel"):
                        compare = gr.Button("Compare all losses here", variant="primary", size="sm", elem_id="compare")
                        _panel("versus", no_comparison())
                    results = _scripted("results", "sdlResults(element, trigger)", _RESULTS)
                _scripted("live", "sdlLive()", "")
                news = _scripted("news", "sdlNews(props, trigger, watch)", "", {})

            everything = [token, again, start, pause, step, reset, prompt, news]  # in the order of Answer
            demo.load(self._arrive, [look, kept], everything, js="() => sdlRestore()", **QUICK)
            demo.unload(self._leave)
            again.click(self._start_again, [look], everything, **QUICK)
            news.input(self._refresh, [token], everything, **QUICK)
            start.click(self._press_start, [token, prompt], None, **QUICK)
            pause.click(self._press_pause, [token], None, **QUICK)
            step.click(self._press_step, [token, prompt], None, **QUICK)
            reset.click(self._press_reset, [token, prompt], None, **QUICK)
            compare.click(self._press_compare, [token], None, **QUICK)
            look.input(self._change_look, [token, look], None, trigger_mode="always_last", **QUICK)
            typed = [prompt.submit, prompt.blur]
            gr.on(typed, self._change_prompt, [token, prompt], None, trigger_mode="always_last", **QUICK)
            form.input(self._change_knob, [token], None, trigger_mode="multiple", **QUICK)
            form.select(self._pick_preset, [token, look], everything, trigger_mode="always_last", **QUICK)
            for part in (stage, timeline, tabs, scrub, results):
                part.input(self._act, [token, look], everything, trigger_mode="multiple", **QUICK)
        demo.queue(max_size=64, api_open=False)
        return demo

    # ---- handlers: a page comes, looks, goes -------------------------------------------------------------

    def _arrive(self, dark: bool, kept: str, request: gr.Request) -> list[Any]:
        """A page was loaded: it finds its runs again if there are any."""
        with self._lock:
            desk = self._desks.get(kept or "")
        if desk is None:
            return self._take_desk(request, self._settings, self._preset, dark)
        desk.come_back(request.session_hash or "")
        self._find(desk.id)
        for lane in desk.lanes:
            lane.view.set_dark(bool(dark))
        return list(_whole(desk))

    def _start_again(self, dark: bool, request: gr.Request) -> list[Any]:
        return self._take_desk(request, self._settings, self._preset, dark)

    def _take_desk(self, request: gr.Request, settings: Settings, preset: str | None, dark: bool) -> list[Any]:
        try:
            desk = self._open(request.session_hash or "", settings, preset, bool(dark))
        except (RuntimeError, OSError) as e:
            return _without_session("No free seat", str(e), "Try again")
        return list(_whole(desk))

    def poll(self, token: str, page: str) -> dict[str, Any]:
        """What is new on a desk, for the page that shows it: `panels`, and whether Gradio's own components are to be
        refreshed, too. `page` is its own name, as it was told with the token."""
        own = self._of_page(page)
        desk = self._find(token, ticking=True) if own is not None and own.id == token else None
        if desk is None:
            return {"refresh": True}  # which will tell what has become of it
        with desk.telling:
            panels = _news(desk)
            return {"number": next(_numbers), "panels": panels, "refresh": bool(desk.due)}

    def bringing(self, token: str) -> Bringing | None:
        """Where what is brought to a desk from now on goes: to the lane that has the focus now."""
        desk = self._find(token)
        if desk is None:
            return None
        lane = desk.focus
        return Bringing(desk.uploads, lambda knob, name, raw: self._bring(desk, lane, knob, name, raw))

    def _bring(self, desk: Desk, lane: Lane, knob: str, name: str, raw: bytes) -> None:
        """Let a run start from a file: at once if it has not begun, else after a reset. ValueError when it is of no
        use, RuntimeError when the run has ended."""
        if knob not in lane.settings.knobs():
            raise ValueError(f"this run does not start from a file of this kind: it has no {knob}")
        in_use = {Path(path) for other in desk.lanes for path in other.files()}
        path = desk.uploads.keep(knob, name, raw, in_use)
        if lane not in desk.lanes:
            raise RuntimeError("the run that this file is for has ended")
        lane.start_from(knob, path)

    def _refresh(self, token: str, request: gr.Request) -> Any:
        """What `poll` does not bring."""
        page = request.session_hash or ""
        own = self._of_page(page)
        if not token:  # another request has just been answered with the end of its session
            return gr.skip()
        if own is not None and own.id != token:
            return gr.skip()  # the page has just been given another desk, and asks with its old one
        with self._lock:
            known = token in self._desks
        if own is None and known:
            text = "This session is open in another tab, to which this one was copied."
            return _without_session("Open in another tab", text, "New session")
        desk = self._find(token)
        if desk is None:
            text = "This session is over: nobody was here for a while, or the server was restarted."
            return _without_session("Session ended", text, "New session")
        with desk.telling:
            return list(Answer(**_due(desk)))

    def _leave(self, request: gr.Request) -> None:
        """The page was closed or loaded anew."""
        desk = self._of_page(request.session_hash or "")  # none if it was loaded anew, which may be told first
        if desk is not None:
            desk.leave()
            for lane in desk.lanes:
                self._manager.leave(lane.seat.id)

    # ---- handlers: what a person does --------------------------------------------------------------------

    def _press_start(self, token: str, prompt: str) -> None:
        if (desk := self._find(token)) is not None:
            loading = desk.focus.seat.session.status.phase in ("loading", "compiling")
            desk.send(Resume(), note=WAITS_FOR_READY if loading else "", prompt=prompt)

    def _press_pause(self, token: str) -> None:
        if (desk := self._find(token)) is not None:
            desk.send(Pause())

    def _press_step(self, token: str, prompt: str) -> None:
        if (desk := self._find(token)) is not None:
            desk.send(Advance(1), prompt=prompt)

    def _press_reset(self, token: str, prompt: str) -> None:
        if (desk := self._find(token)) is not None:
            desk.send(Pause(), Reset(), prompt=prompt)

    def _press_compare(self, token: str) -> None:
        if (desk := self._find(token)) is not None:
            desk.focus.send(Compare())

    def _change_look(self, token: str, dark: bool) -> None:
        if (desk := self._find(token)) is not None:
            for lane in desk.lanes:
                lane.view.set_dark(bool(dark))

    def _change_prompt(self, token: str, text: str) -> None:
        if (desk := self._find(token)) is not None:
            desk.focus.send(prompt=text)

    def _change_knob(self, token: str, event: gr.EventData) -> None:
        change = event._data if isinstance(event._data, dict) else {}
        path, number = str(change.get("knob")), _whole_number(change.get("number"))
        if (desk := self._find(token)) is not None and path not in self._locked:
            desk.focus.change(path, change.get("value"), number)

    def _pick_preset(self, token: str, dark: bool, event: gr.EventData) -> Any:
        asked = event._data if isinstance(event._data, dict) else {}
        desk = self._find(token)
        if desk is None:
            return gr.skip()
        lane = desk.focus
        now = lane.settings
        if "settings" in asked:
            name = None
            try:
                wanted = self._settings_of(str(asked["settings"]), str(asked.get("name")))
            except ValueError as e:
                lane.say("error", str(e))
                return gr.skip()
        else:
            name = str(asked.get("preset"))
            if name not in self._presets:
                return gr.skip()
            wanted = self._for_visitors(catalogue.preset(name))
            has_own_prompt = wanted.prompt.text != Settings().prompt.text
            if wanted.prior.kind == now.prior.kind and not has_own_prompt:  # keep what was typed, in the same language
                wanted = wanted.patch("prompt.text", now.prompt.text)
        if _starts_anew(wanted, now):
            return self._replace(desk, lane, wanted, name, bool(dark))
        lane.pick(name, wanted)
        panels = {"form": form_state(wanted, name)}
        return list(Answer(prompt=wanted.prompt.text, news=_told(desk.id, desk.page, panels)))

    def _settings_of(self, text: str, name: str) -> Settings:
        """Settings that somebody brings as the text of the file `name`; ValueError says what is wrong with them."""
        if len(text) > MOST_SETTINGS:
            raise ValueError(f"{name} has {len(text):,} characters; settings have at most {MOST_SETTINGS:,}")
        wanted = catalogue.from_toml(text, name)
        if not self._is_open(wanted):
            raise ValueError(f"{name}: it is for another prior, and this server's cannot be changed")
        return self._for_visitors(wanted)

    def _replace(self, desk: Desk, lane: Lane, settings: Settings, preset: str | None, dark: bool) -> list[Any]:
        """Another run in the place of a lane, whose seat is given back first: it may be the last one free."""
        tone = desk.take_out(lane)
        self._manager.close(lane.seat.id)
        try:
            other = self._lane(self._manager.open(settings), preset, dark)
            desk.put_in(other, tone)
            self._manager.leave(other.seat.id, at_least=ARRIVING)  # the page may have been closed meanwhile
        except (RuntimeError, OSError) as e:
            if desk.lanes:
                desk.look_at(desk.lanes[0])
                desk.focus.say("error", str(e))
                return list(_whole(desk))
            self._drop(desk)
            return _without_session("No free seat", str(e), "Try again")
        return list(_whole(desk))

    def _act(self, token: str, dark: bool, event: gr.EventData) -> Any:
        """What one of the page's own parts asks for; what it does not know it does not do."""
        desk = self._find(token)
        if desk is None:
            return gr.skip()
        asked = event._data if isinstance(event._data, dict) else {}
        lane = desk.lane(str(asked["lane"])) if asked.get("lane") is not None else desk.focus
        if lane is None:
            return gr.skip()  # it has been closed: a second press of its button must not act on another
        match asked.get("do"):
            case "front":
                lane.view.look_from_front()
            case "focus":
                desk.look_at(lane)
                return list(_whole(desk))
            case "branch":
                return self._branch(desk, lane, bool(dark))
            case "close" if len(desk.lanes) > 1:
                self._manager.close(lane.seat.id)
                return list(_whole(desk))
            case "keep":
                desk.look_at(lane)
                for other in desk.lanes:
                    if other is not lane:
                        self._manager.close(other.seat.id)
                return list(_whole(desk))
            case "goto":
                lane.send(Goto(_whole_number(asked.get("step"))))
            case "replay":
                lane.view.replay(lane.seat.session.timeline.film())
            case "live":
                lane.view.replay(())
            case "tab" if asked.get("tab") in TABS:
                desk.turn_to(asked["tab"])
            case "view":
                desk.choose_view(_whole_number(asked.get("row")))
            case "probe":
                t = asked.get("t")
                desk.ask_at(None if t is None else _whole_number(t))
            case "make":
                _make(desk, lane, str(asked.get("kind")))
            case "cancel":
                desk.shelf.cancel(str(asked.get("id")))
        return gr.skip()

    def _branch(self, desk: Desk, lane: Lane, dark: bool) -> Any:
        """Another lane that goes on from where this one is."""
        try:
            if len(desk.lanes) >= MOST_LANES:
                raise ValueError(f"{MOST_LANES} lanes are there already: close one first")
            seat = self._manager.branch(lane.seat.id)
            other = self._lane(seat, lane.preset, dark)
            other.view.begin_like(lane.view)
            self._add(desk, other)
        except (RuntimeError, ValueError, OSError) as e:
            lane.say("error", str(e))
            return gr.skip()
        return list(_whole(desk))

    def _add(self, desk: Desk, lane: Lane) -> None:
        """Put a lane just opened on a desk; without room its seat ends, and ValueError."""
        try:
            desk.add(lane)
        except ValueError:  # somebody was quicker
            self._manager.close(lane.seat.id)
            raise
        self._manager.leave(lane.seat.id, at_least=ARRIVING)  # the page may have been closed meanwhile


def _make(desk: Desk, lane: Lane, kind: str) -> None:
    """Have a file made of what a lane has now. The session copies it between two steps, the shelf does the rest."""

    def put(answer: Future[Material]) -> None:
        try:
            desk.shelf.start(kind, answer.result())
        except Exception as e:  # in the session's thread: whatever it is, the run goes on
            lane.say("error", str(e))

    lane.seat.session.material().add_done_callback(put)


def _whole_number(value: Any) -> int:
    """0 for what is none: the browser is not to be trusted."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def _starts_anew(wanted: Settings, now: Settings) -> bool:
    """Whether a preset is nothing that the present run could turn into. Points and pictures are over in seconds, and
    where they start is what such a preset is about."""
    if (wanted.prior.kind, wanted.scene.kind) != (now.prior.kind, now.scene.kind):
        return True
    return wanted.scene.kind != Settings().scene.kind and (wanted.scene, wanted.prior) != (now.scene, now.prior)


# ---- answers ---------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a handler may change on the page; gr.skip() leaves a part as it is."""

    token: Any = gr.skip()
    again: Any = gr.skip()
    start: Any = gr.skip()
    pause: Any = gr.skip()
    step: Any = gr.skip()
    reset: Any = gr.skip()
    prompt: Any = gr.skip()
    news: Any = gr.skip()


_numbers = itertools.count(1)  # of what pages are told: answers may overtake each other


def _told(token: str, page: str, panels: dict[str, Any]) -> dict[str, Any]:
    """What the page's `news` gets by an event of Gradio's."""
    return {"token": token, "page": page, "number": next(_numbers), "panels": panels}


def _whole(desk: Desk) -> Answer:
    """Everything, for a page that shows nothing of this desk yet, or another lane of it."""
    with desk.telling:
        desk.forget_what_was_shown()
        panels = _nothing() | _news(desk)
        settings = desk.focus.settings
        panels["form"] = form_state(settings, desk.focus.preset)
        desk.due["prompt"] = settings.prompt.text
        told = _told(desk.id, desk.page, panels)
        return Answer(token=desk.id, again=gr.update(visible=False), news=told, **_due(desk))


def _nothing() -> dict[str, str]:
    """The panels below the scene while there is nothing to see in them."""
    return {"preview": no_preview(), "lens": no_lens(), "charts": no_charts(), "versus": no_comparison()}


def _news(desk: Desk) -> dict[str, Any]:
    """The panels of a desk in which there is something new; what else is due it notes there."""
    look, panels = desk.news()
    lane = desk.focus
    if look.status is not None:
        panels["status"] = look.status
    if (phases := panels.pop("phases", None)) is not None:
        desk.due |= {name: gr.update(interactive=can) for name, can in _pressable(phases).items()}
    if look.stale:
        settings = lane.settings
        panels["form"] = form_state(settings, lane.preset, look.stale)
        if "prompt.text" in look.stale:
            desk.due |= {"prompt": settings.prompt.text}
    return panels


def _due(desk: Desk) -> dict[str, Any]:
    """What Gradio's own components are to become, by name; they are not due any more."""
    found, desk.due = desk.due, {}
    return found


def _pressable(phases: frozenset[Phase]) -> dict[str, bool]:
    """Which buttons have a meaning while the lanes are in these phases: what is pressed acts on all of them. Start may
    be pressed ahead, while things are loading."""
    runs = "running" in phases
    idle = not phases.isdisjoint(("ready", "paused", "failed"))
    return {"start": phases != {"running"}, "pause": runs, "step": idle, "reset": idle or runs}


def _without_session(title: str, text: str, button: str) -> list[Any]:
    dead = {name: gr.update(interactive=False) for name in ("start", "pause", "step", "reset")}
    panels = _nothing() | {"stage": [], "status": no_session(title, text), "timeline": {}, "results": {}}
    return list(Answer(token="", again=gr.update(visible=True, value=button), news=_told("", "", panels), **dead))


# ---- pieces of HTML --------------------------------------------------------------------------------------


def _scripted(name: str, script: str, body: str, value: Any = "") -> gr.HTML:
    """A part of the page with a script of its own; its body is rendered once."""
    return gr.HTML(value, html_template="${body}", js_on_load=script, body=body, apply_default_css=False, elem_id=name)


def _panel(name: str, body: str = "") -> None:
    """A part of the page that shows what `Desk.news` has under this name."""
    _scripted(name, f"sdlPanel(element, {name!r})", f"<div data-panel>{body}</div>")


_STAGE = '<div class="stage"></div><div class="no-view">The scene appears here.</div>'
_TIMELINE = (
    '<div class="timeline"><button type="button" data-replay title="Replay how it grew">&#9655;</button>'
    '<div class="track"><i class="done"></i><span class="ticks"></span><b class="now"></b></div></div>'
)
_PANELS = ("lens-panel", "charts", "versus-panel", "results")  # what each of the tabs shows
_TABS = (
    '<nav role="tablist">'
    + "".join(
        f'<button type="button" role="tab" data-tab="{name}" aria-controls="{panel}" '
        f'aria-selected="{str(name == TABS[0]).lower()}">{title}</button>'
        for name, panel, title in zip(TABS, _PANELS, ("Lens", "Charts", "Losses compared", "Results"), strict=True)
    )
    + "</nav>"
)
_SCRUB = (
    '<div class="scrub"><label for="probe-t">Ask the prior at t</label>'
    '<input id="probe-t" type="range" min="0" max="999" value="500"><output>live</output>'
    '<button type="button" data-live disabled>live</button></div>'
)
_RESULTS = '<div class="kinds"></div><ul class="shelf"></ul>'


def _title_bar(device: torch.device) -> str:
    where = {"cpu": "on the processor", "cuda": "on the GPU"}.get(device.type, f"on {device}")
    return (
        f'<header><span class="logo" aria-hidden="true"></span><h1>{TITLE}</h1>'
        f'<span class="sub">running {html.escape(where)}</span>'
        '<button type="button" data-large aria-label="Large text, for a projector" title="Large text">A</button>'
        '<button type="button" data-theme aria-label="Switch between light and dark" title="Light or dark">'
        '<span class="sun">&#9728;</span><span class="moon">&#9790;</span></button></header>'
    )
