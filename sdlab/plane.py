"""Draw the plane: the density of a 2-D prior as a landscape, and the trajectories of particles in it.

A point (x, y) is a sample [2, 1, 1]; x points east, y north. The landscape is the density conditioned on the prompt,
for priors that can compute it (`log_density` of `sdlab.priors.mixture`); its square root is drawn, so that small modes
are visible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlab.types import Cond, Prior

SIZE = 512  # pixels of a live image
REACH = 1.8  # the plane is shown from -REACH to REACH
HELD = 0.01  # a mode counts as reached with at least this fraction of the points
GROUND = np.array([250, 250, 252], np.float32)
HILL = np.array([120, 158, 214], np.float32)
FAR_HILL = np.array([226, 228, 234], np.float32)  # modes outside the prompt
TRAIL = (92, 92, 104, 90)
END = (214, 64, 54, 255)
DRAWN = 300  # maximum number of trajectories in a live image
SEGMENTS = 4000  # maximum number of line segments in a live image, which keeps it fast


def must_be_plane(kind: str, prior: Prior) -> None:
    """Raise ValueError unless the prior's samples are points of the plane."""
    if tuple(prior.shape) != (2, 1, 1):
        raise ValueError(
            f"scene.kind = {kind} needs a prior of points in the plane (prior.kind = mixture with prior.layout = eight "
            f"or four); samples of {prior.name} have shape {tuple(prior.shape)}"
        )


def density(prior: Prior, cond: Cond, points: int, reach: float = REACH) -> np.ndarray:
    """Return the density on a grid [points, points], north at the top, scaled to a maximum of 1.

    All zeros if the prior cannot compute its density.
    """
    log_density: Any = getattr(prior, "log_density", None)
    if log_density is None:
        return np.zeros((points, points), np.float32)
    axis = torch.linspace(-reach, reach, points)
    x, y = torch.meshgrid(axis, axis.flip(0), indexing="xy")
    events = torch.stack([x, y], -1).view(-1, 2, 1, 1).to(cond.hidden)
    many = cond._replace(hidden=cond.hidden.expand(len(events), -1, -1))
    with torch.no_grad():
        found = log_density(events, torch.zeros(len(events), dtype=torch.long, device=events.device), many)
    return (found - found.max()).exp().view(points, points).float().cpu().numpy()


def draw_plane(prior: Prior, cond: Cond, way: np.ndarray) -> np.ndarray:
    """Draw the landscape, the recent part of each trajectory `way` [T, B, 2] and its end: uint8 [SIZE, SIZE, 3]."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(_landscape(prior, cond))
    draw = ImageDraw.Draw(picture, "RGBA")
    at = pixels_of(way)
    shown = min(at.shape[1], DRAWN)
    for trail in at[-max(SEGMENTS // shown, 2) :, :shown].transpose(1, 0, 2):
        draw.line([(float(x), float(y)) for x, y in trail], fill=TRAIL, width=1)
    for x, y in at[-1]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=END)
    return np.asarray(picture)


_drawn: dict[bytes, np.ndarray] = {}  # cached landscapes by prompt, shared by the threads of all sessions


def _landscape(prior: Prior, cond: Cond) -> np.ndarray:
    key = cond.hidden.cpu().numpy().tobytes()
    drawn = _drawn.get(key)
    if drawn is None:
        picture = GROUND
        for what, colour in ((prior.embed(""), FAR_HILL), (cond, HILL)):
            height = np.sqrt(np.kron(density(prior, what, SIZE // 2), np.ones((2, 2), np.float32)))[..., None]
            picture = picture + height * (colour - picture)
        drawn = picture.astype(np.uint8)
        if len(_drawn) >= 16:
            _drawn.clear()
        _drawn[key] = drawn
    return drawn


def pixels_of(points: np.ndarray) -> np.ndarray:
    """Convert points of the plane [..., 2] to pixels (right, down) of a live image."""
    return (points * np.array([1, -1]) + REACH) * (SIZE / (2 * REACH))


def plot_trails(prior: Prior, cond: Cond, ways: Mapping[str, np.ndarray], file: Path) -> None:
    """Plot one panel per entry of `ways`, title -> trajectories [T, B, 2], with starts and ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(ways), 3.9), layout="constrained")
    for axes, (title, way) in zip(np.atleast_1d(figure.subplots(1, len(ways))), ways.items(), strict=True):
        plot_on(axes, prior, cond, way)
        axes.set_title(title)
    figure.savefig(file, dpi=110)


def plot_on(axes: Any, prior: Prior, cond: Cond, way: np.ndarray) -> None:
    """Plot the landscape, trajectories [T, B, 2], their starts and ends on matplotlib `axes`."""
    from matplotlib.collections import LineCollection

    extent = (-REACH, REACH, -REACH, REACH)
    axes.imshow(np.sqrt(density(prior, prior.embed(""), 181)), extent=extent, cmap="Greys", vmax=8.0)
    asked = np.sqrt(density(prior, cond, 181))
    axes.imshow(asked, extent=extent, cmap="Blues", vmax=2.0, alpha=asked)
    n = way.shape[1]
    if len(way) > 1:
        faint = max(0.04, min(0.6, 12 / n))
        axes.add_collection(LineCollection(list(way.transpose(1, 0, 2)), colors="0.3", linewidths=0.6, alpha=faint))
        axes.scatter(*np.unique(way[0], axis=0).T, s=34, color="tab:green", zorder=3)
    axes.scatter(*way[-1].T, s=max(2.0, 26 / math.sqrt(n)), color="tab:red", zorder=2)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=(), yticks=())


def shares(means: Tensor, stds: Tensor, ends: Tensor, within: float = 3.0) -> list[float]:
    """Return, for each of `means` [K, 2], the fraction of `ends` [B, 2] that are nearest to this mean and at most
    `within` of its standard deviations away; the fractions sum to less than 1 if some ends reach no mean."""
    distance = (ends.double()[:, None] - means.double()[None]).norm(dim=-1)
    nearest = distance.argmin(1)
    close = distance.gather(1, nearest[:, None])[:, 0] <= within * stds.double()[nearest]
    return [float(((nearest == k) & close).double().mean()) for k in range(len(means))]
