"""Coloured triangles, ready to be drawn, from a mesh file.

The result stands in the world as a scene that starts from the same file does (`sdlab.types`: +z up, front +x; middle of
the bounding box at the origin, farthest vertex at a given radius).

Colours are display values (sRGB). The texture's colour multiplies a corner's at every fragment; sRGB being nearly a
power law, their product is nearly that in linear light. Other maps (normals, roughness, emission), samplers and texture
transforms are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdlab.compiled import kernel
from sdlab.knobs import read_file
from sdlab.meshes.kinds import GAUSSIANS
from sdlab.meshes.parts import Part
from sdlab.meshes.read import MAX_BYTES, fitting, mismatch_explained, must_be_finite, must_have_area, parse
from sdlab.parsing import OWN, Limits, parsed

READABLE = "a mesh as GLB, OBJ, STL or PLY can be read"
RADIUS = 0.8  # as of a scene's start
MAX_FACES = 1_000_000
LEVELS = 11  # of a texture, from 1024 pixels to 1
MAX_TEXELS = 2**25  # of all textures; beyond it they are made smaller
DEGENERATE = 1e-30  # twice the area in world units of a face that has none
CREASE = math.cos(math.radians(40))  # faces that meet at a larger angle are not smoothed into each other
MAX_FAN = (
    128  # faces around a vertex; with more of them it is not smoothed, which would take the square of their number
)


class Textures(NamedTuple):
    """T images with their mipmaps, one after another; rows from the top, sides are powers of two."""

    texels: np.ndarray  # [K, 4] uint8 RGBA
    begins: np.ndarray  # [T, LEVELS] int64, index of each level's first texel; level l has max(sides >> l, 1)
    sides: np.ndarray  # [T, 2] int64, width and height of level 0
    cutoffs: np.ndarray  # [T] float64, alpha below which there is a hole; 0 for an opaque image


class Mesh(NamedTuple):
    """F triangles in the world. They are seen from both sides; the winding only orients the normals."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int32
    normals: np.ndarray  # [F, 3, 3] float32, of each corner
    rgbs: np.ndarray  # [F, 3, 3] float32 in [0, 1], of each corner
    uvs: np.ndarray  # [F, 3, 2] float32, of each corner; (0, 0) is the lower left of the image
    images: np.ndarray  # [F] int32, index into `textures`, -1 for none
    textures: Textures

    def turned(self, degrees: float) -> Mesh:
        """Return the mesh rotated about the vertical, counter-clockwise seen from above."""
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])  # acts on rows
        return self._replace(vertices=self.vertices @ turn, normals=self.normals @ turn.astype(np.float32))


def read_mesh(path: Path, knob: str, up: str = "auto", radius: float = RADIUS) -> Mesh:
    """Read the file at `path` as in `mesh_of`; ValueError names `knob`, the file and the problem."""
    given = f"{knob} = {str(path)!r}"
    return parsed_mesh(read_file(path, MAX_BYTES, given), given, up, radius)[0]


def parsed_mesh(
    raw: bytes, given: str, up: str = "auto", radius: float = RADIUS, limits: Limits = OWN
) -> tuple[Mesh, tuple[str, ...]]:
    """Return `mesh_of` the arguments, parsed in another process within `limits`, and remarks on what was not read."""
    needs = ("trimesh", "PIL.Image")
    mesh, remarks = parsed(
        _placed, raw, given, up, radius, given=given, kinds=(Mesh, Textures), needs=needs, limits=limits
    )
    return _finished(mesh, given), remarks


def mesh_of(raw: bytes, given: str, up: str = "auto", radius: float = RADIUS) -> Mesh:
    """Parse a mesh file, and place it in the world with its farthest vertex at `radius`.

    `up` is the file's vertical axis: "z" (front +x), "y" (front +z, as in glTF) or "auto". Raises ValueError that
    starts with `given` and says what is wrong.
    """
    return _finished(_placed(raw, given, up, radius)[0], given)


def check_mesh(raw: bytes, given: str) -> None:
    """Raise the ValueErrors of `mesh_of`."""
    _sound(_placed(raw, given, "auto", RADIUS)[0], given)


def _placed(raw: bytes, given: str, up: str, radius: float) -> tuple[Mesh, tuple[str, ...]]:
    """Parse a mesh file and place it in the world, without normals and with its degenerate faces; and remarks."""
    file = parse(raw, given, READABLE)
    with mismatch_explained(given):
        found = file.contents()
        if not found.parts:
            if found.points or file.kind in GAUSSIANS:
                raise ValueError(
                    f"{given} has points or Gaussians but no faces, so it has no surface to render: use {READABLE}; "
                    "a scene can start from such a file (scene.file)"
                )
            raise ValueError(f"{given} is a mesh without faces: export it with faces")
        count = sum(len(p.faces) for p in found.parts)
        if count > MAX_FACES:
            raise ValueError(f"{given} has {count:,} faces; the limit is {MAX_FACES:,}: simplify it")
        must_be_finite(given, *(array for p in found.parts for array in (p.vertices, p.rgbs, p.uvs)))
        mesh = _joined(found.parts)
    vertices = mesh.vertices[:, [2, 0, 1]] if file.is_y_up(up) else mesh.vertices
    middle, factor = fitting(vertices[np.unique(mesh.faces)], radius)
    return mesh._replace(vertices=(vertices - middle) * factor), found.remarks


def _joined(parts: Sequence[Part]) -> Mesh:
    """Join the parts into one mesh without normals, in the file's frame."""
    offsets = np.cumsum([0, *(len(p.vertices) for p in parts)])
    images, textures = _textures(parts)
    return Mesh(
        vertices=np.concatenate([p.vertices for p in parts]),
        faces=np.concatenate([p.faces + np.int32(at) for p, at in zip(parts, offsets[:-1], strict=True)]),
        normals=np.zeros((0, 3, 3), np.float32),
        rgbs=np.concatenate([p.rgbs for p in parts]),
        uvs=np.concatenate([p.uvs for p in parts]),
        images=np.repeat(np.array(images, np.int32), [len(p.faces) for p in parts]),
        textures=textures,
    )


# ---- textures ---------------------------------------------------------------------------------------------------


def _textures(parts: Sequence[Part]) -> tuple[list[int], Textures]:
    """Return the index of each part's texture, -1 for none, and the textures. Copies of an image count once."""
    longest = 2 ** (LEVELS - 1)
    while sum(p.picture is not None for p in parts) * longest**2 > MAX_TEXELS:
        longest //= 2
    known: dict[tuple[bytes, float], int] = {}
    images, pyramids, sides, cutoffs = [], [], [], []
    for part in parts:
        if part.picture is None:
            images.append(-1)
            continue
        image = _to_powers_of_two(part.picture, longest)
        key = (image.tobytes(), part.cutoff)
        if key not in known:
            known[key] = len(known)
            pyramids.append(_pyramid(image))
            sides.append((image.shape[1], image.shape[0]))
            cutoffs.append(part.cutoff)
        images.append(known[key])
    levels = [level.reshape(-1, 4) for pyramid in pyramids for level in pyramid]
    ends = np.cumsum([0, *(len(level) for level in levels)])
    return images, Textures(
        texels=np.concatenate(levels) if levels else np.zeros((0, 4), np.uint8),
        begins=ends[:-1].astype(np.int64).reshape(-1, LEVELS),
        sides=np.array(sides, np.int64).reshape(-1, 2),
        cutoffs=np.array(cutoffs, np.float64),
    )


def _to_powers_of_two(picture: Any, longest: int) -> np.ndarray:
    """Return a PIL image as uint8 RGBA [H, W, 4], its sides resized to the nearest powers of two up to `longest`."""
    from PIL import Image

    wanted = tuple(min(2 ** round(math.log2(side)), longest) for side in picture.size)
    image = picture.convert("RGBA")
    return np.asarray(image if image.size == wanted else image.resize(wanted, Image.Resampling.BOX))


def _pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Return LEVELS images [H, W, 4], each half as large as the one before, down to one pixel."""
    levels = [image]
    while len(levels) < LEVELS:
        x = levels[-1].astype(np.float32)
        x = x.reshape(-1, 2, *x.shape[1:]).mean(1) if len(x) > 1 else x
        x = x.reshape(len(x), -1, 2, 4).mean(2) if x.shape[1] > 1 else x
        levels.append((x + 0.5).astype(np.uint8))
    return levels


# ---- normals ----------------------------------------------------------------------------------------------------


def _sound(mesh: Mesh, given: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which faces [F] are not degenerate, and vectors [F, 3] that are normal to the faces and as long as twice
    their area. Raises ValueError if all faces are degenerate."""
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    doubled = np.linalg.norm(across, axis=1)
    sound = doubled > DEGENERATE
    must_have_area(doubled[sound], given)
    return sound, across


def _finished(mesh: Mesh, given: str) -> Mesh:
    """Drop degenerate faces, and give every corner a normal that is smooth except across creases.

    Raises ValueError if no faces are left.
    """
    sound, across = _sound(mesh, given)
    rest = (mesh.faces, mesh.rgbs, mesh.uvs, mesh.images)
    faces, rgbs, uvs, images = (np.ascontiguousarray(x[sound]) for x in rest)
    across = np.ascontiguousarray(across[sound])
    rows = np.ascontiguousarray(mesh.vertices + 0.0)  # -0 becomes 0: rows are compared as bytes
    places, merged = np.unique(rows.view(f"V{rows.itemsize * 3}")[:, 0], return_inverse=True)
    owners = merged[faces].astype(np.int64)  # place of each corner: files double vertices along seams
    order = np.argsort(owners, axis=None, kind="stable")
    begins = np.searchsorted(owners.ravel()[order], np.arange(len(places) + 1))
    normals = np.empty((len(faces), 3, 3), np.float32)
    _smooth(across, owners, order // 3, begins, normals)
    return Mesh(rows, faces, normals, rgbs, uvs, images, mesh.textures)


@kernel
def _smooth(across, owners, around, begins, normals):
    """Write the unit normal of every corner: the sum of `across` over the faces at its place that do not form a crease.

    `across` [F, 3] is normal to a face and as long as twice its area; the faces around place p are
    around[begins[p] : begins[p + 1]].
    """
    for f in range(across.shape[0]):
        nx, ny, nz = across[f, 0], across[f, 1], across[f, 2]
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        for corner in range(3):
            place = owners[f, corner]
            x, y, z = nx, ny, nz
            if begins[place + 1] - begins[place] <= MAX_FAN:
                x = y = z = 0.0
                for i in range(begins[place], begins[place + 1]):
                    g = around[i]
                    gx, gy, gz = across[g, 0], across[g, 1], across[g, 2]
                    aligned = nx * gx + ny * gy + nz * gz
                    if aligned >= CREASE * length * math.sqrt(gx * gx + gy * gy + gz * gz):
                        x, y, z = x + gx, y + gy, z + gz
            norm = math.sqrt(x * x + y * y + z * z)
            normals[f, corner, 0] = x / norm
            normals[f, corner, 1] = y / norm
            normals[f, corner, 2] = z / norm
