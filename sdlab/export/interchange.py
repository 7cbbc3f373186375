"""Gaussians in the formats that programs exchange: SPZ, glTF with KHR_gaussian_splatting, a sequence of PLY files.

SPZ and glTF stand upright in any viewer: y is up and the front faces +z, as `sdlab.export.mesh` has it. Gaussians with
a value that is not finite are dropped. Writers raise OSError if the file cannot be written.
"""

from __future__ import annotations

import gzip
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdlab.cameras import CameraSettings, transforms_of, turntable
from sdlab.export.writers import (
    FILM_FRAMES,
    Film,
    Still,
    Tally,
    Viewed,
    finite,
    ply_bytes,
    turntable_pictures,
    unwatched,
)
from sdlab.harmonics import COUNTS
from sdlab.meshes.colours import SH_C0, to_linear
from sdlab.meshes.gltf import SPLATTING, glb_bytes
from sdlab.starts import spz
from sdlab.starts.placing import to_y_up
from sdlab.types import RawSplats, SplatSnapshot

SPZ_VERSION = 3
SPZ_FRACTION = 12  # bits after the point of a coordinate, of 24
SPZ_COLOUR = 0.15  # a colour's byte is 255 (0.15 f_dc + 0.5)
NGSP = b"NGSP"
FRAMES_MOST = 240  # PLY files of a sequence


# ---- SPZ ----------------------------------------------------------------------------------------------------------


def write_spz(path: Path, s: RawSplats) -> int:
    """Write SPZ version 3 (github.com/nianticlabs/spz), gzipped; return the number of Gaussians.

    About 20 bytes per Gaussian before compression: positions to 1/4096, colours and opacities to 1/255 of their range
    in the format, log-scales to 1/16 within [-10, 5.9], rotations to 10 bits a component; harmonics, coefficient by
    coefficient with its three channels, to 1/128 within [-1, 1].
    """
    s = to_y_up(finite(s))
    count, degree = len(s.means), 0 if s.sh is None else COUNTS.index(s.sh.shape[1])
    fixed = np.rint(s.means.astype(np.float64) * 2**SPZ_FRACTION).astype(np.int64).clip(-(1 << 23), (1 << 23) - 1)
    parts = (
        _little(fixed, 3),
        _byte(255 * _sigmoid(s.opacity_logits)[:, None]),
        _byte(255 * (SPZ_COLOUR / SH_C0 * (s.rgbs - 0.5) + 0.5)),
        _byte(16 * (s.log_scales + 10)),
        _little(_packed_turns(s.quats[:, [1, 2, 3, 0]])[:, None], 4),
        _byte(128 * (np.zeros((count, 0)) if s.sh is None else s.sh) + 128),
    )
    header = spz.HEADER.pack(NGSP, SPZ_VERSION, count, degree, SPZ_FRACTION, 0, 0)
    path.write_bytes(gzip.compress(header + b"".join(part.tobytes() for part in parts), mtime=0))
    return count


def _little(whole: np.ndarray, width: int) -> np.ndarray:
    """Return the lowest `width` bytes of whole numbers, the lowest first."""
    return (whole[..., None] >> (8 * np.arange(width)) & 255).astype(np.uint8)


def _byte(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _packed_turns(quats: np.ndarray) -> np.ndarray:
    """Pack quaternions xyzw of any length [n, 4] into 32 bits: the index of the largest component, and the others in
    order, with a sign and 9 bits each."""
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    largest = abs(quats).argmax(1)
    quats = quats * np.where(np.take_along_axis(quats, largest[:, None], 1) < 0, -1, 1)
    others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
    smallest = np.take_along_axis(quats, others, 1)
    fields = np.rint(511 * abs(smallest) / math.sqrt(0.5)).astype(np.int64).clip(0, 511) | (smallest < 0) * 512
    return largest << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]


# ---- glTF ---------------------------------------------------------------------------------------------------------


def write_gaussian_glb(path: Path, s: RawSplats) -> int:
    """Write a GLB whose points are Gaussians (KHR_gaussian_splatting, ratified in 2026); return their number.

    Programs that do not know the extension show coloured points. Scales are linear, opacities in [0, 1], rotations
    xyzw, colours as displayed.
    """
    s = to_y_up(finite(s))
    lengths = np.maximum(np.linalg.norm(s.quats, axis=1, keepdims=True), 1e-12)
    opacities = _sigmoid(s.opacity_logits)
    attributes = {
        "POSITION": s.means,
        "COLOR_0": np.concatenate([to_linear(s.rgbs), opacities[:, None]], 1),
        f"{SPLATTING}:ROTATION": (s.quats / lengths)[:, [1, 2, 3, 0]],
        f"{SPLATTING}:SCALE": np.exp(s.log_scales),
        f"{SPLATTING}:OPACITY": opacities[:, None],
        f"{SPLATTING}:SH_DEGREE_0_COEF_0": (s.rgbs - 0.5) / SH_C0,
        **_harmonics(s.sh),
    }
    path.write_bytes(_glb({name: values.astype("<f4") for name, values in attributes.items()}))
    return len(s.means)


def _harmonics(sh: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the attributes of spherical harmonics [N, K, 3] beside the constant: 2 l + 1 of each degree l."""
    if sh is None:
        return {}
    degrees = [(degree, i) for degree in range(1, COUNTS.index(sh.shape[1]) + 1) for i in range(2 * degree + 1)]
    return {f"{SPLATTING}:SH_DEGREE_{degree}_COEF_{i}": sh[:, k] for k, (degree, i) in enumerate(degrees)}


def _glb(attributes: dict[str, np.ndarray]) -> bytes:
    """Return a GLB with one primitive of points and their attributes, float32 [n, k] each."""
    accessors, views, offset = [], [], 0
    for name, values in attributes.items():
        kind = "SCALAR" if values.shape[1] == 1 else f"VEC{values.shape[1]}"
        accessor: dict[str, Any] = {"bufferView": len(views), "componentType": 5126, "count": len(values), "type": kind}
        if name == "POSITION" and len(values):
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append(accessor)
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": values.nbytes})
        offset += values.nbytes
    primitive = {
        "mode": 0,
        "attributes": {name: i for i, name in enumerate(attributes)},
        "extensions": {SPLATTING: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    tree = {
        "asset": {"version": "2.0", "generator": "Score Distillation Lab"},
        "extensionsUsed": [SPLATTING],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    return glb_bytes(tree, b"".join(values.tobytes() for values in attributes.values()))


# ---- growth -------------------------------------------------------------------------------------------------------


def write_growth(path: Path, film: Film, progress: Tally = unwatched) -> int:
    """Write a ZIP of PLY files, growth_0000.ply and so on, at most FRAMES_MOST of a film; return their number.

    SuperSplat plays such files on its timeline. A snapshot holds covariances; axes and scales are computed from them.
    Raises ValueError for an empty film.
    """
    if not film:
        raise ValueError("this run has no film yet: let it take some steps")
    chosen = [film[i] for i in np.unique(np.linspace(0, len(film) - 1, FRAMES_MOST).round().astype(int))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for done, (_, shot) in enumerate(chosen):
            progress(done, len(chosen))
            archive.writestr(f"growth_{done:04d}.ply", ply_bytes(of_snapshot(shot))[0])
        steps = {f"growth_{i:04d}.ply": step for i, (step, _) in enumerate(chosen)}
        archive.writestr("steps.json", json.dumps(steps, indent=1))
    progress(len(chosen), len(chosen))
    return len(chosen)


def of_snapshot(shot: SplatSnapshot) -> RawSplats:
    """Return the Gaussians of a snapshot with axes and scales that give its covariances."""
    squares, axes = np.linalg.eigh(shot.covariances.astype(np.float64))
    axes[np.linalg.det(axes) < 0, :, 0] *= -1  # a rotation
    log_scales = 0.5 * np.log(np.maximum(squares, 1e-14))
    opacities = shot.opacities[:, 0].astype(np.float64).clip(1e-6, 1 - 1e-6)
    columns = (shot.means, _quaternions(axes), log_scales, np.log(opacities / (1 - opacities)), shot.rgbs)
    return RawSplats(*(column.astype(np.float32) for column in columns))


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Return unit quaternions wxyz [n, 4] of rotation matrices [n, 3, 3]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotations).as_quat()[:, [3, 0, 1, 2]]


# ---- cameras ------------------------------------------------------------------------------------------------------


def write_cameras(
    path: Path,
    s: RawSplats | Viewed,
    camera: CameraSettings,
    size: int,
    views: int = FILM_FRAMES,
    progress: Tally = unwatched,
) -> int:
    """Write the turntable's cameras as transforms.json with the image of each, `size` pixels wide, as a ZIP from which
    other programs can learn the scene; return their number."""
    scene = Still(s) if isinstance(s, RawSplats) else s
    tree = transforms_of(turntable(views, camera, size))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed
        for i, picture in enumerate(turntable_pictures(scene, camera, views, size, at_a_time=1)):
            progress(i, views)
            tree["frames"][i] = {"file_path": f"turntable/{i:04d}.png", **tree["frames"][i]}
            with archive.open(tree["frames"][i]["file_path"], "w") as file:
                Image.fromarray(picture).save(file, "PNG")
        archive.writestr("transforms.json", json.dumps(tree, indent=1))
    progress(views, views)
    return views
