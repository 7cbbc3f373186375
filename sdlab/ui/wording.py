"""Display text: the names of knobs, choices and phases, and numbers and durations as text."""

from __future__ import annotations

import math

from sdlab.live.messages import Phase

TITLE = "Score Distillation Lab"
NOT_YET = "\N{EN DASH}"  # shown in place of an unknown number
LABELS = {
    "cfg": "CFG",
    "sds_cfg": "SDS-stage CFG",
    "inversion_cfg": "Inversion CFG",
    "inversion_eta": "Inversion noise",
    "dca_cutoff": "DCA cut-off",
    "fovy": "Field of view",
    "lam": "Lambda",
    "lessons": "Lessons per step",
    "every": "Learns every",
    "lr": "Learning rate",
    "perp_neg": "Perp-Neg",
    "rescale": "CFG rescale",
    "pos": "Prompt",
    "pos_end": "Prompt at the end",
    "neg": "Negative prompt",
    "neg_end": "Negative prompt at the end",
    "null": "Empty prompt",
    "null_end": "Empty prompt at the end",
    "noise_end": "Noise at the end",
    "negative": "Negative prompt",
    "p_null": "Share without camera",
    "rank": "LoRA rank",
    "leg_steps": "Steps per leg",
    "source_cfg": "Source CFG",
    "target": "Target prompt",
    "target_cfg": "Target CFG",
    "warm_up": "Warm-up",
}
MODE_LABELS = {  # what a view shows; the browser draws the first, the run's rasteriser the others
    "splats": "Gaussians",
    "color": "Render",
    "depth": "Depth",
    "opacity": "Opacity",
    "normals": "Normals",
    "count": "Gaussians per pixel",
}
LABELS_OF_PATHS = {  # of names that mean different things in different groups, or nothing by themselves
    "active": "Loss",
    "prior.source": "Images from",
    "prompt.fourth": "Fourth prompt",
    "prompt.second": "Second prompt",
    "prompt.source": "Source prompt",
    "prompt.third": "Third prompt",
    "schedule.start": "Schedules start at step",
}
CHOICES = {"lora": "LoRA", "sds": "SDS"}
SYMBOLS = ("t", "w", "s", "k")  # not capitalised at the beginning of a label
PHASE_WORDS: dict[Phase, str] = {
    "loading": "Loading",
    "compiling": "Compiling",
    "ready": "Ready",
    "running": "Running",
    "paused": "Paused",
    "failed": "Failed",
    "ended": "Ended",
}
WARMING_UP = "Warming up"


def label_of(path: str) -> str:
    """Return a knob's label on the page: `camera.distance_min` is "Distance min"."""
    if path in LABELS_OF_PATHS:
        return LABELS_OF_PATHS[path]
    name = path.rpartition(".")[2].removeprefix("lr_")
    if name in LABELS:
        return LABELS[name]
    words = name.replace("_", " ")
    return words if words.partition(" ")[0] in SYMBOLS else words[:1].upper() + words[1:]


def number(value: float) -> str:
    """Return three significant digits, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else NOT_YET
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def short(value: float) -> str:
    """Return two digits, which fit below a letter."""
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
    """Return seconds as text: 40 s, 3 min 5 s, 2 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def size(n: int) -> str:
    """Return bytes as text: 640 kB, 1.2 MB."""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{max(round(n / 1e3), 1)} kB"


def sentence(text: str) -> str:
    """Capitalise a text, unless it begins with a symbol or the path of a knob."""
    first = text.partition(" ")[0].strip(",:;")
    is_symbol = (len(first) == 1 and first != "a") or any(c in "._(" or c.isdigit() for c in first)
    return text if is_symbol else text[:1].upper() + text[1:]
