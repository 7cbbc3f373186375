"""What a session says, as HTML: pure functions from figures to markup.

Every text that a person typed goes through `html.escape`. Charts are inline SVG stretched to their box, pictures are
data URIs, so that a page that is open for hours leaves no files behind.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from sdlab.messages import Phase

CHART_POINTS = 200
MAX_PREVIEW = 16
NOT_YET = "\N{EN DASH}"  # in place of a figure that is not known
KEPT_POINTS = 2000  # of a curve before neighbours are merged
CHART_WIDTH, CHART_HEIGHT = 200.0, 60.0  # of the SVG's own coordinates, with room for the line's width

Tone = Literal["info", "warning", "error"]


class Message(NamedTuple):
    """Something the status line says until the next change."""

    tone: Tone
    text: str


class Mark(NamedTuple):
    """A change of settings on the time axis."""

    step: int
    text: str


# ---- curves ----------------------------------------------------------------------------------------------


class Curve:
    """A figure over steps, kept in bounded memory: when full, neighbours are merged into their mean."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        self._per_point = 1
        self._pending: list[tuple[float, float]] = []

    def add(self, step: int, value: float) -> None:
        """Non-finite values leave a gap."""
        if not math.isfinite(value):
            return
        self._pending.append((float(step), value))
        if len(self._pending) < self._per_point:
            return
        self._points.append(_mean(self._pending))
        self._pending = []
        if len(self._points) >= KEPT_POINTS:
            self._points = _merged(self._points, 2)
            self._per_point *= 2

    def points(self, n: int = CHART_POINTS) -> list[tuple[float, float]]:
        """At most `n` (step, value), each the mean of a stretch of the curve."""
        points = [*self._points, _mean(self._pending)] if self._pending else self._points
        return _merged(points, math.ceil(len(points) / n)) if len(points) > n else list(points)

    def last(self) -> float | None:
        points = self._pending or self._points
        return points[-1][1] if points else None


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)


def _merged(points: Sequence[tuple[float, float]], n: int) -> list[tuple[float, float]]:
    return [_mean(points[i : i + n]) for i in range(0, len(points), n)]


def chart(title: str, curve: Curve, marks: Sequence[Mark], log: bool = False, name: str = "") -> str:
    """One figure over steps with a line where settings changed; `log` for a logarithmic value axis."""
    points = [(s, v) for s, v in curve.points() if not log or v > 0]
    last = curve.last()
    now = number(last) if last is not None else NOT_YET
    head = f'<figcaption><span>{html.escape(title)}</span><b data-figure="{name}">{now}</b></figcaption>'
    if len(points) < 2:
        return f'<figure class="chart">{head}<div class="plot empty"><span>no steps yet</span></div></figure>'
    heights = [math.log10(v) if log else v for _, v in points]
    low, high = min(heights), max(heights)
    if not log:
        low = min(low, 0.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    first, end = points[0][0], points[-1][0]

    def x(step: float) -> float:
        return CHART_WIDTH * (step - first) / (end - first)

    def y(height: float) -> float:
        return CHART_HEIGHT - 2.0 - (CHART_HEIGHT - 4.0) * (height - low) / (high - low)

    line = " ".join(f"{x(s):.1f},{y(h):.1f}" for (s, _), h in zip(points, heights, strict=True))
    ticks = "".join(
        f'<g><title>{html.escape(m.text)}</title><line class="mark" x1="{x(m.step):.1f}" x2="{x(m.step):.1f}" y1="0"'
        f' y2="{CHART_HEIGHT}"/></g>'
        for m in marks
        if first <= m.step <= end
    )
    top, bottom = (10**high, 10**low) if log else (high, low)
    return (
        f'<figure class="chart">{head}<div class="plot">'
        f'<svg viewBox="0 0 {CHART_WIDTH:g} {CHART_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(title)} over steps">{ticks}<polyline class="line" points="{line}"/></svg>'
        f'<span class="top">{number(top)}</span><span class="bottom">{number(bottom)}</span></div>'
        f'<div class="axis"><span>step {math.floor(first)}</span><span>{math.ceil(end)}</span></div></figure>'
    )


# ---- status ----------------------------------------------------------------------------------------------

PHASE_WORDS: dict[Phase, str] = {
    "loading": "Loading",
    "compiling": "Compiling",
    "ready": "Ready",
    "running": "Running",
    "paused": "Paused",
    "saving": "Saving",
    "exporting": "Exporting",
    "failed": "Failed",
    "ended": "Ended",
}
WARMING_UP = "Warming up"


def status(phase: Phase, text: str, step: int, steps: int, rate: float, message: Message | None) -> str:
    """The line that says what is happening; `rate` in steps per second, 0 when unknown.

    A run that says more than that it is running takes no steps meanwhile: a network of the loss warms up.
    """
    facts = [f"step <b>{step}</b> of {steps}"]
    waits = phase == "running" and text != phase
    if phase == "running" and not waits and rate > 0:
        facts.append(f"{number(rate)} steps/s")
        if step < steps:
            facts.append(f"{duration((steps - step) / rate)} left")
    word = WARMING_UP if waits else PHASE_WORDS[phase]
    said = text if text.lower() != word.lower() else "the scene follows the prior; change anything while it runs"
    if waits:
        said = f"{said}; the scene waits"
    tone, line = (message.tone, message.text) if message is not None else ("info", said)
    busy = " busy" if phase in ("loading", "compiling", "saving", "exporting") else " waits" if waits else ""
    role = "alert" if tone == "error" else "status"
    return (
        f'<div class="status {phase}" data-phase="{phase}" data-step="{step}">'
        f'<div class="status-head"><span class="dot{busy}"></span><strong>{word}</strong>'
        f'<span class="facts">{"".join(f"<span>{f}</span>" for f in facts)}</span></div>'
        f'<div class="bar{busy}"><i style="width:{100 * min(step / max(steps, 1), 1):.1f}%"></i></div>'
        f'<p class="say {tone}" role="{role}">{html.escape(sentence(line))}</p></div>'
    )


def no_session(title: str, text: str) -> str:
    """The status line of a page without a session."""
    return (
        f'<div class="status ended" data-phase="none"><div class="status-head"><span class="dot"></span>'
        f"<strong>{html.escape(title)}</strong></div>"
        f'<p class="say warning" role="alert">{html.escape(text)}</p></div>'
    )


# ---- pictures, figures, words ----------------------------------------------------------------------------


def preview(pictures: np.ndarray, views: Sequence[str], step: int) -> str:
    """What the loss saw: [B, H, W, 3] uint8 with a view word each; of many pictures the first."""
    pictures, views = pictures[:MAX_PREVIEW], views[:MAX_PREVIEW]
    cells = "".join(
        f'<figure><img src="{data_uri(p)}" alt="{html.escape(v)}" width="{p.shape[1]}" height="{p.shape[0]}">'
        f"<figcaption>{html.escape(v)}</figcaption></figure>"
        for p, v in zip(pictures, views, strict=True)
    )
    head = "What the loss sees" if step > 0 else "Before the first step"
    return f'<div class="strip"><h3>{head}</h3><div class="pictures">{cells}</div></div>'


def no_preview() -> str:
    """Where the pictures will be."""
    return '<div class="strip"><h3>What the loss sees</h3><div class="pictures"><i></i><i></i></div></div>'


def charts(
    gradient: Curve, rate: Curve, marks: Sequence[Mark], scene: Mapping[str, float], stats: Mapping[str, float]
) -> str:
    """Both charts and the numbers below them; `scene` from the last frame, `stats` of the last step, empty before the
    first."""
    known = bool(stats)
    rows = [
        *_scene_rows(scene),
        ("Skipped steps", f"{stats.get('skipped', 0):.0f}", "updates left out because a gradient was not finite"),
        ("Inside the prior", f"{100 * stats['prior_share']:.0f} %" if known else NOT_YET, "share of all steps' time"),
        ("Noise level t", number(stats["t"]) if known else NOT_YET, "timestep, 0 to 999, mean over the last views"),
        ("Time", duration(stats["seconds"]) if known else NOT_YET, "spent in steps, pauses not counted"),
    ]
    return (
        '<div class="charts">'
        + chart("Gradient RMS", gradient, marks, log=True, name="gradient")
        + chart("Steps per second", rate, marks, name="rate")
        + f"</div>{figures(rows)}"
    )


def _scene_rows(scene: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """What a frame says of the scene."""
    if "n_gaussians" in scene:
        return [("Gaussians", f"{scene['n_gaussians']:,.0f}".replace(",", " "), "how many make up the scene now")]
    if "std_x" not in scene:
        return []
    mean, std = (f"{number(scene[f'{name}_x'])}, {number(scene[f'{name}_y'])}" for name in ("mean", "std"))
    return [
        ("Mean", mean, "of the Gaussian that is fitted, to the east and to the north"),
        ("Standard deviation", std, "of the Gaussian that is fitted, to the east and to the north"),
    ]


def no_charts() -> str:
    """The charts before there is anything to draw."""
    return charts(Curve(), Curve(), [], {}, {})


def data_uri(picture: np.ndarray) -> str:
    """A picture [H, W, 3] uint8 as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def figures(rows: Sequence[tuple[str, str, str]]) -> str:
    """(name, value, explanation) as a row of numbers."""
    cells = "".join(
        f'<div title="{html.escape(note)}"><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
        for name, value, note in rows
    )
    return f'<dl class="figures">{cells}</dl>'


GREEK = {"eps": "epsilon", "lam": "lambda"} | {
    name: name
    for name in ("alpha", "beta", "gamma", "delta", "eta", "lambda", "mu", "phi", "psi", "sigma", "tau", "theta")
}


def formula(text: str) -> str:
    """A formula in plain letters with Greek ones and subscripts: eps_u becomes ε with an index u. Each term is a span
    that belongs in one line."""

    return " ".join(f"<span>{_symbols(html.escape(term, quote=False))}</span>" for term in terms(text))


def terms(text: str) -> list[str]:
    """A formula cut before each + and - that is in no parentheses: there it may go on in another line."""
    found = [""]
    for word in text.split(" "):
        if word in ("+", "-") and found[-1].count("(") == found[-1].count(")"):
            found.append(word)
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return found


def _symbols(escaped: str) -> str:
    """Words that name a symbol as that, with their index; a minus as long as a plus."""

    def symbol(name: str) -> str:
        return f"&{GREEK[name]};" if name in GREEK else name

    def word(m: re.Match[str]) -> str:
        base, index = m.group(1), m.group(2)
        letter = f"<i>{symbol(base)}</i>" if base in GREEK or len(base) == 1 else base
        return letter + (f"<sub>{symbol(index)}</sub>" if index else "")

    shown = re.sub(r"(?<!&)\b([A-Za-z]+)(?:_([A-Za-z0-9]+))?\b", word, escaped)
    return re.sub(r"(?<!\S)- ", "&minus; ", shown)


def prose(text: str) -> str:
    """A sentence about a formula, escaped; psi and eps_c in it look as they do there."""

    def symbol(m: re.Match[str]) -> str:
        return _symbols(m[0])

    names = "|".join(sorted(GREEK, key=len, reverse=True))
    return re.sub(rf"\b(?:{names})(?:_[a-z])?\b", symbol, html.escape(sentence(text)))


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else NOT_YET
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 3 min 5 s, 2 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def sentence(text: str) -> str:
    """With a capital, unless it begins with a symbol or the path of a knob."""
    first = text.partition(" ")[0].strip(",:;")
    is_symbol = (len(first) == 1 and first != "a") or any(c in first for c in "._(")
    return text if is_symbol else text[:1].upper() + text[1:]
