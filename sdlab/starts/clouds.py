"""Read coloured points or Gaussians from files, as the starting point of a scene.

Results are in the frame of `sdlab.types`: +z up, front +x. Files are untrusted. They are parsed from memory, their
format is detected by content and never by name, and nothing that they refer to is loaded.
"""

from __future__ import annotations

import base64
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sdlab.errors import first_line
from sdlab.knobs import read_file
from sdlab.types import Cloud, RawSplats

MAX_BYTES = 200_000_000
# limits on a decoded GLB, counting the copies that its nodes make: mesh elements, and texture pixels
MAX_NUMBERS, MAX_PIXELS = 50_000_000, 400_000_000
READABLE = "GLB, OBJ, STL and PLY (mesh, points or Gaussians) can be read"
ARCHIVES = {
    **{b"PK\x03\x04": "ZIP", b"\x1f\x8b": "GZIP", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"BZh": "BZIP2"},
    **{b"\xfd7zXZ": "XZ", b"\x28\xb5\x2f\xfd": "Zstandard"},
}
TAR = slice(257, 262)  # position of the TAR magic
UPS = ("auto", "z", "y")
Y_UP = ("glb", "obj")  # formats that "auto" reads as y up, front +z: glTF by specification, OBJ by convention
SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 f_dc
SPLAT_COLUMNS = (
    *("x", "y", "z", "opacity"),
    *(f"{name}_{i}" for name, count in (("f_dc", 3), ("scale", 3), ("rot", 4)) for i in range(count)),
)
PROBES = 2000  # points sampled to estimate the spacing


def read_cloud(path: Path, n: int, rng: np.random.Generator, knob: str, up: str = "auto") -> Cloud | RawSplats:
    """Read the file at `path` as in `cloud_of`; ValueError names `knob`, the file and the problem."""
    given = f"{knob} = {str(path)!r}"
    return cloud_of(read_file(path, MAX_BYTES, given), n, rng, given, up)


def cloud_of(raw: bytes, n: int, rng: np.random.Generator, given: str, up: str = "auto") -> Cloud | RawSplats:
    """Parse a file: `n` points sampled on a mesh, a random `n` of its points (all if fewer), or all its Gaussians.

    `up` is the file's vertical axis: "z" (front +x), "y" (front +z, as in glTF) or "auto". Raises ValueError that
    starts with `given` and says what is wrong.
    """
    kind = _kind_of(raw, given)
    if kind == "glb":
        _must_be_modest(raw, given)
    loaded = _parsed(raw, kind, given)
    columns = _splat_columns(loaded)
    try:
        found = _splats(columns) if columns is not None else _points_of(loaded, kind, n, rng, given)
    except (ValueError, MemoryError):
        raise
    except Exception as e:  # parsers accept textures, colours and tables that do not fit their mesh
        raise ValueError(f"{given} is damaged: its parts do not match ({first_line(e, 200)})") from e
    for part in found:
        if not np.isfinite(part).all():
            raise ValueError(f"{given} contains NaN or infinity: repair or re-export it")
    if up == "y" or (up == "auto" and kind in Y_UP):
        found = _from_y_up(found)
    return found


def sampled(meshes: list[Any], n: int, rng: np.random.Generator, given: str) -> Cloud:
    """Sample n points uniformly on trimesh `meshes`, coloured by their texture, vertices or faces.

    Raises ValueError, starting with `given`, for meshes without a surface.
    """
    import trimesh

    areas = np.array([m.area for m in meshes], float)
    if not np.isfinite(areas).all():
        raise ValueError(f"{given} contains NaN or infinity: repair or re-export it")
    if areas.sum() <= 0:
        raise ValueError(f"{given} is a mesh without area: all its faces are degenerate")
    points, rgbs = [], []
    for mesh, count in zip(meshes, rng.multinomial(n, areas / areas.sum()).tolist(), strict=True):
        if count > 0:
            seed = int(rng.integers(2**31))
            at, faces = trimesh.sample.sample_surface(mesh, count, seed=seed)[:2]
            points.append(np.asarray(at, np.float32))
            rgbs.append(_colours(_painted(mesh, np.asarray(at), np.asarray(faces)), count))
    return Cloud(np.concatenate(points), np.concatenate(rgbs))


def _kind_of(raw: bytes, given: str) -> str:
    """Detect the format by content; ValueError for archives and unknown formats."""
    for magic, name in (*ARCHIVES.items(), (raw[: TAR.start] + b"ustar", "TAR")):
        if raw.startswith(magic):
            raise ValueError(f"{given} is an archive ({name}): unpack it and choose one of its files. {READABLE}")
    if raw.startswith(b"glTF"):
        return "glb"
    if raw.startswith((b"ply\n", b"ply\r")):
        return "ply"
    if len(raw) >= 84 and len(raw) == 84 + 50 * int.from_bytes(raw[80:84], "little"):
        return "stl"
    if b"\x00" not in raw:
        if raw.lstrip().startswith(b"solid") and (b"facet" in raw or b"endsolid" in raw):
            return "stl_ascii"
        if raw.startswith(b"v ") or b"\nv " in raw:
            return "obj"
    raise ValueError(f"{given} has an unknown format: {READABLE}")


def _must_be_modest(raw: bytes, given: str) -> None:
    """Raise ValueError for a GLB that would expand without bound.

    Every node copies its mesh and textures, an accessor may declare any number of zeros, and nodes that are their own
    descendants recurse forever.
    """
    try:
        length = int.from_bytes(raw[12:16], "little")
        tree, rest = json.loads(raw[20 : 20 + length]), raw[20 + length + 8 :]
        nodes, meshes = tree.get("nodes", []), tree.get("meshes", [])
        counts = [int(accessor["count"]) for accessor in tree.get("accessors", [])]
        children = [child for node in nodes for child in node.get("children", [])]
        roots = {root for scene in tree.get("scenes", []) for root in scene.get("nodes", [])}
        is_forest = len(set(children)) == len(children) and roots.isdisjoint(children)
        pixels = [_pixels(image, tree, rest) for image in tree.get("images", [])]
        of_texture = [pixels[t["source"]] if "source" in t else 0 for t in tree.get("textures", [])]
        of_material = [sum(of_texture[t] for t in _textures(m)) for m in tree.get("materials", [])]
        parts = [part for node in nodes if "mesh" in node for part in meshes[node["mesh"]]["primitives"]]
        numbers = sum(counts) + sum(
            counts[i] for p in parts for i in (*p["attributes"].values(), *([p["indices"]] if "indices" in p else []))
        )
        painted = sum(pixels) + sum(of_material[p["material"]] for p in parts if "material" in p)
    except Exception as e:  # malformed in any way
        raise ValueError(f"{given} is damaged or incomplete: it cannot be read as GLB ({first_line(e, 200)})") from e
    if not is_forest:
        raise ValueError(f"{given} is damaged: its nodes do not form a tree; re-export it")
    if min(counts, default=0) < 0 or numbers > MAX_NUMBERS:
        raise ValueError(f"{given} has {numbers:,} mesh elements; the limit is {MAX_NUMBERS:,}: simplify it")
    if painted > MAX_PIXELS:
        raise ValueError(f"{given} has textures of {painted:,} pixels; the limit is {MAX_PIXELS:,}: shrink them")


def _pixels(image: dict[str, Any], tree: dict[str, Any], rest: bytes) -> int:
    """Return the pixel count of a GLB's image from its header; 0 for external images, which are never read."""
    from PIL import Image

    if "bufferView" in image:
        view = tree["bufferViews"][image["bufferView"]]
        raw = rest[view.get("byteOffset", 0) :][: view["byteLength"]]
    elif image.get("uri", "").startswith("data:"):
        raw = base64.b64decode(image["uri"].partition(",")[2])
    else:
        return 0
    with Image.open(BytesIO(raw)) as picture:
        return picture.width * picture.height


def _textures(node: Any) -> list[int]:
    """Return the textures that a material refers to, including those of extensions."""
    if not isinstance(node, dict):
        return []
    own = [node["index"]] if isinstance(node.get("index"), int) else []
    return own + [index for value in node.values() for index in _textures(value)]


def _parsed(raw: bytes, kind: str, given: str) -> Any:
    """Parse with trimesh, with embedded materials and textures but without external files."""
    import trimesh

    try:
        return trimesh.load(BytesIO(raw), file_type=kind, resolver=None, allow_remote=False, process=False)
    except Exception as e:  # parsers raise all kinds of errors on malformed input
        raise ValueError(
            f"{given} is damaged or incomplete: it cannot be read as {kind.upper()} ({first_line(e, 200)})"
        ) from e


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


def _points_of(loaded: Any, kind: str, n: int, rng: np.random.Generator, given: str) -> Cloud:
    import trimesh

    parts = [loaded] if not isinstance(loaded, trimesh.Scene) else loaded.dump(concatenate=False)
    meshes = [p for p in parts if isinstance(p, trimesh.Trimesh) and len(p.faces) > 0]
    if any(p.faces.min() < 0 or p.faces.max() >= len(p.vertices) for p in meshes):
        raise ValueError(f"{given} is damaged: its faces refer to missing vertices; re-export it")
    if meshes:
        return sampled(meshes, n, rng, given)
    clouds = [p for p in parts if isinstance(p, trimesh.PointCloud) and len(p.vertices) > 0]
    if not clouds or kind == "obj":
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
    at = (found.points if isinstance(found, Cloud) else found.means).astype(np.float64)  # squares of 1e20 overflow
    middle = (at.min(0) + at.max(0)) / 2
    reach = float(np.linalg.norm(at - middle, axis=1).max())
    factor = radius / reach if reach > 0 else 1.0
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
