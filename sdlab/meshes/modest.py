"""Measure mesh files before they are parsed: a small file may stand for a very large one, or take very long.

What is refused here costs next to nothing; `sdlab.parsing` limits what parsing the rest may take. Every ValueError
begins with `given` and names the limit.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from sdlab.quoting import first_line

# of a decoded GLB, counting the copies that its nodes make: numbers in its meshes, and texture pixels
MAX_NUMBERS, MAX_PIXELS = 150_000_000, 400_000_000
MAX_ZEROS = 10_000_000  # numbers of a GLB that its file does not contain
MAX_ITEMS = 50_000  # nodes, materials and the like, and parts that nodes place
MAX_LEVELS = 500  # of nodes below each other
MAX_MATERIALS = 20_000  # changes of material in an OBJ
MAX_LINE = 100_000  # characters of a line in an OBJ, which may be one polygon
MAX_SOLIDS = 10_000  # in an ASCII STL
MAX_HEADER = 10_000  # lines of a PLY's header
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}  # of a component
SHAPES = {"POSITION": ("VEC3",), "NORMAL": ("VEC3",), "TEXCOORD_0": ("VEC2",), "COLOR_0": ("VEC3", "VEC4")}


def must_be_modest(kind: str, raw: bytes, given: str) -> None:
    """Raise ValueError for text of `kind` "obj" or "stl_ascii", or a "ply", that would take very long to parse."""
    if kind == "obj":
        _at_most(raw.count(b"usemtl"), MAX_MATERIALS, "changes of material", "join its materials", given)
        if re.search(rb"[^\r\n]{%d}" % (MAX_LINE + 1), raw):
            raise ValueError(
                f"{given} has a line of more than {MAX_LINE:,} characters, which is the limit: triangulate its polygons"
            )
    elif kind == "stl_ascii":
        _at_most(len(re.findall(rb"(?i)endsolid", raw)), MAX_SOLIDS, "solids", "join them", given)
    elif kind == "ply":
        lines = raw[: max(raw.find(b"end_header"), 0)].count(b"\n")
        _at_most(lines, MAX_HEADER, "lines in its header", "leave out columns", given)


def _at_most(count: int, limit: int, what: str, advice: str, given: str) -> None:
    if count > limit:
        raise ValueError(f"{given} has {count:,} {what}; the limit is {limit:,}: {advice}")


# ---- GLB ----------------------------------------------------------------------------------------------------------


def glb_must_be_modest(tree: dict[str, Any], binary: bytes, given: str) -> None:
    """Raise ValueError for a GLB, its JSON tree and binary chunk, that would expand without bound.

    Every node copies its mesh and textures, an accessor may declare any number of zeros, or more than its part of the
    file holds, and nodes that are their own descendants recurse forever.
    """
    try:
        for name in ("nodes", "meshes", "materials", "textures", "images", "accessors", "bufferViews", "scenes"):
            _at_most(len(tree.get(name, [])), MAX_ITEMS, name, "simplify it", given)
        levels = _levels(tree)
        meshes, nodes = tree.get("meshes", []), tree.get("nodes", [])
        parts = [part for node in nodes if "mesh" in node for part in meshes[node["mesh"]]["primitives"]]
        sizes = [_numbers(accessor) for accessor in tree.get("accessors", [])]
        used = [[*p["attributes"].values(), *([p["indices"]] if "indices" in p else [])] for p in parts]
        numbers = sum(sizes) + sum(sizes[i] for indices in used for i in indices)
        zeros = sum(n for n, a in zip(sizes, tree.get("accessors", []), strict=True) if "bufferView" not in a)
        painted = _painted(tree, binary, parts)
        odd = _mismatch(tree, binary)
    except ValueError as e:
        if str(e).startswith(given):
            raise
        raise _damaged(given, e) from e
    except Exception as e:  # malformed in any way
        raise _damaged(given, e) from e
    if levels is None:
        raise ValueError(f"{given} is damaged: its nodes do not form a tree; re-export it")
    _at_most(levels, MAX_LEVELS, "levels of nodes", "flatten it", given)
    _at_most(len(parts), MAX_ITEMS, "parts", "join its meshes", given)
    _at_most(numbers, MAX_NUMBERS, "numbers in its meshes", "simplify it", given)
    _at_most(zeros, MAX_ZEROS, "numbers that are not in the file", "re-export it", given)
    if painted > MAX_PIXELS:
        raise ValueError(f"{given} has textures of {painted:,} pixels; the limit is {MAX_PIXELS:,}: shrink them")
    if odd:
        raise ValueError(f"{given} is damaged or incomplete: {odd}; re-export it")


def _damaged(given: str, e: Exception) -> ValueError:
    return ValueError(f"{given} is damaged or incomplete: it cannot be read as GLB ({first_line(e, 200)})")


def _levels(tree: dict[str, Any]) -> int | None:
    """Return how many nodes are below each other in the scenes; None if nodes have two parents or are roots as well."""
    nodes = tree.get("nodes", [])
    children = [child for node in nodes for child in node.get("children", [])]
    level = {root for scene in tree.get("scenes", []) for root in scene.get("nodes", [])}
    if len(set(children)) < len(children) or not level.isdisjoint(children):
        return None
    count = 0
    while level:
        count += 1
        level = {child for number in level for child in nodes[number].get("children", [])}
    return count


def _numbers(accessor: dict[str, Any]) -> int:
    """Return how many numbers an accessor stands for. Raises ValueError for an impossible count."""
    count = int(accessor["count"])
    if not 0 <= count < 2**53:
        raise ValueError(f"{accessor['count']} elements")
    return count * WIDTHS[accessor["type"]]


def _mismatch(tree: dict[str, Any], binary: bytes) -> str:
    """Return which accessor does not fit its data or its use, "" if all do."""
    views = tree.get("bufferViews", [])
    internal = [i for i, buffer in enumerate(tree.get("buffers", [])) if "uri" not in buffer]
    for number, accessor in enumerate(tree.get("accessors", [])):
        if "bufferView" not in accessor or int(accessor["count"]) == 0:
            continue
        view = views[accessor["bufferView"]]
        row = WIDTHS[accessor["type"]] * BYTES[accessor["componentType"]]
        needed = int(accessor.get("byteOffset", 0)) + (int(accessor["count"]) - 1) * int(
            view.get("byteStride", 0) or row
        )
        held = int(view["byteLength"])
        if view.get("buffer", 0) in internal:
            held = min(held, len(binary) - int(view.get("byteOffset", 0)))
        if needed + row > held or needed < 0:
            return f"accessor {number} reaches beyond its part of the file, which has {max(held, 0):,} bytes"
    for mesh in tree.get("meshes", []):
        for part in mesh["primitives"]:
            for name, number in part["attributes"].items():
                kind = tree["accessors"][number]["type"]
                if kind not in SHAPES.get(name, (kind,)):
                    return f"{name} is {kind}"
            if "indices" in part and tree["accessors"][part["indices"]]["type"] != "SCALAR":
                return "indices are no numbers"
    return ""


def _painted(tree: dict[str, Any], binary: bytes, parts: Iterable[dict[str, Any]]) -> int:
    """Return the pixels of all images, and of the copies that the placed `parts` have of them."""
    pixels = [_pixels(image, tree, binary) for image in tree.get("images", [])]
    of_texture = [pixels[t["source"]] if "source" in t else 0 for t in tree.get("textures", [])]
    of_material = [sum(of_texture[t] for t in _textures(m)) for m in tree.get("materials", [])]
    return sum(pixels) + sum(of_material[p["material"]] for p in parts if "material" in p)


def _pixels(image: dict[str, Any], tree: dict[str, Any], binary: bytes) -> int:
    """Return the pixel count of a GLB's image from its header; 0 for external images, which are never read."""
    from PIL import Image

    if "bufferView" in image:
        view = tree["bufferViews"][image["bufferView"]]
        raw = binary[view.get("byteOffset", 0) :][: view["byteLength"]]
    elif image.get("uri", "").startswith("data:"):
        raw = base64.b64decode(image["uri"].partition(",")[2])
    else:
        return 0
    with Image.open(BytesIO(raw)) as picture:
        return math.prod(picture.size)


def _textures(node: Any) -> list[int]:
    """Return the textures that a material refers to, including those of extensions."""
    if not isinstance(node, dict):
        return []
    own = [node["index"]] if isinstance(node.get("index"), int) else []
    return own + [index for value in node.values() for index in _textures(value)]
