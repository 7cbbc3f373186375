"""The surface of a volume as a mesh: where its density crosses a level, found by marching cubes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdlab.volume.empty import Occupancy

LEVEL = 10.0  # density at which the surface lies: light travels 1/10 of the scene's radius through it
AT_A_TIME = 1 << 17  # places evaluated between reports of progress
EVALUATING = 0.8  # fraction of the time that evaluating the density takes

Mesh = tuple[np.ndarray, np.ndarray, np.ndarray]


@torch.no_grad()
def surface(
    density: Callable[[Tensor], Tensor],
    density_and_colour: Callable[[Tensor], tuple[Tensor, Tensor]],
    empty: Occupancy,
    bound: float,
    cells: int,
    progress: Callable[[int, int], None],
) -> Mesh:
    """Return vertices [V, 3] in the world, faces [F, 3] counter-clockwise from outside, colours [V, 3] in [0, 1].

    `empty` tells where to look in the cube [-bound, bound]^3, which has `cells` cells along each side. Raises
    ValueError if the density is below `LEVEL` everywhere.
    """
    from skimage.measure import marching_cubes

    grid = _density_grid(density, *empty.cells(cells, bound), cells, progress)
    if float(grid.max()) <= LEVEL:
        raise ValueError(
            "there is nothing opaque to mesh: the volume is too transparent everywhere; let the run continue"
        )
    at, faces, _, _ = marching_cubes(grid, LEVEL)
    vertices = ((at - 0.5) * (2 * bound / cells) - bound).astype(np.float32)
    _, rgbs = density_and_colour(torch.from_numpy(vertices))
    return vertices, faces[:, ::-1], rgbs.numpy().astype(np.float32)


def _density_grid(
    density: Callable[[Tensor], Tensor],
    index: Tensor,
    centres: Tensor,
    cells: int,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Return the density of a grid, evaluated in the cells at `index`, with a border of 0 to close every surface."""
    grid = np.zeros((cells + 2,) * 3, np.float32)
    total = int(len(index) / EVALUATING) + 1
    for start in range(0, len(index), AT_A_TIME):
        progress(start, total)
        some = slice(start, start + AT_A_TIME)
        grid[tuple((index[some] + 1).T.numpy())] = density(centres[some]).numpy()
    progress(len(index), total)
    return grid
