"""GLB files: measured before they are expanded, prepared for trimesh, and their Gaussians (KHR_gaussian_splatting).

glTF 2.0 specification: https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sdlab.meshes.modest import glb_must_be_modest
from sdlab.meshes.parts import COLOR_0
from sdlab.quoting import first_line

MAX_DEPTH = 100  # of nodes in each other
SPLATTING = "KHR_gaussian_splatting"
POINTS = 0  # mode of a primitive
COMPRESSED = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}
IGNORED = {"KHR_texture_transform", "EXT_mesh_gpu_instancing"}
HARMLESS = ("KHR_mesh_quantization", "KHR_materials_", "KHR_gaussian_splatting", "EXT_texture_webp", "KHR_lights_")
NORMALISED = {"POSITION", "TEXCOORD_0"}  # attributes that may be integers, and that trimesh does not normalise
FLOAT = 5126  # type of a component
NUMBERS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Glb(NamedTuple):
    """The JSON tree of a file, and its binary chunk."""

    tree: dict[str, Any]
    binary: bytes


def read(raw: bytes, given: str) -> Glb:
    """Return the parts of a GLB. Raises ValueError that starts with `given` if it is damaged, expands beyond the
    limits, or is compressed in a way that cannot be read."""
    try:
        length = int.from_bytes(raw[12:16], "little")
        tree = _with_scene(json.loads(raw[20 : 20 + length]))
        size = int.from_bytes(raw[20 + length : 24 + length], "little")
        found = Glb(tree, raw[28 + length :][:size])
        packed = _packing(found)
        external = [b["uri"] for b in tree.get("buffers", []) if not b.get("uri", "data:").startswith("data:")]
    except Exception as e:  # malformed in any way
        raise _damaged(given, e) from e
    if packed:
        raise ValueError(f"{given} is compressed with {packed}, which cannot be read: export it without compression")
    if external:
        raise ValueError(f"{given} refers to the file {external[0][:60]!r}: export it as one GLB that holds everything")
    glb_must_be_modest(found.tree, found.binary, given)
    return found


def _with_scene(tree: Any) -> Any:
    """Give a tree without scenes one of all nodes that are no other's children; of all meshes if there are no nodes."""
    if not tree.get("scenes"):
        if not tree.get("nodes"):
            tree["nodes"] = [{"mesh": i} for i in range(len(tree.get("meshes", [])))]
        nodes = tree["nodes"]
        children = {child for node in nodes for child in node.get("children", [])}
        tree["scenes"], tree["scene"] = [{"nodes": [i for i in range(len(nodes)) if i not in children]}], 0
    return tree


def _damaged(given: str, e: Exception) -> ValueError:
    return ValueError(f"{given} is damaged or incomplete: it cannot be read as GLB ({first_line(e, 200)})")


def _packing(glb: Glb) -> str:
    """Return the name of the compression without which the geometry cannot be read, or ""."""
    tree = glb.tree
    for extension, name in COMPRESSED.items():
        if extension in tree.get("extensionsRequired", []):
            return name
    for mesh in tree.get("meshes", []):
        for primitive in mesh["primitives"]:
            bare = "bufferView" not in tree["accessors"][primitive["attributes"]["POSITION"]]
            packed = [name for extension, name in COMPRESSED.items() if extension in primitive.get("extensions", {})]
            if bare and packed:
                return packed[0]
    if any(image.get("mimeType") == "image/ktx2" for image in tree.get("images", [])):
        return "Basis Universal (KTX2 textures)"
    return ""


def remarks_on(glb: Glb) -> list[str]:
    """Say which textures are in other files, and which extensions change the picture; neither is read."""
    remarks = []
    names = (image.get("uri", "data:") for image in glb.tree.get("images", []) if "bufferView" not in image)
    others = [name for name in names if not name.startswith("data:")]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        remarks.append(f"textures in other files are not read ({others[0][:60]!r}{more}): export it with its textures")
    used = set(glb.tree.get("extensionsUsed", [])) & IGNORED
    required = {name for name in glb.tree.get("extensionsRequired", []) if not name.startswith(HARMLESS)}
    if unread := sorted(used | required):
        remarks.append(f"extensions of glTF that are not read: {', '.join(name[:60] for name in unread[:4])}")
    return remarks


def for_trimesh(glb: Glb) -> bytes:
    """Return the GLB with vertex colours under a name that trimesh leaves alone, and normalised numbers as floats.

    trimesh rounds vertex colours to 8 bits and drops them where there is a texture, and reads normalised integers as
    they are. Compression that has a fallback is removed, since trimesh would warn about it.
    """
    tree, binary = copy.deepcopy(glb.tree), bytearray(glb.binary)
    floats: dict[int, int] = {}  # accessor of floats for each of integers
    for mesh in tree.get("meshes", []):
        for primitive in mesh["primitives"]:
            for extension in COMPRESSED:
                primitive.get("extensions", {}).pop(extension, None)
            if primitive.get("mode") != POINTS and "COLOR_0" in primitive["attributes"]:
                primitive["attributes"][COLOR_0] = primitive["attributes"].pop("COLOR_0")
            for name in NORMALISED & primitive["attributes"].keys():
                number = primitive["attributes"][name]
                if number not in floats and glb.tree["accessors"][number].get("normalized"):
                    floats[number] = _appended(tree, binary, accessor(glb, number))
                primitive["attributes"][name] = floats.get(number, number)
    return glb_bytes(tree, bytes(binary))


def glb_bytes(tree: Any, binary: bytes) -> bytes:
    """Return a GLB of a tree and a binary chunk, whose length is a multiple of 4."""
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(b"JSON", text), (b"BIN\x00", binary)]
    body = b"".join(len(data).to_bytes(4, "little") + name + data for name, data in chunks)
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def _appended(tree: dict[str, Any], binary: bytearray, values: np.ndarray) -> int:
    """Append values [n, k] as an accessor of floats to a tree and its binary chunk; return its number."""
    binary += bytes(-len(binary) % 4)
    view = {"buffer": 0, "byteOffset": len(binary), "byteLength": 4 * values.size}
    kind = {"componentType": FLOAT, "count": len(values), "type": f"VEC{values.shape[1]}"}
    tree["accessors"].append({**kind, "bufferView": len(tree["bufferViews"])})
    tree["bufferViews"].append(view)
    binary += values.astype("<f4").tobytes()
    tree["buffers"][0]["byteLength"] = len(binary)
    return len(tree["accessors"]) - 1


# ---- Gaussians ----------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """A primitive of Gaussians: arrays by attribute name, floats, and where its node places it."""

    attributes: dict[str, np.ndarray]  # [n] or [n, k] each
    matrix: np.ndarray  # [4, 4] from the primitive to the world
    is_linear: bool  # whether its colours are linear


def gaussians_of(glb: Glb) -> list[Placed]:
    """Return the primitives with KHR_gaussian_splatting in the default scene. Raises any error for damaged content."""
    found = []
    for mesh, matrix in _placed(glb.tree):
        for primitive in glb.tree["meshes"][mesh]["primitives"]:
            extension = primitive.get("extensions", {}).get(SPLATTING)
            if extension is not None and primitive.get("mode", 4) == POINTS:
                arrays = {name: accessor(glb, i) for name, i in primitive["attributes"].items()}
                found.append(Placed(arrays, matrix, extension.get("colorSpace") == "lin_rec709_display"))
    return found


def _placed(tree: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each mesh of the default scene with the matrix of its node."""
    waiting = [(root, np.eye(4), 0) for root in tree["scenes"][tree.get("scene", 0)].get("nodes", [])]
    while waiting:
        number, above, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nodes are more than {MAX_DEPTH} levels deep")
        node = tree["nodes"][number]
        matrix = above @ _matrix(node)
        if "mesh" in node:
            yield node["mesh"], matrix
        waiting += [(child, matrix, depth + 1) for child in node.get("children", [])]


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """Return the transform of a node [4, 4]."""
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)), float)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def accessor(glb: Glb, number: int) -> np.ndarray:
    """Return the values of an accessor, [n] or [n, k] float64, normalised integers in [0, 1] or [-1, 1]."""
    declared = glb.tree["accessors"][number]
    view = glb.tree["bufferViews"][declared["bufferView"]]
    if "sparse" in declared or view.get("buffer", 0) != 0:
        raise ValueError("a sparse accessor, or one in another buffer")
    kind, width, count = np.dtype("<" + NUMBERS[declared["componentType"]]), WIDTHS[declared["type"]], declared["count"]
    row = kind.itemsize * width
    stride = view.get("byteStride", row)
    begin = view.get("byteOffset", 0) + declared.get("byteOffset", 0)
    if begin < 0 or stride < row or begin + stride * (count - 1) + row > len(glb.binary):
        raise ValueError("an accessor reaches beyond the data")
    rows = np.ndarray((count, width), kind, glb.binary, begin, (stride, kind.itemsize))
    values = rows.astype(np.float64)
    if declared.get("normalized"):
        values = np.maximum(values / np.iinfo(kind).max, -1.0)
    return values[:, 0] if width == 1 else values
