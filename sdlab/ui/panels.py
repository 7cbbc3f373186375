"""What a session says, as HTML: pure functions from figures to markup.

Every text that a person typed goes through `html.escape`. Charts are inline SVG stretched to their box, pictures are
data URIs, so that a page that is open for hours leaves no files behind.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from sdlab.lens import Comparison, LensPictures
from sdlab.live.messages import Phase
from sdlab.settings import losses
from sdlab.ui.formulas import prose, sentence

CHART_POINTS = 200
MAX_PREVIEW = 16
EXACT_PIXELS = 64  # larger pictures are sent as JPEG
NOT_YET = "\N{EN DASH}"  # in place of a figure that is not known
KEPT_POINTS = 2000  # of a curve before neighbours are merged
CHART_WIDTH, CHART_HEIGHT = 200.0, 60.0  # of the SVG's own coordinates, with room for the line's width

Tone = Literal["info", "warning", "error"]


class Message(NamedTuple):
    """Something the status line says until the next change, or a time (monotonic)."""

    tone: Tone
    text: str
    until: float = math.inf


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
        pending = self._pending  # another thread may put a new one in its place
        points = [*self._points, _mean(pending)] if pending else self._points
        return _merged(points, math.ceil(len(points) / n)) if len(points) > n else list(points)

    def cut(self, step: int) -> None:
        """Forget what came after `step`: the run has gone back to there."""
        self._points = [point for point in self._points if point[0] <= step]
        self._pending = [point for point in self._pending if point[0] <= step]

    def last(self) -> float | None:
        points = self._pending or self._points
        return points[-1][1] if points else None


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)


def _merged(points: Sequence[tuple[float, float]], n: int) -> list[tuple[float, float]]:
    return [_mean(points[i : i + n]) for i in range(0, len(points), n)]


class Plot(NamedTuple):
    """A chart: the first of `keys` that a step's figures hold is what it shows."""

    name: str
    title: str
    note: str
    keys: tuple[str, ...]
    log: bool = False

    def value(self, figures: Mapping[str, float]) -> float | None:
        return next((figures[key] for key in self.keys if key in figures), None)


PLOTS = (
    Plot("gradient", "Gradient RMS", "root mean square of w(t) residual", ("grad_rms",), log=True),
    Plot("rate", "Steps per second", "smoothed", ("steps_per_s",)),
    Plot(
        "correlation",
        "Control variate",
        "correlation of the guided prediction with what the loss sets against it: near 1, little noise is left",
        ("control_correlation",),
    ),
    Plot(
        "auxiliary",
        "Error of its own network",
        "mean square error of the network that the loss trains, against the noise",
        tuple(dict.fromkeys(key for loss in losses().values() for key in loss.aux_errors)),
        log=True,
    ),
    Plot("gaussians", "Gaussians", "how many make up the scene", ("n_gaussians",)),
    Plot(
        "judge",
        "Judge",
        "chance that the pictures show what the prompt asks for, as the toybox's judge reads them",
        ("judge",),
    ),
)


class Line(NamedTuple):
    """A curve in a chart; `tone` 0 to 3 is the colour of its lane."""

    curve: Curve
    tone: int = 0


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[Mark], log: bool = False, name: str = "", note: str = ""
) -> str:
    """One figure over steps, a line for each lane, and a line where settings changed; `log` for a logarithmic value
    axis. The number at its head is that of the first lane."""
    curves = [(line.tone, [(s, v) for s, v in line.curve.points() if not log or v > 0]) for line in lines]
    last = lines[0].curve.last() if lines else None
    now = number(last) if last is not None else NOT_YET
    head = (
        f'<figcaption title="{html.escape(note)}"><span>{html.escape(title)}</span>'
        f'<b data-figure="{name}">{now}</b></figcaption>'
    )
    curves = [(tone, points) for tone, points in curves if len(points) > 1]
    if not curves:
        return f'<figure class="chart">{head}<div class="plot empty"><span>no steps yet</span></div></figure>'
    heights = [math.log10(v) if log else v for _, points in curves for _, v in points]
    low, high = min(heights), max(heights)
    if not log:
        low = min(low, 0.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    first, end = min(points[0][0] for _, points in curves), max(points[-1][0] for _, points in curves)

    def x(step: float) -> float:
        return CHART_WIDTH * (step - first) / max(end - first, 1.0)  # after jumps all may be of one step

    def y(value: float) -> float:
        height = math.log10(value) if log else value
        return CHART_HEIGHT - 2.0 - (CHART_HEIGHT - 4.0) * (height - low) / (high - low)

    drawn = "".join(
        f'<polyline class="line tone-{tone}" points="{" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)}"/>'
        for tone, points in curves
    )
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
        f'aria-label="{html.escape(title)} over steps">{ticks}{drawn}</svg>'
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
    facts = [f"step <b>{step}</b> {f'of {steps}' if step <= steps else f'({steps} were planned)'}"]
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


def preview(pictures: np.ndarray, views: Sequence[str], step: int, row: int = 0) -> str:
    """What the loss saw: [B, H, W, 3] uint8 with a view word each; of many pictures the first. `row` is the one that
    the lens looks at."""
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
    """Where the pictures will be."""
    return '<div class="strip"><h3>What the loss sees</h3><div class="pictures"><i></i><i></i></div></div>'


def charts(
    lanes: Sequence[tuple[int, Mapping[str, Curve]]],
    marks: Sequence[Mark],
    scene: Mapping[str, float],
    stats: Mapping[str, float],
) -> str:
    """The charts, with the curves of every lane by name beside its tone, and the numbers below them; `scene` from the
    last frame and `stats` of the last step of the lane in focus, the first, empty before its first step. Those that no
    lane has anything for are left out, but for the first two."""
    known = bool(stats)
    rows = [
        *_scene_rows(scene),
        ("Skipped steps", f"{stats.get('skipped', 0):.0f}", "updates left out because a gradient was not finite"),
        ("Inside the prior", f"{100 * stats['prior_share']:.0f} %" if known else NOT_YET, "share of all steps' time"),
        ("Noise level t", number(stats["t"]) if known else NOT_YET, "timestep, 0 to 999, mean over the last views"),
        ("Time", duration(stats["seconds"]) if known else NOT_YET, "spent in steps, pauses not counted"),
    ]
    drawn = ""
    for i, plot in enumerate(PLOTS):
        lines = [Line(curves[plot.name], tone) for tone, curves in lanes]
        if i < 2 or any(line.curve.last() is not None for line in lines):
            drawn += chart(plot.title, lines, marks, plot.log, plot.name, plot.note)
    return f'<div class="charts">{drawn}</div>{figures(rows)}'


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
    return charts([], [], {}, {})


def lens(seen: LensPictures) -> str:
    """The pictures of one view of one step, each with its name and what it is."""
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
    heat = f"colours of the residual end at &plusmn;{number(seen.scale)}"
    return f'<div class="strip lens"><div class="pictures">{cells}</div><p>{view}{facts}; {heat}.{note}</p></div>'


def no_lens() -> str:
    """The lens before there is anything to see."""
    return '<p class="none">With the next step: what the loss sees, and what it makes of it.</p>'


def no_comparison() -> str:
    """Before anybody has asked."""
    return (
        '<p class="none">The gradients of all losses for these very pictures, at the same t and noise, and how far '
        "they agree. It takes some seconds; the run goes on.</p>"
    )


def comparison(c: Comparison) -> str:
    """How far the losses disagree at one state: their pushes as pictures, and the cosines between them."""
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
    done = "" if c.done == len(c.titles) else f" {c.done} of {len(c.titles)} losses have answered."
    return (
        f'<div class="versus"><p>Where each loss would push these very pictures, at t = {t} and with the same '
        "noise; grey stays. To the right the cosine between any two: 1 agrees, 0 has nothing to do with it, "
        f"&minus;1 opposes.{done}</p>"
        f"<table><thead><tr><th></th>{views}<th>RMS</th><th>NFE</th>{names}</tr></thead><tbody>{rows}</tbody></table>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
    )


def _push(c: Comparison, loss: int, view: int) -> str:
    if c.reason or loss >= c.done or not math.isfinite(float(c.rms[loss])):
        return ""
    return f'<img src="{data_uri(c.pictures[loss, view])}" alt="push of {html.escape(c.titles[loss])}">'


def _cosine(value: float, pair: str) -> str:
    """A cell whose colour says how far two losses agree."""
    if not math.isfinite(value):
        return f'<td class="cosine" title="{html.escape(pair)}">{NOT_YET}</td>'
    hue = "var(--agree)" if value >= 0 else "var(--oppose)"
    share = round(100 * min(abs(float(value)), 1.0))
    style = f"background: color-mix(in srgb, {hue} {share}%, transparent)"
    return f'<td class="cosine" title="{html.escape(pair)}" style="{style}">{value:.2f}</td>'


class LaneRow(NamedTuple):
    """What the table of lanes says of one."""

    tone: int
    letter: str
    loss: str
    prompt: str
    step: int
    figures: Mapping[str, float]


def lanes_table(rows: Sequence[LaneRow]) -> str:
    """The figures of several lanes under each other; "" for one alone."""
    if len(rows) < 2:
        return ""
    shown = [plot for plot in PLOTS if any(plot.value(row.figures) is not None for row in rows)]
    head = "".join(f"<th>{html.escape(plot.title)}</th>" for plot in shown)
    body = ""
    for row in rows:
        values = [plot.value(row.figures) for plot in shown]
        cells = "".join(f"<td>{number(v) if v is not None else NOT_YET}</td>" for v in values)
        seconds = row.figures.get("seconds")
        body += (
            f'<tr><th><i class="chip tone-{row.tone}">{row.letter}</i></th><td>{html.escape(row.loss)}</td>'
            f"<td>{html.escape(row.prompt)}</td><td>{row.step}</td>"
            f"<td>{duration(seconds) if seconds else NOT_YET}</td>{cells}</tr>"
        )
    return (
        '<table class="lanes"><thead><tr><th></th><th>Loss</th><th>Prompt</th><th>Step</th><th>Time</th>'
        f"{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def data_uri(picture: np.ndarray) -> str:
    """A picture [H, W, 3] uint8 as an address that holds it; a small one as it is, to the pixel."""
    file = io.BytesIO()
    if max(picture.shape[:2]) <= EXACT_PIXELS:
        Image.fromarray(picture).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def figures(rows: Sequence[tuple[str, str, str]]) -> str:
    """(name, value, explanation) as a row of numbers."""
    cells = "".join(
        f'<div title="{html.escape(note)}"><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
        for name, value, note in rows
    )
    return f'<dl class="figures">{cells}</dl>'


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else NOT_YET
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def short(value: float) -> str:
    """Two digits: what fits below a letter."""
    if not math.isfinite(value):
        return NOT_YET
    return (
        f"{value:.0f}"
        if abs(value) >= 9.95
        else f"{value:.1f}"
        if abs(value) >= 0.995
        else f"{value:.2g}".replace("0.", ".", 1)
    )


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 3 min 5 s, 2 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def size(n: int) -> str:
    """Bytes in words: 640 kB, 1.2 MB."""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{max(round(n / 1e3), 1)} kB"
