"""Read coloured points or Gaussians from files, as the starting point of a scene.

Results are in the frame of `sdlab.types`: +z up, front +x. Files are untrusted; `sdlab.meshes.read` parses them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sdlab.knobs import read_file
from sdlab.meshes.read import MAX_BYTES, Parsed, fitting, mismatch_explained, must_be_finite, must_have_area, parse
from sdlab.parsing import OWN, Limits, parsed
from sdlab.shapes import Cloud, RawSplats

READABLE = "GLB, OBJ, STL and PLY (mesh, points or Gaussians) can be read"
SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 f_dc
SPLAT_COLUMNS = (
    *("x", "y", "z", "opacity"),
    *(f"{name}_{i}" for name, count in (("f_dc", 3), ("scale", 3), ("rot", 4)) for i in range(count)),
)
PROBES = 2000  # points sampled to estimate the spacing


def read_cloud(path: Path, n: int, rng: np.random.Generator, knob: str, up: str = "auto") -> Cloud | RawSplats:
    """Read the file at `path` as in `cloud_of`; ValueError names `knob`, the file and the problem."""
    given = f"{knob} = {str(path)!r}"
    return parsed_cloud(read_file(path, MAX_BYTES, given), n, rng, given, up)


def parsed_cloud(
    raw: bytes, n: int, rng: np.random.Generator, given: str, up: str = "auto", limits: Limits = OWN
) -> Cloud | RawSplats:
    """Return `cloud_of` the arguments, called in another process within `limits`; `rng` advances as it would here."""
    state = rng.bit_generator.state
    kinds = (Cloud, RawSplats)
    found, rng.bit_generator.state = parsed(
        _drawing_from, raw, state, n, given, up, given=given, kinds=kinds, needs=("trimesh",), limits=limits
    )
    return found


def _drawing_from(
    raw: bytes, state: dict[str, Any], n: int, given: str, up: str
) -> tuple[Cloud | RawSplats, dict[str, Any]]:
    """Return `cloud_of` with a generator in `state`, and its state afterwards."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    return cloud_of(raw, n, rng, given, up), dict(rng.bit_generator.state)


def cloud_of(raw: bytes, n: int, rng: np.random.Generator, given: str, up: str = "auto") -> Cloud | RawSplats:
    """Parse a file: `n` points sampled on a mesh, a random `n` of its points (all if fewer), or all its Gaussians.

    `up` is the file's vertical axis: "z" (front +x), "y" (front +z, as in glTF) or "auto". Raises ValueError that
    starts with `given` and says what is wrong.
    """
    parsed = parse(raw, given, READABLE)
    columns = _splat_columns(parsed.loaded)
    with mismatch_explained(given):
        found = _splats(columns) if columns is not None else _points_of(parsed, n, rng, given)
    must_be_finite(given, *found)
    return _from_y_up(found) if parsed.is_y_up(up) else found


def sampled(meshes: list[Any], n: int, rng: np.random.Generator, given: str) -> Cloud:
    """Sample n points uniformly on trimesh `meshes`, coloured by their texture, vertices or faces.

    Raises ValueError, starting with `given`, for meshes without a surface.
    """
    import trimesh

    areas = np.array([m.area for m in meshes], float)
    must_have_area(areas, given)
    points, rgbs = [], []
    for mesh, count in zip(meshes, rng.multinomial(n, areas / areas.sum()).tolist(), strict=True):
        if count > 0:
            seed = int(rng.integers(2**31))
            at, faces = trimesh.sample.sample_surface(mesh, count, seed=seed)[:2]
            points.append(np.asarray(at, np.float32))
            rgbs.append(_colours(_painted(mesh, np.asarray(at), np.asarray(faces)), count))
    return Cloud(np.concatenate(points), np.concatenate(rgbs))


def _splat_columns(loaded: Any) -> np.ndarray | None:
    """Return the vertex table of a PLY whose rows are Gaussians, or None."""
    vertices = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = vertices.dtype.names if isinstance(vertices, np.ndarray) else None
    return vertices if set(SPLAT_COLUMNS) <= set(names or ()) else None


def _splats(table: np.ndarray) -> RawSplats:
    def columns(name: str, count: int) -> np.ndarray:
        return np.stack([table[f"{name}_{i}"] for i in range(count)], 1).astype(np.float32)

    means = np.stack([table[axis] for axis in "xyz"], 1).astype(np.float32)
    rgbs = np.clip(0.5 + SH_C0 * columns("f_dc", 3), 0, 1)
    return RawSplats(means, columns("rot", 4), columns("scale", 3), table["opacity"].astype(np.float32), rgbs)


def _points_of(parsed: Parsed, n: int, rng: np.random.Generator, given: str) -> Cloud:
    meshes = parsed.meshes(given)
    if meshes:
        return sampled(meshes, n, rng, given)
    clouds = parsed.points()
    if not clouds:
        raise ValueError(f"{given} is a mesh without faces: export it with faces, or as points in a PLY")
    points = np.concatenate([np.asarray(c.vertices, np.float32) for c in clouds])
    rgbs = np.concatenate([_colours(c.colors, len(c.vertices)) for c in clouds])
    some = rng.permutation(len(points))[:n]
    return Cloud(points[some], rgbs[some])


def _painted(mesh: Any, at: np.ndarray, faces: np.ndarray) -> Any:
    """Return the colours, uint8 [n, 4], of points `at` [n, 3] on `faces` [n] of a mesh."""
    import trimesh

    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], at)
    corners = np.asarray(mesh.faces)[faces]
    if mesh.visual.kind != "texture":
        if mesh.visual.kind == "vertex":
            return np.einsum("nk,nkc->nc", weights, np.asarray(mesh.visual.vertex_colors, float)[corners])
        return mesh.visual.face_colors[faces]
    if mesh.visual.uv is None:
        return np.tile(mesh.visual.material.main_color, (len(at), 1))
    uv = np.einsum("nk,nkc->nc", weights, np.asarray(mesh.visual.uv, float)[corners])
    return mesh.visual.material.to_color(uv)


def _colours(rgba: Any, count: int) -> np.ndarray:
    """Convert uint8 [n, 3 or 4] to [n, 3] in [0, 1]; grey if there are none."""
    if rgba is None or len(rgba) != count:
        return np.full((count, 3), 0.5, np.float32)
    return np.asarray(rgba, np.float32)[:, :3] / 255


def _from_y_up(found: Cloud | RawSplats) -> Cloud | RawSplats:
    """Rotate from y up, front +z: (x, y, z) of glTF is (z, x, y) here, 120 degrees about (1, 1, 1)."""
    return _rotated(found, (0.5, 0.5, 0.5, 0.5))


def turned(found: Cloud | RawSplats, degrees: float) -> Cloud | RawSplats:
    """Rotate about the vertical, counter-clockwise seen from above."""
    half = math.radians(degrees) / 2
    return _rotated(found, (math.cos(half), 0.0, 0.0, math.sin(half)))


def _rotated(found: Cloud | RawSplats, q: tuple[float, float, float, float]) -> Cloud | RawSplats:
    """Rotate by the unit quaternion `q` (wxyz): positions, and the orientations of Gaussians."""
    w, x, y, z = q
    rows = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )
    if isinstance(found, Cloud):
        return found._replace(points=found.points @ rows.T)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], np.float32)  # q b = left @ b
    return found._replace(means=found.means @ rows.T, quats=found.quats @ left.T)


def fitted(found: Cloud | RawSplats, radius: float) -> Cloud | RawSplats:
    """Centre the bounding box at the origin and scale so that the farthest point lies at `radius`."""
    at = found.points if isinstance(found, Cloud) else found.means
    middle, factor = fitting(at, radius)
    at = ((at - middle) * factor).astype(np.float32)
    if isinstance(found, Cloud):
        return found._replace(points=at)
    return found._replace(means=at, log_scales=(found.log_scales + math.log(factor)).astype(np.float32))


def spacing(points: np.ndarray, rng: np.random.Generator) -> float:
    """Return the median distance of points [n, 3] to their nearest neighbours; 0 for a single point."""
    n = len(points)
    if n < 2:
        return 0.0
    probes = rng.permutation(n)[:PROBES]
    points = points.astype(np.float64)  # the squares below cancel, which costs precision
    nearest = np.empty(len(probes))
    square = np.square(points).sum(1)
    for first in range(0, len(probes), 50):  # in blocks: the distance matrix is 50 x n
        rows = probes[first : first + 50]
        squared = square[rows, None] + square - 2 * points[rows] @ points.T
        squared[np.arange(len(rows)), rows] = np.inf
        nearest[first : first + 50] = np.sqrt(np.maximum(squared.min(1), 0))
    return float(np.median(nearest))
