"""The page: its layout, and handlers that only send commands or read what is there.

Every visitor has a seat; the browser holds nothing but the seat's id, in a `gr.State` on the server. A handler takes
milliseconds; what a session answers is picked up by the timer.
"""

from __future__ import annotations

import html
import itertools
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.themes.utils import fonts

from sdlab import settings as catalogue
from sdlab.manager import Manager
from sdlab.messages import Advance, Pause, Phase, Reset, Resume
from sdlab.settings import Settings
from sdlab.ui.form import form_html, form_state
from sdlab.ui.panels import no_charts, no_preview, no_session
from sdlab.ui.visit import WAITS_FOR_READY, Visit
from sdlab.viewport.splat_view import Viewports

ASSETS = Path(__file__).parents[2] / "assets"
TITLE = "Score Distillation Lab"
TICK = 0.5  # seconds
ARRIVING = 60.0  # seconds that a page just given a seat has for its first tick

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
    """Builds the Blocks and keeps the visits."""

    def __init__(
        self, manager: Manager, viewports: Viewports, settings: Settings, preset: str | None, locked: Collection[str]
    ) -> None:
        self._manager = manager
        self._viewports = viewports
        self._settings = settings
        self._preset = preset
        self._locked = frozenset(locked)
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}  # by seat id
        self._seats_of: dict[str, str] = {}  # page (Gradio's session hash) -> seat id

    # ---- visits ------------------------------------------------------------------------------------------

    def _open(self, page: str, settings: Settings, preset: str | None, dark: bool) -> Visit:
        """A seat for a page in place of the one it had; RuntimeError when all are taken, OSError when the machine has
        no socket left for its view."""
        with self._lock:
            previous = self._seats_of.pop(page, None)
        if previous is not None:
            self._manager.close(previous)
        seat = self._manager.open(settings)
        try:
            view = self._viewports.open(seat, dark)
        except OSError:
            self._manager.close(seat.id)
            raise
        visit = Visit(seat, view, preset)
        with self._lock:
            self._visits[seat.id] = visit
            self._seats_of[page] = seat.id
        seat.on_close.append(lambda: self._forget(page, seat.id))
        self._manager.leave(seat.id, at_least=ARRIVING)  # for a page that was closed before it came to tick
        return visit

    def _forget(self, page: str, seat_id: str) -> None:
        with self._lock:
            self._visits.pop(seat_id, None)
            if self._seats_of.get(page) == seat_id:
                del self._seats_of[page]

    def _find(self, seat_id: str, ticking: bool = False) -> Visit | None:
        """The visit; a sign of life, unless the page was closed and this is its last request, however late."""
        with self._lock:
            visit = self._visits.get(seat_id)
        if visit is None or not visit.is_there(ticking):
            return visit
        return visit if self._manager.get(seat_id) is not None else None

    # ---- layout and wiring -------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """The page; to be mounted with `theme`, page.css and page.js."""
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
            seat = gr.State("")
            look = gr.HTML(
                False,
                html_template="${body}",
                js_on_load="sdlTheme(element, props, trigger)",
                body=_title_bar(str(self._manager.device)),
                apply_default_css=False,
                elem_id="title",
            )
            with gr.Row(elem_id="bench"):
                with gr.Column(elem_id="view"):
                    with gr.Column(elem_id="stage"):
                        viewport = gr.HTML(_no_view(), elem_id="viewport", apply_default_css=False)
                        front = gr.Button("Front view", size="sm", elem_id="front")
                    status = gr.HTML(elem_id="status", apply_default_css=False)
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
                    form = gr.HTML(
                        form_state(self._settings, self._preset, 0),
                        html_template="${body}",
                        js_on_load="sdlForm(element, props, trigger, watch)",
                        body=form_html(self._settings, catalogue.preset_names(), self._locked),
                        apply_default_css=False,
                        elem_id="form",
                    )
                with gr.Row(elem_id="readings"):
                    preview = gr.HTML(no_preview(), elem_id="preview", apply_default_css=False)
                    charts = gr.HTML(no_charts(), elem_id="charts", apply_default_css=False)
            timer = gr.Timer(TICK)

            # in the order of Answer
            everything = [seat, viewport, again, status, preview, charts, start, pause, step, reset, prompt, form]
            demo.load(self._arrive, [look], everything, js="() => [sdlRestoreTheme()]", **QUICK)
            demo.unload(self._leave)
            again.click(self._arrive, [look], everything, **QUICK)
            timer.tick(self._tick, [seat], everything, **QUICK)
            start.click(self._press_start, [seat, prompt], None, **QUICK)
            pause.click(self._press_pause, [seat], None, **QUICK)
            step.click(self._press_step, [seat, prompt], None, **QUICK)
            reset.click(self._press_reset, [seat, prompt], None, **QUICK)
            front.click(self._press_front, [seat], None, **QUICK)
            look.input(self._change_look, [seat, look], None, trigger_mode="always_last", **QUICK)
            typed = [prompt.submit, prompt.blur]
            gr.on(typed, self._change_prompt, [seat, prompt], None, trigger_mode="always_last", **QUICK)
            form.input(self._change_knob, [seat], None, trigger_mode="multiple", **QUICK)
            form.select(self._pick_preset, [seat, look], everything, trigger_mode="always_last", **QUICK)
        demo.queue(max_size=64, api_open=False)
        return demo

    # ---- handlers: a page comes, looks, goes -------------------------------------------------------------

    def _arrive(self, dark: bool, request: gr.Request) -> list[Any]:
        return self._take_seat(request, self._settings, self._preset, dark)

    def _take_seat(self, request: gr.Request, settings: Settings, preset: str | None, dark: bool) -> list[Any]:
        try:
            visit = self._open(request.session_hash or "", settings, preset, bool(dark))
        except (RuntimeError, OSError) as e:
            return _without_session("No free seat", str(e), "Try again")
        answer = Answer(
            seat=visit.seat.id,
            viewport=_view(visit.seat.id),
            again=gr.update(visible=False),
            preview=no_preview(),
            charts=no_charts(),
            prompt=settings.prompt.text,
            form=form_state(settings, preset, next(_form_numbers)),
        )
        return list(answer._replace(**_news(visit)))

    def _tick(self, seat_id: str, request: gr.Request) -> Any:
        if not seat_id:
            return gr.skip()
        visit = self._find(seat_id, ticking=True)
        if visit is None:
            with self._lock:
                now = self._seats_of.get(request.session_hash or "")
            if now is not None and now != seat_id:
                return gr.skip()  # the page has just been given another seat, and asks with its old one
            text = "This session is over: nobody was here for a while, or the server was restarted."
            return _without_session("Session ended", text, "New session")
        news = _news(visit)
        return list(Answer(**news)) if news else gr.skip()

    def _leave(self, request: gr.Request) -> None:
        """The page was closed or loaded anew."""
        with self._lock:
            seat_id = self._seats_of.get(request.session_hash or "")
            visit = self._visits.get(seat_id) if seat_id is not None else None
        if seat_id is not None and visit is not None:
            visit.leave()
            self._manager.leave(seat_id)

    # ---- handlers: what a person does --------------------------------------------------------------------

    def _press_start(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            loading = visit.seat.session.status.phase in ("loading", "compiling")
            visit.send(Resume(), note=WAITS_FOR_READY if loading else "", prompt=prompt)

    def _press_pause(self, seat_id: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.send(Pause())

    def _press_step(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.send(Advance(1), prompt=prompt)

    def _press_reset(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.send(Pause(), Reset(), prompt=prompt)

    def _press_front(self, seat_id: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.view.look_from_front()

    def _change_look(self, seat_id: str, dark: bool) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.view.set_dark(bool(dark))

    def _change_prompt(self, seat_id: str, text: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.send(prompt=text)

    def _change_knob(self, seat_id: str, event: gr.EventData) -> None:
        change = event._data
        path, number = str(change.get("knob")), int(change.get("number", 0))
        if (visit := self._find(seat_id)) is not None and path not in self._locked:
            visit.change(path, change.get("value"), number)

    def _pick_preset(self, seat_id: str, dark: bool, request: gr.Request, event: gr.EventData) -> Any:
        name = str(event._data.get("preset"))
        visit = self._find(seat_id)
        if visit is None or name not in catalogue.preset_names():
            return gr.skip()
        wanted, now = catalogue.preset(name), visit.settings
        has_own_prompt = wanted.prompt.text != Settings().prompt.text
        if wanted.prior.kind == now.prior.kind and not has_own_prompt:  # keep what was typed, in the same language
            wanted = wanted.patch("prompt.text", now.prompt.text)
        if _starts_anew(wanted, now):
            return self._take_seat(request, wanted, name, dark)
        visit.pick(name, wanted)
        return list(Answer(prompt=wanted.prompt.text, form=form_state(wanted, name, next(_form_numbers))))


def _starts_anew(wanted: Settings, now: Settings) -> bool:
    """Whether a preset is nothing that the present run could turn into. Points and pictures are over in seconds, and
    where they start is what such a preset is about."""
    if (wanted.prior.kind, wanted.scene.kind) != (now.prior.kind, now.scene.kind):
        return True
    return wanted.scene.kind != Settings().scene.kind and (wanted.scene, wanted.prior) != (now.scene, now.prior)


# ---- answers ---------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a handler may change on the page; gr.skip() leaves a part as it is."""

    seat: Any = gr.skip()
    viewport: Any = gr.skip()
    again: Any = gr.skip()
    status: Any = gr.skip()
    preview: Any = gr.skip()
    charts: Any = gr.skip()
    start: Any = gr.skip()
    pause: Any = gr.skip()
    step: Any = gr.skip()
    reset: Any = gr.skip()
    prompt: Any = gr.skip()
    form: Any = gr.skip()


_form_numbers = itertools.count(1)  # tells successive states of a form apart, also those of two sessions on one page


def _news(visit: Visit) -> dict[str, Any]:
    """What is new in a session, by part of the page."""
    look = visit.look()
    news: dict[str, Any] = {
        name: content
        for name, content in (("status", look.status), ("preview", look.preview), ("charts", look.charts))
        if content is not None
    }
    if look.phase is not None:
        news |= {name: gr.update(interactive=can) for name, can in _pressable(look.phase).items()}
    if look.stale:
        settings = visit.settings
        news["form"] = form_state(settings, visit.preset, next(_form_numbers), look.stale)
        if "prompt.text" in look.stale:
            news["prompt"] = settings.prompt.text
    return news


def _pressable(phase: Phase) -> dict[str, bool]:
    """Which buttons have a meaning in a phase; Start may be pressed ahead, while things are loading."""
    idle = phase in ("ready", "paused", "failed")
    return {
        "start": phase != "running",
        "pause": phase == "running",
        "step": idle,
        "reset": idle or phase == "running",
    }


def _without_session(title: str, text: str, button: str) -> list[Any]:
    dead = {name: gr.update(interactive=False) for name in ("start", "pause", "step", "reset")}
    return list(
        Answer(
            seat="",
            viewport=_no_view(),
            again=gr.update(visible=True, value=button),
            status=no_session(title, text),
            preview=no_preview(),
            charts=no_charts(),
            **dead,
        )
    )


# ---- pieces of HTML --------------------------------------------------------------------------------------


def _view(token: str) -> str:
    """The frame with the view of a seat; a relative address, so that it holds behind any reverse proxy."""
    return f'<iframe src="viewport/{html.escape(token)}/" title="3D view of the scene"></iframe>'


def _no_view() -> str:
    return '<div class="no-view">The scene appears here.</div>'


def _title_bar(device: str) -> str:
    where = {"cpu": "on the processor", "cuda": "on the GPU"}.get(device.partition(":")[0], f"on {device}")
    return (
        f'<header><span class="logo" aria-hidden="true"></span><h1>{TITLE}</h1>'
        f'<span class="sub">running {html.escape(where)}</span>'
        '<button type="button" aria-label="Switch between light and dark" title="Light or dark">'
        '<span class="sun">&#9728;</span><span class="moon">&#9790;</span></button></header>'
    )
