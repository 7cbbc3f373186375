"""The layout of the page: Gradio's blocks as the frame, with our own parts inside.

Gradio gives the page its theme. Each part is a `gr.HTML` whose body is rendered once and brought to life by a module in
static/page/; parts show the news and post what the user does. There are no events of Gradio's own, which would take 40
ms on the server and as long in the browser.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.themes.utils import fonts

from sdlab.handin import manifest
from sdlab.lessons import listed
from sdlab.own_loss import OwnLoss
from sdlab.ui.api import Api
from sdlab.ui.charts import no_charts
from sdlab.ui.desk import TABS
from sdlab.ui.form import Rules, form_html, form_state
from sdlab.ui.handin import QUESTION
from sdlab.ui.lesson_page import menu
from sdlab.ui.links import LOCKABLE, PARTS
from sdlab.ui.panels import no_comparison, no_lens, no_preview
from sdlab.ui.places import NAME
from sdlab.ui.uploads import RUN
from sdlab.ui.visitors import Visitors, max_bytes
from sdlab.ui.welcome import EXAMPLES, OFFER, RECORDING, TOUR, examples
from sdlab.ui.wording import TITLE

STATIC = Path(__file__).parent / "static"
MOST_CALLS = 32  # of programs that wait
MODULES = {path.name: path for path in sorted((STATIC / "page").glob("*.js"))}


def theme() -> gr.themes.Base:
    """Neutral greys and one accent; system fonts, so that the browser fetches none."""
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


def head() -> str:
    """HTML for the page's head: the browser fetches all modules at once instead of one import after another."""
    return "".join(f'<link rel="modulepreload" href="page/{name}">' for name in MODULES)


def blocks(
    visitors: Visitors,
    preset: str | None,
    device: torch.device,
    urls: Sequence[str] = (),
    classroom: bool = False,
    own: OwnLoss | None = None,
    endpoints: Api | None = None,
) -> gr.Blocks:
    """Return the page, which is published at `urls`, of a `classroom` or not, with an editor if the user has a loss of
    their `own`, and with `endpoints` for programs; to be mounted with `theme`, `head` and page.css."""
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as page:
        _part("title", "theme.js", _title_bar(device, bool(visitors.examples), visitors.gpu is not None))
        _part("link", "link.js", _LINK, {"urls": list(urls)})
        _part("lessons", "lessons.js", _menu(visitors, classroom))
        if classroom:
            _part("room", "room.js", _ROOM)
        with gr.Row(elem_id="desk"):
            _part("lesson", "lesson.js", _LESSON)
            with gr.Column(elem_id="view"):
                _part("stage", "stage.js", _STAGE)
                _part("tour", "tour.js", OFFER)
                if visitors.examples:
                    _part("examples", "examples.js", examples(visitors.examples.values()))
                with gr.Column(elem_id="progress", elem_classes=["card"]):
                    _part("status", "status.js", _STATUS)
                    _part("timeline", "timeline.js", _TIMELINE)
            with gr.Column(elem_id="side"):
                with gr.Column(elem_classes=["card"]):
                    _part("controls", "controls.js", _controls(visitors.settings.prompt.text))
                form = form_html(visitors.settings, visitors.presets, Rules(visitors.locked, visitors.shown))
                state = {**form_state(visitors.settings), "preset": preset}
                _part("form", "form.js", visitors.told(form), visitors.told(state))
            with gr.Column(elem_id="readings", elem_classes=["card"]):
                _part("tabs", "tabs.js", _tabs(own is not None))
                with gr.Row(elem_id="lens-panel"):
                    _panel("preview", no_preview())
                    _panel("lens", no_lens())
                    _part("scrub", "scrub.js", _SCRUB)
                _panel("charts", no_charts())
                with gr.Column(elem_id="versus-panel"):
                    _part("comparing", "comparing.js", _COMPARING)
                    _panel("versus", no_comparison())
                _part("results", "results.js", _RESULTS)
                if own is not None:
                    _part("own", "own.js", _OWN)
        _part("handin", "handin.js", _HAND_IN)
        _part("drop", "drop.js", _DROP, {"most": max_bytes(RUN, bool(visitors.locked))})
        _part("news", "news.js", "")
        if endpoints is not None:
            endpoints.add()
    return page.queue(max_size=MOST_CALLS) if endpoints is not None else page


# ---- parts -----------------------------------------------------------------------------------------------


def _module(name: str) -> str:
    """A JavaScript expression that imports a module; scripts of Gradio's parts have no address to be relative to."""
    return f"import(new URL('page/{name}', document.baseURI))"


def _part(name: str, module: str, body: str, value: Any = "") -> gr.HTML:
    """A part of the page that a module brings to life."""
    script = f"{_module(module)}.then((module) => module.mount(element, props, watch))"
    return gr.HTML(value, html_template="${body}", js_on_load=script, body=body, apply_default_css=False, elem_id=name)


def _panel(name: str, body: str = "") -> None:
    """A part of the page that shows the HTML told under its name."""
    _part(name, "panel.js", f'<div data-panel="{name}">{body}</div>')


def _controls(prompt: str) -> str:
    buttons = "".join(
        f'<button type="button" id="{name}"{kind} disabled title="{title}"{keys}>{label}</button>'
        for name, label, kind, title, keys in (
            ("start", "Start", ' class="primary"', "Run (Space)", ' aria-keyshortcuts="Space"'),
            ("pause", "Pause", "", "Pause (Space)", ' aria-keyshortcuts="Space"'),
            ("step", "Step", "", "Take one step (.)", ' aria-keyshortcuts="."'),
            ("reset", "Reset", "", "Start over from step 0", ""),
        )
    )
    return (
        '<div id="prompt"><label for="prompt-text">Prompt</label>'
        '<textarea id="prompt-text" rows="1" spellcheck="false" autocomplete="off" '
        f'placeholder="What to make, for example: a red bear">{html.escape(prompt)}</textarea></div>'
        f'<div id="run-buttons">{buttons}</div>'
        '<button type="button" id="again" class="primary" hidden></button>'
    )


_STAGE = '<div class="stage"></div><div class="no-view">The scene appears here.</div>' + RECORDING
_STATUS = (  # live regions are read out only if they exist before they have a text
    '<p id="connection-line" role="alert"></p><p id="drawing-line" role="status"></p>'
    '<p class="unseen" role="status" data-live></p><div data-panel="status"></div>'
)
_TIMELINE = (
    '<div class="timeline"><button type="button" data-replay title="Replay the run">&#9655;</button>'
    '<div class="track"><i class="done"></i><span class="ticks"></span><b class="now"></b></div></div>'
)
_PANELS = ("lens-panel", "charts", "versus-panel", "results", "own")  # shown by the tabs
_TITLES = ("Lens", "Charts", "Compare losses", "Results", "My loss")


def _tabs(own: bool) -> str:
    """Return the tabs; the one of the user's own loss only if there is one."""
    buttons = "".join(
        f'<button type="button" role="tab" data-tab="{name}" aria-controls="{panel}" '
        f'aria-selected="{str(name == TABS[0]).lower()}">{title}</button>'
        for name, panel, title in zip(TABS, _PANELS, _TITLES, strict=True)
        if own or name != "own"
    )
    return f'<nav role="tablist">{buttons}</nav>'


_SCRUB = (
    '<div class="scrub"><label for="probe-t">Timestep t of the lens</label>'
    '<input id="probe-t" type="range" min="0" max="999" value="500"><output>as in each step</output>'
    '<button type="button" data-live disabled>Follow the run</button>'
    '<button type="button" data-exact aria-pressed="false" title="Beside each x0-hat of the toybox network, the exact '
    "one at the same z_t: the mean of the toybox's images that fit the text, weighted by how likely each of them led "
    'to z_t. Drawing these images takes some seconds.">Compare with exact</button></div>'
)
_COMPARING = '<button type="button" id="compare" class="primary">Compare all losses at this step</button>'
_RESULTS = (
    '<div class="hand-in-row"><button type="button" class="primary" data-hand-in>Hand in</button>'
    "<span>Everything you did on this page as one file, for your teacher.</span></div>"
    '<div class="kinds"></div><ul class="shelf"></ul>'
)
_HAND_IN = (
    '<dialog class="share" aria-labelledby="hand-in-title"><form method="dialog">'
    '<header><h2 id="hand-in-title">Hand in</h2><button aria-label="Close">&times;</button></header>'
    "<p>One ZIP file with all runs of this page: settings, every change with its step, what you predicted in a lesson, "
    "readings and a small film. It is not sent anywhere: you download it and pass it on.</p>"
    '<label class="field">Your name, if you like<input type="text" data-name autofocus autocomplete="name" '
    f'maxlength="{manifest.NAME}"></label><label class="field">{QUESTION}<textarea data-answer rows="4" '
    f'maxlength="{manifest.ANSWER}"></textarea></label>'
    '<div class="row"><button type="button" class="primary" data-make>Make the file</button><a hidden></a>'
    '<output role="status"></output></div></form></dialog>'
)
_OWN = (
    '<div class="own"><div class="write"><label for="own-text"></label>'
    '<textarea id="own-text" rows="20" wrap="off" spellcheck="false" autocomplete="off" autocapitalize="off" '
    'aria-describedby="own-keys own-error"></textarea>'
    '<p id="own-error" class="say error" role="alert"></p>'
    '<div class="row"><button type="button" class="primary" data-apply>Apply</button>'
    '<button type="button" data-again title="Put the text of the exercise here; Apply then uses it">Start over</button>'
    "<output data-said></output></div>"
    '<p class="note" id="own-keys">Ctrl + Enter applies. Tab indents; to leave the text with the keyboard, press '
    "Escape, then Tab.</p></div>"
    '<div class="beside"><h3>Compared with SDS</h3><dl><div><dt>Cosine of the two gradients</dt><dd data-cosine></dd>'
    '</div><div><dt>Ratio of their norms</dt><dd data-ratio></dd></div></dl><p class="note" data-about></p>'
    '<button type="button" data-beside>Compare at this step</button></div></div>'
)


def _ticks(word: str, names: Mapping[str, str]) -> str:
    """Return a box to tick for each name, with its label."""
    return "".join(
        f'<label><input type="checkbox" data-{word}="{name}"> {html.escape(label)}</label>'
        for name, label in names.items()
    )


_DROP = (
    '<div class="drop-here" hidden><p>Drop settings (.toml), or a run&#8217;s folder as a ZIP file</p></div>'
    '<div class="offer card" role="status" hidden><p></p><button type="button" class="primary" data-yes></button>'
    '<button type="button" data-no>Not now</button></div>'
)
_ROOM = (
    f'<div class="room"><b data-number></b><label>Your name, if you like <input type="text" maxlength="{NAME}" '
    'autocomplete="off" spellcheck="false"></label><p class="frozen" role="status"></p>'
    '<p class="message" role="status"></p></div>'
)
_LINK = (
    '<div class="link-notes card" role="status" hidden><p></p><ul></ul>'
    '<button type="button" aria-label="Close these remarks">&times;</button></div>'
    '<dialog class="share" aria-labelledby="share-title"><form method="dialog">'
    '<header><h2 id="share-title">A link to this run</h2><button aria-label="Close">&times;</button></header>'
    "<p>It opens the page with the same settings and seed, before the first step. You can edit it.</p>"
    '<textarea readonly rows="3" spellcheck="false" aria-label="The link"></textarea>'
    '<div class="row"><button type="button" class="primary" data-copy autofocus>Copy</button>'
    '<a target="_blank" rel="noopener">Open in a new tab</a><output></output></div>'
    '<ul class="remarks"></ul>'
    '<p class="back">To continue this very run elsewhere, or after this page was closed: <button type="button" '
    "data-back>Copy a link back to it</button><output></output> Keep it to yourself: who has it has the run. A run "
    "ends a while after its page was closed.</p>"
    f"<fieldset><legend>What do you want to hide?</legend>{_ticks('hide', PARTS)}</fieldset>"
    f"<fieldset><legend>What must stay as it is?</legend>{_ticks('lock', LOCKABLE)}</fieldset>"
    '<fieldset><legend>Size of the text</legend><label><input type="checkbox" data-text> Large, for a projector</label>'
    "</fieldset></form></dialog>"
)


_LESSON = (
    '<section class="lesson card" aria-label="Lesson" hidden><header><p class="where"></p>'
    '<button type="button" data-leave aria-label="Leave the lesson" title="Leave the lesson">&times;</button>'
    '</header><div class="page"></div><p class="unseen" role="status"></p><nav aria-label="Pages of the lesson">'
    '<button type="button" data-back>Back</button>'
    '<button type="button" data-again title="Set this page up again, from step 0">Again</button>'
    '<button type="button" data-hand-in hidden>Hand in</button>'
    '<button type="button" data-next>Next</button></nav></section>'
)


def _menu(visitors: Visitors, classroom: bool) -> str:
    """Return the menu of the lessons that this server can show."""
    fitting = [lesson for lesson in listed() if lesson.preset in visitors.offered]
    offered = [lesson for lesson in fitting if not (classroom and lesson.needs_own_loss)]
    return (
        '<dialog class="share lessons" aria-labelledby="lessons-title"><form method="dialog">'
        '<header><h2 id="lessons-title">Lessons</h2><button aria-label="Close">&times;</button></header>'
        f"<p>Each replaces the current run with its own.</p>{menu(offered)}</form></dialog>"
    )


_GPU = (
    '<button type="button" data-gpu title="Add a run of Stable Diffusion, whose steps come in bursts on a shared GPU. '
    'None starts by itself">GPU</button>'
)


def _title_bar(device: torch.device, with_examples: bool, with_gpu: bool) -> str:
    where = {"cpu": "on the CPU", "cuda": "on the GPU"}.get(device.type, f"on {device}")
    return (
        f'<header><span class="logo" aria-hidden="true"></span><h1>{TITLE}</h1>'
        f'<span class="sub">running {html.escape(where)}</span>'
        '<button type="button" data-lessons title="Short lessons beside the run">Lessons</button>'
        f"{EXAMPLES if with_examples else ''}{_GPU if with_gpu else ''}{TOUR}"
        '<button type="button" data-share title="A link to this run, or a lesson">Link</button>'
        '<button type="button" data-large aria-label="Large text, for a projector" title="Large text">A</button>'
        '<button type="button" data-theme aria-label="Switch between light and dark" title="Light or dark">'
        '<span class="sun">&#9728;</span><span class="moon">&#9790;</span></button></header>'
    )
