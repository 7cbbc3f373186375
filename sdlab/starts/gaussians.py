"""Gaussians in files: PLY of 3DGS and its relatives, compressed PLY, SPZ, .splat, SOG and glTF.

All are decoded in the file's frame; `sdlab.starts.sound` makes them fit for a scene. Spherical harmonics are read up to
the degree that is asked for, from PLY, SPZ and glTF; of the others only the constant.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np

from sdlab.harmonics import COUNTS, resized, rotated
from sdlab.meshes import gltf
from sdlab.meshes.colours import SH_C0, of_columns, to_display
from sdlab.meshes.kinds import SPLAT, SPZ_MAGIC, Unsupported
from sdlab.meshes.ply import PACKED, Ply
from sdlab.meshes.read import Parsed
from sdlab.starts.placing import times

MOST = 2_000_000  # Gaussians in a file: as many as scene.max_gaussians can allow
FLAT = 100.0  # a disc (2DGS) becomes this many times as wide as it is thick
HALF_STEP = 0.5 / 255  # an opacity stored in a byte as 0 or 255 is this far from 0 or 1, on average
CHUNK = 256  # Gaussians that share their ranges in a compressed PLY
SPZ_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, reserved
SPZ_VERSIONS = (2, 3)
SPZ_EXTENSIONS = 2  # flag
SOG_PICTURE = 20_000_000  # bytes of a picture in a SOG file
SOG_FILES = {"means": 2, "scales": 1, "quats": 1, "sh0": 1}  # pictures of each attribute


class Gaussians(NamedTuple):
    """Gaussians as a file stores them; floats, infinite or NaN where the file is."""

    means: np.ndarray  # [N, 3] float64
    quats: np.ndarray  # [N, 4] wxyz, of any length
    log_scales: np.ndarray  # [N, 3]
    opacity_logits: np.ndarray  # [N]
    rgbs: np.ndarray  # [N, 3] in [0, 1]
    remarks: tuple[str, ...] = ()
    sh: np.ndarray | None = None  # [N, K, 3] float32


def gaussians_of(parsed: Parsed, degree: int = 0) -> Gaussians | None:
    """Return the Gaussians of a file with harmonics of `degree`, zero where it has none; None if it holds something
    else. Raises ValueError if they are damaged, or too many."""
    with parsed.damage_explained():
        if parsed.kind not in FORMATS:
            return None
        found = FORMATS[parsed.kind](parsed.source, degree)
        return None if found is None else found._replace(sh=resized(found.sh, len(found.means), degree))


def logit(share: np.ndarray) -> np.ndarray:
    """Return the logits of opacities in [0, 1]; those of 0 and 1 as of the values between which a byte cannot tell."""
    share = np.clip(share, HALF_STEP, 1 - HALF_STEP)
    return np.log(share / (1 - share))


def _must_be_allowed(count: int) -> None:
    if count > MOST:
        raise Unsupported(f"holds {count:,} Gaussians; the limit is {MOST:,}")


# ---- PLY ----------------------------------------------------------------------------------------------------------


def _of_ply(file: Ply, degree: int) -> Gaussians | None:
    vertex = file.tables.get("vertex")
    if vertex is None:
        return None
    columns = vertex.columns
    if missing_columns(columns):
        return None
    _must_be_allowed(vertex.count)
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
    stored = sum(f"f_rest_{i}" in columns for i in range(3 * COUNTS[-1])) // 3
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
    _must_be_allowed(file.tables["vertex"].count)
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
        _with_largest(smallest, rotation >> 30),
        between(_of_11_10_11(scale), "scale_", "xyz"),
        logit(rgba[:, 3]),
        rgbs.clip(0, 1),
    )


def _of_11_10_11(packed: np.ndarray) -> np.ndarray:
    """Return the shares [n, 3] in [0, 1] that are packed into 32 bits."""
    return np.stack([(packed >> 21) / 2047, (packed >> 11 & 1023) / 1023, (packed & 2047) / 2047], 1)


def _with_largest(smallest: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return unit quaternions [n, 4] from all components but the largest [n, 3], in order, and its index [n]."""
    quats = np.empty((len(smallest), 4))
    others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
    np.put_along_axis(quats, others, smallest, 1)
    rest = np.sqrt(np.maximum(1 - np.square(smallest).sum(1), 0))
    np.put_along_axis(quats, largest[:, None], rest[:, None], 1)
    return quats


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


def _of_spz(raw: bytes, degree: int) -> Gaussians:
    """Decode SPZ, versions 2 and 3 (github.com/nianticlabs/spz)."""
    if raw.startswith(SPZ_MAGIC):
        raise Unsupported("is an SPZ file of a version after 3: convert it to PLY")
    stream = zlib.decompressobj(wbits=31)
    header = stream.decompress(raw, SPZ_HEADER.size)
    _, version, count, stored, fraction, flags, _ = SPZ_HEADER.unpack(header)
    if version not in SPZ_VERSIONS or flags & SPZ_EXTENSIONS:
        extended = " with extensions" if flags & SPZ_EXTENSIONS else ""
        raise Unsupported(f"is an SPZ file of version {version}{extended}: convert it to PLY")
    _must_be_allowed(count)
    turn_bytes = 3 if version == 2 else 4
    if stored >= len(COUNTS):
        raise Unsupported(f"is an SPZ file with harmonics of degree {stored}: convert it to PLY")
    wide = 3 * COUNTS[stored] if degree else 0  # they are at the end, and unpacked only if wanted
    widths = (9, 1, 3, 3, turn_bytes, wide)
    data = stream.decompress(stream.unconsumed_tail, max(count * sum(widths), 1))
    if len(data) < count * sum(widths):
        raise ValueError("it ends before its last Gaussian")
    ends = np.cumsum([0, *widths]) * count
    at, alpha, colour, scale, turn, sh = (
        np.frombuffer(data, np.uint8, count * width, begin).reshape(count, width)
        for begin, width in zip(ends.tolist(), widths, strict=False)
    )
    fixed = at.reshape(count, 3, 3).astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    fixed -= (fixed >> 23) << 24  # sign
    return Gaussians(
        fixed / 2.0**fraction,
        _spz_2_turns(turn) if version == 2 else _spz_3_turns(turn),
        scale / 16 - 10,
        logit(alpha[:, 0] / 255),
        (0.5 + SH_C0 / 0.15 * (colour / 255 - 0.5)).clip(0, 1),
        sh=((sh.reshape(count, -1, 3) - np.float32(128)) / np.float32(128)) if wide else None,
    )


def _spz_2_turns(turn: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz of which x, y, z are stored, and w is positive."""
    xyz = turn / 127.5 - 1
    return np.concatenate([np.sqrt(np.maximum(1 - np.square(xyz).sum(1, keepdims=True), 0)), xyz], 1)


def _spz_3_turns(turn: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz of which three components are stored with sign and 9 bits, in the order xyzw."""
    packed = turn.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16, 1 << 24])
    parts = np.stack([packed >> shift & 1023 for shift in (20, 10, 0)], 1)
    smallest = np.where(parts & 512, -1, 1) * (parts & 511) / 511 * np.sqrt(0.5)
    return _with_largest(smallest, packed >> 30)[:, [3, 0, 1, 2]]


def _of_sog(raw: bytes, degree: int) -> Gaussians:
    """Decode a bundled SOG of version 2; see readSog in playcanvas/splat-transform."""
    with ZipFile(BytesIO(raw)) as archive:
        meta = json.loads(_entry(archive, "meta.json"))
        if meta.get("version") != 2:
            raise Unsupported(f"is a SOG file of version {meta.get('version', 1)}: convert it to PLY")
        count = int(meta["count"])
        _must_be_allowed(count)
        texels = {
            name: [_texels(_entry(archive, file), count) for file in meta[name]["files"][:number]]
            for name, number in SOG_FILES.items()
        }
    low, high = texels["means"]
    shares = (low[:, :3] + 256.0 * high[:, :3]) / 65535
    first, last = (np.array(meta["means"][end], np.float64) for end in ("mins", "maxs"))
    logs = first + (last - first) * shares
    turn, colour = texels["quats"][0].astype(np.int64), texels["sh0"][0]
    f_dc = np.array(meta["sh0"]["codebook"], np.float64)[colour[:, :3]]
    return Gaussians(
        np.sign(logs) * np.expm1(abs(logs)),
        _with_largest((turn[:, :3] / 255 * 2 - 1) * np.sqrt(0.5), (turn[:, 3] - 252).clip(0, 3)),
        np.array(meta["scales"]["codebook"], np.float64)[texels["scales"][0][:, :3]],
        logit(colour[:, 3] / 255),
        (0.5 + SH_C0 * f_dc).clip(0, 1),
    )


def _entry(archive: ZipFile, name: str) -> bytes:
    """Return a file of an archive, up to `SOG_PICTURE` bytes."""
    with archive.open(name) as file:
        return file.read(SOG_PICTURE)


def _texels(raw: bytes, count: int) -> np.ndarray:
    """Return the first `count` texels [count, 4] uint8 of a picture."""
    from PIL import Image

    with Image.open(BytesIO(raw), formats=("WEBP", "PNG")) as picture:
        if not count <= picture.width * picture.height <= 2 * MOST:
            raise ValueError(f"a picture of {picture.width} x {picture.height} texels for {count:,} Gaussians")
        return np.asarray(picture.convert("RGBA")).reshape(-1, 4)[:count]


# ---- glTF ---------------------------------------------------------------------------------------------------------


def _of_glb(glb: gltf.Glb, degree: int) -> Gaussians | None:
    """Decode KHR_gaussian_splatting, https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos.

    Scales are linear. Drafts of before the extension was ratified had logarithms, most of which are negative.
    """
    found = [_of_primitive(primitive, degree) for primitive in gltf.gaussians_of(glb)]
    if not found:
        return None
    _must_be_allowed(sum(len(gaussians.means) for gaussians in found))
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
    "spz": _of_spz,
    "sog": _of_sog,
    "glb": _of_glb,
}
