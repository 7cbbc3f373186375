"""Record a run: at a few dozen steps what the object looks like, what the lens shows, and every step's statistics.

The pictures of one kind go into one file, a sheet with a cell per shot, which a browser scrubs without loading more.
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
from sdlab.lessons.readings import Reader
from sdlab.live import critic
from sdlab.live.messages import Event, Patch, Skipped, Stepped
from sdlab.live.session import Session
from sdlab.pictures import grid
from sdlab.scenes import FlatScene
from sdlab.settings import Settings

FRAMES = 36
SIDES = 4  # around the object, in a square
SIDE = 152  # pixels of one
COLUMNS = 6  # of a sheet of views; a lens's sheet has a row per shot
LENS_SIDE = 80  # pixels of a picture of the lens
QUALITY = 82  # of WebP
POINTS = 160  # per curve
CURVES = {"grad_rms": "Gradient RMS", "control_correlation": "Control variate", "psi_error": "Error of psi"}
JUDGED = {"judge": "Judge", "fronts": "Fronts of 12", "saturation": "Saturation"}


@dataclass(frozen=True, eq=False)
class Shot:
    """What a run showed after a step. `view` is uint8 [H, W, 3], of one size in all shots of a recording; the lens has
    no pictures before the first step."""

    step: int
    view: np.ndarray
    lens: LensPictures = field(default_factory=LensPictures)
    judged: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Recording:
    """What a run showed: shots, and curves of its statistics by name as (step, value)."""

    shots: list[Shot] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    skipped: int = 0

    def take(self, event: Event) -> None:
        """Add what an event of the run tells to the curves."""
        match event:
            case Stepped(step, stats):
                for name in CURVES.keys() & stats.keys():
                    self.curves.setdefault(name, []).append((step, stats[name]))
            case Skipped():
                self.skipped += 1


def record(settings: Settings, changes: Mapping[int, Patch], frames: int = FRAMES) -> Recording:
    """Run `settings` to the end of the plan, with `changes` by step, and return what it showed at `frames` steps.
    ValueError for settings that cannot run."""
    session, found = Session(settings), Recording()
    reader = Reader(session)
    session.listen(found.take)
    for step, patch in changes.items():
        session.plan(step, patch)
    for step in moments(settings.planned_end, frames):
        session.run(until=step)
        found.shots.append(Shot(step, view_of(session), lens_of(session), judged_of(session, reader)))
    return found


def moments(end: int, frames: int) -> list[int]:
    """Return at most `frames` steps from 1 to `end`, denser at the beginning, where most happens."""
    way = np.linspace(0, 1, frames) ** 1.6
    return sorted({1, end, *(1 + np.rint(way * (end - 1)).astype(int)).tolist()})


@torch.no_grad()
def view_of(session: Session) -> np.ndarray:
    """Return the scene as it is, uint8 [H, W, 3]: an object from `SIDES` sides, or the images of a flat scene."""
    scene, s = session.state.scene, session.effective
    if isinstance(scene, FlatScene):
        return grid(scene.pictures(session.prior, session.bank.prompt(s.prompt)))
    return grid(render_turntable(scene, s.camera, SIDES, SIDE), gap=0)


def lens_of(session: Session) -> LensPictures:
    """Return what the last step saw in its first view; without pictures before the first step."""
    report = session.report
    return LensPictures() if report is None else views_of_step(report, session.effective, session.prior)


def judged_of(session: Session, reader: Reader) -> dict[str, float]:
    """Return the metrics of the views around an object, as charts and lessons show them; empty for a flat scene."""
    session.show()
    around, s = session.around.get(), session.effective
    if around is None:
        return {}
    sides = around.images[:: len(around.images) // SIDES]
    chance = critic.chance(sides, s.prompt.text) if critic.knows(s.prior) else None
    return {**reader.around(), **({} if chance is None else {"judge": chance})}


# ---- to files --------------------------------------------------------------------------------------------


def write(found: Recording, folder: Path, name: str) -> dict[str, Any]:
    """Write the sheets of a recording to `folder`, as NAME-views.webp and NAME-lens.webp, and return what the player
    needs to know."""
    views, cell, columns = sheet([shot.view for shot in found.shots], COLUMNS)
    save(views, folder / f"{name}-views.webp")
    return {
        "labels": [f"step {shot.step}" for shot in found.shots],
        "steps": [shot.step for shot in found.shots],
        "views": {"file": f"{name}-views.webp", "size": list(cell), "columns": columns, "count": len(found.shots)},
        "lens": write_lens([shot.lens for shot in found.shots], folder, name),
        "numbers": [_numbers(shot.lens) for shot in found.shots],
        "curves": [
            *({"title": CURVES[key], "points": thinned(points)} for key, points in found.curves.items()),
            *judged_curves(found.shots),
        ],
        "skipped": found.skipped,
    }


def write_lens(seen: list[LensPictures], folder: Path, name: str) -> dict[str, Any]:
    """Write NAME-lens.webp, with a row for each of `seen`, and return what the player needs to know of it; no file
    unless there are pictures."""
    most = max(seen, key=lambda one: len(one.pictures))
    if not len(most.pictures):
        return {"cells": 0}
    rows = [_padded(_fitted(one.pictures), len(most.pictures)) for one in seen]
    save(np.concatenate([np.concatenate(list(row), 1) for row in rows]), folder / f"{name}-lens.webp")
    told = {"cells": len(most.pictures), "size": LENS_SIDE, "file": f"{name}-lens.webp"}
    return {**told, "rows": [{"labels": one.labels, "captions": one.captions} for one in seen]}


def _numbers(one: LensPictures) -> dict[str, Any]:
    """Return the numbers of a step, empty before the first."""
    if not one.loss:
        return {}
    found = {"alpha": one.alpha, "sigma": one.sigma, "w": one.weight}
    return {"t": one.t, "view": one.view, **{name: short(value) for name, value in found.items()}}


def judged_curves(shots: list[Shot]) -> list[dict[str, Any]]:
    """Return the curves of what was read in the views around the object."""
    made = []
    for key, title in JUDGED.items():
        points = [[shot.step, short(shot.judged[key])] for shot in shots if key in shot.judged]
        if points:
            made.append({"title": title, "points": points})
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
    return [[round(float(p[:, 0].mean()), 1), short(float(p[:, 1].mean()))] for p in parts]


def _fitted(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of the lens, uint8 [K, S, S, 3], in the size of the sheet."""
    if not len(pictures):
        return np.zeros((0, LENS_SIDE, LENS_SIDE, 3), np.uint8)
    size = (LENS_SIDE, LENS_SIDE)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in pictures])


def _padded(pictures: np.ndarray, most: int) -> np.ndarray:
    more = np.full((most - len(pictures), *pictures.shape[1:]), 255, np.uint8)
    return np.concatenate([pictures, more])


def save(picture: np.ndarray, path: Path) -> None:
    """Write a picture, uint8 [H, W, 3], as WebP."""
    Image.fromarray(picture).save(path, quality=QUALITY, method=4)


def short(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")
