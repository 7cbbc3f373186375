"""Read mesh files that are not trusted: GLB, OBJ, STL and PLY.

They are parsed from memory, their format is detected by content and never by name, they are measured before they are
expanded, and nothing that they refer to is loaded. Every ValueError begins with `given`, which says what the user gave
("scene.file = 'x.glb'"), and says what is wrong.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from sdlab.meshes import gltf, ply
from sdlab.meshes.kinds import STL_HEAD, TRIANGLE, Unsupported, kind_of, stl_triangles
from sdlab.meshes.modest import must_be_modest
from sdlab.meshes.parts import GREY, Part, Points, of_cloud, of_tables, of_trimesh
from sdlab.meshes.stray import without_stray_faces
from sdlab.quoting import first_line

MAX_BYTES = 200_000_000
LARGEST = 1e37  # coordinate, so that sums of float32 stay finite
MISSING = "is damaged: its faces refer to missing vertices; re-export it"
UPS = ("auto", "z", "y")
Y_UP = ("glb", "obj", "spz")  # formats that "auto" reads as y up, front +z: by specification, OBJ by convention


class Contents(NamedTuple):
    """What a file holds, and remarks on what was left out or guessed."""

    parts: tuple[Part, ...] = ()
    points: tuple[Points, ...] = ()
    remarks: tuple[str, ...] = ()


class Parsed(NamedTuple):
    """A file whose format is known and whose structure is sound."""

    kind: str  # as of `kind_of`, or "ply_packed"
    source: Any  # gltf.Glb, ply.Ply, or the content
    given: str

    def contents(self) -> Contents:
        """Return its meshes and points. Raises ValueError if it is damaged."""
        if self.kind == "ply":
            with self.damage_explained():
                found, remarks = of_tables(self.source.tables)
                remarks += [_unread(c.split()[1]) for c in self.source.comments if c.startswith("TextureFile ")][:1]
            sets = Contents(remarks=tuple(remarks))
            sets = sets._replace(parts=(found,)) if isinstance(found, Part) else sets._replace(points=(found,))
        elif self.kind == "stl":
            sets = _of_stl(self.source)
        elif self.kind in ("glb", "obj", "stl_ascii"):
            sets = self._through_trimesh()
        else:
            sets = Contents()
        if any(p.faces.min() < 0 or p.faces.max() >= len(p.vertices) for p in sets.parts):
            raise ValueError(f"{self.given} {MISSING}")
        must_be_finite(self.given, *(_used(p) for p in sets.parts))
        if not sets.parts:
            return sets
        parts, remarks = without_stray_faces(sets.parts)
        return sets._replace(parts=parts, remarks=(*sets.remarks, *remarks))

    def is_y_up(self, up: str) -> bool:
        """Return whether `up`, one of `UPS`, means y up and front +z (glTF's frame) for this file."""
        return up == "y" or (up == "auto" and self.kind in Y_UP)

    @contextlib.contextmanager
    def damage_explained(self) -> Iterator[None]:
        """Turn any error of a parser, which malformed input may raise, into a ValueError."""
        try:
            yield
        except MemoryError:
            raise
        except Unsupported as e:
            raise ValueError(f"{self.given} {e}") from e
        except Exception as e:
            name = self.kind.partition("_")[0].upper()
            raise ValueError(
                f"{self.given} is damaged or incomplete: it cannot be read as {name} ({first_line(e, 200)})"
            ) from e

    def _through_trimesh(self) -> Contents:
        """Parse with trimesh, with embedded materials and textures but without external files."""
        import trimesh

        with self.damage_explained():
            raw = {"glb": gltf.for_trimesh, "obj": _plain_obj, "stl_ascii": _plain_stl}[self.kind](self.source)
            loaded: Any = trimesh.load(
                BytesIO(raw), file_type=self.kind, resolver=None, allow_remote=False, process=False
            )
            pieces = loaded.dump(concatenate=False) if isinstance(loaded, trimesh.Scene) else [loaded]
        meshes = [p for p in pieces if isinstance(p, trimesh.Trimesh) and len(p.faces)]
        clouds = [p for p in pieces if isinstance(p, trimesh.PointCloud) and len(p.vertices)]
        if self.kind == "obj":
            clouds = []  # vertices without faces are no points
        remarks = gltf.remarks_on(self.source) if self.kind == "glb" else _unread_materials(raw)
        linear = self.kind == "glb"
        if any(m.faces.min() < 0 or m.faces.max() >= len(m.vertices) for m in meshes):
            raise ValueError(f"{self.given} {MISSING}")
        return Contents(
            tuple(of_trimesh(mesh, linear) for mesh in meshes),
            tuple(of_cloud(cloud, linear) for cloud in clouds),
            tuple(remarks),
        )


def parse(raw: bytes, given: str, readable: str) -> Parsed:
    """Detect the format of a file and check its structure. `readable` names what can be read, for the message about a
    file of another kind."""
    kind = kind_of(raw, given, readable)
    must_be_modest(kind, raw, given)
    parsed = Parsed(kind, raw, given)
    if kind == "glb":
        return parsed._replace(source=gltf.read(raw, given))
    if kind == "ply":
        with parsed.damage_explained():
            tables = ply.read(raw)
        packed = ply.is_packed(tables)
        return parsed._replace(kind="ply_packed" if packed else "ply", source=tables)
    return parsed


@contextlib.contextmanager
def mismatch_explained(given: str) -> Iterator[None]:
    """Turn the errors that arise from content which does not fit together into a ValueError.

    Parsers accept textures, colours and tables that do not fit their mesh.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(given):
            raise
        raise ValueError(f"{given} is damaged: its parts do not match ({first_line(e, 200)})") from e


def must_be_finite(given: str, *arrays: Any) -> None:
    """Raise ValueError if the arrays hold NaN, infinity, or numbers whose squares are infinite."""
    if not all((abs(array) < LARGEST).all() for array in arrays):
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


def _unread(name: str) -> str:
    return f"the colours in {name[:60]!r} are not read: a GLB holds its colours"


def _used(part: Part) -> np.ndarray:
    """Return the vertices that faces use [n, 3]."""
    used = np.zeros(len(part.vertices), bool)
    used[part.faces] = True
    return part.vertices[used]


# ---- OBJ and STL --------------------------------------------------------------------------------------------------


def _plain_obj(raw: bytes) -> bytes:
    """Return an OBJ with blanks and line ends as trimesh expects them; tabs, indented lines and the line ends of old
    Macs are as valid."""
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")
    raw = raw.replace(b"\t", b" ")
    return re.sub(rb"\n +", b"\n", raw.lstrip()) if b"\n " in raw or raw[:1].isspace() else raw


def _unread_materials(raw: bytes) -> list[str]:
    """Return a remark on an OBJ that gets its colours from another file."""
    named = re.search(rb"(?:^|\n)mtllib +([^\r\n]{1,80})", raw)
    if named is None or not re.search(rb"(?:^|\n)usemtl ", raw):
        return []
    return [_unread(named[1].decode("utf-8", "replace").strip())]


def _plain_stl(raw: bytes) -> bytes:
    """Return an ASCII STL in lower case and without padding, as trimesh expects it."""
    return raw.rstrip(b"\x00").lower()


def _of_stl(raw: bytes) -> Contents:
    """Return the triangles of a binary STL."""
    rows = stl_triangles(raw)
    corners = rows["corners"].astype(np.float64).reshape(-1, 3)
    said, remarks = int.from_bytes(raw[80:84], "little"), []
    if said != len(rows):
        remarks.append(f"it holds {len(rows):,} triangles, though its header says {said:,}")
    rest = len(raw) - STL_HEAD - len(rows) * TRIANGLE.itemsize
    if rest:
        remarks.append(f"{rest:,} bytes after its triangles are ignored")
    faces = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
    shape = (len(faces), 3)
    part = Part(corners, faces, np.full((*shape, 3), GREY, np.float32), np.zeros((*shape, 2), np.float32))
    return Contents((part,) if len(faces) else (), remarks=tuple(remarks))
