"""Gaussians in files: PLY of 3DGS and its relatives, compressed PLY, SPZ, .splat, SOG and glTF.

All are decoded in the file's frame; `sdlab.starts.sound` makes them fit for a scene. Spherical harmonics are read up to
the degree that is asked for, if the file has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sdlab.harmonics import COUNTS, resized, rotated
from sdlab.meshes import gltf
from sdlab.meshes.colours import SH_C0, of_columns, to_display
from sdlab.meshes.kinds import SPLAT, Unsupported
from sdlab.meshes.ply import PACKED, Ply
from sdlab.meshes.read import Parsed
from sdlab.starts.decoded import FLAT, Gaussians, logit, must_be_allowed, with_largest
from sdlab.starts.placing import times
from sdlab.starts.sog import gaussians_of_sog
from sdlab.starts.spz import gaussians_of_spz

CHUNK = 256  # Gaussians that share their ranges in a compressed PLY


def gaussians_of(parsed: Parsed, degree: int = 0) -> Gaussians | None:
    """Return the Gaussians of a file with harmonics of `degree`, zero where it has none; None if it holds something
    else. Raises ValueError if they are damaged, or too many."""
    with parsed.damage_explained():
        if parsed.kind not in FORMATS:
            return None
        found = FORMATS[parsed.kind](parsed.source, degree)
        return None if found is None else found._replace(sh=resized(found.sh, len(found.means), degree))


# ---- PLY ----------------------------------------------------------------------------------------------------------


def _of_ply(file: Ply, degree: int) -> Gaussians | None:
    vertex = file.tables.get("vertex")
    if vertex is None:
        return None
    columns = vertex.columns
    if missing_columns(columns):
        return None
    must_be_allowed(vertex.count)
    remarks = []
    scales = _stacked(columns, "scale", 2)
    if "scale_2" in columns:
        scales = _stacked(columns, "scale", 3)
    else:
        scales = np.concatenate([scales, scales.max(1, keepdims=True) - math.log(FLAT)], 1)
        remarks.append("its Gaussians are discs (2DGS) and get a hundredth of their width as thickness")
    rgbs, remark = of_columns(columns, vertex.types)
    if rgbs is None:
        rgbs, remark = np.full((vertex.count, 3), 0.5), "it has no colours: its Gaussians are grey"
    remarks += [remark] if remark else []
    means = np.stack([columns[axis] for axis in "xyz"], 1).astype(np.float64)
    opacities = np.asarray(columns["opacity"], np.float64)
    sh = _rest(columns, degree)
    return Gaussians(means, _stacked(columns, "rot", 4), scales, opacities, rgbs, tuple(remarks), sh)


def _rest(columns: Mapping[str, np.ndarray], degree: int) -> np.ndarray | None:
    """Return the harmonics [n, K, 3] of a PLY up to `degree`, None if it has none of a whole degree. All coefficients
    of red come first."""
    stored = next(i for i in range(len(columns) + 1) if f"f_rest_{i}" not in columns) // 3
    per_channel = max(count for count in COUNTS if count <= stored)
    wanted = min(per_channel, COUNTS[degree])
    if not wanted:
        return None
    channels = [np.stack([columns[f"f_rest_{stored * channel + i}"] for i in range(wanted)], 1) for channel in range(3)]
    return np.stack(channels, 2).astype(np.float32, copy=False)


def missing_columns(columns: Mapping[str, Any]) -> list[str]:
    """Return the columns that a PLY lacks to hold Gaussians; a third scale and colours may be missing."""
    needed = ("x", "y", "z", "opacity", "scale_0", "scale_1", *(f"rot_{i}" for i in range(4)))
    return [name for name in needed if name not in columns]


def _stacked(columns: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray:
    """Return columns [n, count] as float32; beyond its range, infinity."""
    with np.errstate(over="ignore"):
        return np.stack([columns[f"{name}_{i}"] for i in range(count)], 1).astype(np.float32, copy=False)


def _of_packed_ply(file: Ply, degree: int) -> Gaussians:
    """Decode a compressed PLY of SuperSplat; see decompressPly in playcanvas/splat-transform."""
    must_be_allowed(file.tables["vertex"].count)
    vertex, chunk = file.tables["vertex"].columns, file.tables["chunk"].columns
    position, rotation, scale, colour = (np.asarray(vertex[name], np.uint32).astype(np.int64) for name in PACKED)
    chunks = np.arange(len(position)) // CHUNK
    if len(position) and chunks[-1] >= len(chunk["min_x"]):
        raise ValueError(f"it has {len(chunk['min_x']):,} chunks for {len(position):,} Gaussians")

    def between(shares: np.ndarray, names: str, suffixes: str) -> np.ndarray:
        low, high = (
            np.stack([np.asarray(chunk[f"{end}_{names}{axis}"], np.float64) for axis in suffixes], 1)[chunks]
            for end in ("min", "max")
        )
        return low + (high - low) * shares

    rgba = np.stack([colour >> shift & 255 for shift in (24, 16, 8, 0)], 1) / 255
    rgbs = between(rgba[:, :3], "", "rgb") if "min_r" in chunk else rgba[:, :3]
    smallest = (np.stack([rotation >> shift & 1023 for shift in (20, 10, 0)], 1) / 1023 - 0.5) * np.sqrt(2)
    return Gaussians(
        between(_of_11_10_11(position), "", "xyz"),
        with_largest(smallest, rotation >> 30),
        between(_of_11_10_11(scale), "scale_", "xyz"),
        logit(rgba[:, 3]),
        rgbs.clip(0, 1),
        sh=_packed_rest(file, degree),
    )


def _packed_rest(file: Ply, degree: int) -> np.ndarray | None:
    """Return the harmonics [n, K, 3] of a compressed PLY up to `degree`, None without. A byte stands for the middle of
    one of 256 intervals of [-4, 4], and 0 and 255 for the ends."""
    count, table = file.tables["vertex"].count, file.tables.get("sh")
    if table is None:
        return None
    if table.count != count:
        raise ValueError(f"it has harmonics of {table.count:,} Gaussians, and {count:,} Gaussians")
    found = _rest(table.columns, degree)
    if found is None:
        return None
    sh = (found + np.float32(0.5)) / 32 - 4
    sh[found == 0], sh[found == 255] = -4, 4
    return sh


def _of_11_10_11(packed: np.ndarray) -> np.ndarray:
    """Return the shares [n, 3] in [0, 1] that are packed into 32 bits."""
    return np.stack([(packed >> 21) / 2047, (packed >> 11 & 1023) / 1023, (packed & 2047) / 2047], 1)


# ---- formats of their own -----------------------------------------------------------------------------------------


def _of_splat(raw: bytes, degree: int) -> Gaussians:
    """Decode antimatter15's .splat."""
    rows = np.frombuffer(raw, SPLAT)
    with np.errstate(divide="ignore"):
        log_scales = np.log(rows["size"].astype(np.float64))
    rgba = rows["rgba"] / 255
    return Gaussians(
        rows["at"].astype(np.float64),
        (rows["turn"].astype(np.float64) - 128) / 128,
        log_scales,
        logit(rgba[:, 3]),
        rgba[:, :3],
    )


# ---- glTF ---------------------------------------------------------------------------------------------------------


def _of_glb(glb: gltf.Glb, degree: int) -> Gaussians | None:
    """Decode KHR_gaussian_splatting, https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos.

    Scales are linear. Drafts of before the extension was ratified had logarithms, most of which are negative.
    """
    found = [_of_primitive(primitive, degree) for primitive in gltf.gaussians_of(glb)]
    if not found:
        return None
    must_be_allowed(sum(len(gaussians.means) for gaussians in found))
    means, quats, log_scales, opacities, rgbs = zip(*(gaussians[:5] for gaussians in found), strict=True)
    sh = [resized(gaussians.sh, len(gaussians.means), degree) for gaussians in found]
    return Gaussians(
        np.concatenate(means),
        np.concatenate(quats),
        np.concatenate(log_scales),
        np.concatenate(opacities),
        np.concatenate(rgbs),
        sh=np.concatenate([part for part in sh if part is not None]) if degree else None,
    )


def _of_primitive(primitive: gltf.Placed, degree: int) -> Gaussians:
    """Return the Gaussians of a primitive in the world; its node may move, turn and scale it."""
    arrays = primitive.attributes
    rotation, scale, opacity, colour = (
        arrays[f"{gltf.SPLATTING}:{name}"] for name in ("ROTATION", "SCALE", "OPACITY", "SH_DEGREE_0_COEF_0")
    )
    linear = primitive.matrix[:3, :3]
    size = float(np.cbrt(abs(np.linalg.det(linear))))
    if not size > 0 or abs(linear @ linear.T / size**2 - np.eye(3)).max() > 0.01 or np.linalg.det(linear) < 0:
        raise Unsupported("has a node that stretches or mirrors Gaussians: export it without that transform")
    rgbs = (0.5 + SH_C0 * colour).clip(0, 1)
    with np.errstate(divide="ignore"):
        log_scales = scale if (scale < 0).any() else np.log(scale)
    return Gaussians(
        arrays["POSITION"] @ linear.T + primitive.matrix[:3, 3],
        _turned(rotation[:, [3, 0, 1, 2]], linear / size),
        log_scales + np.log(size),
        logit(opacity),
        to_display(rgbs) if primitive.is_linear else rgbs,
        sh=_harmonics(arrays, degree, linear / size),
    )


def _harmonics(arrays: Mapping[str, np.ndarray], degree: int, turn: np.ndarray) -> np.ndarray | None:
    """Return the harmonics [n, K, 3] up to `degree` in the world, of the degrees that are complete; None without."""
    found: list[np.ndarray] = []
    for order in range(1, degree + 1):
        names = [f"{gltf.SPLATTING}:SH_DEGREE_{order}_COEF_{i}" for i in range(2 * order + 1)]
        if not all(name in arrays for name in names):
            break
        found += [arrays[name] for name in names]
    return rotated(np.stack(found, 1).astype(np.float32), turn) if found else None


def _turned(quats: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz [n, 4] turned by a rotation matrix."""
    return quats @ times(_quaternion(turn)).T


def _quaternion(m: np.ndarray) -> list[float]:
    """Return the unit quaternion wxyz of a rotation matrix."""
    squares = 1 + np.array([m.trace(), *(2 * m[i, i] - m.trace() for i in range(3))])  # 4 times w^2, x^2, y^2, z^2
    i = int(squares.argmax())
    a, b, c = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    d, e, f = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    row = np.array([(squares[0], a, b, c), (a, squares[1], d, e), (b, d, squares[2], f), (c, e, f, squares[3])])[i]
    return (row / np.linalg.norm(row)).tolist()


FORMATS: dict[str, Callable[[Any, int], Gaussians | None]] = {
    "ply": _of_ply,
    "ply_packed": _of_packed_ply,
    "splat": _of_splat,
    "spz": gaussians_of_spz,
    "sog": gaussians_of_sog,
    "glb": _of_glb,
}
