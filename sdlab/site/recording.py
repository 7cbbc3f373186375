"""Record a run: at a few dozen steps what the object looks like, what the lens shows, and every step's statistics.

The pictures of one kind go into one file, a sheet with a cell per frame, which a browser scrubs without loading more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdlab.export.writers import render_turntable
from sdlab.lens.view import LensPictures, views_of_step
from sdlab.live.messages import Event, Patch, Skipped, Stepped
from sdlab.live.session import Session
from sdlab.pictures import grid
from sdlab.scenes import FlatScene
from sdlab.settings import Settings
from sdlab.ui import critic

FRAMES = 36
SIDES = 4  # around the object, in a square
SIDE = 152  # pixels of one
AROUND = 12  # views that the judge reads
COLUMNS = 6  # of a sheet of views; a lens's sheet has a row per frame
LENS_SIDE = 80  # pixels of a picture of the lens
QUALITY = 82  # of WebP
POINTS = 160  # per curve
CURVES = {"grad_rms": "Gradient RMS", "control_correlation": "Control variate", "psi_error": "Error of psi"}
JUDGED = {"judge": "Judge", "fronts": "Fronts of 12", "saturation": "Saturation"}


@dataclass
class Recording:
    """What a run showed. `frames` holds a dict per frame: step, seconds, formula's numbers."""

    steps: list[int] = field(default_factory=list)
    views: list[np.ndarray] = field(default_factory=list)  # uint8 [S, S, 3] each
    lens: list[LensPictures] = field(default_factory=list)
    judged: list[dict[str, float]] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    skipped: int = 0


def record(settings: Settings, changes: Mapping[int, Patch], frames: int = FRAMES) -> Recording:
    """Run `settings` to the end of the plan, with `changes` by step, and return what it showed at `frames` steps.
    ValueError for settings that cannot run."""
    session, found = Session(settings), Recording()
    session.listen(lambda event: _listen(found, event))
    for step, patch in changes.items():
        session.plan(step, patch)
    for step in moments(settings.planned_end, frames):
        session.run(until=step)
        _take(session, found)
    return found


def moments(end: int, frames: int) -> list[int]:
    """Return at most `frames` steps from 1 to `end`, denser at the beginning, where most happens."""
    way = np.linspace(0, 1, frames) ** 1.6
    return sorted({1, end, *(1 + np.rint(way * (end - 1)).astype(int)).tolist()})


def _listen(found: Recording, event: Event) -> None:
    match event:
        case Stepped(step, stats):
            for name in CURVES.keys() & stats.keys():
                found.curves.setdefault(name, []).append((step, stats[name]))
        case Skipped():
            found.skipped += 1


@torch.no_grad()
def _take(session: Session, found: Recording) -> None:
    state, s, report = session.state, session.settings, session.report
    if report is None:
        return
    found.steps.append(state.step)
    found.lens.append(views_of_step(report, s, session.prior))
    scene = state.scene
    if isinstance(scene, FlatScene):
        found.views.append(grid(scene.pictures(session.prior, session.bank.prompt(s.prompt))))
        found.judged.append({})
        return
    sides = render_turntable(scene, s.camera, SIDES, SIDE)
    found.views.append(grid(sides, gap=0))
    around = render_turntable(scene, s.camera, AROUND, session.prior.image_size)
    knows = critic.knows(s.prior)
    read = critic.metrics(around, s.prompt.text, knows)
    chance = critic.chance(around[:: AROUND // SIDES], s.prompt.text) if knows else None
    found.judged.append({**read, **({} if chance is None else {"judge": chance})})


# ---- to files --------------------------------------------------------------------------------------------


def write(found: Recording, folder: Path, name: str) -> dict[str, Any]:
    """Write the sheets of a recording to `folder`, as NAME-views.webp, NAME-lens.webp and NAME.webp, the last view, and
    return what the player needs to know."""
    views, cell, columns = sheet(found.views, COLUMNS)
    save(views, folder / f"{name}-views.webp")
    save(found.views[-1], folder / f"{name}.webp")
    pictures = [_fitted(one.pictures) for one in found.lens if len(one.pictures)]
    lens = {"cells": 0}
    if len(pictures) == len(found.lens):
        most = max(len(one) for one in pictures)
        rows = [_padded(one, most) for one in pictures]
        save(np.concatenate([np.concatenate(list(row), 1) for row in rows]), folder / f"{name}-lens.webp")
        last = max(found.lens, key=lambda one: len(one.labels))
        lens = {"cells": most, "size": pictures[0].shape[1], "labels": last.labels, "captions": last.captions}
    return {
        "steps": found.steps,
        "views": {"file": f"{name}-views.webp", "size": list(cell), "columns": columns},
        "lens": {**lens, "file": f"{name}-lens.webp"},
        "numbers": [
            {
                "t": one.t,
                "alpha": _short(one.alpha),
                "sigma": _short(one.sigma),
                "w": _short(one.weight),
                "view": one.view,
            }
            for one in found.lens
        ],
        "curves": [
            *({"title": CURVES[key], "points": thinned(points)} for key, points in found.curves.items()),
            *_judged(found),
        ],
        "skipped": found.skipped,
    }


def _judged(found: Recording) -> list[dict[str, Any]]:
    made = []
    for key, title in JUDGED.items():
        points = [(step, read[key]) for step, read in zip(found.steps, found.judged, strict=True) if key in read]
        if points:
            made.append({"title": title, "points": [[step, _short(value)] for step, value in points]})
    return made


def sheet(pictures: list[np.ndarray], columns: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """Return pictures of one size in rows of `columns`, the size (width, height) of a cell, and the columns."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    whole = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for n, picture in enumerate(pictures):
        y, x = n // columns * height, n % columns * width
        whole[y : y + height, x : x + width] = picture
    return whole, (width, height), columns


def thinned(points: list[tuple[int, float]]) -> list[list[float]]:
    """Return at most `POINTS` points, each the mean of a stretch; values that are not finite are left out."""
    finite = [(step, value) for step, value in points if np.isfinite(value)]
    parts = np.array_split(np.array(finite), min(POINTS, len(finite))) if finite else []
    return [[round(float(p[:, 0].mean()), 1), _short(float(p[:, 1].mean()))] for p in parts]


def _fitted(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of the lens, uint8 [K, S, S, 3], in the size of the sheet."""
    size = (LENS_SIDE, LENS_SIDE)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in pictures])


def _padded(pictures: np.ndarray, most: int) -> np.ndarray:
    more = np.full((most - len(pictures), *pictures.shape[1:]), 255, np.uint8)
    return np.concatenate([pictures, more])


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture, uint8 [H, W, 3], as WebP."""
    Image.fromarray(picture).save(path, quality=QUALITY, method=4)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
