"""Settings to a form: one function turns any knob into a control, whatever loss, scene or prior it belongs to.

A control is a small `gr.HTML` component (its behaviour is in assets/page.js): label, value, slider where the range
is closed, and the knob's help. It sends when the person is done (sliders while they are dragged), never per key.
"""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import gradio as gr

from sdlab.knobs import Knob, knobs_of
from sdlab.settings import Settings, priors, scenes

MAX_SLIDER_RANGE = 1e7  # wider ranges, such as a seed's, are only typed
LOG_RANGE = 2000  # whole numbers over a wider range get a logarithmic slider
SLIDER_NOTCHES = 400  # about so many values on a linear slider

TITLES = {"": "Run", "optim": "Learning rates"}
LABELS = {"cfg": "CFG", "fovy": "Field of view"}
KEPT_ELSEWHERE = ("active", "prompt.text")  # they have controls of their own, above the form
APPLY_NOTES = {"live": "", "rebuild": "", "restart": "at the next reset"}


def knob_control(k: Knob, elem_id: str, locked: bool = False) -> gr.HTML:
    """The control of one knob; its value is a number, a bool or a text."""
    return gr.HTML(
        k.value,
        html_template="${body}",
        js_on_load="sdlKnob(element, props, trigger, watch)",
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=["knob"],
        body=_body(k, f"{elem_id}-field", locked),
        kind=_kind(k),
        lo=k.lo,
        hi=k.hi,
        log=_is_log(k),
        step=_notch(k),
    )


def _kind(k: Knob) -> str:
    if k.choices:
        return "choice"
    return {bool: "bool", str: "text", int: "int"}.get(k.type, "float")


def _has_slider(k: Knob) -> bool:
    return (
        _kind(k) in ("int", "float") and k.lo is not None and k.hi is not None and 0 < k.hi - k.lo <= MAX_SLIDER_RANGE
    )


def _is_log(k: Knob) -> bool:
    wide = k.type is int and _has_slider(k) and float(k.hi or 0) - float(k.lo or 0) > LOG_RANGE
    return (k.log or wide) and k.lo is not None and k.lo >= 0


def _notch(k: Knob) -> float:
    """A round number: the step of a linear slider."""
    if not _has_slider(k) or k.type is int:
        return 1.0
    rough = (float(k.hi or 0) - float(k.lo or 0)) / SLIDER_NOTCHES
    power = 10.0 ** math.floor(math.log10(rough))
    return power * max(m for m in (1, 2, 5) if m * power <= rough * 1.0001)


def label_of(path: str) -> str:
    """What a knob is called on the page: `camera.distance_min` is "Distance min"."""
    name = path.rpartition(".")[2].removeprefix("lr_")
    if name in LABELS:
        return LABELS[name]
    words = name.replace("_", " ")
    return words if words.partition(" ")[0] in ("t", "w") else words[:1].upper() + words[1:]


def title_of(prefix: str) -> str:
    """What a group of knobs is called on the page."""
    return TITLES.get(prefix, prefix.rpartition(".")[2].capitalize())


def _body(k: Knob, field_id: str, locked: bool) -> str:
    """The control's HTML. Nothing in it is given by visitors; it is escaped all the same."""
    label, note = html.escape(label_of(k.path)), APPLY_NOTES[k.apply]
    tag = f'<span class="knob-tag">{note}</span>' if note else ""
    off = "disabled" if locked else ""
    described = f'id="{field_id}" data-field aria-describedby="{field_id}-help" {off}'
    match _kind(k):
        case "bool":
            field = f'<input {described} type="checkbox" role="switch">'
        case "choice":
            options = "".join(f"<option>{html.escape(c)}</option>" for c in k.choices or ())
            field = f"<select {described}>{options}</select>"
        case "text":
            field = f'<input {described} type="text" spellcheck="false">'
        case _:
            field = f'<input {described} type="number" step="any" inputmode="decimal">'
    slider = ""
    if _has_slider(k):
        slider = f'<input type="range" min="0" max="1000" step="1" aria-label="{label}, slider" {off}>'
    fixed = " Fixed on this server." if locked else ""
    return (
        f'<div class="knob-head {_kind(k)}"><label for="{field_id}">{label}</label>{tag}{field}</div>{slider}'
        f'<p id="{field_id}-help">{html.escape(_sentence(k.help))}{fixed}</p>'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


class Field(NamedTuple):
    """One control on the page; `owner` tells apart the knobs of members that share a prefix, such as two priors."""

    path: str
    owner: str
    control: gr.components.Component


class Section(NamedTuple):
    """A part of the page that shows only while its owner is in force."""

    owner: str
    block: gr.Column


def owner_of(settings: Settings, prefix: str) -> str:
    """`prior/mixture` for the prior in force; losses and plain groups own themselves."""
    return f"{prefix}/{getattr(settings, prefix).kind}" if prefix in ("prior", "scene") else prefix


class Form:
    """Every control of a page, and what must be sent to show given settings."""

    def __init__(self, settings: Settings, locked: Collection[str] = ()) -> None:
        """`locked`: paths that visitors of this server may not change."""
        self._initial = settings
        self._locked = set(locked)
        self.fields: list[Field] = []
        self.sections: list[Section] = []

    # ---- building, inside a gr.Blocks --------------------------------------------------------------------

    def add(self, path: str, control: gr.components.Component, owner: str = "") -> None:
        """Take in a control that the page has made itself."""
        self.fields.append(Field(path, owner, control))

    def accordions(self) -> None:
        """An accordion for each group of settings but the losses."""
        for prefix in self._initial.groups():
            if prefix.startswith("losses."):
                continue
            with gr.Accordion(title_of(prefix), open=False, elem_classes=["group"]):
                members = {"prior": priors(), "scene": scenes()}.get(prefix)
                if members is None:
                    self._knobs(self._initial.groups()[prefix], prefix, prefix)
                    continue
                mine = getattr(self._initial, prefix)
                for kind, cls in members.items():
                    self._section(mine if kind == mine.kind else cls(), prefix, f"{prefix}/{kind}", kind == mine.kind)

    def losses(self) -> None:
        """The knobs of every loss; those of the loss in force show."""
        for name, loss in self._initial.losses.items():
            prefix = f"losses.{name}"
            self._section(loss, prefix, prefix, name == self._initial.active)

    def _section(self, group: Any, prefix: str, owner: str, visible: bool) -> None:
        with gr.Column(visible=visible, elem_classes=["knobs"]) as block:
            self._knobs(group, prefix, owner)
        self.sections.append(Section(owner, block))

    def _knobs(self, group: Any, prefix: str, owner: str) -> None:
        for k in knobs_of(group, prefix):
            if k.path in KEPT_ELSEWHERE:
                continue
            elem_id = f"knob-{owner or 'run'}-{k.path.rpartition('.')[2]}".replace(".", "-").replace("/", "-")
            self.add(k.path, knob_control(k, elem_id, k.path in self._locked), owner)

    # ---- showing -----------------------------------------------------------------------------------------

    def sent_by_visitors(self) -> list[Field]:
        """The fields that may be changed."""
        return [f for f in self.fields if f.path not in self._locked]

    def outputs(self) -> list[gr.components.Component]:
        """What `updates` fills."""
        return [*(f.control for f in self.fields), *(s.block for s in self.sections)]  # type: ignore[list-item]

    def updates(self, settings: Settings, paths: Collection[str] | None = None) -> Sequence[Any]:
        """Values for `outputs` that make the form show `settings`; with `paths`, only these controls change."""
        knobs = settings.knobs()
        shown: list[Any] = []
        for f in self.fields:
            prefix = f.path.rpartition(".")[0]
            in_force = "/" not in f.owner or f.owner == owner_of(settings, prefix)
            wanted = in_force and f.path in knobs and (paths is None or f.path in paths)
            shown.append(knobs[f.path].value if wanted else gr.skip())
        for s in self.sections:
            changes = paths is None or "active" in paths
            shown.append(gr.update(visible=self._is_in_force(s.owner, settings)) if changes else gr.skip())
        return shown

    @staticmethod
    def _is_in_force(owner: str, settings: Settings) -> bool:
        if "/" in owner:
            return owner == owner_of(settings, owner.partition("/")[0])
        return owner == f"losses.{settings.active}"
