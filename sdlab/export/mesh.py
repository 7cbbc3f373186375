"""Write meshes with vertex colours, and convert Gaussians to one: the isosurface of their density.

The opacities of all Gaussians, each times exp(-d^2 / 2) of the Mahalanobis distance d, are summed on a grid; the
surface is where the sum crosses `LEVEL` (as in DreamGaussian). This is an approximation: Gaussians have no surface,
haze below the level is lost, and details finer than a grid cell are widened to one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdlab.compiled import kernel
from sdlab.export.writers import Tally, finite, unwatched
from sdlab.meshes.colours import to_linear
from sdlab.raster.torch_project import rotation_matrices
from sdlab.scenes import Solid
from sdlab.types import RawSplats

ABOUT = (
    "An approximation: an isosurface of the density, with its colours (linear) at the vertices. "
    "Haze is lost, details finer than the grid are widened. y is up, the front faces +z."
)
CELLS = 128  # of the grid, along the longest side of the scene
LEVEL = 0.5  # summed opacity at which the surface lies
REACH = 3.0  # cutoff of a Gaussian, in standard deviations
FAINT = 1 / 255  # opacity below which a Gaussian is invisible
SOFTEST = 0.5  # minimum standard deviation, in cells; smaller Gaussians could fall between the grid points
AT_A_TIME = 500  # Gaussians per block; progress is reported, and may cancel, between blocks
MESHING = 0.2  # fraction of the time that meshing takes


def write_glb(path: Path, s: RawSplats | Solid, progress: Tally = unwatched, cells: int = CELLS) -> int:
    """Write a GLB that stands upright in any viewer (y up, front +z, world units); return its number of faces.

    Vertex colours are converted from sRGB to linear, as glTF requires. There is no material, because some readers
    ignore vertex colours if there is one.
    Raises ValueError if the scene is nowhere dense enough, OSError if the file cannot be written.
    """
    import trimesh
    from trimesh.exchange.gltf import export_glb

    vertices, faces, rgbs = surface(s, progress, cells) if isinstance(s, RawSplats) else s.surface(progress, cells)
    colours = np.concatenate([to_linear(rgbs), np.ones((len(rgbs), 1))], 1)
    mesh = trimesh.Trimesh(
        vertices[:, [1, 2, 0]],  # (x, y, z) of the world is (z, x, y) of glTF
        faces,
        vertex_colors=(255 * colours + 0.5).astype(np.uint8),
        process=False,
    )
    path.write_bytes(export_glb(trimesh.Scene(mesh), tree_postprocessor=_labelled))
    return len(faces)


def _labelled(tree: dict[str, Any]) -> None:
    tree["asset"]["extras"] = {"about": ABOUT}


def surface(s: RawSplats, progress: Tally = unwatched, cells: int = CELLS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices [V, 3] in the world, faces [F, 3] counter-clockwise from outside, colours [V, 3] in [0, 1].

    Raises ValueError if the Gaussians are nowhere dense enough.
    """
    from scipy.ndimage import map_coordinates
    from skimage.measure import marching_cubes

    density, colour, origin, cell = _grid(s, progress, cells)
    if density.size == 0 or float(density.max()) <= LEVEL:
        raise ValueError(
            "there is nothing opaque to mesh: the Gaussians are too transparent everywhere; let the run continue, or "
            "export a PLY, which keeps them as they are"
        )
    at, faces, _, _ = marching_cubes(density, LEVEL)
    weights = map_coordinates(density, at.T, order=1)
    rgbs = np.stack([map_coordinates(colour[..., i], at.T, order=1) for i in range(3)], 1)
    rgbs = (rgbs / np.maximum(weights, 1e-6)[:, None]).clip(0, 1)
    return (origin + cell * at).astype(np.float32), faces[:, ::-1], rgbs


def _grid(s: RawSplats, progress: Tally, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return summed opacity [X, Y, Z], opacity-weighted colour [X, Y, Z, 3], the position of point 0, the cell size.

    The outermost points are 0, so that every surface is closed.
    """
    s = finite(s)
    opacities = 1 / (1 + np.exp(-s.opacity_logits))
    shown = opacities > FAINT
    if not shown.any():
        return np.zeros((0, 0, 0), np.float32), np.zeros((0, 0, 0, 3), np.float32), np.zeros(3), 1.0
    means, rgbs, opacities = s.means[shown], s.rgbs[shown], opacities[shown].astype(np.float32)
    spreads = (rotation_matrices(torch.from_numpy(s.quats[shown])).numpy()) * np.exp(s.log_scales[shown])[:, None]
    covariances = (spreads @ spreads.transpose(0, 2, 1)).astype(np.float64)
    sigmas = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    low, high = (means - REACH * sigmas).min(0), (means + REACH * sigmas).max(0)
    cell = float((high - low).max()) / cells
    covariances += (SOFTEST * cell) ** 2 * np.eye(3)
    precisions = (np.linalg.inv(covariances) * cell**2).astype(np.float32)  # in units of cells
    reaches = (REACH * np.sqrt(np.diagonal(covariances, axis1=1, axis2=2)) / cell).astype(np.float32)
    origin = low - 2 * cell
    places = ((means - origin) / cell).astype(np.float32)
    shape = np.ceil((high - low) / cell).astype(int) + 5
    density, colour = np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    total = len(places)
    for start in range(0, total, AT_A_TIME):
        progress(start, int(total / (1 - MESHING)) + 1)
        some = slice(start, start + AT_A_TIME)
        _pour(density, colour, places[some], precisions[some], reaches[some], opacities[some], rgbs[some])
    progress(total, int(total / (1 - MESHING)) + 1)
    return density, colour, origin, cell


@kernel
def _pour(density, colour, places, precisions, reaches, opacities, rgbs):
    """Splat Gaussians onto the grid, except its border."""
    for n in range(len(places)):
        x, y, z = places[n]
        p = precisions[n]
        for i in range(max(int(x - reaches[n, 0]), 1), min(int(x + reaches[n, 0]) + 2, density.shape[0] - 1)):
            for j in range(max(int(y - reaches[n, 1]), 1), min(int(y + reaches[n, 1]) + 2, density.shape[1] - 1)):
                for k in range(max(int(z - reaches[n, 2]), 1), min(int(z + reaches[n, 2]) + 2, density.shape[2] - 1)):
                    a, b, c = i - x, j - y, k - z
                    squared = p[0, 0] * a * a + p[1, 1] * b * b + p[2, 2] * c * c
                    squared += 2 * (p[0, 1] * a * b + p[0, 2] * a * c + p[1, 2] * b * c)
                    if squared < REACH * REACH:
                        weight = opacities[n] * np.exp(-0.5 * squared)
                        density[i, j, k] += weight
                        colour[i, j, k, 0] += weight * rgbs[n, 0]
                        colour[i, j, k, 1] += weight * rgbs[n, 1]
                        colour[i, j, k, 2] += weight * rgbs[n, 2]
