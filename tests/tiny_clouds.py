"""Small files of points, Gaussians and meshes, written byte by byte as other programs write them."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zstandard
from PIL import Image

NAMES = {"u1": "uchar", "u2": "ushort", "u4": "uint", "i1": "char", "i2": "short", "i4": "int"}
NAMES |= {"f4": "float", "f8": "double"}
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ellipsoid(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return points in an ellipsoid of half-axes 1, 0.6 and 0.3, and their colours: red where x > 0, else blue."""
    at = numbers(1).normal(size=(n, 3))
    at *= (numbers(2).random((n, 1)) ** (1 / 3)) / np.linalg.norm(at, axis=1, keepdims=True)
    at *= (1.0, 0.6, 0.3)
    return at, np.where(at[:, :1] > 0, RED, BLUE)


def ply(
    columns: Mapping[str, tuple[str, np.ndarray]],
    form: str = "binary_little_endian",
    newline: str = "\n",
    comments: Sequence[str] = (),
) -> bytes:
    """Return a PLY with one element; `columns` are (type, values) by name."""
    count = len(next(iter(columns.values()))[1])
    header = ["ply", f"format {form} 1.0", *(f"comment {c}" for c in comments), f"element vertex {count}"]
    header += [f"property {NAMES[kind]} {name}" for name, (kind, _) in columns.items()] + ["end_header", ""]
    head = newline.join(header).encode()
    if form == "ascii":
        rows = zip(*(np.asarray(values, kind).tolist() for kind, values in columns.values()), strict=True)
        return head + newline.join(" ".join(map(repr, row)) for row in rows).encode() + newline.encode()
    order = "<" if "little" in form else ">"
    table = np.empty(count, [(name, order + kind) for name, (kind, _) in columns.items()])
    for name, (_, values) in columns.items():
        table[name] = values
    return head + table.tobytes()


def positions(at: np.ndarray, kind: str = "f4") -> dict[str, tuple[str, np.ndarray]]:
    return {axis: (kind, at[:, i]) for i, axis in enumerate("xyz")}


def colours(rgbs: np.ndarray, kind: str, names: Sequence[str] = ("red", "green", "blue"), top: float = 1.0) -> Any:
    return {name: (kind, top * rgbs[:, i]) for i, name in enumerate(names)}


def gaussians(n: int = 400, kind: str = "f4", **other: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    """Return the columns of a foreign 3DGS: the ellipsoid, opacity 0.8, three widths, quaternions of any length."""
    at, rgbs = ellipsoid(n)
    columns = {**{axis: at[:, i] for i, axis in enumerate("xyz")}, **{f"n{axis}": np.zeros(n) for axis in "xyz"}}
    columns |= {f"f_dc_{i}": (rgbs[:, i] - 0.5) / 0.28209479177387814 for i in range(3)}
    columns["opacity"] = np.full(n, np.log(4.0))
    columns |= {f"scale_{i}": np.full(n, np.log(width)) for i, width in enumerate((0.03, 0.05, 0.1))}
    columns |= {f"rot_{i}": values for i, values in enumerate(1.7 * numbers(5).normal(size=(4, n)))}
    return {name: (kind, values) for name, values in (columns | other).items()}


def without(columns: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if name not in names}


# ---- packed Gaussians


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index [n] of the largest component of unit quaternions [n, 4], and the others [n, 3], in order."""
    largest = abs(quats).argmax(1)
    quats = quats * np.sign(np.take_along_axis(quats, largest[:, None], 1))
    others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
    return largest, np.take_along_axis(quats, others, 1)


def compressed_ply(
    at: np.ndarray,
    quats: np.ndarray,
    log_scales: np.ndarray,
    alphas: np.ndarray,
    rgbs: np.ndarray,
    sh: np.ndarray | None = None,
) -> bytes:
    """Return SuperSplat's compressed PLY, with ranges of colours, and harmonics [n, K, 3] if given."""

    def bits(values: np.ndarray, low: np.ndarray, high: np.ndarray, widths: Sequence[int]) -> np.ndarray:
        shares = (values - low) / np.maximum(high - low, 1e-9)
        packed = np.zeros(len(values), np.uint64)
        for i, width in enumerate(widths):
            packed = packed << np.uint64(width) | np.rint(shares[:, i].clip(0, 1) * (2**width - 1)).astype(np.uint64)
        return packed.astype(np.uint32)

    chunk, rows = [], []
    for begin in range(0, len(at), 256):
        some = slice(begin, begin + 256)
        ranges = [(v[some].min(0), v[some].max(0)) for v in (at, log_scales, rgbs)]
        chunk.append(np.concatenate([np.concatenate(pair) for pair in ranges]))
        largest, others = smallest_three(quats[some])
        turn = bits(others, np.full(3, -np.sqrt(0.5)), np.full(3, np.sqrt(0.5)), (10, 10, 10))
        rgba = np.concatenate(
            [(rgbs[some] - ranges[2][0]) / np.maximum(np.ptp(rgbs[some], axis=0), 1e-9), alphas[some, None]], 1
        )
        rows.append(
            np.stack(
                [
                    bits(at[some], *ranges[0], (11, 10, 11)),
                    turn | largest.astype(np.uint32) << np.uint32(30),
                    bits(log_scales[some], *ranges[1], (11, 10, 11)),
                    bits(rgba, np.zeros(4), np.ones(4), (8, 8, 8, 8)),
                ],
                1,
            )
        )
    names = [
        f"{end}_{kind}{axis}"
        for kind, axes in (("", "xyz"), ("scale_", "xyz"), ("", "rgb"))
        for end in ("min", "max")
        for axis in axes
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element chunk {len(chunk)}"]
    header += [f"property float {name}" for name in names] + [f"element vertex {len(at)}"]
    header += [f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color")]
    rest = b""
    if sh is not None:
        header += [f"element sh {len(sh)}", *(f"property uchar f_rest_{i}" for i in range(sh[0].size))]
        codes = np.trunc(256 * (sh / 8 + 0.5)).clip(0, 255).astype(np.uint8)
        rest = codes.transpose(0, 2, 1).tobytes()  # all coefficients of red come first
    head = "\n".join([*header, "end_header", ""]).encode()
    return head + np.array(chunk, "<f4").tobytes() + np.concatenate(rows).astype("<u4").tobytes() + rest


def spz(
    at: np.ndarray,
    quats: np.ndarray,
    log_scales: np.ndarray,
    alphas: np.ndarray,
    rgbs: np.ndarray,
    sh: np.ndarray | None = None,
    version: int = 3,
    extensions: bytes = b"",
) -> bytes:
    """Return an SPZ file with 12 fractional bits, and harmonics [n, K, 3] if given. `extensions` are of version 4."""
    fixed = np.rint(at * 4096).astype(np.int64) & 0xFFFFFF
    parts = [np.stack([fixed >> shift & 255 for shift in (0, 8, 16)], 2)]
    parts.append(np.rint(255 * alphas))
    parts.append(np.rint(255 * ((rgbs - 0.5) / 0.28209479177387814 * 0.15 + 0.5)).clip(0, 255))
    parts.append(np.rint((log_scales + 10) * 16).clip(0, 255))
    if version == 2:
        parts.append(np.rint(127.5 * quats[:, 1:] * np.where(quats[:, :1] < 0, -1, 1) + 127.5).clip(0, 255))
    else:
        largest, others = smallest_three(quats[:, [1, 2, 3, 0]])
        packed = largest.astype(np.int64)
        for i in range(3):
            packed = packed << 10 | (others[:, i] < 0).astype(np.int64) << 9
            packed |= np.rint(511 * abs(others[:, i]) / np.sqrt(0.5)).astype(np.int64)
        parts.append(np.stack([packed >> shift & 255 for shift in (0, 8, 16, 24)], 1))
    degree = 0
    if sh is not None:
        degree = {3: 1, 8: 2, 15: 3, 24: 4}[sh.shape[1]]
        parts.append(np.rint(128 * sh + 128).clip(0, 255))
    content = [part.astype(np.uint8).tobytes() for part in parts]
    if version == 4:
        return ngsp(len(at), content, degree, extensions)
    header = b"NGSP" + np.array([version, len(at)], "<u4").tobytes() + bytes([degree, 12, 0, 0])
    return gzip.compress(header + b"".join(content))


def ngsp(count: int, content: Sequence[bytes], degree: int = 0, extensions: bytes = b"", version: int = 4) -> bytes:
    """Return an SPZ file of version 4 with these streams, which are compressed here if they are no frames yet."""
    frames = [c if c.startswith(b"\x28\xb5\x2f\xfd") else zstandard.compress(c) for c in content if c]
    begin = 32 + len(extensions)
    header = b"NGSP" + np.array([version, count], "<u4").tobytes()
    header += bytes([degree, 12, 2 * bool(extensions), len(frames)]) + begin.to_bytes(4, "little") + bytes(12)
    sizes = [(len(frame), len(c)) for frame, c in zip(frames, filter(None, content), strict=True)]
    return header + extensions + np.array(sizes, "<u8").tobytes() + b"".join(frames)


def sog(
    at: np.ndarray,
    quats: np.ndarray,
    log_scales: np.ndarray,
    alphas: np.ndarray,
    rgbs: np.ndarray,
    sh: np.ndarray | None = None,
    version: int = 2,
) -> bytes:
    """Return a bundled SOG file, with a palette of all different harmonics [n, K, 3] if they are given."""
    n = len(at)
    side = int(np.ceil(np.sqrt(n)))

    def picture(values: np.ndarray) -> bytes:
        image = np.zeros((side * side, 4), np.uint8)
        image[:, 3] = 255
        image[:n, : values.shape[1]] = values
        file = io.BytesIO()
        Image.fromarray(image.reshape(side, side, 4)).save(file, "WEBP", lossless=True, exact=True)
        return file.getvalue()

    logs = np.sign(at) * np.log1p(abs(at))
    low, high = logs.min(0), logs.max(0)
    steps = np.rint(65535 * (logs - low) / (high - low)).astype(np.int64)
    largest, others = smallest_three(quats)
    turn = np.concatenate([np.rint(255 * (others / np.sqrt(0.5) + 1) / 2), 252 + largest[:, None]], 1)
    book = np.linspace(-10, 2, 256)
    tones = np.linspace(-2, 2, 256)

    def nearest(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return abs(values[..., None] - codes).argmin(-1)

    shade = nearest((rgbs - 0.5) / 0.28209479177387814, tones)
    files = {
        "means_l.webp": picture(steps & 255),
        "means_u.webp": picture(steps >> 8),
        "scales.webp": picture(nearest(log_scales, book)),
        "quats.webp": picture(turn),
        "sh0.webp": picture(np.concatenate([shade, np.rint(255 * alphas[:, None])], 1)),
    }
    meta: dict[str, Any] = {
        "version": version,
        "count": n,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": book.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": tones.tolist(), "files": ["sh0.webp"]},
    }
    if sh is not None:
        palette, label = np.unique(sh, axis=0, return_inverse=True)
        rows, book = -(-len(palette) // 64), np.linspace(-1, 1, 256)
        centroids = np.zeros((rows * 64, *sh.shape[1:]), np.uint8)
        centroids[: len(palette)] = nearest(palette, book)
        encoded = io.BytesIO()
        Image.fromarray(centroids.reshape(rows, -1, 3)).save(encoded, "WEBP", lossless=True)
        files |= {"shN_centroids.webp": encoded.getvalue()}
        files |= {"shN_labels.webp": picture(np.stack([label.reshape(-1) & 255, label.reshape(-1) >> 8], 1))}
        bands = {3: 1, 8: 2, 15: 3}[sh.shape[1]]
        meta["shN"] = {"count": len(palette), "bands": bands, "codebook": book.tolist(), "files": [*files][-2:]}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in ({"meta.json": json.dumps(meta).encode()} | files).items():
            archive.writestr(name, content)
    return file.getvalue()


# ---- glTF


COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}


def glb(
    attributes: Mapping[str, tuple[str, np.ndarray]],
    indices: np.ndarray | None = None,
    material: Mapping[str, Any] | None = None,
    image: bytes | None = None,
    primitive: Mapping[str, Any] | None = None,
    node: Mapping[str, Any] | None = None,
    **tree: Any,
) -> bytes:
    """Return a GLB of one primitive; `attributes` are (type, values) by name, integers are normalised. An `image`
    becomes texture 0. `tree` replaces entries of the JSON; None removes one."""
    binary, views, accessors = b"", [], []

    def stored(data: bytes) -> int:
        nonlocal binary
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)})
        binary += data + b"\x00" * (-len(data) % 4)
        return len(views) - 1

    def accessor(kind: str, values: np.ndarray, normalized: bool) -> int:
        values = np.asarray(values).astype("<" + kind)
        width = 1 if values.ndim == 1 else values.shape[1]
        declared = {"bufferView": stored(values.tobytes()), "componentType": COMPONENTS[kind], "count": len(values)}
        accessors.append(declared | {"type": "SCALAR" if width == 1 else f"VEC{width}", "normalized": normalized})
        return len(accessors) - 1

    part: dict[str, Any] = {"attributes": {k: accessor(t, v, t != "f4") for k, (t, v) in attributes.items()}}
    if indices is not None:
        part["indices"] = accessor("u4", np.asarray(indices).reshape(-1), False)
    found: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}]}
    found["nodes"] = [{"mesh": 0} | dict(node or {})]
    if material is not None:
        found["materials"], part["material"] = [material], 0
    if image is not None:
        found |= {"images": [{"bufferView": stored(image), "mimeType": "image/png"}], "textures": [{"source": 0}]}
    found |= {"meshes": [{"primitives": [part | dict(primitive or {})]}], "accessors": accessors, "bufferViews": views}
    found["buffers"] = [{"byteLength": len(binary)}]
    found = {name: value for name, value in (found | tree).items() if value is not None}
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 4)
    chunks = b"".join(len(c).to_bytes(4, "little") + k + c for k, c in ((b"JSON", text), (b"BIN\x00", binary)))
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunks)).to_bytes(4, "little") + chunks


SQUARE = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], float)
CORNERS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
HALVES = np.array([(0, 1, 2), (0, 2, 3)])


def png(values: np.ndarray, form: str = "PNG", palette: Sequence[int] | None = None, **options: Any) -> bytes:
    """Return an array as an encoded picture; uint16 [H, W] has 16 bits of grey. With `palette`, RGB of colour 1, the
    values are colours 0 and 1."""
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette([0, 0, 0, *palette])
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
