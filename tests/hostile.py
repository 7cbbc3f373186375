"""Files that are small and stand for much: one of each kind that a parser may choke on, at most 20 MB."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import tiny_clouds

CORNERS = struct.pack("<9f3I", 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 2)  # a triangle, and its indices
TRIANGLE_OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def glb(binary: bytes = CORNERS, **changes: Any) -> bytes:
    """A triangle as a GLB, with parts of its description replaced."""
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": len(binary)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 12},
        ],
        "accessors": [accessor("VEC3", 3, bufferView=0), accessor("SCALAR", 3, 5125, bufferView=1)],
        **changes,
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    binary += bytes(-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def accessor(shape: str, count: int, component: int = 5126, **more: Any) -> dict[str, Any]:
    return {"type": shape, "count": count, "componentType": component, **more}


def png(width: int, height: int, kind: int = 2, depth: int = 8, extra: bytes = b"") -> bytes:
    """A black PNG, of colour type `kind`: 0 grey, 2 RGB."""
    bits = depth * (3 if kind == 2 else 1)
    packer = zlib.compressobj(1)
    row = bytes(1 + (width * bits + 7) // 8)
    data = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return file.getvalue()


def textured(picture: bytes) -> bytes:
    """A triangle with a picture on it."""
    begin = len(CORNERS)
    return glb(
        CORNERS + picture,
        images=[{"mimeType": "image/png", "bufferView": 2}],
        textures=[{"source": 0}],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        bufferViews=[
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 12},
            {"buffer": 0, "byteOffset": begin, "byteLength": len(picture)},
        ],
    )


def placed(count: int) -> bytes:
    """A triangle that `count` nodes place."""
    return glb(scenes=[{"nodes": list(range(count))}], nodes=[{"mesh": 0}] * count)


def chained(count: int) -> bytes:
    """A triangle below `count` nodes, each below the one before."""
    return glb(nodes=[*({"children": [i + 1]} for i in range(count)), {"mesh": 0}])


def ascii_ply(count: int) -> bytes:
    axes = b"".join(b"property float %c\n" % axis for axis in b"xyz")
    return b"ply\nformat ascii 1.0\nelement vertex %d\n" % count + axes + b"end_header\n" + b"0.12 0.34 0.56\n" * count


def ascii_stl(solids: int, facets: int) -> bytes:
    facet = b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
    return b"".join(b"solid s%d\n" % i + facet * facets + b"endsolid s%d\n" % i for i in range(solids))


def materials_obj(count: int) -> bytes:
    return TRIANGLE_OBJ + b"".join(b"usemtl m%d\nf 1 2 3\n" % i for i in range(count))


MIXED = b"f 1/1/1 2/1/1 3/1/1\nf 1 2 3\nf 1//1 2//1 3//1 1//1\n"
TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))
SOG = json.dumps({"version": 2, "count": 81_000_000, "means": {"files": ["means_l.webp", "means_u.webp"]}}).encode()
WIDE = "".join(f"property float p{i}\n" for i in range(200_000))

# name -> (knob, content); made when they are used
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "accessor of matrices": (
        "scene.file",
        lambda: glb(accessors=[accessor("MAT4", 24_000_000), accessor("SCALAR", 3, 5125, bufferView=1)]),
    ),
    "accessor of zeros": (
        "scene.file",
        lambda: glb(accessors=[accessor("VEC3", 16_000_000), accessor("SCALAR", 3, 5125, bufferView=1)]),
    ),
    "accessor beyond its data": (
        "scene.file",
        lambda: glb(accessors=[accessor("VEC3", 4, bufferView=0), accessor("SCALAR", 3, 5125, bufferView=1)]),
    ),
    "100,000 nodes": ("scene.file", lambda: placed(100_000)),
    "20,000 nodes": ("prior.path", lambda: placed(20_000)),
    "chain of 20,000 nodes": ("scene.file", lambda: chained(20_000)),
    "texture of 81 megapixels": ("scene.file", lambda: textured(png(9000, 9000))),
    "description of nested lists": (
        "scene.file",
        lambda: b"glTF" + bytes(8) + struct.pack("<I", 10**6) + b"JSON" + b"[" * 10**6,
    ),
    "80,000 materials": ("scene.file", lambda: materials_obj(80_000)),
    "20,000 materials": ("scene.file", lambda: materials_obj(20_000)),
    "one polygon of 18 MB": ("scene.file", lambda: TRIANGLE_OBJ + b"f " + b"1 2 3 " * 3_000_000 + b"\n"),
    "faces of mixed kinds": ("prior.path", lambda: TRIANGLE_OBJ + b"vt 0 0\nvn 0 0 1\n" + MIXED * 300_000),
    "2,400,000 faces": ("scene.file", lambda: TRIANGLE_OBJ + b"f 1 2 3\n" * 2_400_000),
    "150,000 solids": ("scene.file", lambda: ascii_stl(150_000, 1)),
    "200,000 facets": ("scene.file", lambda: ascii_stl(1, 200_000)),
    "a million points as text": ("scene.file", lambda: ascii_ply(1_000_000)),
    "200,000 columns": (
        "scene.file",
        lambda: f"ply\nformat ascii 1.0\nelement vertex 1\n{WIDE}end_header\n".encode() + b"0 " * 200_000,
    ),
    "4,000,000,000 points": (
        "scene.file",
        lambda: ascii_ply(0).replace(b"ascii", b"binary_little_endian").replace(b"vertex 0", b"vertex 4000000000"),
    ),
    "packed Gaussians of 300 MB": (
        "scene.file",
        lambda: gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 2, 15_000_000, 0, 12, 0, 0) + bytes(300_000_000), 1),
    ),
    "2,000,000 Gaussians in a kilobyte": (
        "scene.file",
        lambda: tiny_clouds.ngsp(2_000_000, [bytes(2_000_000 * width) for width in (9, 1, 3, 3, 4)]),
    ),
    "packed Gaussians of many megapixels": (
        "scene.file",
        lambda: packed({"meta.json": SOG, "means_l.webp": png(9000, 9000), "means_u.webp": png(9000, 9000)}),
    ),
    "picture of 81 megapixels": ("scene.picture", lambda: png(9000, 9000)),
    "picture of 169 megapixels": ("scene.picture", lambda: png(13_000, 13_000)),
    "picture with 200 MB of text": ("scene.picture", lambda: png(100, 100, extra=TEXT * 4)),
    "40 pictures of 80 megapixels": (
        "prior.path",
        lambda: packed(dict.fromkeys((f"{i}.png" for i in range(40)), png(10_000, 8000, kind=0, depth=1))),
    ),
    "150,000 entries": ("prior.path", lambda: packed(dict.fromkeys(map(str, range(150_000)), b""))),
    "entry of 200 MB": ("prior.path", lambda: packed({"a.png": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)),
}
SLOW = {  # these take a second or more, to be made or to be refused
    *("20,000 nodes", "20,000 materials", "faces of mixed kinds", "2,400,000 faces", "200,000 facets"),
    *("a million points as text", "texture of 81 megapixels", "picture of 81 megapixels", "picture of 169 megapixels"),
    *("packed Gaussians of 300 MB", "packed Gaussians of many megapixels", "150,000 entries", "entry of 200 MB"),
}
