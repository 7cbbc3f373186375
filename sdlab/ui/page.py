"""The page: its layout, and handlers that only send commands or read what is there.

Every visitor has a seat; the browser holds nothing but the seat's id, in a `gr.State` on the server. A handler takes
milliseconds; what a session answers is picked up by the timer.
"""

from __future__ import annotations

import functools
import html
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import fonts

from sdlab import settings as catalogue
from sdlab.manager import Manager
from sdlab.messages import Advance, Pause, Phase, Reset, Resume
from sdlab.settings import Settings
from sdlab.ui.form import Form
from sdlab.ui.panels import loss_card, no_session
from sdlab.ui.visit import Visit
from sdlab.viewport.splat_view import Viewports

ASSETS = Path(__file__).parents[2] / "assets"
TITLE = "Score Distillation Lab"
TICK = 0.5  # seconds
LEAVING = 2.0  # seconds after a page was closed in which a late tick is not taken for its return

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
        """A seat for a page in place of the one it had; RuntimeError when all are taken."""
        with self._lock:
            previous = self._seats_of.pop(page, None)
        if previous is not None:
            self._manager.close(previous)
        seat = self._manager.open(settings)
        visit = Visit(seat, self._viewports.open(seat, dark), preset)
        with self._lock:
            self._visits[seat.id] = visit
            self._seats_of[page] = seat.id
        seat.on_close.append(lambda: self._forget(page, seat.id))
        return visit

    def _forget(self, page: str, seat_id: str) -> None:
        with self._lock:
            self._visits.pop(seat_id, None)
            if self._seats_of.get(page) == seat_id:
                del self._seats_of[page]

    def _find(self, seat_id: str) -> Visit | None:
        """The visit; a sign of life, unless the page has just been closed and this is its last request."""
        with self._lock:
            visit = self._visits.get(seat_id)
        if visit is None:
            return None
        if visit.left_at is not None and time.monotonic() - visit.left_at < LEAVING:
            return visit
        visit.left_at = None
        return visit if self._manager.get(seat_id) is not None else None

    def left(self, request: gr.Request) -> None:
        """The page was closed or loaded anew."""
        with self._lock:
            seat_id = self._seats_of.get(request.session_hash or "")
            visit = self._visits.get(seat_id) if seat_id is not None else None
        if seat_id is not None and visit is not None:
            visit.left_at = time.monotonic()
            self._manager.leave(seat_id)

    # ---- layout ------------------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        form = Form(self._settings, self._locked)
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
            self.seat = gr.State("")
            # Grows when controls are to be put right. It passes through the browser because a gr.State that changes
            # outside the queue triggers nothing.
            self.nudge = gr.HTML(
                0, html_template="", js_on_load="watch('value', () => trigger('change'))", visible="hidden"
            )
            self.theme = gr.HTML(
                False,
                html_template="${body}",
                body=_title_bar(str(self._manager.device)),
                js_on_load="sdlTheme(element, props, trigger)",
                apply_default_css=False,
                elem_id="title",
            )
            with gr.Row(elem_id="bench"):
                with gr.Column(elem_id="view"):
                    self.viewport = gr.HTML(_no_view(), elem_id="viewport", apply_default_css=False)
                    self.front = gr.Button("Front view", size="sm", elem_id="front")
                with gr.Column(elem_id="side"):
                    self._side(form)
                with gr.Column(elem_id="panels"):
                    self.status = gr.HTML(elem_id="status", apply_default_css=False)
                    with gr.Row(elem_id="readings"):
                        self.preview = gr.HTML(elem_id="preview", apply_default_css=False)
                        self.charts = gr.HTML(elem_id="charts", apply_default_css=False)
            self.timer = gr.Timer(TICK)
            self._wire(demo, form)
        demo.queue(max_size=64, api_open=False)
        return demo

    def _side(self, form: Form) -> None:
        """The controls, from what is used most to what is used least."""
        with gr.Column(elem_classes=["card"]):
            self.prompt = gr.Textbox(
                self._settings.prompt.text,
                label="Prompt",
                placeholder="what to make, for example: a red bear",
                lines=1,
                max_lines=3,
                elem_id="prompt",
                container=True,
            )
            form.add("prompt.text", self.prompt, "prompt")
            with gr.Row(elem_id="run-buttons"):
                self.start = gr.Button("Start", variant="primary", elem_id="start", min_width=60)
                self.pause = gr.Button("Pause", interactive=False, elem_id="pause", min_width=60)
                self.step = gr.Button("Step", interactive=False, elem_id="step", min_width=60)
                self.reset = gr.Button("Reset", interactive=False, elem_id="reset", min_width=60)
            self.again = gr.Button("New session", variant="primary", visible=False, elem_id="again")
        with gr.Column(elem_classes=["card"]):
            names = catalogue.preset_names()
            self.picker = gr.Dropdown(
                [(catalogue.about(n)["title"], n) for n in names],
                value=self._preset,
                label="Preset",
                elem_id="preset",
                filterable=False,
            )
            self.about = gr.HTML(_about(self._preset), elem_id="about", apply_default_css=False)
        with gr.Column(elem_classes=["card"]):
            losses = self._settings.losses
            self.active = gr.Dropdown(
                [(loss.title, name) for name, loss in losses.items()],
                value=self._settings.active,
                label="Loss",
                elem_id="active",
                visible=len(losses) > 1,
            )
            form.add("active", self.active)
            self.loss = gr.HTML(loss_card(self._settings.loss), elem_id="loss", apply_default_css=False)
            form.losses()
        with gr.Column(elem_classes=["card", "groups"]):
            form.accordions()

    # ---- wiring ------------------------------------------------------------------------------------------

    def _wire(self, demo: gr.Blocks, form: Form) -> None:
        live = [self.status, self.preview, self.charts, self.start, self.pause, self.step, self.reset]
        lasting = [self.picker, self.about, self.loss]
        place = [self.seat, self.viewport, self.again]
        whole_form = [*lasting, *form.outputs()]

        demo.load(
            self._arrive,
            [self.theme],
            [*place, *live],
            js="() => [sdlRestoreTheme()]",
            **QUICK,
        )
        demo.unload(self.left)
        self.again.click(self._start_anew(form), [self.theme], [*place, *live, *whole_form], **QUICK)
        self.timer.tick(self._tick, [self.seat], [*place, *live, self.nudge], **QUICK)
        self.nudge.change(self._put_right(form), [self.seat], whole_form, **QUICK)

        for button, send in (
            (self.start, self._press_start),
            (self.pause, self._press_pause),
            (self.step, self._press_step),
            (self.reset, self._press_reset),
        ):
            button.click(send, [self.seat, self.prompt], None, **QUICK)
        self.front.click(self._press_front, [self.seat], None, **QUICK)
        self.theme.input(self._change_theme, [self.seat, self.theme], None, trigger_mode="always_last", **QUICK)

        gr.on(
            [self.prompt.submit, self.prompt.blur],
            self._change_prompt,
            [self.seat, self.prompt],
            None,
            trigger_mode="always_last",
            **QUICK,
        )
        self.picker.input(
            self._pick(form),
            [self.seat, self.picker, self.theme],
            [*place, *live, *whole_form],
            trigger_mode="always_last",
            **QUICK,
        )
        self.active.input(
            self._change_loss(form), [self.seat, self.active], whole_form, trigger_mode="always_last", **QUICK
        )
        for field in form.sent_by_visitors():
            if field.control not in (self.prompt, self.active):
                change = functools.partial(self._change_knob, field.path)
                field.control.input(  # type: ignore[attr-defined]
                    change, [self.seat, field.control], None, trigger_mode="always_last", **QUICK
                )

    # ---- handlers: a page comes, looks, goes -------------------------------------------------------------

    def _arrive(self, dark: bool, request: gr.Request) -> list[Any]:
        return self._seat_page(request, self._settings, self._preset, bool(dark))[0]

    def _start_anew(self, form: Form) -> Callable[..., list[Any]]:
        def start_anew(dark: bool, request: gr.Request) -> list[Any]:
            updates, visit = self._seat_page(request, self._settings, self._preset, bool(dark))
            return [*updates, *(self._whole_form(form, visit) if visit else _skips(3 + len(form.outputs())))]

        return start_anew

    def _seat_page(
        self, request: gr.Request, settings: Settings, preset: str | None, dark: bool
    ) -> tuple[list[Any], Visit | None]:
        """What a page shows after it asked for a seat, and its visit unless there was none to be had."""
        try:
            visit = self._open(request.session_hash or "", settings, preset, dark)
        except RuntimeError as e:
            return ["", _no_view(), gr.update(visible=True, value="Try again"), *_lost("No free seat", str(e))], None
        return [visit.seat.id, _view(visit.seat.id), gr.update(visible=False), *_shown(visit)[:-1]], visit

    def _tick(self, seat_id: str) -> Any:
        if not seat_id:
            return gr.skip()
        visit = self._find(seat_id)
        if visit is None:
            text = "This session is over: nobody was here for a while, or the server was restarted."
            again = gr.update(visible=True, value="New session")
            return ["", _no_view(), again, *_lost("Session ended", text), gr.skip()]
        shown = _shown(visit)
        if all(_is_skip(u) for u in shown):
            return gr.skip()
        return [*_skips(3), *shown]

    def _put_right(self, form: Form) -> Callable[..., list[Any]]:
        def put_right(seat_id: str) -> list[Any]:
            visit = self._find(seat_id)
            if visit is None:
                return _skips(3 + len(form.outputs()))
            return self._whole_form(form, visit, visit.take_stale())

        return put_right

    @staticmethod
    def _whole_form(form: Form, visit: Visit, paths: Collection[str] | None = None) -> list[Any]:
        settings = visit.settings
        return [
            gr.update(value=visit.preset),
            _about(visit.preset),
            loss_card(settings.loss),
            *form.updates(settings, paths),
        ]

    # ---- handlers: what a person does --------------------------------------------------------------------

    def _press_start(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            loading = visit.seat.session.status.phase in ("loading", "compiling")
            visit.send(Resume(), note="starts as soon as everything is ready" if loading else "")
            self._take_prompt(visit, prompt)

    def _press_pause(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.send(Pause())

    def _press_step(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            self._take_prompt(visit, prompt)
            visit.send(Advance(1))

    def _press_reset(self, seat_id: str, prompt: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            self._take_prompt(visit, prompt)
            visit.send(Pause(), Reset())

    def _press_front(self, seat_id: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.view.look_from_front()

    def _change_theme(self, seat_id: str, dark: bool) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.view.set_dark(bool(dark))

    def _change_prompt(self, seat_id: str, text: str) -> None:
        if (visit := self._find(seat_id)) is not None:
            self._take_prompt(visit, text)

    @staticmethod
    def _take_prompt(visit: Visit, text: str) -> None:
        if text != visit.settings.prompt.text:
            visit.patch([("prompt.text", text)])

    def _change_knob(self, path: str, seat_id: str, value: Any) -> None:
        if (visit := self._find(seat_id)) is not None:
            visit.patch([(path, value)])

    def _change_loss(self, form: Form) -> Callable[..., list[Any]]:
        def change_loss(seat_id: str, name: str) -> list[Any]:
            visit = self._find(seat_id)
            if visit is None or name not in visit.settings.losses:
                return _skips(3 + len(form.outputs()))
            visit.patch([("active", name)])
            return [
                *_skips(2),
                loss_card(visit.settings.losses[name]),
                *form.updates(visit.settings.patch("active", name), ["active"]),
            ]

        return change_loss

    def _pick(self, form: Form) -> Callable[..., list[Any]]:
        def pick(seat_id: str, name: str, dark: bool, request: gr.Request) -> list[Any]:
            n_place = 3 + N_LIVE
            visit = self._find(seat_id)
            wanted = catalogue.preset(name)
            if visit is None:
                return _skips(n_place + 3 + len(form.outputs()))
            now = visit.settings
            if (wanted.prior.kind, wanted.scene.kind) != (now.prior.kind, now.scene.kind):
                updates, anew = self._seat_page(request, wanted, name, bool(dark))
                return [*updates, *(self._whole_form(form, anew) if anew else _skips(3 + len(form.outputs())))]
            visit.pick(name, wanted)
            return [
                *_skips(n_place),
                *_skips(1),
                _about(name),
                loss_card(wanted.loss),
                *form.updates(wanted),
            ]

        return pick


# ---- pieces ----------------------------------------------------------------------------------------------

N_LIVE = 7  # status, preview, charts, and the four buttons


def _shown(visit: Visit) -> list[Any]:
    """Updates of status, preview, charts and buttons, and the number of times that controls were put right."""
    look = visit.look()
    panels = [gr.skip() if content is None else content for content in (look.status, look.preview, look.charts)]
    return [*panels, *_buttons(look.phase), gr.skip() if look.nudge is None else look.nudge]


def _buttons(phase: Phase | None) -> list[Any]:
    """Start, Pause, Step, Reset: what can be pressed in a phase."""
    if phase is None:
        return _skips(4)
    idle = phase in ("ready", "paused", "failed")
    can = (phase != "running", phase == "running", idle, idle or phase == "running")
    return [gr.update(interactive=c) for c in can]


def _lost(title: str, text: str) -> list[Any]:
    """Status, preview, charts and buttons of a page without a session."""
    return [no_session(title, text), "", "", *(gr.update(interactive=False) for _ in range(4))]


def _skips(n: int) -> list[Any]:
    return [gr.skip() for _ in range(n)]


def _is_skip(update: Any) -> bool:
    return isinstance(update, dict) and update.get("__type__") == "update" and len(update) == 1


def _view(token: str) -> str:
    """The frame with the view of a seat; a relative address, so that it holds behind any reverse proxy."""
    return f'<iframe src="viewport/{html.escape(token)}/" title="3D view of the scene"></iframe>'


def _no_view() -> str:
    return '<div class="no-view">The scene appears here.</div>'


def _about(preset: str | None) -> str:
    text = catalogue.about(preset)["text"] if preset is not None else "Settings of your own."
    return f"<p>{html.escape(text)}</p>"


def _title_bar(device: str) -> str:
    where = {"cpu": "on the processor", "cuda": "on the GPU"}.get(device.partition(":")[0], f"on {device}")
    return (
        f'<header><span class="logo" aria-hidden="true"></span><h1>{TITLE}</h1>'
        f'<span class="sub">running {html.escape(where)}</span>'
        '<button type="button" aria-label="Switch between light and dark" title="Light or dark">'
        '<span class="sun">☀</span><span class="moon">☾</span></button></header>'
    )
