"""Settings as a form: one function turns any knob of any loss, scene or prior into a control.

The form is one `gr.HTML` component, because a hundred Gradio inputs would be slow to load and to update; its behaviour
is in static/page/form.js and knob.js. A control shows the knob's value, a slider where the range is closed, and the
help text. It sends a value when the user is done (a slider while it is dragged), never per key.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sdlab.knobs import Knob, knobs_of
from sdlab.losses import Distillation
from sdlab.settings import Settings, about, priors, scenes
from sdlab.ui.formulas import formula, prose, symbols_of
from sdlab.ui.uploads import UPLOADS
from sdlab.ui.visitors import max_bytes
from sdlab.ui.wording import CHOICES, label_of

MAX_SLIDER_RANGE = 1e7  # wider ranges, such as a seed's, have no slider
LOG_RANGE = 2000  # integers with a wider range get a logarithmic slider
SLIDER_NOTCHES = 400  # approximate number of values on a linear slider

SHOWN_KNOBS = 4  # always visible, per loss, if they take effect at once; the others are in a fold
TITLES = {"": "Run", "prompt": "Wording", "optim": "Learning rates"}
KEPT_ELSEWHERE = ("active", "prompt.text")  # have controls of their own above the groups
WORDINGS = {
    "target": "prompt.target",
    "source": "prompt.source",
    "neg": "prompt.negative",
}  # role -> knob
LONG_TEXT = 100  # characters; longer texts get several lines
NOTES = {"live": "", "rebuild": "", "restart": "at the next reset"}
RETRAINS = "retrains"  # a change of this knob rebuilds the network that the loss trains


# ---- one knob --------------------------------------------------------------------------------------------


def control(k: Knob, owner: str, locked: bool = False, symbol: str = "") -> str:
    """Return the control of one knob as HTML. `owner` distinguishes knobs with the same path, such as those of two
    priors; a locked control is disabled; `symbol` is the knob's name in its loss's formula."""
    kind = _kind(k)
    name = f"knob-{owner or 'run'}-{k.path.rpartition('.')[2]}".replace(".", "-").replace("/", "-")
    label = html.escape(label_of(k.path))
    off = " disabled" if locked else ""
    field = f'id="{name}" data-field aria-describedby="{name}-help"{off}'
    if kind == "bool":
        field = f'<input {field} type="checkbox" role="switch">'
    elif kind == "choice":
        options = "".join(
            f'<option value="{html.escape(c)}">{html.escape(CHOICES.get(c, c))}</option>' for c in k.choices or ()
        )
        field = f"<select {field}>{options}</select>"
    elif kind == "text" and (k.hi or 0) > LONG_TEXT:
        field = f'<textarea {field} rows="3" spellcheck="false" autocomplete="off"></textarea>'
    elif kind == "text":
        field = f'<input {field} type="text" spellcheck="false" autocomplete="off">'
    else:
        field = f'<input {field} type="number" step="any" autocomplete="off">'
    scale = f'<input type="range" min="0" max="1000" step="1" aria-label="{label}, slider"{off}>'
    note = RETRAINS if k.apply == "rebuild" and k.path.startswith("losses.") else NOTES[k.apply]
    tag = f'<span class="knob-tag">{note}</span>' if note else ""
    if k.path == "schedule.start" and not locked:
        field = f'<button type="button" data-now>now</button>{field}'
    of = ""
    if symbol:
        of = f' data-of="{html.escape(symbol)}" title="{html.escape(symbol)} in the formula above"'
    help_text = prose(k.help)
    upload = _upload(k.path, owner, locked)
    if locked:
        help_text += " Fixed on this server" + ("; you can upload a file." if upload else ".")
    return (
        f'<div class="knob" data-path="{html.escape(k.path)}" data-kind="{kind}"{_range(k)}{of}>'
        f'<div class="knob-head"><label for="{name}">{label}</label>{tag}{field}</div>'
        f'{scale if _has_slider(k) else ""}{upload}<p id="{name}-help">{help_text}</p></div>'
    )


def _upload(path: str, owner: str, locked: bool) -> str:
    """Return an upload button for a knob of `owner` ("prior/gallery") that is the path of a file, otherwise ""."""
    if path not in UPLOADS or owner.partition("/")[2] != UPLOADS[path].kind:
        return ""
    return (
        f'<div class="upload" data-upload="{max_bytes(path, locked)}"><button type="button">Upload a file</button>'
        f'<input type="file" accept="{UPLOADS[path].suffixes}" hidden><output></output></div>'
    )


def _kind(k: Knob) -> str:
    if k.choices:
        return "choice"
    return {bool: "bool", str: "text", int: "int"}.get(k.type, "float")


def _range(k: Knob) -> str:
    """Return the attributes that the slider needs."""
    if not _has_slider(k):
        return ""
    return f' data-lo="{k.lo}" data-hi="{k.hi}" data-step="{_notch(k):g}"{" data-log" if _is_log(k) else ""}'


def _has_slider(k: Knob) -> bool:
    closed = k.type in (int, float) and k.lo is not None and k.hi is not None
    return closed and 0 < _width(k) <= MAX_SLIDER_RANGE


def _width(k: Knob) -> float:
    return float(k.hi or 0) - float(k.lo or 0)


def _is_log(k: Knob) -> bool:
    return (k.log or (k.type is int and _width(k) > LOG_RANGE)) and float(k.lo or 0) >= 0


def _notch(k: Knob) -> float:
    """Return the step of a linear slider, a round number."""
    if k.type is int:
        return 1.0
    rough = _width(k) / SLIDER_NOTCHES
    power = 10.0 ** math.floor(math.log10(rough))
    return power * max(m for m in (1, 2, 5) if m * power <= rough * 1.0001)


# ---- the whole form --------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What a server's visitors may change: not the knobs at `locked` paths, and within the ranges of the knobs that
    `shown` returns for a knob and the kind of scene."""

    locked: Collection[str] = ()
    shown: Callable[[Knob, str], Knob] = lambda k, kind: k

    def control(self, k: Knob, owner: str, symbol: str = "", kind: str = "") -> str:
        """Return the control of a knob under these rules."""
        return control(self.shown(k, kind), owner, k.path in self.locked, symbol)


NO_RULES = Rules()


def form_html(settings: Settings, presets: Sequence[str], rules: Rules = NO_RULES) -> str:
    """Return the form: losses, preset picker and groups of knobs, under the rules of the server. It holds all losses,
    priors and scenes; the page shows the active ones."""
    return (
        f'<div class="card">{_prompts(settings, rules)}{_losses(settings, rules)}</div>'
        f'<div class="card">{_picker(presets)}</div>'
        f'<div class="card groups">{"".join(_groups(settings, rules))}</div>'
    )


def form_state(settings: Settings, paths: Collection[str] | None = None) -> dict[str, Any]:
    """Return what the form shows: all of `settings`, or only the knobs at `paths`."""
    knobs = settings.knobs()
    return {
        "values": {path: k.value for path, k in knobs.items() if paths is None or path in paths},
        "owners": [
            *(_owner(settings, p) for p in ("prior", "scene")),
            *(f"{settings.scene.kind}/{path}" for path in wordings_in_use(settings)),
            f"losses.{settings.active}",
        ],
    }


def _owner(settings: Settings, prefix: str) -> str:
    return f"{prefix}/{getattr(settings, prefix).kind}"


def _picker(presets: Sequence[str]) -> str:
    options = ['<option value="" hidden data-about="Settings that are none of the presets.">Other settings</option>']
    for name in presets:
        note = about(name)
        options.append(
            f'<option value="{html.escape(name)}" data-about="{html.escape(note["text"])}">'
            f"{html.escape(note['title'])}</option>"
        )
    return (
        '<div class="preset"><label for="preset">Preset</label>'
        f'<select id="preset" data-preset>{"".join(options)}</select>'
        '<button type="button" data-open title="Open a settings file (TOML) saved from this page">Open</button>'
        '<input type="file" accept=".toml" data-settings hidden><p data-about-preset></p></div>'
    )


def _prompts(settings: Settings, rules: Rules) -> str:
    """Return the prompts that scenes have beside the first, each in a section of its own: a scene may use some."""
    knobs = settings.knobs()
    return "".join(
        f'<section data-owner="{kind}/{path}">{rules.control(knobs[path], f"scene/{kind}")}</section>'
        for kind, cls in scenes().items()
        for path in cls.wordings
    )


def _losses(settings: Settings, rules: Rules) -> str:
    """Return the buttons that select the loss, and a card for each: description, formula, the texts it uses, knobs."""
    owners = {f"losses.{name}": loss for name, loss in settings.losses.items()}
    cards = (
        f'<section data-owner="{owner}">{card_of(loss, owner, settings, rules)}</section>'
        for owner, loss in owners.items()
    )
    return f"{loss_toggle(settings)}{''.join(cards)}"


def card_of(loss: Distillation, owner: str, settings: Settings, rules: Rules) -> str:
    """Return the section of the loss whose knobs are below the path `owner`."""
    knobs = settings.knobs()
    texts = "".join(rules.control(knobs[path], owner) for path in wordings_of(loss))
    return f"{loss_card(loss)}{texts}{_knobs_of_loss(loss, owner, rules)}"


def loss_toggle(settings: Settings) -> str:
    """Return a button for each loss: those with a place first, the others in a fold that names the active one."""
    losses = settings.losses
    big = sorted((name for name in losses if losses[name].place), key=lambda name: losses[name].place)
    others = [name for name in losses if name not in big]
    if not big:
        big, others = others, []
    fold = f'<details class="others"><summary>{len(others)} more</summary>{_buttons(losses, others)}</details>'
    return (
        '<div class="knob losses" data-path="active" data-kind="buttons" role="radiogroup" aria-label="Loss">'
        f"{_buttons(losses, big)}{fold if others else ''}</div>"
    )


def _buttons(losses: Mapping[str, Distillation], names: Sequence[str]) -> str:
    cells = "".join(
        f'<button type="button" role="radio" aria-checked="false" data-value="{name}" '
        f'title="{html.escape(losses[name].look_for, quote=True)}">{html.escape(losses[name].title)}</button>'
        for name in names
    )
    return f'<div class="toggle">{cells}</div>'


def _knobs_of_loss(loss: Distillation, owner: str, rules: Rules) -> str:
    """Return a loss's knobs: the first few that take effect at once, the others in a fold (how its network is built and
    trained, and rarely used ones)."""
    found = list(knobs_of(loss, ""))
    first_rebuild = next((i for i, k in enumerate(found) if k.apply == "rebuild"), len(found))
    n = min(first_rebuild, SHOWN_KNOBS)
    shown, folded = ("".join(_of_loss(loss, k, owner, rules) for k in some) for some in (found[:n], found[n:]))
    if not folded:
        return shown
    title = f"More {html.escape(loss.title)} settings"
    return f'{shown}<details class="more" data-group="{owner}"><summary>{title}</summary>{folded}</details>'


def _of_loss(loss: Distillation, k: Knob, owner: str, rules: Rules) -> str:
    path = f"{owner}.{k.path}"
    return rules.control(k._replace(path=path), owner, symbol_of(k, loss))


def symbol_of(k: Knob, loss: Distillation) -> str:
    """Return a knob's symbol in its loss's formula, or "". The symbol is the knob's name or the first word of its help
    text: "s, the guidance scale"."""
    known = {symbol for text in loss.formulas for symbol in symbols_of(text)}
    first = k.help.replace(",", " ").partition(" ")[0]
    name = k.path.rpartition(".")[2]
    return next((word for word in (first, name) if word in known), "")


def loss_card(loss: Distillation) -> str:
    """Return what a loss does, its formulas (the page shows the one that applies), what to look for, and its source."""
    does = (loss.__doc__ or "").strip().partition("\n")[0]
    formulas = "".join(
        f'<p class="formula"{" hidden" if n else ""}>{formula(text)}</p>' for n, text in enumerate(loss.formulas)
    )
    return (
        f'<div class="loss"><p class="does">{prose(does)}</p>{formulas}'
        f'<details class="about"><summary>{prose(loss.look_for)}.</summary>'
        f'<p class="source">{html.escape(loss.paper)}</p></details></div>'
    )


def wordings_in_use(settings: Settings) -> tuple[str, ...]:
    """Return the paths of the prompts beside the first that the scene uses."""
    return settings.scene.wordings[: settings.scene.prompts - 1]


def wordings_of(loss: Distillation) -> list[str]:
    """Return the paths of the texts, other than the prompt, with which a loss queries the prior."""
    return [WORDINGS[role] for role in loss.roles if role in WORDINGS]


def _groups(settings: Settings, rules: Rules) -> list[str]:
    """Return a fold for each group of settings except the losses."""
    folds = []
    elsewhere = {path for loss in settings.losses.values() for path in wordings_of(loss)}
    elsewhere |= {path for cls in scenes().values() for path in cls.wordings}
    for prefix, group in settings.groups().items():
        if prefix.startswith("losses."):
            continue
        members = {"prior": priors(), "scene": scenes()}.get(prefix)
        if prefix == "optim":
            body = _rates(group, rules)
        elif members is None:
            body = _knobs(group, prefix, "", rules, elsewhere)
        else:
            body = "".join(
                f'<section data-owner="{prefix}/{kind}">'
                f"{_knobs(group if kind == group.kind else cls(), prefix, f'{prefix}/{kind}', rules)}</section>"
                for kind, cls in members.items()
            )
        title = html.escape(TITLES.get(prefix, prefix.capitalize()))
        folds.append(f'<details data-group="{prefix or "run"}"><summary>{title}</summary>{body}</details>')
    return folds


def _rates(group: Any, rules: Rules) -> str:
    """Return the learning rates of each scene, and the knobs that all scenes share."""
    knobs = knobs_of(group, "optim")
    owned = {f"optim.lr_{name}": f"scene/{kind}" for kind, cls in scenes().items() for name in cls.parameters}
    body = "".join(
        f'<section data-owner="{owner}">'
        + "".join(rules.control(k, "optim") for k in knobs if owned.get(k.path) == owner)
        + "</section>"
        for owner in dict.fromkeys(owned.values())
    )
    return body + "".join(rules.control(k, "optim") for k in knobs if k.path not in owned)


def _knobs(group: Any, prefix: str, owner: str, rules: Rules, elsewhere: Collection[str] = ()) -> str:
    found = [k for k in knobs_of(group, prefix) if k.path not in KEPT_ELSEWHERE and k.path not in elsewhere]
    return "".join(rules.control(k, owner or prefix, kind=owner.partition("/")[2]) for k in found)
