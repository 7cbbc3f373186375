"""Decode a bundled SOG of version 2: https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import numpy as np

from sdlab.harmonics import COUNTS
from sdlab.meshes.colours import SH_C0
from sdlab.meshes.kinds import Unsupported
from sdlab.starts.decoded import MOST, Gaussians, logit, must_be_allowed, with_largest

PICTURE = 20_000_000  # bytes of a picture
FILES = {"means": 2, "scales": 1, "quats": 1, "sh0": 1}  # pictures of each attribute
ABREAST = 64  # entries in a row of the palette of harmonics


def gaussians_of_sog(raw: bytes, degree: int) -> Gaussians:
    """Decode a file, with harmonics of at most `degree`. Raises ValueError for another version, or too many Gaussians;
    any error if it is damaged."""
    with ZipFile(BytesIO(raw)) as archive:
        meta = json.loads(_entry(archive, "meta.json"))
        if meta.get("version") != 2:
            raise Unsupported(f"is a SOG file of version {meta.get('version', 1)}: convert it to PLY")
        count = int(meta["count"])
        must_be_allowed(count)
        texels = {
            name: [_texels(_entry(archive, file), count) for file in meta[name]["files"][:number]]
            for name, number in FILES.items()
        }
        sh = _harmonics(archive, meta["shN"], count, degree) if degree and meta.get("shN") else None
    low, high = texels["means"]
    shares = (low[:, :3] + 256.0 * high[:, :3]) / 65535
    first, last = (np.array(meta["means"][end], np.float64) for end in ("mins", "maxs"))
    logs = first + (last - first) * shares
    turn, colour = texels["quats"][0].astype(np.int64), texels["sh0"][0]
    f_dc = np.array(meta["sh0"]["codebook"], np.float64)[colour[:, :3]]
    return Gaussians(
        np.sign(logs) * np.expm1(abs(logs)),
        with_largest((turn[:, :3] / 255 * 2 - 1) * np.sqrt(0.5), (turn[:, 3] - 252).clip(0, 3)),
        np.array(meta["scales"]["codebook"], np.float64)[texels["scales"][0][:, :3]],
        logit(colour[:, 3] / 255),
        (0.5 + SH_C0 * f_dc).clip(0, 1),
        sh=sh,
    )


def _harmonics(archive: ZipFile, found: Mapping[str, Any], count: int, degree: int) -> np.ndarray:
    """Return the harmonics [count, K, 3] up to `degree`, of which Gaussians share the entries of a palette."""
    bands, entries = int(found["bands"]), int(found["count"])
    if not 0 < bands < len(COUNTS):
        raise Unsupported(f"is a SOG file with harmonics of degree {bands}: convert it to PLY")
    palette, labels = (_entry(archive, name) for name in found["files"][:2])
    stored = COUNTS[bands]
    rows = _picture(palette, entries * stored)
    if rows.shape[1] != ABREAST * stored:
        raise ValueError(f"its palette of harmonics is {rows.shape[1]} texels wide, not {ABREAST * stored}")
    codes = rows.reshape(-1, stored, 4)[:entries, : COUNTS[degree], :3]
    label = _texels(labels, count).astype(np.int64)
    return np.array(found["codebook"], np.float32)[codes][label[:, 0] | label[:, 1] << 8]


def _entry(archive: ZipFile, name: str) -> bytes:
    """Return a file of an archive, up to `PICTURE` bytes."""
    with archive.open(name) as file:
        return file.read(PICTURE)


def _texels(raw: bytes, count: int) -> np.ndarray:
    """Return the first `count` texels [count, 4] uint8 of a picture."""
    return _picture(raw, count).reshape(-1, 4)[:count]


def _picture(raw: bytes, count: int) -> np.ndarray:
    """Return a picture [H, W, 4] uint8 of at least `count` texels, and not of very many."""
    from PIL import Image

    with Image.open(BytesIO(raw), formats=("WEBP", "PNG")) as picture:
        if not count <= picture.width * picture.height <= 2 * MOST:
            raise ValueError(f"a picture of {picture.width} x {picture.height} texels; {count:,} are needed")
        return np.asarray(picture.convert("RGBA"))
