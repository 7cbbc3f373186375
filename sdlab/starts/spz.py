"""Decode SPZ, versions 2 to 4: github.com/nianticlabs/spz."""

from __future__ import annotations

import struct
import zlib
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from sdlab.harmonics import COUNTS
from sdlab.meshes.colours import SH_C0
from sdlab.meshes.kinds import SPZ_MAGIC, Unsupported
from sdlab.starts.decoded import Gaussians, logit, must_be_allowed, with_largest

HEADER = struct.Struct("<4sIIBBBB")  # the fields of `Header`
HEADER_4 = 32  # bytes before the extensions of version 4
TABLE = struct.Struct("<I")  # where the table of streams begins; follows the fields in version 4
MOST_EXTENSIONS = 100_000  # bytes
EXTENDED = 2  # flag
STORED = (*COUNTS, 24)  # coefficients per channel beside the constant, by degree
COORDINATES = 0xADBE0003  # the extension that names axes
RIGHT_UP_BACK = (0, 4)  # its values for the axes that files without it have: not said, and said


class Header(NamedTuple):
    """What a file says of itself."""

    magic: bytes
    version: int
    count: int
    degree: int
    fraction: int  # bits after the point of a coordinate
    flags: int
    streams: int  # 0 before version 4


def gaussians_of_spz(raw: bytes, degree: int) -> Gaussians:
    """Decode a file, with harmonics of at most `degree`. Raises ValueError if it is damaged, or of another version."""
    head, parts = (_of_version_4 if raw.startswith(SPZ_MAGIC) else _of_version_3)(raw, degree)
    at, alpha, colour, scale, turn, sh = parts
    fixed = at.reshape(head.count, 3, 3).astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    fixed -= (fixed >> 23) << 24  # sign
    return Gaussians(
        fixed / 2.0**head.fraction,
        _first_three(turn) if head.version == 2 else _smallest_three(turn),
        scale / 16 - 10,
        logit(alpha[:, 0] / 255),
        (0.5 + SH_C0 / 0.15 * (colour / 255 - 0.5)).clip(0, 1),
        sh=_harmonics(sh, degree) if sh.size else None,
    )


def _of_version_3(raw: bytes, degree: int) -> tuple[Header, list[np.ndarray]]:
    """Return the header and the attributes of a file that is one gzip stream. Harmonics are at its end and unpacked
    only if wanted."""
    stream = zlib.decompressobj(wbits=31)
    head = Header(*HEADER.unpack(stream.decompress(raw, HEADER.size)))
    if head.version not in (2, 3) or head.flags & EXTENDED:
        extended = " with extensions" if head.flags & EXTENDED else ""
        raise Unsupported(f"is an SPZ file of version {head.version}{extended}: convert it to PLY")
    widths = _widths(head, degree)
    size = head.count * sum(widths)
    data = stream.decompress(stream.unconsumed_tail, max(size, 1))
    if len(data) < size:
        raise ValueError("it ends before its last Gaussian")
    begins = accumulate((head.count * width for width in widths), initial=0)
    return head, [_rows(data, head.count, width, begin) for width, begin in zip(widths, begins, strict=False)]


def _of_version_4(raw: bytes, degree: int) -> tuple[Header, list[np.ndarray]]:
    """Return the header and the attributes of a file that has a Zstandard stream for each. Empty ones are left out."""
    head = Header(*HEADER.unpack_from(raw))
    if head.version != 4:
        raise Unsupported(f"is an SPZ file of version {head.version}: convert it to version 4 or to PLY")
    widths = _widths(head, degree)
    (begin,) = TABLE.unpack_from(raw, HEADER.size)
    if head.flags & EXTENDED:
        _must_stand_upright(raw[HEADER_4:begin])
    expected = (5 + (head.degree > 0)) * (head.count > 0)
    if head.streams != expected:
        raise ValueError(f"it has {head.streams} streams, and {expected} attributes")
    lengths = np.frombuffer(raw, "<u8", 2 * head.streams, begin)[::2].tolist()
    ends = accumulate(lengths, initial=begin + 16 * head.streams)
    streams = (raw[start:end] for start, end in pairwise(ends))
    parts = [_unpacked(next(streams), head.count * width) if head.count * width else b"" for width in widths]
    return head, [_rows(part, head.count, width) for part, width in zip(parts, widths, strict=True)]


def _widths(head: Header, degree: int) -> list[int]:
    """Return the bytes that a Gaussian has of each attribute: place, opacity, colour, scales, rotation, harmonics,
    which have none if the wanted `degree` is 0.

    Raises ValueError for more Gaussians or a higher degree than is allowed."""
    must_be_allowed(head.count)
    if head.degree >= len(STORED):
        raise Unsupported(f"is an SPZ file with harmonics of degree {head.degree}: convert it to PLY")
    return [9, 1, 3, 3, 3 if head.version == 2 else 4, 3 * STORED[head.degree] if degree else 0]


def _rows(data: bytes, count: int, width: int, begin: int = 0) -> np.ndarray:
    """Return bytes [count, width] of `data`, which may have more."""
    return np.frombuffer(data, np.uint8, count * width, begin).reshape(count, width)


def _unpacked(packed: bytes, size: int) -> bytes:
    """Return the `size` bytes of a Zstandard frame, whose own word on its size is not trusted."""
    import zstandard

    said = zstandard.frame_content_size(packed)
    data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size) if said in (size, -1) else b""
    if len(data) != size:
        raise ValueError("it has another number of Gaussians than its header says")
    return data


def _must_stand_upright(records: bytes) -> None:
    """Raise ValueError if extensions, which are (type, length, content) each, name other axes than SPZ has without."""
    if len(records) > MOST_EXTENSIONS:
        raise Unsupported(f"is an SPZ file with extensions of more than {MOST_EXTENSIONS:,} bytes: convert it to PLY")
    at = 0
    while at < len(records):
        kind, length = struct.unpack_from("<II", records, at)
        if kind == COORDINATES and struct.unpack_from("<I", records, at + 8)[0] not in RIGHT_UP_BACK:
            raise Unsupported("is an SPZ file with other axes than right, up and back: convert it to PLY")
        at += 8 + length


def _harmonics(sh: np.ndarray, degree: int) -> np.ndarray:
    """Return coefficients [n, K, 3] up to `degree` of bytes [n, 3 K], whose channels come together."""
    kept = sh.reshape(len(sh), -1, 3)[:, : COUNTS[degree]].astype(np.float32)
    kept -= 128
    kept /= 128
    return kept


def _first_three(turn: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz of which x, y, z are stored, and w is positive."""
    xyz = turn / 127.5 - 1
    return np.concatenate([np.sqrt(np.maximum(1 - np.square(xyz).sum(1, keepdims=True), 0)), xyz], 1)


def _smallest_three(turn: np.ndarray) -> np.ndarray:
    """Return quaternions wxyz of which three components are stored with sign and 9 bits, in the order xyzw."""
    packed = turn.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16, 1 << 24])
    parts = np.stack([packed >> shift & 1023 for shift in (20, 10, 0)], 1)
    smallest = np.where(parts & 512, -1, 1) * (parts & 511) / 511 * np.sqrt(0.5)
    return with_largest(smallest, packed >> 30)[:, [3, 0, 1, 2]]
