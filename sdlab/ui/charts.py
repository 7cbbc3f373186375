"""Charts of a run over its steps, as inline SVG stretched to its box, and the table that compares lanes."""

from __future__ import annotations

import html
import itertools
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sdlab.settings import losses
from sdlab.ui.wording import NOT_YET, duration, number

CHART_POINTS = 200
KEPT_POINTS = 2000  # per curve before neighbours are merged
CHART_WIDTH, CHART_HEIGHT = 200.0, 60.0  # in the SVG's own coordinates


class Mark(NamedTuple):
    """A change of settings on the time axis."""

    step: int
    text: str


# ---- curves ----------------------------------------------------------------------------------------------


class Curve:
    """A statistic over steps in bounded memory: a full curve merges neighbours into their mean.

    Points are packed, since a server holds thousands of them for each of its seats. One thread writes, others may read.
    """

    def __init__(self) -> None:
        self._packed = array("d")  # steps and values in turn
        self._per_point = 1
        self._pending: list[tuple[float, float]] = []

    def add(self, step: int, value: float) -> None:
        """Add a value; a non-finite one leaves a gap."""
        if not math.isfinite(value):
            return
        self._pending.append((float(step), value))
        if len(self._pending) < self._per_point:
            return
        self._packed.extend(_packed([_mean(self._pending)]))  # an array, which comes whole for other threads
        self._pending = []
        if len(self._packed) >= 2 * KEPT_POINTS:
            self._packed = _packed(_merged(self._points(), 2))
            self._per_point *= 2

    def points(self, n: int = CHART_POINTS) -> list[tuple[float, float]]:
        """Return at most `n` (step, value), each the mean of a stretch of the curve."""
        pending = self._pending  # read once: another thread may replace it
        points = self._points()
        if pending:
            points.append(_mean(pending))
        return _merged(points, math.ceil(len(points) / n)) if len(points) > n else points

    def cut(self, step: int) -> None:
        """Forget everything after `step`: the run has gone back there."""
        self._packed = _packed(point for point in self._points() if point[0] <= step)
        self._pending = [point for point in self._pending if point[0] <= step]

    def last(self) -> float | None:
        pending = self._pending
        if pending:
            return pending[-1][1]
        packed = self._packed
        return packed[-1] if packed else None

    def _points(self) -> list[tuple[float, float]]:
        packed = self._packed[:]  # another thread may write meanwhile
        return list(zip(packed[::2], packed[1::2], strict=True))


def _packed(points: Iterable[tuple[float, float]]) -> array[float]:
    return array("d", itertools.chain.from_iterable(points))


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)


def _merged(points: Sequence[tuple[float, float]], n: int) -> list[tuple[float, float]]:
    return [_mean(points[i : i + n]) for i in range(0, len(points), n)]


class Plot(NamedTuple):
    """A chart of one statistic: the first of `keys` that a step reports."""

    name: str
    title: str
    note: str
    keys: tuple[str, ...]
    log: bool = False

    def value(self, stats: Mapping[str, float]) -> float | None:
        return next((stats[key] for key in self.keys if key in stats), None)


PLOTS = (
    Plot("gradient", "Gradient RMS", "root mean square of w(t) residual", ("grad_rms",), log=True),
    Plot("rate", "Steps per second", "smoothed", ("steps_per_s",)),
    Plot(
        "correlation",
        "Control variate",
        "correlation of the guided prediction with the control variate: near 1, little noise is left",
        ("control_correlation",),
    ),
    Plot(
        "auxiliary",
        "Auxiliary error",
        "mean squared error of the network that the loss trains, against the noise",
        tuple(dict.fromkeys(key for loss in losses().values() for key in loss.aux_errors)),
        log=True,
    ),
    Plot("gaussians", "Gaussians", "number of Gaussians in the scene", ("n_gaussians",)),
    Plot(
        "judge",
        "Judge",
        "probability that the images show what the prompt asks for, according to the toybox's judge",
        ("judge",),
    ),
    Plot(
        "fronts",
        "Fronts of 12",
        "views around the object that the judge reads as a front: 3 for an object with one front",
        ("fronts",),
    ),
    Plot(
        "variety",
        "View variety, IV",
        "entropy in nats of the view words that the judge reads around the object: 0 if all views look alike, 1.04 for "
        "three fronts, three backs and six sides",
        ("iv_view",),
    ),
    Plot("saturation", "Saturation", "mean of max(R, G, B) - min(R, G, B) around the object", ("saturation",)),
    Plot("sharpness", "Sharpness", "mean distance of a pixel from its surroundings, around the object", ("sharpness",)),
)


class Line(NamedTuple):
    """A curve in a chart; `tone` 0 to 3 is its lane's colour."""

    curve: Curve
    tone: int = 0


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[Mark], log: bool = False, name: str = "", note: str = ""
) -> str:
    """Return one chart over steps: a line per lane, and a vertical line at each change of settings. `log` makes the
    value axis logarithmic. The number in the heading is the first lane's."""
    curves = [(line.tone, [(s, v) for s, v in line.curve.points() if not log or v > 0]) for line in lines]
    last = lines[0].curve.last() if lines else None
    now = number(last) if last is not None else NOT_YET
    head = (
        f'<figcaption title="{html.escape(note)}"><span>{html.escape(title)}</span>'
        f'<b data-figure="{name}">{now}</b></figcaption>'
    )
    curves = [(tone, points) for tone, points in curves if len(points) > 1]
    if not curves:
        why = "no steps yet" if last is None else "one value so far"
        return f'<figure class="chart">{head}<div class="plot empty"><span>{why}</span></div></figure>'
    heights = [math.log10(v) if log else v for _, points in curves for _, v in points]
    low, high = min(heights), max(heights)
    if not log:
        low = min(low, 0.0)
    if high - low < 1e-9:
        low, high = (low - 0.5, high + 0.5) if log or low < 0 else (0.0, 1.0)
    first, end = min(points[0][0] for _, points in curves), max(points[-1][0] for _, points in curves)

    def x(step: float) -> float:
        return CHART_WIDTH * (step - first) / max(end - first, 1.0)  # after jumps all points may lie at one step

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


def charts(
    lanes: Sequence[tuple[int, Mapping[str, Curve]]],
    marks: Sequence[Mark],
    scene: Mapping[str, float],
    stats: Mapping[str, float],
) -> str:
    """Return the charts and the numbers below them. `lanes` holds each lane's tone and curves by name, the lane in
    focus first; `scene` are the statistics of its last frame, `stats` those of its last step, empty before the first.
    A chart without data in any lane is left out, except for the first two."""
    known = bool(stats)
    rows = [
        *_scene_rows(scene),
        ("Skipped steps", f"{stats.get('skipped', 0):.0f}", "updates skipped because a gradient was not finite"),
        (
            "Time in the prior",
            f"{100 * stats['prior_share']:.0f} %" if known else NOT_YET,
            "share of the time to give a GPU its work, which it does later"
            if stats.get("launch_times")
            else "share of all steps",
        ),
        (
            "Noise level t",
            number(stats["t"]) if known else NOT_YET,
            "timestep, 0 to 999, mean over the views",
        ),
        ("Time", duration(stats["seconds"]) if known else NOT_YET, "spent in steps, without pauses"),
    ]
    drawn = ""
    for i, plot in enumerate(PLOTS):
        lines = [Line(curves[plot.name], tone) for tone, curves in lanes]
        if i < 2 or any(line.curve.last() is not None for line in lines):
            drawn += chart(plot.title, lines, marks, plot.log, plot.name, plot.note)
    return f'<div class="charts">{drawn}</div>{figures(rows)}'


def _scene_rows(scene: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return the rows about the scene from a frame's statistics."""
    if "n_gaussians" in scene:
        return [("Gaussians", f"{scene['n_gaussians']:,.0f}".replace(",", " "), "number of Gaussians in the scene now")]
    if "std_x" not in scene:
        return []
    mean, std = (f"{number(scene[f'{name}_x'])}, {number(scene[f'{name}_y'])}" for name in ("mean", "std"))
    return [
        ("Mean", mean, "of the fitted Gaussian, towards east and north"),
        ("Standard deviation", std, "of the fitted Gaussian, towards east and north"),
    ]


def no_charts() -> str:
    """Return the charts before there is anything to draw."""
    return charts([], [], {}, {})


def figures(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return (name, value, explanation) as a row of numbers."""
    cells = "".join(
        f'<div title="{html.escape(note)}"><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
        for name, value, note in rows
    )
    return f'<dl class="figures">{cells}</dl>'


class LaneRow(NamedTuple):
    """One row of the table that compares lanes."""

    tone: int
    letter: str
    loss: str
    prompt: str
    step: int
    stats: Mapping[str, float]


def lanes_table(rows: Sequence[LaneRow]) -> str:
    """Return a table of the lanes' statistics; "" for a single lane."""
    if len(rows) < 2:
        return ""
    shown = [plot for plot in PLOTS if any(plot.value(row.stats) is not None for row in rows)]
    head = "".join(f"<th>{html.escape(plot.title)}</th>" for plot in shown)
    body = ""
    for row in rows:
        values = [plot.value(row.stats) for plot in shown]
        cells = "".join(f"<td>{number(v) if v is not None else NOT_YET}</td>" for v in values)
        seconds = row.stats.get("seconds")
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
