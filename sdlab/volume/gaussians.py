"""The visible surface of a volume as small round Gaussians, for viewers and splat files that know nothing else.

One Gaussian stands for one cell of a grid. Its peak opacity is such that a layer of cells lets through as much light as
a cell of the volume: a ray crosses 2 pi s^2 Gaussians of standard deviation s (in cells) per layer on average. Cells
from which hardly any light leaves along the six axes are left out. This is an approximation: the surface is blurred by
about a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab.transfer import to_numpy
from sdlab.types import RawSplats, SplatSnapshot
from sdlab.volume.empty import Occupancy

CELLS = 64  # along each side of the cube
WIDTH = 0.45  # standard deviation in cells: neighbours overlap without gaps, and the outline hardly grows
FAINT = 0.1  # optical depth of a cell below which it has no Gaussian
HIDING = 3.0  # optical depth that hides what is behind it
DENSEST = 2.0  # greatest optical depth of a Gaussian; a denser one would only be wider


class Surface(NamedTuple):
    """The cells of a volume that can be seen."""

    means: Tensor  # [N, 3]
    rgbs: Tensor  # [N, 3] in [0, 1]
    opacities: Tensor  # [N] in (0, 1), of the Gaussians
    sigma: float  # standard deviation, in world units


def surface(
    density: Callable[[Tensor], Tensor],
    density_and_colour: Callable[[Tensor], tuple[Tensor, Tensor]],
    empty: Occupancy,
    bound: float,
) -> Surface:
    """Return the cells that can be seen in the cube [-bound, bound]^3; `empty` tells where to look."""
    cell = 2 * bound / CELLS
    index, means = empty.cells(CELLS, bound)
    depth = torch.zeros((CELLS,) * 3, device=means.device)
    if len(means):
        depth[index.unbind(1)] = cell * density(means)
    seen = (depth > FAINT) & (_covering(depth) < HIDING)
    chosen = seen[index.unbind(1)]
    means = means[chosen]
    sigma, rgbs = density_and_colour(means)
    optical = (cell * sigma / (2 * math.pi * WIDTH**2)).clamp_max(DENSEST)
    return Surface(means, rgbs, -torch.expm1(-optical), WIDTH * cell)


def _covering(depth: Tensor) -> Tensor:
    """Return the smallest optical depth between each cell and the outside along the six axes, [G, G, G]."""
    sides = []
    for axis in range(3):
        before = depth.cumsum(axis) - depth
        sides += [before, depth.sum(axis, keepdim=True) - before - depth]
    return torch.stack(sides).amin(0)


def snapshot(s: Surface) -> SplatSnapshot:
    """Return the Gaussians for viewers."""
    n = len(s.means)
    covariances = np.broadcast_to(np.float32(s.sigma**2) * np.eye(3, dtype=np.float32), (n, 3, 3)).copy()
    return SplatSnapshot(to_numpy(s.means), covariances, to_numpy(s.rgbs), to_numpy(s.opacities[:, None]))


def raw(s: Surface) -> RawSplats:
    """Return the Gaussians as stored in splat files."""
    n = len(s.means)
    quats = np.zeros((n, 4), np.float32)
    quats[:, 0] = 1
    log_scales = np.full((n, 3), math.log(s.sigma), np.float32)
    return RawSplats(to_numpy(s.means), quats, log_scales, to_numpy(torch.logit(s.opacities)), to_numpy(s.rgbs))
