"""Read mesh files that are not trusted: GLB, OBJ, STL and PLY, parsed by trimesh.

They are parsed from memory, their format is detected by content and never by name, they are measured before they are
expanded, and nothing that they refer to is loaded. Every ValueError begins with `given`, which says what the user gave
("scene.file = 'x.glb'"), and says what is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from sdlab.quoting import first_line

MAX_BYTES = 200_000_000
# limits on a decoded GLB, counting the copies that its nodes make: mesh elements, and texture pixels
MAX_NUMBERS, MAX_PIXELS = 50_000_000, 400_000_000
ARCHIVES = {
    **{b"PK\x03\x04": "ZIP", b"\x1f\x8b": "GZIP", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"BZh": "BZIP2"},
    **{b"\xfd7zXZ": "XZ", b"\x28\xb5\x2f\xfd": "Zstandard"},
}
TAR = slice(257, 262)  # position of the TAR magic
UPS = ("auto", "z", "y")
Y_UP = ("glb", "obj")  # formats that "auto" reads as y up, front +z: glTF by specification, OBJ by convention


class Parsed(NamedTuple):
    """The content of a file."""

    kind: str  # "glb", "ply", "stl", "stl_ascii" or "obj"
    loaded: Any  # a trimesh.Scene, Trimesh or PointCloud

    def parts(self) -> list[Any]:
        """Return its meshes and point clouds, each where the file places it."""
        import trimesh

        if not isinstance(self.loaded, trimesh.Scene):
            return [self.loaded]
        parts = self.loaded.dump(concatenate=False)
        for part, node in zip(parts, self.loaded.graph.nodes_geometry, strict=True):
            visual: Any = part.visual if isinstance(part, trimesh.Trimesh) else None
            if visual is not None and visual.kind == "texture":
                original = self.loaded.geometry[self.loaded.graph[node][1]].visual.vertex_attributes
                if "color" in original:  # lost in the copies that `dump` returns
                    visual.vertex_attributes["color"] = original["color"]
        return parts

    def meshes(self, given: str) -> list[Any]:
        """Return the parts that have faces; ValueError if faces refer to missing vertices."""
        import trimesh

        found = [p for p in self.parts() if isinstance(p, trimesh.Trimesh) and len(p.faces) > 0]
        if any(p.faces.min() < 0 or p.faces.max() >= len(p.vertices) for p in found):
            raise ValueError(f"{given} is damaged: its faces refer to missing vertices; re-export it")
        return found

    def points(self) -> list[Any]:
        """Return the parts that are points without faces. The vertices of an OBJ without faces do not count."""
        import trimesh

        found = [p for p in self.parts() if isinstance(p, trimesh.PointCloud) and len(p.vertices) > 0]
        return [] if self.kind == "obj" else found

    def is_y_up(self, up: str) -> bool:
        """Return whether `up`, one of `UPS`, means y up and front +z (glTF's frame) for this file."""
        return up == "y" or (up == "auto" and self.kind in Y_UP)


def parse(raw: bytes, given: str, readable: str) -> Parsed:
    """Parse a file. `readable` names what can be read, for the message about a file of another kind."""
    kind = _kind_of(raw, given, readable)
    if kind == "glb":
        _must_be_modest(raw, given)
    return Parsed(kind, _loaded(raw, kind, given))


@contextlib.contextmanager
def mismatch_explained(given: str) -> Iterator[None]:
    """Turn the errors that arise from content which does not fit together into a ValueError.

    Parsers accept textures, colours and tables that do not fit their mesh.
    """
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as e:
        raise ValueError(f"{given} is damaged: its parts do not match ({first_line(e, 200)})") from e


def must_be_finite(given: str, *arrays: Any) -> None:
    """Raise ValueError if the arrays hold NaN or infinity."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{given} contains NaN or infinity: repair or re-export it")


def must_have_area(areas: np.ndarray, given: str) -> None:
    """Raise ValueError if areas are not finite, or there is no area at all."""
    must_be_finite(given, areas)
    if areas.sum() <= 0:
        raise ValueError(f"{given} is a mesh without area: all its faces are degenerate")


def fitting(at: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Return the middle [3] of the bounding box of points [n, 3], and the factor that takes the farthest to `radius`.

    The factor is 1 if all points coincide.
    """
    at = at.astype(np.float64)  # squares of 1e20 overflow
    middle = (at.min(0) + at.max(0)) / 2
    reach = float(np.linalg.norm(at - middle, axis=1).max())
    return middle, radius / reach if reach > 0 else 1.0


def _kind_of(raw: bytes, given: str, readable: str) -> str:
    """Detect the format by content; ValueError for archives and unknown formats."""
    for magic, name in (*ARCHIVES.items(), (raw[: TAR.start] + b"ustar", "TAR")):
        if raw.startswith(magic):
            raise ValueError(f"{given} is an archive ({name}): unpack it and choose one of its files. {readable}")
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
    raise ValueError(f"{given} has an unknown format: {readable}")


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


def _loaded(raw: bytes, kind: str, given: str) -> Any:
    """Parse with trimesh, with embedded materials and textures but without external files."""
    import trimesh

    try:
        return trimesh.load(BytesIO(raw), file_type=kind, resolver=None, allow_remote=False, process=False)
    except Exception as e:  # parsers raise all kinds of errors on malformed input
        raise ValueError(
            f"{given} is damaged or incomplete: it cannot be read as {kind.upper()} ({first_line(e, 200)})"
        ) from e
