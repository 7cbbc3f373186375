"""What a file holds, independent of its format: parts with faces, and points without.

Colours are display values (sRGB). A part's colour is the product of the material's factor and the vertex or face
colour; its texture's colour multiplies it. glTF's factors and vertex colours are linear, and so is their product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sdlab.decoding import in_8_bits
from sdlab.meshes.colours import of_columns, shares, to_display
from sdlab.meshes.ply import Lists, Table

MASKED = ("MASK", "BLEND")  # glTF's alpha modes in which a texture has holes
CUTOFF = 0.5  # of alpha
GREY = 0.4  # of a surface without a colour
COLOR_0 = "_COLOR_0"  # the name under which trimesh keeps glTF's vertex colours as they are


class Part(NamedTuple):
    """A mesh of F triangles, where the file places it."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int32
    rgbs: np.ndarray  # [F, 3, 3] float32 in [0, 1], of each corner
    uvs: np.ndarray  # [F, 3, 2] float32, of each corner; (0, 0) is the lower left of the image
    picture: Any = None  # PIL.Image of 8 bits, or None
    cutoff: float = 0.0  # alpha below which the picture has a hole; 0 for an opaque one


class Points(NamedTuple):
    """Points, where the file places them."""

    at: np.ndarray  # [N, 3] float64
    rgbs: np.ndarray | None  # [N, 3] float32 in [0, 1]


def of_trimesh(mesh: Any, linear: bool) -> Part:
    """Return a trimesh.Trimesh as a part; `linear` as glTF's colours are."""
    faces = np.asarray(mesh.faces, np.int32)
    visual = mesh.visual
    uvs, picture, cutoff = np.zeros((len(faces), 3, 2), np.float32), None, 0.0
    colours = np.ones((len(faces), 3, 3))
    painted = mesh.vertex_attributes.get(COLOR_0)
    if visual.kind == "texture":
        material = visual.material
        is_gltf = hasattr(material, "baseColorTexture")
        picture = None if visual.uv is None else material.baseColorTexture if is_gltf else material.image
        if picture is not None:
            uvs = np.asarray(visual.uv, np.float32)[faces][..., :2]
            if is_gltf and material.alphaMode in MASKED:
                cutoff = CUTOFF if material.alphaCutoff is None else material.alphaCutoff
        factor = material.baseColorFactor if is_gltf else None if picture is not None else material.main_color
        if factor is not None:
            colours = colours * shares(factor)
    elif visual.kind == "vertex":
        colours = shares(visual.vertex_colors)[faces]
    elif visual.kind == "face" or painted is None:  # a colour of its own for each face, or grey
        colours = shares(visual.face_colors)[:, None].repeat(3, 1)
        linear = linear and visual.kind == "face"
    if painted is not None and len(painted) == len(mesh.vertices):
        colours = colours * shares(painted)[faces]
    rgbs = (to_display(colours) if linear else colours).astype(np.float32)
    picture = None if picture is None else in_8_bits(picture)
    return Part(np.asarray(mesh.vertices, float), faces, rgbs, uvs, picture, float(cutoff))


def of_cloud(cloud: Any, linear: bool) -> Points:
    """Return a trimesh.PointCloud as points; `linear` as glTF's colours are."""
    colours = cloud.colors
    if colours is None or len(colours) != len(cloud.vertices):
        return Points(np.asarray(cloud.vertices, float), None)
    rgbs = to_display(shares(colours)) if linear else shares(colours)
    return Points(np.asarray(cloud.vertices, float), rgbs.astype(np.float32))


# ---- PLY ----------------------------------------------------------------------------------------------------------


def of_tables(tables: dict[str, Table]) -> tuple[Part | Points, list[str]]:
    """Return the mesh or points of a PLY, and remarks. Raises ValueError, to be put into a sentence, without them."""
    vertex = tables.get("vertex")
    if vertex is None or not set("xyz") <= vertex.columns.keys():
        raise ValueError("it has no element vertex with x, y and z")
    at = np.stack([vertex.columns[axis] for axis in "xyz"], 1).astype(np.float64)
    rgbs, remark = of_columns(vertex.columns, vertex.types)
    remarks = [remark] if remark else []
    faces, owners = _faces(tables)
    if not len(faces):
        return Points(at, rgbs), remarks
    if rgbs is None and "face" in tables:
        of_faces, remark = of_columns(tables["face"].columns, tables["face"].types)
        remarks += [remark] if remark else []
        if of_faces is not None:  # strips have none
            colours = np.full((len(faces), 3), GREY, np.float32)
            colours[owners >= 0] = of_faces[owners[owners >= 0]]
            return _part(at, faces, colours[:, None].repeat(3, 1)), remarks
    inside = bool(faces.min() >= 0 and faces.max() < len(at))
    colours = rgbs[faces] if rgbs is not None and inside else np.full((len(faces), 3, 3), GREY, np.float32)
    return _part(at, faces, colours), remarks


def _part(at: np.ndarray, faces: np.ndarray, rgbs: np.ndarray) -> Part:
    return Part(at, faces.astype(np.int32), rgbs, np.zeros((len(faces), 3, 2), np.float32))


def _faces(tables: dict[str, Table]) -> tuple[np.ndarray, np.ndarray]:
    """Return all triangles [F, 3] int64 and the row of "face" that each is part of, -1 for those of strips."""
    found, owners = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for name, triangles in (("face", _of_polygons), ("tristrips", _of_strips)):
        lists = tables[name].lists if name in tables else {}
        for corners in [lists[c] for c in ("vertex_indices", "vertex_index") if c in lists][:1]:
            faces, rows = triangles(corners)
            found.append(faces)
            owners.append(rows)
    return np.concatenate(found), np.concatenate(owners)


def _of_polygons(corners: Lists) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into fans; return triangles [F, 3] and the polygon of each."""
    flat = corners.flat.astype(np.int64)
    counts = np.maximum(np.diff(corners.begins) - 2, 0)
    rows = np.repeat(np.arange(len(counts)), counts)
    firsts = corners.begins[:-1][rows]
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([flat[firsts], flat[firsts + nth + 1], flat[firsts + nth + 2]], 1), rows


def _of_strips(corners: Lists) -> tuple[np.ndarray, np.ndarray]:
    """Cut strips into triangles of one winding; -1 restarts a strip, as in the Stanford files."""
    flat = corners.flat.astype(np.int64)
    ends = np.zeros(len(flat) + 1, bool)  # whether a new strip begins before this corner
    ends[corners.begins] = True
    breaks = flat < 0
    ends[1:] |= breaks
    last = np.maximum.accumulate(np.where(ends[:-1], np.arange(len(flat)), 0))  # begin of each corner's strip
    i = np.arange(2, len(flat))
    whole = (i - last[i] >= 2) & ~breaks[i] & ~breaks[i - 1] & ~breaks[i - 2] if len(flat) > 2 else np.zeros(0, bool)
    i = i[whole]
    odd = (i - last[i]) % 2 == 1
    faces = np.stack([flat[i - 2], np.where(odd, flat[i], flat[i - 1]), np.where(odd, flat[i - 1], flat[i])], 1)
    return faces, np.full(len(faces), -1)
