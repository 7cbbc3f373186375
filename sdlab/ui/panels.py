"""A session's state as HTML: pure functions from values to markup.

All text typed by users goes through `html.escape`. Images are data URIs, so a page that is open for hours leaves no
files behind.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from sdlab.lens import Comparison, LensPictures
from sdlab.live.messages import Phase
from sdlab.ui.formulas import prose
from sdlab.ui.wording import NOT_YET, PHASE_WORDS, WARMING_UP, duration, number, sentence

MAX_PREVIEW = 16
EXACT_PIXELS = 64  # larger images are sent as JPEG

Tone = Literal["info", "warning", "error"]


class Message(NamedTuple):
    """A text on the status line, shown until the next change or a time (monotonic)."""

    tone: Tone
    text: str
    until: float = math.inf


# ---- status ----------------------------------------------------------------------------------------------


def status(
    phase: Phase, text: str, step: int, steps: int, rate: float, message: Message | None, notes: Sequence[str] = ()
) -> str:
    """Return the status line; `rate` in steps per second, 0 when unknown. `notes` are shown below it.

    A running session whose text says more than "running" takes no steps: a network of the loss is warming up.
    """
    facts = [f"step <b>{step}</b> {f'of {steps}' if step <= steps else f'({steps} were planned)'}"]
    waits = phase == "running" and text != phase
    if phase == "running" and not waits and rate > 0:
        facts.append(f"{number(rate)} steps/s")
        if step < steps:
            facts.append(f"{duration((steps - step) / rate)} left")
    word = WARMING_UP if waits else PHASE_WORDS[phase]
    said = text if text.lower() != word.lower() else "anything can be changed while it runs"
    if waits:
        said = f"{said}; the scene waits"
    tone, line = (message.tone, message.text) if message is not None else ("info", said)
    working = phase in ("loading", "compiling")
    if working and message is not None and tone == "info":  # progress is told, whatever was noted before
        line = f"{said}; {line}"
    busy = " busy" if working else " waits" if waits else ""
    below = f'<p class="say warning notes">{html.escape(" ".join(map(_full, notes)))}</p>' if notes else ""
    return (
        f'<div class="status {phase}" data-phase="{phase}" data-step="{step}">'
        f'<div class="status-head"><span class="dot{busy}"></span><strong>{word}</strong>'
        f'<span class="facts">{"".join(f"<span>{f}</span>" for f in facts)}</span></div>'
        f'<div class="bar{busy}"><i style="width:{100 * min(step / max(steps, 1), 1):.1f}%"></i></div>'
        f'<p class="say {tone}">{html.escape(sentence(line))}</p>{below}</div>'
    )


def _full(text: str) -> str:
    """Return a text as a full sentence."""
    return sentence(text) if text.endswith((".", "!", "?")) else f"{sentence(text)}."


def no_session(title: str, text: str) -> str:
    """Return the status line of a page without a session."""
    return (
        f'<div class="status ended" data-phase="none"><div class="status-head"><span class="dot"></span>'
        f"<strong>{html.escape(title)}</strong></div>"
        f'<p class="say warning">{html.escape(text)}</p></div>'
    )


# ---- images, losses compared ----------------------------------------------------------------------------


def preview(pictures: np.ndarray, views: Sequence[str], step: int, row: int = 0) -> str:
    """Return the images that the loss saw, uint8 [B, H, W, 3], each with its view word; at most `MAX_PREVIEW`. The lens
    shows image `row`."""
    pictures, views = pictures[:MAX_PREVIEW], views[:MAX_PREVIEW]
    cells = "".join(
        f'<figure data-row="{i}"{" class=chosen" if i == row and len(pictures) > 1 else ""}>'
        f'<img src="{data_uri(p)}" alt="{html.escape(v)}" width="{p.shape[1]}" height="{p.shape[0]}">'
        f"<figcaption>{html.escape(v)}</figcaption></figure>"
        for i, (p, v) in enumerate(zip(pictures, views, strict=True))
    )
    head = "What the loss sees" if step > 0 else "Before the first step"
    return f'<div class="strip"><h3>{head}</h3><div class="pictures">{cells}</div></div>'


def no_preview() -> str:
    """Return the preview before there is an image."""
    return '<div class="strip"><h3>What the loss sees</h3><div class="pictures"><i></i><i></i></div></div>'


def lens(seen: LensPictures) -> str:
    """Return the images of one view of one step, each with its name and explanation."""
    if seen.reason:
        return f'<p class="none">{html.escape(sentence(seen.reason))}</p>'
    cells = "".join(
        f'<figure title="{html.escape(caption)}"><img src="{data_uri(picture)}" alt="{html.escape(caption)}" '
        f'width="{picture.shape[1]}" height="{picture.shape[0]}"><figcaption>{prose(label)}</figcaption></figure>'
        for label, caption, picture in zip(seen.labels, seen.captions, seen.pictures, strict=True)
    )
    facts = (
        f"t = {seen.t}, &alpha; = {number(seen.alpha)}, &sigma; = {number(seen.sigma)}, w(t) = {number(seen.weight)}"
    )
    view = f"{html.escape(seen.view)}, " if seen.view else ""
    note = f" {html.escape(sentence(seen.note))}." if seen.note else ""
    heat = f"residual colours saturate at &plusmn;{number(seen.scale)}"
    return f'<div class="strip lens"><div class="pictures">{cells}</div><p>{view}{facts}; {heat}.{note}</p></div>'


def no_lens() -> str:
    """Return the lens before there is anything to see."""
    return '<p class="none">With the next step, this shows what the loss sees and what it computes from it.</p>'


def no_comparison() -> str:
    """Return the comparison before it was asked for."""
    return (
        '<p class="none">Compares the gradients of all losses for the same images, at the same t and noise. This '
        "takes a few seconds; the run continues.</p>"
    )


def comparison(c: Comparison) -> str:
    """Return how far the losses disagree at one state: their gradients as images, and the cosines between them."""
    rows = ""
    for i, title in enumerate(c.titles):
        cells = "".join(_cosine(c.cosines[i, j], f"{title}, {c.titles[j]}") for j in range(len(c.titles)))
        pictures = "".join(f'<td class="push">{_push(c, i, b)}</td>' for b in range(min(len(c.views), 2)))
        cost = f"{c.nfe[i]}" if i < c.done else ""
        rows += (
            f'<tr title="{html.escape(c.notes[i])}"><th>{html.escape(title)}{"*" if c.notes[i] else ""}</th>{pictures}'
            f"<td>{number(float(c.rms[i]))}</td><td>{cost}</td>{cells}</tr>"
        )
    views = "".join(f"<th>{html.escape(v)}</th>" for v in c.views[:2])
    names = "".join(f'<th class="turned"><span>{html.escape(t)}</span></th>' for t in c.titles)
    notes = "".join(
        f"<li><b>{html.escape(t)}</b>: {html.escape(n)}</li>" for t, n in zip(c.titles, c.notes, strict=True) if n
    )
    t = ", ".join(str(x) for x in c.t[:4])
    done = "" if c.done == len(c.titles) else f" {c.done} of {len(c.titles)} losses are done."
    return (
        f'<div class="versus"><p>How each loss would change the same images at t = {t} with the same noise; grey '
        "means no change. On the right, the cosine between any two losses: 1 means they agree, 0 unrelated, "
        f"&minus;1 opposed.{done}</p>"
        f"<table><thead><tr><th></th>{views}<th>RMS</th><th>NFE</th>{names}</tr></thead><tbody>{rows}</tbody></table>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _push(c: Comparison, loss: int, view: int) -> str:
    if c.reason or loss >= c.done or not math.isfinite(float(c.rms[loss])):
        return ""
    return f'<img src="{data_uri(c.pictures[loss, view])}" alt="gradient of {html.escape(c.titles[loss])}">'


def _cosine(value: float, pair: str) -> str:
    """Return a table cell whose colour shows how far two losses agree."""
    if not math.isfinite(value):
        return f'<td class="cosine" title="{html.escape(pair)}">{NOT_YET}</td>'
    hue = "var(--agree)" if value >= 0 else "var(--oppose)"
    share = round(100 * min(abs(float(value)), 1.0))
    style = f"background: color-mix(in srgb, {hue} {share}%, transparent)"
    return f'<td class="cosine" title="{html.escape(pair)}" style="{style}">{value:.2f}</td>'


def data_uri(picture: np.ndarray) -> str:
    """Return an image, uint8 [H, W, 3], as a data URI; a small one without loss."""
    file = io.BytesIO()
    if max(picture.shape[:2]) <= EXACT_PIXELS:
        Image.fromarray(picture).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
