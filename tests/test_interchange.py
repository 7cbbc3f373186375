"""Exports that other programs read: SPZ, Gaussians in glTF, the growth as PLY files, cameras."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_results import FIGURE
from test_splats import built

from sdlab.cameras import CameraSettings, transforms_of, turntable
from sdlab.export.interchange import (
    FRAMES_MOST,
    of_snapshot,
    write_cameras,
    write_gaussian_glb,
    write_growth,
    write_spz,
)
from sdlab.export.writers import FILM_FRAMES, Still, turntable_pictures, write_results
from sdlab.meshes.colours import SH_C0
from sdlab.raster import world_covariances
from sdlab.starts.clouds import read_cloud
from sdlab.starts.placing import to_y_up
from sdlab.types import RawSplats, SplatSnapshot

TURN = np.array([(0, 1, 0), (0, 0, 1), (1, 0, 0)])  # (x, y, z) of the world is (z, x, y) of glTF


def covariances(s: RawSplats) -> np.ndarray:
    return world_covariances(torch.tensor(s.quats), torch.tensor(s.log_scales).exp()).numpy()


def snapshot(s: RawSplats) -> SplatSnapshot:
    return SplatSnapshot(s.means, covariances(s), s.rgbs, 1 / (1 + np.exp(-s.opacity_logits[:, None])))


def broken() -> RawSplats:
    """FIGURE with two Gaussians that are not finite."""
    means, logits = FIGURE.means.copy(), FIGURE.opacity_logits.copy()
    means[3, 1], logits[700] = np.nan, np.inf
    return FIGURE._replace(means=means, opacity_logits=logits)


def read_again(path: Path) -> RawSplats:
    found = read_cloud(path, 10_000, np.random.default_rng(0), "scene.path", "z").found
    assert isinstance(found, RawSplats)
    return found


def test_y_up_is_a_rotation():
    turned = to_y_up(FIGURE)
    assert np.array_equal(turned.means, FIGURE.means[:, [1, 2, 0]])
    assert np.allclose(covariances(turned), TURN @ covariances(FIGURE) @ TURN.T, atol=1e-7)


@pytest.mark.parametrize(
    ("write", "suffix", "scales", "share"),
    [(write_spz, ".spz", 1 / 32, 0.003), (write_gaussian_glb, ".glb", 1e-5, 1e-5)],
)
def test_our_reader_finds_what_was_written(write, suffix, scales, share, tmp_path):
    path = tmp_path / f"x{suffix}"
    assert write(path, broken()) == 898
    assert write(path, FIGURE) == 900
    found, expected = read_again(path), to_y_up(FIGURE)
    assert np.allclose(found.means, expected.means, atol=1 / 4096)
    assert np.allclose(found.log_scales, expected.log_scales, atol=scales * 1.01)
    assert np.allclose(1 / (1 + np.exp(-found.opacity_logits)), 1 / (1 + np.exp(-expected.opacity_logits)), atol=share)
    assert np.allclose(found.rgbs, expected.rgbs, atol=2.1 * share)  # a byte of SPZ spans more than the colours
    cosines = abs((found.quats * expected.quats).sum(1)) / np.linalg.norm(found.quats, axis=1)
    assert cosines.min() > 1 - 1e-5


def test_an_independent_reader_opens_the_spz(tmp_path):
    write_spz(tmp_path / "x.spz", FIGURE)
    found, expected = gsply.read_spz(str(tmp_path / "x.spz")), to_y_up(FIGURE)
    assert found.means.shape == (900, 3)
    assert np.allclose(found.means, expected.means, atol=1 / 4096)
    assert np.allclose(found.scales, expected.log_scales, atol=1 / 31)
    assert abs((found.quats * expected.quats).sum(1)).min() > 1 - 1e-5
    assert np.allclose(found.sh0.reshape(-1, 3) * SH_C0 + 0.5, expected.rgbs, atol=0.004)
    assert np.allclose(found.opacities, expected.opacity_logits, atol=0.05)


def test_the_spz_is_the_same_each_time_and_small(tmp_path):
    write_spz(tmp_path / "a.spz", FIGURE)
    write_spz(tmp_path / "b.spz", FIGURE)
    raw = (tmp_path / "a.spz").read_bytes()
    assert raw == (tmp_path / "b.spz").read_bytes()
    assert len(gzip.decompress(raw)) == 16 + 900 * 20


def test_extremes_stay_in_the_formats_range(tmp_path):
    far = FIGURE._replace(
        means=1e6 * FIGURE.means, log_scales=FIGURE.log_scales - 50, opacity_logits=1000 * FIGURE.opacity_logits
    )
    write_spz(tmp_path / "x.spz", far)
    found = gsply.read_spz(str(tmp_path / "x.spz"))
    assert abs(found.means).max() <= 2048
    assert (found.scales == -10).all()
    nothing = FIGURE.rows(slice(0))
    for write in (write_spz, write_gaussian_glb):
        assert write(tmp_path / "empty", nothing) == 0


def test_programs_without_the_extension_see_coloured_points(tmp_path):
    write_gaussian_glb(tmp_path / "x.glb", FIGURE)
    scene = trimesh.load_scene(tmp_path / "x.glb")
    (points,) = scene.geometry.values()
    assert isinstance(points, trimesh.PointCloud)
    assert np.allclose(points.vertices, to_y_up(FIGURE).means)
    red = points.colors[FIGURE.rgbs[:, 0] > 0.5][0]
    assert red[0] > 190
    assert max(red[1:3]) < 10  # linear: 0.1 is 0.01


def test_the_glb_follows_the_specification(tmp_path):
    """The table of attributes of KHR_gaussian_splatting, and the alignment and limits of glTF 2.0."""
    write_gaussian_glb(tmp_path / "x.glb", FIGURE)
    raw = (tmp_path / "x.glb").read_bytes()
    assert int.from_bytes(raw[8:12], "little") == len(raw)
    length = int.from_bytes(raw[12:16], "little")
    tree, binary = json.loads(raw[20 : 20 + length]), raw[28 + length :]
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 0
    assert primitive["extensions"] == {
        "KHR_gaussian_splatting": {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    }
    assert tree["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert len(binary) == tree["buffers"][0]["byteLength"]
    arrays = {}
    for name, number in primitive["attributes"].items():
        accessor = tree["accessors"][number]
        view = tree["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        assert accessor["componentType"] == 5126
        arrays[name] = np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(900, -1)
    scale, opacity, turn = (arrays[f"KHR_gaussian_splatting:{name}"] for name in ("SCALE", "OPACITY", "ROTATION"))
    assert (scale > 0).all()
    assert ((opacity >= 0) & (opacity <= 1)).all()
    assert np.allclose(np.linalg.norm(turn, axis=1), 1, atol=1e-6)
    assert tree["accessors"][0]["min"] == arrays["POSITION"].min(0).tolist()


def test_a_snapshot_has_axes_and_scales_again():
    found = of_snapshot(snapshot(FIGURE))
    assert np.allclose(covariances(found), covariances(FIGURE), atol=1e-7)
    assert np.allclose(found.opacity_logits, FIGURE.opacity_logits, atol=1e-3)
    assert np.array_equal(found.rgbs, FIGURE.rgbs)


@pytest.mark.parametrize("length", [1, 7, 3 * FRAMES_MOST])
def test_the_growth_is_a_sequence_of_plys(length, tmp_path):
    few = FIGURE.rows(slice(5))
    film = tuple((10 * i, snapshot(few)) for i in range(length))
    told: list[tuple[int, int]] = []
    frames = write_growth(tmp_path / "x.zip", film, lambda *progress: told.append(progress))
    assert frames == min(length, FRAMES_MOST)
    assert told[-1] == (frames, frames)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        steps = json.loads(archive.read("steps.json"))
        assert archive.namelist()[:-1] == list(steps) == [f"growth_{i:04d}.ply" for i in range(frames)]
        assert [*steps.values()][-1] == 10 * (length - 1)
        (tmp_path / "last.ply").write_bytes(archive.read(list(steps)[-1]))
    assert np.allclose(read_again(tmp_path / "last.ply").means, few.means)
    with pytest.raises(ValueError, match="no film"):
        write_growth(tmp_path / "y.zip", ())


def test_a_runs_folder_has_the_cameras_of_its_film(tmp_path):
    settings = CameraSettings()
    files = write_results(tmp_path, built(n_init=5)[0], settings, 33)
    assert files[-1] == tmp_path / "cameras.json"
    expected = transforms_of(turntable(FILM_FRAMES, settings, 34))
    assert json.loads(files[-1].read_text()) == expected
    assert len(expected["frames"]) == FILM_FRAMES
    assert (expected["w"], expected["h"]) == (34, 34)


def test_the_cameras_project_what_ours_project(tmp_path):
    settings = CameraSettings()
    few, told = FIGURE.rows(slice(5)), []
    assert write_cameras(tmp_path / "c.zip", few, settings, 200, 8, lambda *progress: told.append(progress)) == 8
    assert told == [(i, 8) for i in range(9)]
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        tree = json.loads(archive.read("transforms.json"))
        pictures = [Image.open(io.BytesIO(archive.read(frame["file_path"]))) for frame in tree["frames"]]
    expected = turntable_pictures(Still(few), settings, 8, 200)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))
    cams = turntable(8, settings, 200)
    point = np.array([0.3, -0.2, 0.5])
    for frame, viewmat, K in zip(tree["frames"], cams.viewmats.double(), cams.Ks.double(), strict=True):
        x, y, z = np.linalg.inv(np.array(frame["transform_matrix"]))[:3] @ [*point, 1]
        theirs = tree["fl_x"] * x / -z + tree["cx"], tree["fl_y"] * -y / -z + tree["cy"]
        seen = K.numpy() @ (viewmat.numpy()[:3] @ [*point, 1])
        assert np.allclose(theirs, seen[:2] / seen[2], atol=1e-3)
