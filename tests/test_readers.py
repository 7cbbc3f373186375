"""Exports as independent programs read them, and their files as we do: counts, places, orientation and colours, with
harmonics and without."""

import gzip
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import gsply
import numpy as np
import pytest
import trimesh
from test_harmonics import shaded
from test_interchange import covariances, snapshot
from test_results import FIGURE

from sdlab.export.interchange import write_gaussian_glb, write_growth, write_spz
from sdlab.export.writers import write_ply, write_splat
from sdlab.meshes.colours import SH_C0, to_linear
from sdlab.starts.clouds import read_cloud
from sdlab.starts.placing import _rotated, to_y_up
from sdlab.types import RawSplats

DEGREES = (0, 3)
INSIDE = 0.99  # harmonics that SPZ can hold; a turned one may be larger
TO_Y_DOWN = (0.0, 1.0, 0.0, 0.0)  # half a turn about x: from y up, z backwards to y down, z forwards
HALF_TURN = (0.0, 0.0, 0.0, 1.0)  # about z
SPLAT_TRANSFORM = shutil.which("splat-transform")
needs_splat_transform = pytest.mark.skipif(SPLAT_TRANSFORM is None, reason="npm install -g @playcanvas/splat-transform")


def scene(degree: int) -> RawSplats:
    return shaded(degree) if degree else FIGURE


def must_match(
    found: RawSplats,
    expected: RawSplats,
    at: float = 0,
    rgb: float = 1e-6,
    alpha: float = 1e-6,
    width: float = 1e-5,
    sh: float | None = 0,
) -> None:
    """Compare row by row within tolerances; covariances relative to their trace. `sh` is None for formats without."""
    assert found.means.shape == expected.means.shape
    assert abs(found.means - expected.means).max() <= at
    assert abs(found.rgbs - expected.rgbs).max() <= rgb
    shown, meant = (1 / (1 + np.exp(-s.opacity_logits)) for s in (found, expected))
    assert abs(shown - meant).max() <= alpha
    theirs, ours = covariances(found), covariances(expected)
    assert (abs(theirs - ours).max((1, 2)) / np.trace(ours, axis1=1, axis2=2)).max() <= width
    if expected.sh is None or sh is None:
        assert found.sh is None
        return
    assert found.sh is not None
    assert found.sh.shape == expected.sh.shape
    inside = abs(expected.sh) < (INSIDE if sh else np.inf)
    assert inside.mean() > 0.9
    assert abs(found.sh - expected.sh)[inside].max() <= sh


def raw(means, quats, log_scales, logits, f_dc, sh=None) -> RawSplats:
    """Return what a reader found, of which each column may be of any float type."""
    columns = (means, quats, log_scales, np.asarray(logits).reshape(-1), 0.5 + SH_C0 * np.asarray(f_dc).reshape(-1, 3))
    sh = None if sh is None or np.size(sh) == 0 else np.asarray(sh, np.float32)
    return RawSplats(*(np.ascontiguousarray(column, np.float32) for column in columns), sh)


def in_the_order_of(found: RawSplats, expected: RawSplats) -> RawSplats:
    """Return the rows of `expected` that are nearest to those of `found`, each of them once."""
    nearest = abs(found.means[:, None] - expected.means).max(2).argmin(1)
    assert len(set(nearest.tolist())) == len(expected.means)
    return expected.rows(nearest)


# ---- readers ---------------------------------------------------------------------------------------------------------


def of_columns(columns) -> RawSplats:
    """Return the Gaussians in the columns of a PLY, which are one array for each name."""
    stack = lambda name, n: np.stack([columns[f"{name}_{i}"] for i in range(n)], 1)  # noqa: E731
    k = sum(name.startswith("f_rest_") for name in columns.dtype.names) // 3
    rest = stack("f_rest", 3 * k).reshape(-1, 3, k).transpose(0, 2, 1) if k else None  # a colour's come together
    at = np.stack([columns[axis] for axis in "xyz"], 1)
    return raw(at, stack("rot", 4), stack("scale", 3), columns["opacity"], stack("f_dc", 3), rest)


def by_trimesh(path: Path) -> RawSplats:
    return of_columns(trimesh.load(path).metadata["_ply_raw"]["vertex"]["data"])


def by_plyfile(path: Path) -> RawSplats:
    plyfile = pytest.importorskip("plyfile")
    return of_columns(plyfile.PlyData.read(str(path))["vertex"].data)


def by_gsply(path: Path) -> RawSplats:
    read = {".spz": gsply.read_spz, ".ply": gsply.plyread, ".sog": gsply.sogread}[path.suffix]
    found = read(str(path))
    return raw(found.means, found.quats, found.scales, found.opacities, found.sh0, found.shN)


def converted(path: Path, suffix: str, *options: str) -> Path:
    """Return a file that splat-transform made of another. PLYs of its own have y down, SPZ has y up."""
    out = path.with_name(f"converted{suffix}")
    command = [str(SPLAT_TRANSFORM), "--quiet", "--overwrite", "--gpu", "cpu", *options, str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


def by_splat_transform(path: Path) -> RawSplats:
    return by_trimesh(converted(path, ".ply"))


def as_it_turns_spz(s: RawSplats) -> RawSplats:
    """splat-transform 2 makes a PLY with y down of an SPZ; version 3 leaves axes as they are."""
    said = subprocess.run([str(SPLAT_TRANSFORM), "--version"], capture_output=True, text=True, check=True)
    return _rotated(s, TO_Y_DOWN) if "transform v2." in said.stdout + said.stderr else s


def by_pygltflib(path: Path) -> dict[str, np.ndarray]:
    """Return the attributes of the only primitive of a GLB."""
    file = pytest.importorskip("pygltflib").GLTF2.load(str(path))
    (primitive,) = file.meshes[0].primitives
    found = {}
    for name, number in vars(primitive.attributes).items():
        if number is None:
            continue
        accessor = file.accessors[number]
        view = file.bufferViews[accessor.bufferView]
        wide = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor.type]
        begin = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        values = np.frombuffer(file.binary_blob(), "<f4", accessor.count * wide, begin)
        found[name.removeprefix("KHR_gaussian_splatting:")] = values.reshape(-1, wide)
    return found


# ---- PLY and .splat --------------------------------------------------------------------------------------------------

PLY_READERS = [by_gsply, by_trimesh, by_plyfile, pytest.param(by_splat_transform, marks=needs_splat_transform)]


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("read", PLY_READERS)
def test_ply(read: Callable[[Path], RawSplats], degree: int, tmp_path: Path):
    assert write_ply(tmp_path / "x.ply", scene(degree)) == 900
    must_match(read(tmp_path / "x.ply"), scene(degree))


def test_growth(tmp_path: Path):
    write_growth(tmp_path / "x.zip", ((3, snapshot(FIGURE.rows(slice(5)))), (7, snapshot(FIGURE))))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        archive.extractall(tmp_path)
    for read in (by_gsply, by_trimesh):
        must_match(read(tmp_path / "growth_0001.ply"), FIGURE, at=0, alpha=1e-4, width=1e-4)
        assert len(read(tmp_path / "growth_0000.ply").means) == 5


@pytest.mark.parametrize("degree", DEGREES)
@needs_splat_transform
def test_splat(degree: int, tmp_path: Path):
    write_splat(tmp_path / "x.splat", scene(degree))
    found = by_splat_transform(tmp_path / "x.splat")
    expected = in_the_order_of(found, scene(degree))._replace(sh=None)
    must_match(found, expected, rgb=1.01 / 255, alpha=1.01 / 255, width=0.04)


# ---- SPZ -------------------------------------------------------------------------------------------------------------

OF_SPZ = {"at": 0.501 / 4096, "rgb": 0.51 / 255 * SH_C0 / 0.15, "alpha": 0.51 / 255, "width": 0.07, "sh": 0.51 / 128}


@pytest.mark.parametrize("degree", DEGREES)
def test_spz(degree: int, tmp_path: Path):
    assert write_spz(tmp_path / "x.spz", scene(degree)) == 900
    must_match(by_gsply(tmp_path / "x.spz"), to_y_up(scene(degree)), **OF_SPZ)
    assert len(gzip.decompress((tmp_path / "x.spz").read_bytes())) == 16 + 900 * (65 if degree else 20)


@pytest.mark.parametrize("degree", DEGREES)
@needs_splat_transform
def test_spz_stands_upright(degree: int, tmp_path: Path):
    write_spz(tmp_path / "x.spz", scene(degree))
    must_match(by_splat_transform(tmp_path / "x.spz"), as_it_turns_spz(to_y_up(scene(degree))), **OF_SPZ)


# ---- glTF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", DEGREES)
def test_gltf_as_points(degree: int, tmp_path: Path):
    write_gaussian_glb(tmp_path / "x.glb", scene(degree))
    (points,) = trimesh.load_scene(tmp_path / "x.glb").geometry.values()
    expected = to_y_up(scene(degree))
    assert np.array_equal(points.vertices, expected.means)
    linear = np.concatenate([to_linear(expected.rgbs), 1 / (1 + np.exp(-expected.opacity_logits[:, None]))], 1)
    assert abs(points.colors / 255 - linear).max() <= 0.51 / 255


def gaussians_of(attributes: dict[str, np.ndarray]) -> RawSplats:
    sh = [attributes[f"SH_DEGREE_{n}_COEF_{i}"] for n in (1, 2, 3) for i in range(2 * n + 1) if len(attributes) > 6]
    opacities = attributes["OPACITY"].astype(np.float64)
    return raw(
        attributes["POSITION"],
        attributes["ROTATION"][:, [3, 0, 1, 2]],
        np.log(attributes["SCALE"]),
        np.log(opacities / (1 - opacities)),
        attributes["SH_DEGREE_0_COEF_0"],
        np.stack(sh, 1) if sh else None,
    )


@pytest.mark.parametrize("degree", DEGREES)
def test_gltf_as_gaussians(degree: int, tmp_path: Path):
    assert write_gaussian_glb(tmp_path / "x.glb", scene(degree)) == 900
    must_match(gaussians_of(by_pygltflib(tmp_path / "x.glb")), to_y_up(scene(degree)))


@pytest.mark.parametrize("degree", DEGREES)
@needs_splat_transform
def test_gltf_is_what_another_program_makes_of_the_ply(degree: int, tmp_path: Path):
    """It writes the same extension, after half a turn about z, because it takes y for down in a PLY."""
    write_ply(tmp_path / "x.ply", scene(degree))
    theirs = by_pygltflib(converted(tmp_path / "x.ply", ".glb"))
    write_gaussian_glb(tmp_path / "x.glb", scene(degree))
    ours = by_pygltflib(tmp_path / "x.glb")
    assert theirs.keys() == ours.keys()
    must_match(gaussians_of(theirs), _rotated(scene(degree), HALF_TURN), at=1e-6, sh=1e-5)


# ---- SOG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", DEGREES)
@needs_splat_transform
def test_sog_by_the_documented_command(degree: int, tmp_path: Path):
    write_ply(tmp_path / "x.ply", scene(degree))
    path = converted(tmp_path / "x.ply", ".sog")
    pytest.importorskip("imagecodecs", reason="gsply reads SOG with imagecodecs")
    found = by_gsply(path)
    expected = in_the_order_of(found, scene(degree))
    assert (found.sh is None) == (degree == 0)
    must_match(found._replace(sh=None), expected._replace(sh=None), at=1e-4, rgb=0.01, alpha=1.01 / 255, width=0.1)


# ---- files that other programs write ---------------------------------------------------------------------------------


def ours(path: Path, degree: int) -> RawSplats:
    found = read_cloud(path, 900, np.random.default_rng(0), "scene.file", "z", degree).found
    assert isinstance(found, RawSplats)
    return found


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("suffix", [".spz", pytest.param(".compressed.ply", marks=pytest.mark.nightly)])  # compiles
def test_packed_files_of_gsply(suffix: str, degree: int, tmp_path: Path):
    write_ply(tmp_path / "x.ply", scene(degree))
    gaussians, path = gsply.plyread(str(tmp_path / "x.ply")), tmp_path / f"y{suffix}"
    if suffix == ".spz":
        gsply.write_spz(str(path), gaussians, version=4)
    else:
        gsply.plywrite(str(path), gaussians, compressed=True)
    found = ours(path, degree)
    if suffix == ".spz":
        must_match(found, scene(degree), **OF_SPZ)
    else:  # which rounds a harmonic down, and has it in the middle of its step
        must_match(
            found, in_the_order_of(found, scene(degree)), at=2e-3, rgb=3e-3, alpha=3e-3, width=0.02, sh=1.01 / 64
        )


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("suffix", [".spz", ".compressed.ply", ".sog"])
@needs_splat_transform
def test_packed_files_of_splat_transform(suffix: str, degree: int, tmp_path: Path):
    """As it reads them again itself: what it loses in packing is its own."""
    write_ply(tmp_path / "x.ply", scene(degree))
    path = converted(tmp_path / "x.ply", suffix)
    again = path.rename(tmp_path / f"y{suffix}")
    found = as_it_turns_spz(ours(again, degree)) if suffix == ".spz" else ours(again, degree)
    must_match(found, by_splat_transform(again), at=1e-5, rgb=1e-5, alpha=3e-3, width=1e-4, sh=1e-5)
