"""Formats of points, Gaussians and meshes to start from: what is read, and what is refused under its own name."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clouds as tiny
import trimesh
import zstandard
from tiny_clouds import HALVES, SQUARE

from sdlab.export.writers import write_ply, write_splat
from sdlab.harmonics import COUNTS
from sdlab.meshes import kinds, ply
from sdlab.meshes.surface import mesh_of
from sdlab.raster.torch_project import rotation_matrices
from sdlab.starts import decoded
from sdlab.starts.clouds import Start, cloud_of
from sdlab.types import Cloud, RawSplats


def start(raw: bytes, n: int = 1000, up: str = "z") -> Start:
    return cloud_of(raw, n, np.random.default_rng(0), "the file", up)


def splats(raw: bytes, up: str = "z") -> RawSplats:
    found = start(raw, up=up).found
    assert isinstance(found, RawSplats)
    return found


def covariances(s: RawSplats) -> np.ndarray:
    import torch

    turned = rotation_matrices(torch.from_numpy(s.quats)).numpy() * np.exp(s.log_scales)[:, None, :]
    return turned @ turned.transpose(0, 2, 1)


def known(n: int = 600) -> RawSplats:
    """Return Gaussians of random places, turns, widths, opacities and colours, that every format can hold."""
    g = np.random.default_rng(4)
    quats = g.normal(size=(n, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    parts = (
        g.uniform(-1, 1, (n, 3)),
        quats,
        g.uniform(-4, -2, (n, 3)),
        g.uniform(-3, 3, n),
        g.uniform(0.1, 0.9, (n, 3)),
    )
    return RawSplats(*(np.asarray(part, np.float32) for part in parts))


def same(found: RawSplats, wanted: RawSplats, place: float, width: float, alpha: float, rgb: float) -> None:
    """Compare places, relative widths along all axes, opacities and colours within tolerances."""
    assert len(found.means) == len(wanted.means)
    near = abs(found.means[:, None] - wanted.means).max(2).argmin(1)
    assert len(set(near.tolist())) == len(near), "each is one of the wanted"
    assert abs(found.means - wanted.means[near]).max() < place
    error = abs(covariances(found) - covariances(wanted)[near]).max((1, 2))
    assert (error / np.trace(covariances(wanted)[near], axis1=1, axis2=2)).max() < width
    shown, meant = (1 / (1 + np.exp(-s.opacity_logits)) for s in (found, wanted))
    assert abs(shown - meant[near]).max() < alpha
    assert abs(found.rgbs - wanted.rgbs[near]).max() < rgb


# ---- Gaussians


def columns_of(s: RawSplats, **kinds: str) -> dict[str, Any]:
    f_dc = (s.rgbs - 0.5) / 0.28209479177387814
    columns: dict[str, Any] = {axis: s.means[:, i] for i, axis in enumerate("xyz")}
    columns |= {f"f_dc_{i}": f_dc[:, i] for i in range(3)} | {"opacity": s.opacity_logits}
    columns |= {f"scale_{i}": s.log_scales[:, i] for i in range(3)} | {f"rot_{i}": s.quats[:, i] for i in range(4)}
    return {name: (kinds.get(name, kinds.get("all", "f4")), values) for name, values in columns.items()}


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ply_of_gaussians_in_any_encoding(form: str, kind: str, newline: str) -> None:
    columns = columns_of(known(), all=kind)
    more = {f"f_rest_{i}": ("f4", np.ones(600)) for i in range(9)} | {"label": ("u1", np.arange(600) % 7)}
    for extra in ({}, more):
        raw = tiny.ply(columns | extra, form, newline, ["a comment", "end_header is near"])
        same(splats(raw), known(), 1e-5, 1e-4, 1e-5, 1e-5)


def packed(s: RawSplats) -> tuple[np.ndarray, ...]:
    return s.means, s.quats, s.log_scales, 1 / (1 + np.exp(-s.opacity_logits)), s.rgbs


PACKED: dict[str, tuple[Callable[..., bytes], tuple[float, float, float, float]]] = {
    "compressed PLY": (tiny.compressed_ply, (1.1e-3, 0.01, 0.003, 0.003)),
    "SPZ 2": (lambda *p: tiny.spz(*p, version=2), (2e-4, 0.15, 0.003, 0.004)),
    "SPZ 3": (tiny.spz, (2e-4, 0.08, 0.003, 0.004)),
    "SPZ 4": (lambda *p, **more: tiny.spz(*p, version=4, **more), (2e-4, 0.08, 0.003, 0.004)),
    "SOG": (tiny.sog, (1e-4, 0.07, 0.003, 0.003)),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_gaussians(name: str) -> None:
    pack, tolerances = PACKED[name]
    same(splats(pack(*packed(known()))), known(), *tolerances)


HALVES_OF_STEPS = {"compressed PLY": 1 / 64, "SPZ 3": 1 / 256, "SPZ 4": 1 / 256, "SOG": 1 / 255}


@pytest.mark.parametrize("name", HALVES_OF_STEPS)
@pytest.mark.parametrize(("stored", "degree"), [(3, 3), (3, 1), (1, 2), (2, 0)])
def test_packed_harmonics(name: str, stored: int, degree: int) -> None:
    """Of 300 kinds, more than fit into one row of a palette, or into a byte."""
    g = np.random.default_rng(stored)
    sh = g.uniform(-0.9, 0.9, (300, COUNTS[stored], 3))[g.integers(0, 300, 600)]
    raw = PACKED[name][0](*packed(known()), sh=sh)
    found = cloud_of(raw, 1000, g, "the file", "z", degree).found
    same(found, known(), *PACKED[name][1])
    if not degree:
        assert found.sh is None
        return
    near = abs(found.means[:, None] - known().means).max(2).argmin(1)
    kept = min(COUNTS[stored], COUNTS[degree])
    assert found.sh.shape == (600, COUNTS[degree], 3)
    assert abs(found.sh[:, :kept] - sh[near, :kept]).max() < 1.01 * HALVES_OF_STEPS[name]
    assert not found.sh[:, kept:].any()


def test_harmonics_of_degree_4_are_read_up_to_3() -> None:
    sh = np.random.default_rng(0).uniform(-0.9, 0.9, (600, 24, 3))
    columns = {f"f_rest_{i}": ("f4", values) for i, values in enumerate(sh.transpose(2, 1, 0).reshape(72, 600))}
    files = (tiny.spz(*packed(known()), sh=sh), tiny.spz(*packed(known()), sh=sh, version=4))
    for raw in (*files, tiny.ply(columns_of(known()) | columns)):
        found = cloud_of(raw, 1000, np.random.default_rng(0), "the file", "z", 3).found
        assert np.allclose(found.sh, sh[:, :15], atol=1 / 250)


def with_harmonics(raw: bytes, **changes: int) -> bytes:
    """Return a SOG file that says something else of its harmonics."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "meta.json":
                meta = json.loads(content)
                meta["shN"] |= changes
                content = json.dumps(meta).encode()
            new.writestr(name, content)
    return file.getvalue()


def test_harmonics_that_do_not_fit_are_damage() -> None:
    sh = np.full((600, 3, 3), 0.5)
    few = tiny.compressed_ply(*packed(known()), sh=sh[:599])
    whole = tiny.sog(*packed(known()), sh=sh)
    short, wide = (with_harmonics(whole, **change) for change in ({"count": 0}, {"bands": 2}))
    wrong = (few, "harmonics of 599 Gaussians, and 600"), (short, "out of bounds"), (wide, "192 texels wide, not 512")
    for raw, said in wrong:
        with pytest.raises(ValueError, match=rf"^the file is damaged or incomplete: .*{said}"):
            cloud_of(raw, 1000, np.random.default_rng(0), "the file", "z", 1)


def test_own_splat_is_read(tmp_path: Path) -> None:
    write_splat(tmp_path / "s", known())
    same(splats((tmp_path / "s").read_bytes()), known(), 1e-6, 0.03, 0.005, 0.005)


def splatting(s: RawSplats, rotation: str = "f4", opacity: str = "f4", draft: bool = False, **more: Any) -> bytes:
    name = "KHR_gaussian_splatting"
    tops = [1 if kind == "f4" else np.iinfo(kind).max for kind in (rotation, opacity)]
    attributes = {
        "POSITION": ("f4", s.means),
        f"{name}:ROTATION": (rotation, tops[0] * s.quats[:, [1, 2, 3, 0]]),
        f"{name}:SCALE": ("f4", s.log_scales if draft else np.exp(s.log_scales)),
        f"{name}:OPACITY": (opacity, tops[1] / (1 + np.exp(-s.opacity_logits))),
        f"{name}:SH_DEGREE_0_COEF_0": ("f4", (s.rgbs - 0.5) / 0.28209479177387814),
    }
    extension = {name: {"kernel": "ellipse", "colorSpace": more.pop("space", "srgb_rec709_display")}}
    primitive = {"mode": 0, "extensions": extension}
    return tiny.glb(attributes, primitive=primitive, extensionsUsed=[name], **more)


def test_gaussians_in_gltf() -> None:
    same(splats(splatting(known())), known(), 1e-6, 1e-4, 1e-5, 1e-5)
    same(splats(splatting(known(), draft=True)), known(), 1e-6, 1e-4, 1e-5, 1e-5)
    for kinds_of, width in ((("i2", "u2"), 1e-3), (("i1", "u1"), 0.1)):
        same(splats(splatting(known(), *kinds_of)), known(), 1e-6, width, 0.005, 1e-5)
    half = math.sqrt(0.5)
    moved = splats(
        splatting(known(), node={"translation": [1, 2, 3], "rotation": [half, 0, 0, half], "scale": [2, 2, 2]})
    )
    turn = np.array([(1, 0, 0), (0, 0, -1), (0, 1, 0.0)])  # 90 degrees about x
    assert np.allclose(moved.means, 2 * known().means @ turn.T + (1, 2, 3), atol=1e-5)
    assert np.allclose(covariances(moved), 4 * turn @ covariances(known()) @ turn.T, rtol=1e-3, atol=1e-6)
    upright = splats(splatting(known()), up="auto")
    assert np.allclose(upright.means, known().means[:, [2, 0, 1]], atol=1e-6), "y is up"
    linear = splats(splatting(known(), space="lin_rec709_display"))
    assert (linear.rgbs > known().rgbs).all()
    with pytest.raises(ValueError, match="the file has a node that stretches or mirrors Gaussians"):
        splats(splatting(known(), node={"scale": [1, 2, 1]}))


def test_discs_get_a_thickness() -> None:
    found = start(tiny.ply(tiny.without(columns_of(known()), "scale_2")))
    assert isinstance(found.found, RawSplats)
    assert "discs (2DGS)" in "".join(found.remarks)
    thin = np.exp(found.found.log_scales[:, 2] - found.found.log_scales[:, :2].max(1))
    assert thin == pytest.approx(np.full(600, 0.01), rel=1e-4)
    assert np.allclose(found.found.log_scales[:, :2], known().log_scales[:, :2], atol=1e-6)


def test_quaternions_of_any_length() -> None:
    for length in (1e-3, 1.0, 40.0):
        columns = columns_of(known()) | {f"rot_{i}": ("f4", length * known().quats[:, i]) for i in range(4)}
        same(splats(tiny.ply(columns)), known(), 1e-6, 1e-4, 1e-5, 1e-5)
    none = splats(tiny.ply(columns_of(known()) | {f"rot_{i}": ("f4", np.zeros(600)) for i in range(4)}))
    assert (none.quats == (1, 0, 0, 0)).all()


def test_a_single_gaussian() -> None:
    found = splats(tiny.ply(columns_of(known(1))))
    same(found._replace(means=known(1).means), known(1), 1e-6, 1e-4, 1e-5, 1e-5)
    assert np.isfinite(found.means).all()


@pytest.mark.parametrize("missing", ["rot_0", "rot_3", "opacity", "scale_0", "scale_1"])
def test_gaussians_without_a_column_are_points_with_their_colours(missing: str) -> None:
    found = start(tiny.ply(tiny.without(columns_of(known()), missing)))
    assert isinstance(found.found, Cloud)
    assert f"lack {missing}, so they are read as points" in "".join(found.remarks)
    near = abs(found.found.points[:, None] - known().means).max(2).argmin(1)
    assert np.allclose(found.found.rgbs, known().rgbs[near], atol=1e-5)


@pytest.mark.parametrize("colours", ["none", "uchar"])
def test_gaussians_with_other_colours_than_f_dc(colours: str) -> None:
    columns = tiny.without(columns_of(known()), "f_dc_0", "f_dc_1", "f_dc_2")
    if colours == "uchar":
        columns |= tiny.colours(known().rgbs, "u1", top=255)
    found = start(tiny.ply(columns))
    assert isinstance(found.found, RawSplats)
    expected = known().rgbs if colours == "uchar" else np.full((600, 3), 0.5)
    assert np.allclose(found.found.rgbs, expected, atol=0.004)
    assert ("has no colours" in "".join(found.remarks)) == (colours == "none")


def test_more_gaussians_than_any_scene_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MOST", 599)
    packs = [pack(*packed(known())) for pack, _ in PACKED.values()]
    for raw in (*packs, tiny.ply(columns_of(known())), splatting(known())):
        with pytest.raises(ValueError, match=r"^the file holds 600 Gaussians; the limit is 599$"):
            start(raw)


def test_packed_bombs_are_refused_before_they_unpack() -> None:
    many = b"NGSP" + np.array([3, 2_000_000_000], "<u4").tobytes() + bytes([0, 12, 0, 0])
    with pytest.raises(ValueError, match="holds 2,000,000,000 Gaussians"):
        start(gzip.compress(many + bytes(10_000_000)))
    for version, flags in ((1, 0), (4, 0), (3, 2)):
        head = b"NGSP" + np.array([version, 10], "<u4").tobytes() + bytes([0, 12, flags, 0])
        with pytest.raises(ValueError, match=rf"^the file is an SPZ file of version {version}.*convert it to PLY"):
            start(gzip.compress(head + bytes(1000)))
    with pytest.raises(ValueError, match=r"^the file is a SOG file of version 1: convert it to PLY"):
        start(tiny.sog(*packed(known()), version=1))
    with pytest.raises(ValueError, match="ends before its last Gaussian"):
        start(gzip.compress(b"NGSP" + np.array([3, 99], "<u4").tobytes() + bytes([0, 12, 0, 0]) + bytes(100)))


def frame_of(size: int) -> bytes:
    """Return the beginning of a Zstandard frame that says how long its content is."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little")


def test_streams_of_another_size_are_refused_before_they_unpack() -> None:
    content = [bytes(10 * width) for width in (9, 1, 3, 3, 4)]
    whole = tiny.ngsp(10, content)
    assert len(splats(whole).means) == 10
    zeros = zstandard.compress(bytes(300_000_000))
    wrong = {
        "another number of Gaussians": [
            *(tiny.ngsp(10, [first, *content[1:]]) for first in (frame_of(1 << 41), zeros, b"short")),
            tiny.ngsp(11, content),
        ],
        "content size|decompress": [tiny.ngsp(10, [frame_of(90)[:7], *content[1:]]), whole[:-40], whole[:-4]],
        "4 streams, and 5 attributes": [tiny.ngsp(10, content[1:])],
        "buffer|unpack_from": [whole[:100], whole[:30], whole[:14]],
    }
    for said, files in wrong.items():
        for raw in files:
            with pytest.raises(ValueError, match=rf"^the file is damaged or incomplete: .*({said})"):
                start(raw)
    for raw, said in (
        (tiny.ngsp(2_000_000_000, content), "holds 2,000,000,000 Gaussians"),
        (tiny.ngsp(10, content, version=5), "is an SPZ file of version 5: convert it to version 4 or to PLY"),
        (tiny.ngsp(10, content, degree=5), "is an SPZ file with harmonics of degree 5: convert it to PLY"),
    ):
        with pytest.raises(ValueError, match=f"^the file {said}"):
            start(raw)


def test_extensions_of_spz_are_skipped_if_its_axes_stay() -> None:
    def record(kind: int, *content: int) -> bytes:
        return np.array([kind, 4 * len(content), *content], "<u4").tobytes()

    camera, axes = record(0xADBE0002, 1, 2, 3), 0xADBE0003
    for extensions in (camera, camera + record(axes, 4), record(axes, 0)):
        same(splats(tiny.spz(*packed(known()), version=4, extensions=extensions)), known(), *PACKED["SPZ 4"][1])
    for extensions, said in (
        (camera + record(axes, 6), "other axes than right"),
        (bytes(100_008), "more than 100,000"),
    ):
        with pytest.raises(ValueError, match=f"^the file is an SPZ file with .*{said}"):
            start(tiny.spz(*packed(known()), version=4, extensions=extensions))


# ---- known, but not read

BOX = trimesh.creation.box().export(file_type="glb")


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def compressed(extension: str, required: bool) -> bytes:
    at = ("f4", SQUARE)
    draco = "draco" in extension
    return tiny.glb(
        {"POSITION": at},
        HALVES,
        primitive={"extensions": {extension: {"bufferView": 0, "attributes": {}}}} if draco else {},
        extensionsUsed=[extension],
        extensionsRequired=[extension] if required else None,
        accessors=[
            {"componentType": 5126, "count": 4, "type": "VEC3"},
            {"componentType": 5125, "count": 6, "type": "SCALAR"},
        ],
    )


UNREAD = {
    "Draco": (compressed("KHR_draco_mesh_compression", True), "compressed with Draco"),
    "Draco, not required": (compressed("KHR_draco_mesh_compression", False), "compressed with Draco"),
    "meshopt": (compressed("EXT_meshopt_compression", True), "compressed with meshopt"),
    "KTX2": (
        tiny.glb({"POSITION": ("f4", SQUARE)}, HALVES, images=[{"uri": "x.ktx2", "mimeType": "image/ktx2"}]),
        "compressed with Basis Universal",
    ),
    "other buffers": (
        tiny.glb({"POSITION": ("f4", SQUARE)}, buffers=[{"byteLength": 48, "uri": "box.bin"}]),
        "'box.bin'",
    ),
    ".gltf": (b'{"asset": {"version": "2.0"}, "scene": 0}', "glTF as text"),
    "FBX": (b"Kaydara FBX Binary  \x00\x1a\x00", "FBX"),
    "USD": (b"PXR-USDC" + bytes(80), "USD"),
    "USDZ": (zipped("scene.usdc"), "USDZ"),
    "3MF": (zipped("[Content_Types].xml", "3D/3dmodel.model"), "3MF"),
    "COLLADA": (b'<?xml version="1.0"?>\n<COLLADA xmlns="x">', "COLLADA"),
    "OFF": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "OFF"),
    "Blender": (b"BLENDER-v402" + bytes(90), "Blender"),
    "LAS": (b"LASF" + bytes(300), "LAS"),
    "E57": (b"ASTM-E57" + bytes(300), "E57"),
    "PCD": (b"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n", "PCD"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML page"),
}


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("reader", [start, lambda raw: mesh_of(raw, "the file")])
def test_known_format_is_refused_under_its_name(name: str, reader: Callable[[bytes], Any], capfd: Any) -> None:
    raw, said = UNREAD[name]
    with pytest.raises(ValueError, match=re.escape(said)) as told:
        reader(raw)
    text = str(told.value)
    assert text.startswith("the file ")
    assert not re.search("damaged|unknown format|without (area|faces)", text)
    assert re.search(": (export|convert|get|download) it", text), "what to do"
    assert isinstance(pickle.loads(pickle.dumps(told.value)), ValueError)
    assert capfd.readouterr() == ("", ""), "nor do libraries speak"


def test_gaussians_alone_are_no_mesh() -> None:
    files = [pack(*packed(known())) for pack, _ in PACKED.values()]
    for raw in (*files, tiny.ply(columns_of(known())), splatting(known())):
        with pytest.raises(ValueError, match=r"^the file has points or Gaussians but no faces"):
            mesh_of(raw, "the file")


def test_random_bytes_are_no_format() -> None:
    """Formats without a magic number are recognised by what their rows must be."""
    for seed in range(200):
        g = np.random.default_rng(seed)
        raw = g.bytes(32 * int(g.integers(1, 40)) if seed % 2 else int(g.integers(84, 2000)))
        with pytest.raises(ValueError, match="has an unknown format"):
            start(raw)


def test_empty_and_blank_files() -> None:
    for raw, said in ((b"", "is empty"), (b"\n\n", "has an unknown format"), (bytes(3200), "has an unknown format")):
        with pytest.raises(ValueError, match=f"^the file {said}: GLB, OBJ"):
            start(raw)
    for raw, said in (
        (tiny.ply(columns_of(known(0))), "holds no Gaussians"),
        (tiny.ply(tiny.positions(np.zeros((0, 3)))), "holds no points"),
        (tiny.spz(*packed(known(0))), "holds no Gaussians"),
    ):
        with pytest.raises(ValueError, match=f"^the file {said}$"):
            start(raw)


# ---- meshes in unusual writing


def has_a_box(raw: bytes, remarks: str = "", side: float = 1.0) -> None:
    found = start(raw)
    assert isinstance(found.found, Cloud)
    assert np.ptp(found.found.points, axis=0) == pytest.approx([side] * 3, rel=0.02)
    assert (remarks in "; ".join(found.remarks)) if remarks else not found.remarks


STL = trimesh.creation.box().export(file_type="stl")
ASCII_STL = trimesh.creation.box().export(file_type="stl_ascii").encode()
STLS = {
    "as it should be": (STL, ""),
    "solid in its header": (b"solid box" + STL[9:], ""),
    "two bytes after its end": (STL + b"\r\n", "2 bytes after its triangles are ignored"),
    "a count of 2^32 - 1": (
        STL[:80] + b"\xff" * 4 + STL[84:],
        "holds 12 triangles, though its header says 4,294,967,295",
    ),
    "a count of 0": (STL[:80] + bytes(4) + STL[84:], "holds 12 triangles, though its header says 0"),
    "ASCII": (ASCII_STL, ""),
    "upper case": (ASCII_STL.upper(), ""),
    "a zero byte at its end": (ASCII_STL + b"\x00", ""),
    "CRLF": (ASCII_STL.replace(b"\n", b"\r\n"), ""),
    "indented first line": (b"  " + ASCII_STL, ""),
}


@pytest.mark.parametrize("name", STLS)
def test_stl_as_others_write_it(name: str) -> None:
    has_a_box(*STLS[name])


OBJ = trimesh.exchange.obj.export_obj(trimesh.creation.box(), include_normals=False, include_color=False).encode()
OBJ = b"\n".join(line for line in OBJ.splitlines() if not line.startswith((b"#", b"mtllib", b"usemtl"))) + b"\n"
OBJS = {
    "as it should be": (OBJ, ""),
    "tabs": (OBJ.replace(b" ", b"\t"), ""),
    "indented": (b"\n".join(b"  \t" + line for line in OBJ.splitlines()), ""),
    "several blanks": (OBJ.replace(b" ", b"   "), ""),
    "old Mac": (OBJ.replace(b"\n", b"\r"), ""),
    "CRLF": (OBJ.replace(b"\n", b"\r\n"), ""),
    "CRLF, indented, tabs": (b"\r\n".join(b"\t" + x for x in OBJ.replace(b" ", b"\t").splitlines()), ""),
    "byte order mark": (b"\xef\xbb\xbf# box\n" + OBJ, ""),
    "latin-1": ("# Würfel\n".encode("latin-1") + OBJ, ""),
    "materials elsewhere": (b"mtllib box.mtl\nusemtl red\n" + OBJ, "the colours in 'box.mtl' are not read"),
}


@pytest.mark.parametrize("name", OBJS)
def test_obj_as_others_write_it(name: str) -> None:
    has_a_box(*OBJS[name])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_do_not_matter(factor: float) -> None:
    box = trimesh.creation.box()
    box.apply_scale(factor)
    for kind in ("stl", "ply", "glb"):
        has_a_box(box.export(file_type=kind), side=factor)


def test_glb_without_scenes_shows_all_its_nodes() -> None:
    attributes = {"POSITION": ("f4", SQUARE)}
    away = tiny.glb(attributes, HALVES, node={"translation": [0, 0, 5]}, scenes=None, scene=None)
    assert start(away).found[0][:, 2] == pytest.approx(np.full(1000, 5.0))
    bare = tiny.glb(attributes, HALVES, scenes=None, scene=None, nodes=None)
    assert np.ptp(start(bare).found[0], axis=0) == pytest.approx((1, 1, 0), abs=0.01)
    assert len(mesh_of(bare, "the file").faces) == 2


def test_nodes_of_gltf_place_what_they_hold() -> None:
    at = {"POSITION": ("f4", SQUARE)}

    def box(raw: bytes) -> list[list[float]]:
        points = start(raw, 4000).found[0]
        return [points.min(0).round(1).tolist(), points.max(0).round(1).tolist()]

    two = [{"mesh": 0}, {"mesh": 0, "translation": [4, 0, 0]}]
    second = tiny.glb(at, HALVES, nodes=two, scenes=[{"nodes": [0]}, {"nodes": [1]}], scene=1)
    assert box(second) == [[4, 0, 0], [5, 1, 0]], "of several scenes, the default one"
    assert box(tiny.glb(at, HALVES, node={"scale": [-1, 2, 1]})) == [[-1, 0, 0], [0, 2, 0]]
    quantised = {"POSITION": ("i2", 32767 * SQUARE)}
    assert box(tiny.glb(quantised, HALVES, extensionsRequired=["KHR_mesh_quantization"])) == [[0, 0, 0], [1, 1, 0]]
    apart = [{"mesh": 0, "scale": [2, 2, 2]}, {"mesh": 0, "translation": [4, 0, 0]}]
    assert box(tiny.glb(quantised, HALVES, nodes=apart, scenes=[{"nodes": [0, 1]}])) == [[0, 0, 0], [5, 2, 0]]
    assert not start(tiny.glb(quantised, HALVES, extensionsRequired=["KHR_mesh_quantization"])).remarks


def test_texture_that_a_ply_names_is_said() -> None:
    raw = tiny.ply(tiny.positions(SQUARE), "ascii", comments=["TextureFile skin.png"])
    assert start(raw).remarks == ("the colours in 'skin.png' are not read: a GLB holds its colours",)


def test_extensions_of_gltf_that_change_the_picture_are_said() -> None:
    for more in ({"extensionsUsed": ["KHR_texture_transform"]}, {"extensionsRequired": ["EXT_mesh_gpu_instancing"]}):
        found = start(tiny.glb({"POSITION": ("f4", SQUARE)}, HALVES, **more))
        assert found.remarks == (f"extensions of glTF that are not read: {next(iter(more.values()))[0]}",)


HEAD = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n{}end_header\n"
LISTS = {
    "triangles": ("face 2", "uchar int", "3 0 1 2\n3 0 2 3\n"),
    "a square": ("face 1", "uchar uint", "4 0 1 2 3\n"),
    "a triangle and a square with an edge": ("face 2", "uchar int", "2 0 1\n4 0 1 2 3\n"),
    "a strip": ("tristrips 1", "int int", "4 0 1 3 2\n"),
    "a strip with a restart": ("tristrips 1", "int int", "7 0 1 3 -1 1 2 3\n"),
    "two strips": ("tristrips 2", "int int", "3 0 1 3\n3 1 2 3\n"),
}


MANY = (
    "property uchar tag\n{}property float weight\nproperty list {} int vertex_indices\nproperty uchar red\n"
    "property ushort green\n"
)


@pytest.mark.parametrize("counts", ["uchar", "uint"])
@pytest.mark.parametrize("second", ["", "property list uchar short more\n"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_lists_of_different_lengths_among_other_columns(counts: str, second: str, form: str) -> None:
    order, types = ">" if "big" in form else "<", {v: k for k, v in tiny.NAMES.items()}
    g = np.random.default_rng(0)
    head = f"ply\nformat {form} 1.0\nelement face 50\n{MANY.format(second, counts)}end_header\n".encode()
    body, wanted, others = b"", [], []
    for row in range(50):
        corners, more = (g.integers(0, 9, int(g.integers(0, 6))).tolist() for _ in range(2))
        wanted.append(corners)
        others.append((row, row / 8, 200 - row, 60_000 - row))
        fields = [("uchar", [row]), *([("uchar", [len(more)]), ("short", more)] if second else [])]
        fields += [("float", [row / 8]), (counts, [len(corners)]), ("int", corners)]
        fields += [("uchar", [200 - row]), ("ushort", [60_000 - row])]
        if form == "ascii":
            body += (" ".join(f"{value:g}" for _, values in fields for value in values) + "\n").encode()
        else:
            body += b"".join(np.array(values, order + types[kind]).tobytes() for kind, values in fields)
    table = ply.read(head + body).tables["face"]
    found = table.lists["vertex_indices"]
    assert [found.flat[a:b].tolist() for a, b in itertools.pairwise(found.begins)] == wanted
    columns = (table.columns[name].tolist() for name in ("tag", "weight", "red", "green"))
    assert list(zip(*columns, strict=True)) == others


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("plural", ["vertex_indices", "vertex_index"])
def test_faces_of_a_ply_in_any_writing(name: str, form: str, plural: str) -> None:
    element, kinds_of_list, rows = LISTS[name]
    count, item = kinds_of_list.split()
    head = HEAD.format(4, f"element {element}\nproperty list {count} {item} {plural}\n").replace("ascii", form)
    if form == "ascii":
        raw = head.encode() + b"".join(b"%g %g %g\n" % tuple(row) for row in SQUARE) + rows.encode()
    else:
        order = "<" if "little" in form else ">"
        types = {v: order + k for k, v in tiny.NAMES.items()}
        body = SQUARE.astype(order + "f4").tobytes()
        for row in rows.splitlines():
            first, *rest = map(int, row.split())
            body += np.array([first], types[count]).tobytes() + np.array(rest, types[item]).tobytes()
        raw = head.encode() + body
    found = start(raw, 4000).found
    assert isinstance(found, Cloud)
    assert found.points.mean(0) == pytest.approx((0.5, 0.5, 0), abs=0.02), "all of the square, evenly"
    assert np.ptp(found.points, axis=0) == pytest.approx((1, 1, 0), abs=0.02)
    assert len(mesh_of(raw, "the file").faces) == 2


def test_ply_that_lies_about_its_rows() -> None:
    whole = tiny.ply(columns_of(known()))
    square = HEAD.format(3, "element face 1\nproperty list uchar int vertex_indices\n") + "0 0 0\n1 0 0\n0 1 0\n"
    bad = [
        whole[:-5],
        whole.replace(b"vertex 600", b"vertex 99999999999"),
        whole.replace(b"end_header", b"end header"),
        whole.replace(b"float opacity", b"quad opacity"),
        whole.replace(b"format binary", b"format strange"),
        (square + "4 0 1\n").encode(),
        (square + "-1 0 1\n").encode(),
        (square + "nan 0 1\n").encode(),
        (square + "1e30 0 1\n").encode(),
        (square + "three\n").encode(),
        (square.replace("face 1", "face 999999999") + "3 0 1 2\n").encode(),
        square.replace("ascii", "binary_little_endian").encode(),
    ]
    for raw in bad:
        with pytest.raises(ValueError, match=r"^the file is damaged or incomplete: it cannot be read as PLY"):
            start(raw)
    for wrong in ("3 0 1 3", "3 0 1 -1", "3 0 1 4294967295"):
        with pytest.raises(ValueError, match=r"^the file is damaged: its faces refer to missing vertices"):
            start((square.replace("uchar int", "uchar uint") + wrong + "\n").encode())


def test_archive_with_very_many_entries_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "MAX_ENTRIES", 3)
    monkeypatch.setattr(zipfile.ZipFile, "namelist", lambda self: pytest.fail("listed"))
    with pytest.raises(ValueError, match=r"is an archive \(ZIP\)"):
        start(zipped(*"abcd"))


def test_own_ply_comes_back_to_the_bit(tmp_path: Path) -> None:
    write_ply(tmp_path / "s.ply", known())
    found = start((tmp_path / "s.ply").read_bytes())
    assert found.is_own
    assert isinstance(found.found, RawSplats)
    assert np.array_equal(found.found.means, known().means)
    assert np.array_equal(found.found.log_scales, known().log_scales)
    assert pickle.loads(pickle.dumps(found)).remarks == found.remarks


# ---- damage of any kind


def mutated(raw: bytes, g: np.random.Generator) -> bytes:
    """Return content with bytes changed, cut, repeated, or numbers of its header replaced by absurd ones."""
    data = bytearray(raw)
    kind, at = int(g.integers(5)), int(g.integers(len(data)))
    if kind == 0:
        for place in g.integers(len(data), size=int(g.integers(1, 12))):
            data[place] = int(g.integers(256))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + 40] = data[at : at + 40] * int(g.integers(2, 9))
    elif kind == 3:
        data[at : at + 4] = int(g.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])).to_bytes(4, "little")
    else:
        digits = [i for i, byte in enumerate(data[:2500]) if 48 <= byte <= 57]
        if digits:
            place = int(g.choice(digits))
            odd = [b"999999999", b"-1", b"0", b"1e308", b"nan", b"18446744073709551616"]
            data[place : place + 1] = odd[int(g.integers(len(odd)))]
    return bytes(data)


def examples() -> dict[str, bytes]:
    """Return a small file of every format that is read."""
    few = known(40)
    found = {name: pack(*packed(few)) for name, (pack, _) in PACKED.items()}
    found |= {"PLY": tiny.ply(columns_of(few)), "ASCII PLY": tiny.ply(columns_of(few), "ascii"), "KHR": splatting(few)}
    square = HEAD.format(4, "element face 2\nproperty list uchar int vertex_indices\n")
    found["mesh"] = square.encode() + b"".join(b"%g %g %g\n" % tuple(row) for row in SQUARE) + b"3 0 1 2\n4 0 1 2 3\n"
    found |= {"GLB": BOX, "STL": STL, "ASCII STL": ASCII_STL, "OBJ": OBJ}
    found["textured"] = tiny.glb(
        {"POSITION": ("f4", SQUARE), "TEXCOORD_0": ("f4", tiny.CORNERS), "COLOR_0": ("u2", np.full((4, 3), 40_000))},
        HALVES,
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "baseColorFactor": [1, 0.5, 1, 1]}},
        tiny.png(np.full((4, 4, 3), 99, np.uint8)),
    )
    table = np.zeros(40, kinds.SPLAT)
    table["at"], table["size"], table["rgba"] = few.means, np.exp(few.log_scales), 200
    table["turn"] = (255, 128, 128, 128)
    return found | {"splat": table.tobytes()}


EXAMPLES = examples()


@pytest.mark.parametrize("count", [25, pytest.param(2500, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("error")
def test_damaged_file_is_read_or_refused_in_words(name: str, count: int) -> None:
    odd = []
    for seed in range(count):
        raw = mutated(EXAMPLES[name], np.random.default_rng((seed, len(name))))
        for reader in (start, lambda raw: mesh_of(raw, "the file")):
            try:
                found = reader(raw)
            except ValueError as e:
                text = str(e)
                if len(text) > 500 or not re.match("the file (is|has|holds|contains|refers)", text):
                    odd.append((seed, text))
            else:
                arrays = [array for array in found.found if array is not None] if isinstance(found, Start) else []
                if not all(np.isfinite(array).all() for array in arrays):
                    odd.append((seed, "NaN or infinity"))
    assert not odd
