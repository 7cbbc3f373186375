"""Coloured points: sampled on meshes, or as a file holds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdlab.meshes.colours import to_display, to_linear
from sdlab.meshes.parts import Part, Points
from sdlab.meshes.read import must_have_area

GREY = 0.5  # of points without colours
ROUNDS = 16  # of sampling, as points may fall into the holes of a texture


def sampled(parts: Sequence[Part], n: int, rng: np.random.Generator, given: str) -> tuple[np.ndarray, np.ndarray]:
    """Sample n points uniformly on meshes; return positions [n, 3] float64 and colours [n, 3] in [0, 1].

    There are fewer where most of a texture is transparent. Raises ValueError, starting with `given`, for meshes without
    a surface.
    """
    areas = [_areas(part) for part in parts]
    must_have_area(np.concatenate(areas), given)
    totals = np.array([area.sum() for area in areas])
    points, rgbs, missing = [], [], n
    for _ in range(ROUNDS):
        counts = rng.multinomial(missing, totals / totals.sum()).tolist()
        for part, area, count in zip(parts, areas, counts, strict=True):
            if count:
                at, colours = _on(part, area, count, rng)
                points.append(at)
                rgbs.append(colours)
                missing -= len(at)
        if not missing:
            break
    if missing == n:
        raise ValueError(f"{given} is transparent everywhere: its texture has no opaque part")
    return np.concatenate(points), np.concatenate(rgbs)


def joined(clouds: Sequence[Points]) -> tuple[np.ndarray, np.ndarray]:
    """Return all points: positions [N, 3] float64 and colours [N, 3]; grey if they have none."""
    grey = (np.full((len(c.at), 3), GREY) if c.rgbs is None else c.rgbs for c in clouds)
    return np.concatenate([c.at for c in clouds]), np.concatenate(list(grey))


def _areas(part: Part) -> np.ndarray:
    """Return the areas of the faces [F]."""
    a, b, c = (part.vertices[part.faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _on(part: Part, areas: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return random points on a mesh, `count` or fewer where its texture has holes, and their colours."""
    ends = np.cumsum(areas)
    faces = np.searchsorted(ends, rng.random(count) * ends[-1], side="right").clip(0, len(areas) - 1)
    u, v = rng.random((2, count))
    root = np.sqrt(u)
    weights = np.stack([1 - root, root * (1 - v), root * v], 1)
    at = np.einsum("nk,nkc->nc", weights, part.vertices[part.faces[faces]])
    rgbs = np.einsum("nk,nkc->nc", weights, part.rgbs[faces].astype(np.float64))
    if part.picture is None:
        return at, rgbs
    texels = _texels(part, np.einsum("nk,nkc->nc", weights, part.uvs[faces].astype(np.float64)))
    solid = texels[:, 3] >= part.cutoff
    return at[solid], to_display(to_linear(rgbs[solid]) * to_linear(texels[solid, :3]))


def _texels(part: Part, uv: np.ndarray) -> np.ndarray:
    """Return the texture's colours [n, 4] in [0, 1] at uv [n, 2]; it repeats."""
    image = np.asarray(part.picture.convert("RGBA"))
    height, width = image.shape[:2]
    uv = np.nan_to_num(uv, posinf=0, neginf=0)
    x = (np.floor(uv[:, 0] * width) % width).astype(int)
    y = (np.floor((1 - uv[:, 1]) * height) % height).astype(int)
    return image[y, x] / 255
