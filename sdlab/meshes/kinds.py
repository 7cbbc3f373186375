"""What kind of file this is, by content and never by name.

A known format that cannot be read is refused under its own name, with what to do: such a file is not damaged.
"""

from __future__ import annotations

import re
import zlib
from io import BytesIO
from zipfile import BadZipFile, ZipFile

import numpy as np

GAUSSIANS = ("spz", "splat", "sog", "ply_packed")  # formats that hold nothing else
SPLAT = np.dtype([("at", "<f4", 3), ("size", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)])  # a row of .splat
SPZ_MAGIC = b"NGSP"
STL_HEAD = 84  # bytes before the triangles of a binary STL
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])  # of a binary STL
LIKELY = 0.99  # share of rows that must look like a format without a magic number
PROBES = 20_000  # rows that are looked at for that
ZIP, ENTRY = b"PK\x03\x04", b"PK\x01\x02"  # begin an archive, and each entry in its list of files
MAX_ENTRIES = 1000  # of an archive whose names are looked at
ARCHIVES = {
    **{ZIP: "ZIP", b"\x1f\x8b": "GZIP", b"7z\xbc\xaf": "7z", b"Rar!": "RAR", b"BZh": "BZIP2"},
    **{b"\xfd7zXZ": "XZ", b"\x28\xb5\x2f\xfd": "Zstandard"},
}
TAR = slice(257, 262)  # position of the TAR magic
AS_MESH = "export it as GLB, OBJ, STL or PLY"
AS_PLY = "convert it to PLY"
UNREADABLE = (  # (how a file begins, what it is and what to do)
    (rb"Kaydara FBX", f"is an FBX file: {AS_MESH}"),
    (rb"; FBX", f"is an FBX file: {AS_MESH}"),
    (rb"PXR-USDC|#usda", f"is a USD file: {AS_MESH}"),
    (rb"BLENDER", f"is a Blender file: {AS_MESH}"),
    (rb"OFF\s|COFF\s|NOFF\s", f"is an OFF file: {AS_MESH}"),
    (rb"LASF", f"holds points in the format LAS or LAZ: {AS_PLY}"),
    (rb"ASTM-E57", f"holds points in the format E57: {AS_PLY}"),
    (rb"# \.PCD|VERSION \.?\d", f"holds points in the format PCD: {AS_PLY}"),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file itself: get it with git lfs pull"),
    (rb"(?i)\s*(<!doctype html|<html)", "is an HTML page, such as a server's error, not a 3D file: download it again"),
    (rb"(?s)\s*<(\?xml.{0,2000}?<)?COLLADA", f"is a COLLADA file: {AS_MESH}"),
    (rb"DRACO", "is Draco-compressed geometry: export it without Draco, as GLB or PLY"),
)
INSIDE = (  # (a name in a ZIP archive, what the archive is)
    (r"3D/.*\.model", f"is a 3MF file: {AS_MESH}"),
    (r".*\.usd[ac]?", f"is a USDZ file: {AS_MESH}"),
)


class Unsupported(ValueError):
    """A sound file that cannot be read. The text continues "scene.file = 'x' "."""


def kind_of(raw: bytes, given: str, readable: str) -> str:
    """Return "glb", "ply", "stl", "stl_ascii", "obj", "spz", "sog" or "splat".

    Raises ValueError that starts with `given` for any other file; `readable` says what can be read.
    """
    known = (
        ("glb", raw.startswith(b"glTF")),
        ("ply", raw.startswith((b"ply\n", b"ply\r"))),
        ("spz", raw.startswith(SPZ_MAGIC) or is_spz(raw)),
        ("sog", raw.startswith(ZIP) and {"meta.json", "means_l.webp"} <= _names(raw)),
    )
    for kind, found in known:
        if found:
            return kind
    _must_be_readable(raw, given, readable)
    if b"\x00" not in raw.rstrip(b"\x00"):
        start = raw[:1000].lstrip().lower()
        if start.startswith(b"solid") and re.search(rb"(?i)facet|endsolid", raw):
            return "stl_ascii"
        if re.search(rb"(?:^|[\r\n])[ \t]*v[ \t]", raw):
            return "obj"
    if is_stl(raw):
        return "stl"
    if is_splat(raw):
        return "splat"
    raise ValueError(f"{given} {'is empty' if not raw else 'has an unknown format'}: {readable}")


def _must_be_readable(raw: bytes, given: str, readable: str) -> None:
    """Raise ValueError for archives, and for formats that are known by name only."""
    for begin, text in UNREADABLE:
        if re.match(begin, raw):
            raise ValueError(f"{given} {text}")
    if raw[:100].lstrip().startswith(b"{") and b'"asset"' in raw:
        raise ValueError(f"{given} is glTF as text (.gltf): export it as GLB, which is one whole file")
    if raw.startswith(ZIP):
        for pattern, text in INSIDE:
            if any(re.fullmatch(pattern, name) for name in _names(raw)):
                raise ValueError(f"{given} {text}")
    for magic, name in (*ARCHIVES.items(), (raw[: TAR.start] + b"ustar", "TAR")):
        if raw.startswith(magic):
            raise ValueError(f"{given} is an archive ({name}): unpack it and choose one of its files. {readable}")


def _names(raw: bytes) -> set[str]:
    """Return the names in a ZIP archive; none if it is damaged, or has very many, each of which would take memory."""
    if raw.count(ENTRY) > MAX_ENTRIES:
        return set()
    try:
        with ZipFile(BytesIO(raw)) as archive:
            return set(archive.namelist())
    except (BadZipFile, ValueError, OSError, NotImplementedError):
        return set()


def is_spz(raw: bytes) -> bool:
    """Return whether gzipped content begins as an SPZ file does."""
    if not raw.startswith(b"\x1f\x8b"):
        return False
    try:
        return zlib.decompressobj(wbits=31).decompress(raw[:1000], 4) == SPZ_MAGIC
    except zlib.error:
        return False


def is_splat(raw: bytes) -> bool:
    """Return whether content looks like antimatter15's .splat, which has no header: rows of Gaussians with finite
    positions, positive sizes, and quaternions of unit length."""
    if not raw or len(raw) % SPLAT.itemsize:
        return False
    rows = _probed(np.frombuffer(raw, SPLAT))
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows["turn"].astype(np.float32) - 128, axis=1)
        sizes = rows["size"].astype(np.float64)
        sound = (abs(lengths - 128) < 4) & np.isfinite(rows["at"]).all(1) & ((sizes >= 0) & (sizes < 1e6)).all(1)
    return bool(sound.mean() >= LIKELY)


def is_stl(raw: bytes) -> bool:
    """Return whether content looks like a binary STL: as long as its header says, or with normals that have unit length
    or are absent, since that count is wrong in some files."""
    if len(raw) < STL_HEAD:
        return False
    if len(raw) == STL_HEAD + TRIANGLE.itemsize * int.from_bytes(raw[80:84], "little"):
        return True
    rows = _probed(stl_triangles(raw))
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(rows["normal"].astype(np.float64), axis=1)
        sound = (abs(lengths - 1) < 0.01) | (lengths == 0)
        sound &= (abs(rows["corners"]) < 1e20).all((1, 2))  # nor NaN
    return bool(len(rows)) and bool(sound.mean() >= LIKELY) and bool((rows["corners"] != 0).any())


def stl_triangles(raw: bytes) -> np.ndarray:
    """Return the triangles of a binary STL [n] of type `TRIANGLE`: as many as its header says, or all it holds if that
    is impossible."""
    said = int.from_bytes(raw[80:84], "little")
    held = (len(raw) - STL_HEAD) // TRIANGLE.itemsize
    return np.frombuffer(raw, TRIANGLE, said if 0 < said <= held else held, STL_HEAD)


def _probed(rows: np.ndarray) -> np.ndarray:
    """Return at most about `PROBES` rows, from all parts."""
    return rows[:: max(len(rows) // PROBES, 1)]
