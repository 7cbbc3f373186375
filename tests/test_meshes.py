"""Mesh files as coloured triangles, and their renders against analytic cases."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_meshes
import torch
import trimesh
from PIL import Image
from tiny_meshes import TO_GLTF
from trimesh.visual.material import PBRMaterial

from sdlab.cameras import CameraSettings, look_at, turntable
from sdlab.export.mesh import write_glb
from sdlab.export.writers import write_ply
from sdlab.meshes import draw, surface
from sdlab.meshes.surface import Mesh, mesh_of, read_mesh
from sdlab.pictures import psnr
from sdlab.raster import rasteriser_for
from sdlab.starts import clouds, placing
from sdlab.types import Cameras, Cloud, RawSplats

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DISTANCE, FOV = 3.0, 40.0
TAN = math.tan(math.radians(FOV / 2))


def cameras(azimuth: float = 0.0, elevation: float = 0.0, size: int = 64, distance: float = DISTANCE) -> Cameras:
    places = (torch.tensor([x], dtype=torch.float32) for x in (azimuth, elevation, distance))
    a, e, d = places
    return look_at(a, e, d, FOV, size, size)


def mesh(*parts: Any, kind: str = "ply", radius: float | None = None, up: str = "z") -> Mesh:
    """Return the parts as read from a file; their size is kept unless a radius is given."""
    whole = trimesh.util.concatenate(list(parts)) if kind == "ply" else trimesh.Scene(list(parts))
    if radius is None:
        at = np.concatenate([p.vertices for p in parts])
        radius = float(np.linalg.norm(at - (at.min(0) + at.max(0)) / 2, axis=1).max())
    return mesh_of(whole.export(file_type=kind), "the mesh", up, radius)


def rendered(m: Mesh, cams: Cameras, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    rgb, coverage = draw.render(m, cams, **kwargs)
    return rgb[0], coverage[0]


def square(rgb: tuple[int, int, int], x: float, side: float = 1.0, turn: float = 0.0) -> Any:
    """Return a square that faces +x, turned about the vertical by degrees."""
    corners = side / 2 * np.array([(0, -1, -1), (0, 1, -1), (0, 1, 1), (0, -1, 1.0)]) + (x, 0, 0)
    plane = trimesh.Trimesh(corners, [(0, 1, 2), (0, 2, 3)], process=False)
    plane.apply_transform(trimesh.transformations.rotation_matrix(math.radians(turn), (0, 0, 1)))
    return tiny_meshes.painted(plane, rgb)


def textured(image: np.ndarray, **material: Any) -> Any:
    """Return a square of side 1 that faces +x and shows an image [H, W, 3 or 4]."""
    plane = tiny_meshes.panel(image[..., :3], 1.0, 1.0, (0, 0, 0))
    plane.visual.material = PBRMaterial(baseColorTexture=Image.fromarray(image), **material)
    return plane


def inside(size: int, half: float, per_side: int) -> np.ndarray:
    """Return the coverage of a centred square on the screen whose half-width is a tangent."""
    at = np.abs((np.arange(size * per_side) + 0.5) * 2 / (size * per_side) - 1) * TAN <= half
    return np.outer(at, at).reshape(size, per_side, size, per_side).mean((1, 3))


# ---- geometry


@pytest.mark.parametrize("per_side", [1, 2, 3])
def test_cube_from_the_front_covers_a_square(per_side: int) -> None:
    cube = mesh(tiny_meshes.box(RED, (1, 1, 1), (0, 0, 0)))
    rgb, coverage = rendered(cube, cameras(), per_side=per_side)
    expected = inside(64, 0.5 / (DISTANCE - 0.5), per_side)
    assert np.abs(coverage - expected).max() < 1e-6
    assert (rgb[..., 1:] == 0).all()
    lit = draw.AMBIENT * 0.8 + (1 - draw.AMBIENT) * 0.6  # no share of the light comes from above on an upright face
    assert np.abs(rgb[..., 0] - lit * coverage).max() < 1e-5


def test_sides_of_a_cube_stand_where_the_cameras_look() -> None:
    colours = {(1, 0, 0): RED, (-1, 0, 0): GREEN, (0, 1, 0): BLUE, (0, -1, 0): (255, 255, 0), (0, 0, 1): WHITE}
    cube = trimesh.creation.box((1, 1, 1))
    of_faces = [colours.get(tuple(np.rint(n).astype(int)), (0, 0, 0)) for n in cube.face_normals]
    cube.visual.face_colors = np.array(of_faces)
    solid = mesh(cube)
    for azimuth, elevation, expected in (
        (0, 0, RED),
        (180, 0, GREEN),
        (90, 0, BLUE),
        (-90, 0, (255, 255, 0)),
        (0, 89, WHITE),
    ):
        rgb, _ = rendered(solid, cameras(azimuth, elevation))
        middle = rgb[32, 32]
        assert np.array_equal(middle > 0.3, np.array(expected) > 0), (azimuth, elevation, middle)


@pytest.mark.parametrize("azimuth", [0, 37, 180, -50])
def test_nearer_surface_hides_the_other(azimuth: float) -> None:
    pair = mesh(square(RED, 0.4), square(BLUE, -0.4))
    rgb, coverage = rendered(pair, cameras(azimuth))
    assert coverage[32, 32] == 1
    near, far = (0, 2) if math.cos(math.radians(azimuth)) > 0 else (2, 0)
    assert rgb[32, 32, near] > 0.3
    assert rgb[32, 32, far] == 0


def test_planes_that_cross_hide_each_other_by_halves() -> None:
    """The red one is nearer on the right, the blue one on the left."""
    crossed = mesh(square(RED, 0, turn=-30), square(BLUE, 0, turn=30))
    rgb, _ = rendered(crossed, cameras())
    left, right = rgb[32, 20:32], rgb[32, 32:44]
    assert (right[:, 0] > 0.3).all()
    assert (right[:, 2] == 0).all()
    assert (left[:, 2] > 0.3).all()
    assert (left[:, 0] == 0).all()


@pytest.mark.parametrize("elevation", [0, 20, 90])
def test_neighbouring_triangles_leave_no_gaps(elevation: float) -> None:
    """Samples lie exactly on the edges of a grid seen straight on, and anywhere on those of a ball."""
    flat = square(RED, 0)
    for _ in range(4):
        flat = flat.subdivide()
    coverage = rendered(mesh(flat), cameras())[1]
    assert np.abs(coverage - inside(64, 0.5 / DISTANCE, draw.PER_SIDE)).max() < 1e-6
    ball = mesh(trimesh.creation.icosphere(subdivisions=5, radius=0.8))
    coverage = rendered(ball, cameras(10, elevation))[1]
    at = ((np.arange(64) + 0.5) / 32 - 1) * TAN
    radius = np.hypot(*np.meshgrid(at, at))
    rim = math.tan(math.asin(0.8 / DISTANCE))
    assert (coverage[radius < rim - 0.03] == 1).all()
    assert (coverage[radius > rim + 0.03] == 0).all()
    assert coverage.sum() == pytest.approx(math.pi * (32 * rim / TAN) ** 2, rel=0.005)


def test_surface_around_and_behind_the_camera_is_safe() -> None:
    box = mesh(trimesh.creation.box((8, 8, 8)))
    for elevation in (-80, 0, 33):
        _, coverage = rendered(box, cameras(20, elevation))
        assert (coverage == 1).all(), "the camera is inside"
    floor = trimesh.Trimesh([(-50, -50, 0), (50, -50, 0), (0, 80, 0.0)], [(0, 1, 2)], process=False)
    floor = mesh(floor, radius=80.0)  # its bounding box has its middle at the origin, the camera is above it
    below = floor._replace(vertices=floor.vertices - (0, 0, 1))
    rgb, coverage = rendered(below, cameras())
    assert (coverage[:30] == 0).all(), "above the horizon"
    assert (coverage[40:] == 1).all()
    assert np.isfinite(rgb).all()
    _, coverage = rendered(mesh(square(RED, 0)), cameras(distance=draw.NEAR / 2))
    assert (coverage == 0).all(), "nearer than can be drawn"


def test_light_is_on_the_side_that_is_seen() -> None:
    plane = mesh(square(WHITE, 0))
    front, behind = (rendered(plane, cameras(azimuth))[0] for azimuth in (0, 180))
    assert np.allclose(front, behind, atol=1e-6)
    above, below = (rendered(plane, cameras(0, elevation), ambient=1.0)[0] for elevation in (30, -30))
    assert np.allclose(above[32, 32], 0.8, atol=1e-6), "as much light from above as from below on an upright surface"
    assert np.allclose(below[32, 32], 0.8, atol=1e-6)


def test_curved_surfaces_are_smooth_and_edges_are_sharp() -> None:
    ball = mesh(trimesh.creation.icosphere(subdivisions=3))
    radial = ball.vertices[ball.faces] / np.linalg.norm(ball.vertices[ball.faces], axis=-1, keepdims=True)
    assert (np.einsum("fck,fck->fc", radial, ball.normals) > 0.999).all()
    for solid in (trimesh.creation.box((1, 1, 1)), trimesh.creation.cylinder(0.5, 1.0, sections=32)):
        found = mesh(solid)
        upright = np.abs(found.normals[..., 2])
        assert (np.isclose(upright, 1, atol=1e-5) | np.isclose(upright, 0, atol=1e-5)).all(), (
            "caps and sides stay apart"
        )
    around = np.linalg.norm(found.vertices[found.faces][..., :2], axis=-1)
    side = np.isclose(upright, 0, atol=1e-5) & (around > 0)
    outward = found.vertices[found.faces][..., :2] / np.maximum(around, 1e-9)[..., None]
    assert (np.einsum("fck,fck->fc", outward, found.normals[..., :2])[side] > 0.999).all(), "round between its edges"


def test_vertex_with_very_many_faces_is_read_in_time() -> None:
    n = 20_000
    angle = np.linspace(0, 2 * math.pi, n, endpoint=False)
    rim = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], 1)
    faces = [(0, 1 + i, 1 + (i + 1) % n) for i in range(n)]
    fan = mesh(trimesh.Trimesh([(0, 0, 0), *rim], faces, process=False))
    assert np.allclose(fan.normals, (0, 0, 1), atol=1e-5)


def test_images_repeat_and_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    robot = read_mesh(tiny_meshes.write_robot(tmp_path / "robot.glb"), "prior.path")
    cams = turntable(6, CameraSettings(), 32)
    rgb, coverage = draw.render(robot, cams)
    again, _ = draw.render(robot, cams)
    assert np.array_equal(rgb, again)
    assert np.array_equal(rgb[4:], draw.render(robot, cams[4:])[0])
    assert (rgb <= coverage[..., None]).all()
    assert rgb.min() >= 0
    assert 0 < coverage.mean() < 0.5
    assert ((coverage > 0) & (coverage < 1)).any()


# ---- where it stands


def test_mesh_stands_like_a_scene_that_starts_from_the_same_file(tmp_path: Path) -> None:
    path = tiny_meshes.write_robot(tmp_path / "robot.glb")
    found = clouds.read_cloud(path, 20_000, np.random.default_rng(0), "scene.file").found
    start = placing.fitted(found, surface.RADIUS)
    assert isinstance(start, Cloud)
    robot = read_mesh(path, "prior.path")
    assert np.linalg.norm(robot.vertices, axis=1).max() == pytest.approx(surface.RADIUS)
    for side in (start.points.min(0) - robot.vertices.min(0), start.points.max(0) - robot.vertices.max(0)):
        assert np.abs(side).max() < 0.02
    assert np.ptp(robot.vertices, axis=0).argmax() == 2, "it is upright"
    quarter, cloud = robot.turned(90), placing.turned(start, 90)
    assert isinstance(cloud, Cloud)
    assert np.abs(cloud.points.min(0) - quarter.vertices.min(0)).max() < 0.02
    assert np.allclose(draw.render(quarter, cameras(90))[1], draw.render(robot, cameras(0))[1], atol=0.02)


def test_unused_vertices_do_not_move_a_mesh() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    far = trimesh.Trimesh([*cube.vertices, (90, 0, 0)], cube.faces, process=False)
    assert np.allclose(mesh(far, radius=0.8).vertices[:8], mesh(cube, radius=0.8).vertices[:8])


def test_a_view_of_a_mesh_and_of_a_scene_agree_in_place_and_size() -> None:
    """Balls and Gaussians at the same places, seen by the same cameras: equal centroids on the screen."""
    at = ((0.5, 0.3, -0.2), (-0.4, 0.1, 0.6))
    cams = turntable(5, CameraSettings(), 64, elevation=25.0)
    for place in at:
        ball = trimesh.creation.icosphere(subdivisions=3, radius=0.08)
        solid = mesh(ball)._replace(vertices=ball.vertices[ball.faces].reshape(-1, 3) + place)
        solid = solid._replace(faces=np.arange(len(solid.vertices), dtype=np.int32).reshape(-1, 3))
        seen = 1 - draw.views(solid, cams)
        gaussian = rasteriser_for("cpu")(
            torch.tensor([place]),
            torch.tensor([[1.0, 0, 0, 0]]),
            torch.full((1, 3), 0.05),
            torch.full((1,), 0.9),
            torch.zeros(1, 3),
            cams.viewmats,
            cams.Ks,
            64,
            64,
            torch.ones(5, 3),
        ).alpha
        covered = torch.from_numpy(draw.render(solid, cams)[1])[:, None]
        assert seen.shape == (5, 3, 64, 64)
        assert (centroid(covered) - centroid(gaussian)).abs().max() < 0.1  # pixels


def centroid(weights: torch.Tensor) -> torch.Tensor:
    at = torch.arange(weights.shape[-1]) + 0.5
    whole = weights.sum((1, 2, 3))
    return torch.stack([(weights * at).sum((1, 2, 3)) / whole, (weights * at[:, None]).sum((1, 2, 3)) / whole], 1)


def test_views_are_on_white() -> None:
    m = mesh(square(RED, 0))
    whole = draw.views(m, cameras())
    assert (whole[0, :, 0, 0] == 1).all()
    assert whole.max() <= 1
    assert float(psnr(whole, whole).min()) == math.inf
    off = (whole - 0.1).clamp(0, 1)
    assert float(psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1))) == pytest.approx(20.0)
    assert float(psnr(whole, off)) > 19.9


# ---- colours


def test_texture_is_upright_and_not_mirrored_from_the_front() -> None:
    """Red in the upper left corner of the image, green in the lower right, yellow elsewhere."""
    for kind in ("glb", "from glTF's frame"):
        plane = tiny_meshes.panel(tiny_meshes.dial(), 1.0, 1.0, (0, 0, 0))
        if kind == "glb":
            found = mesh(plane, kind="glb", up="z")
        else:
            plane.apply_transform(TO_GLTF)
            found = mesh(plane, kind="glb", up="auto")
        for azimuth, mirrored in ((0, False), (180, True)):
            rgb, _ = rendered(found, cameras(azimuth))
            image = rgb[:, ::-1] if mirrored else rgb
            upper_left, lower_right, upper_right = image[26, 26], image[38, 38], image[26, 38]
            assert upper_left.argmax() == 0
            assert upper_left[1] < 0.3
            assert lower_right.argmax() == 1
            assert upper_right[:2].min() > 0.5 > upper_right[2]


def test_texture_is_perspective_correct() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    plane = textured(image)
    plane.apply_transform(trimesh.transformations.rotation_matrix(math.radians(60), (0, 0, 1)))
    rgb, coverage = rendered(mesh(plane, kind="glb"), cameras(size=256, distance=1.2))
    row = np.nonzero(coverage[128] == 1)[0]
    bright = rgb[128, row, 0] > 0.2
    border = row[np.nonzero(np.diff(bright.astype(int)))[0]]
    assert len(border) == 1
    assert abs(border[0] - 127.5) <= 2, "the middle of the plane is at the middle of the screen, not of its extent"
    assert abs((row[0] + row[-1]) / 2 - 127.5) > 5


def test_colour_is_the_product_of_factor_texture_and_vertices() -> None:
    plane = textured(np.full((4, 4, 3), (200, 100, 50), np.uint8), baseColorFactor=[0.5, 1.0, 1.0, 1.0])
    plane.visual.vertex_attributes["color"] = np.tile(np.array([255, 255, 64, 255], np.uint8), (4, 1))
    rgb, _ = rendered(mesh(plane, kind="glb"), cameras(), ambient=1.0)

    def linear(shown: float) -> float:
        return ((shown + 0.055) / 1.055) ** 2.4

    def shown(linear: float) -> float:
        return 1.055 * linear ** (1 / 2.4) - 0.055

    expected = [shown(linear(200 / 255) * 0.502), 100 / 255, shown(linear(50 / 255) * 64 / 255)]
    assert rgb[32, 32] / 0.8 == pytest.approx(expected, abs=0.03)  # products of sRGB values, not of linear ones


@pytest.mark.parametrize("kind", ["ply", "obj"])
def test_vertex_colours_outside_gltf_are_display_values(kind: str) -> None:
    solid = tiny_meshes.box((200, 100, 50), (1, 1, 1), (0, 0, 0))
    raw = solid.export(file_type=kind)
    found = mesh_of(raw.encode() if isinstance(raw, str) else raw, "the mesh", "z")
    assert np.allclose(found.rgbs, np.array((200, 100, 50)) / 255, atol=2e-3)


def test_own_export_comes_back_in_its_colours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 400
    splats = RawSplats(
        (0.2 * rng.normal(size=(n, 3))).astype(np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.full((n, 3), math.log(0.06), np.float32),
        np.full(n, 3.0, np.float32),
        np.tile(np.float32([0.3, 0.5, 0.8]), (n, 1)),
    )
    write_glb(tmp_path / "x.glb", splats, cells=32)
    found = read_mesh(tmp_path / "x.glb", "prior.path")
    assert np.abs(np.median(found.rgbs, axis=(0, 1)) - (0.3, 0.5, 0.8)).max() < 0.01


def test_fine_texture_is_averaged_and_not_sampled_at_random() -> None:
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    found = mesh(textured(np.repeat(checks[..., None], 3, 2).astype(np.uint8)), kind="glb")
    for distance in (1.5, 3.0, 6.0):
        rgb, coverage = rendered(found, cameras(20, 10, distance=distance), ambient=1.0)
        grey = rgb[..., 0][coverage == 1] / 0.8
        assert np.abs(grey - 0.5).max() < 0.02


def test_texture_of_any_size_repeats() -> None:
    image = np.zeros((5, 3, 3), np.uint8)
    image[:, :, 0] = 255
    plane = textured(image)
    plane.visual.uv = np.array([(-3, 2), (9, 2), (9, 4), (-3, 4.0)])
    found = mesh(plane, kind="glb")
    assert set(found.textures.sides.ravel().tolist()) <= {4, 2}
    rgb, coverage = rendered(found, cameras(), ambient=1.0)
    assert np.allclose(rgb[coverage == 1], (0.8, 0, 0), atol=0.01)


def test_transparent_texels_are_holes_where_the_material_says_so() -> None:
    image = np.full((16, 16, 4), 255, np.uint8)
    image[:, 8:, 3] = 0  # the right half
    for mode, seen in (("MASK", 0.0), ("BLEND", 0.0), ("OPAQUE", 1.0)):
        found = mesh(textured(image, alphaMode=mode), square(BLUE, -0.3, side=0.4), kind="glb")
        rgb, coverage = rendered(found, cameras())
        assert coverage[32, 28] == 1
        assert coverage[27, 40] == seen, mode
        assert (rgb[32, 34, 0] > 0.3) == (seen == 1), "what is behind shows through"
        assert rgb[32, 34, 2] > 0.3


def test_copies_of_an_image_are_kept_once() -> None:
    dial = tiny_meshes.dial()
    parts = [tiny_meshes.panel(dial, 1, 1, (x, 0, 0)) for x in (0, 1, 2)]
    found = mesh(*parts, tiny_meshes.box(RED, (1, 1, 1), (0, 0, 0)), kind="glb")
    assert len(found.textures.sides) == 1
    assert sorted(set(found.images.tolist())) == [-1, 0]


# ---- files


PLY = """ply
format ascii 1.0
element vertex {0}
property float x
property float y
property float z
{1}end_header
{2}
"""
FACES = "element face {0}\nproperty list uchar int vertex_indices\n"


def points(path: Path) -> None:
    path.write_bytes(trimesh.PointCloud(np.eye(3)).export(file_type="ply"))


def gaussians(path: Path) -> None:
    n = 4
    parts = [np.zeros((n, 3)), np.tile([1, 0, 0, 0], (n, 1)), np.zeros((n, 3)), np.zeros(n), np.full((n, 3), 0.5)]
    write_ply(path, RawSplats(*(np.asarray(p, np.float32) for p in parts)))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("mesh.obj", "v 0 0 0")


def corrupt(path: Path) -> None:
    tiny_meshes.write_robot(path)
    path.write_bytes(path.read_bytes()[:-4000])


def bad_texture(path: Path) -> None:
    """The image's header is right, its data are not."""
    raw = bytearray(tiny_meshes.write_robot(path).read_bytes())
    at = raw.index(b"\x89PNG") + 40
    raw[at : at + 60] = bytes(60)
    path.write_bytes(bytes(raw))


def far_away(path: Path) -> None:
    path.write_text("v 0 0 0\nv 1e200 0 0\nv 0 1e200 0\nf 1 2 3\n")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "points": (points, r"points or Gaussians but no faces.*scene\.file"),
    "Gaussians": (gaussians, r"points or Gaussians but no faces.*scene\.file"),
    "nothing": (lambda p: p.write_bytes(b""), "is empty: a mesh as GLB, OBJ, STL or PLY"),
    "archive": (zipped, "archive.*a mesh as GLB, OBJ, STL or PLY"),
    "a picture": (lambda p: Image.new("RGB", (8, 8)).save(p, "PNG"), "unknown format"),
    "NaN": (lambda p: p.write_text("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n"), "NaN or infinity"),
    "far away": (far_away, "without area|NaN or infinity"),
    "corrupt GLB": (corrupt, "damaged"),
    "corrupt texture": (bad_texture, "damaged"),
    "no faces": (lambda p: p.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n"), "without faces"),
    "only degenerate faces": (lambda p: p.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\nf 1 1 2\n"), "without area"),
    "faces of other corners": (
        lambda p: p.write_text(PLY.format(3, FACES.format(1), "0 0 0\n1 0 0\n0 1 0\n3 0 1 7")),
        "missing vertices",
    ),
    "absent": (lambda p: None, "cannot be read"),
    "a folder": (lambda p: p.mkdir(), "cannot be read"),
}


@pytest.mark.parametrize("name", list(BAD))
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_bad_file_is_refused_in_words(name: str, tmp_path: Path) -> None:
    make, said = BAD[name]
    make(tmp_path / "bad")
    with pytest.raises(ValueError, match=said) as told:
        read_mesh(tmp_path / "bad", "prior.path")
    assert str(told.value).startswith(f"prior.path = {str(tmp_path / 'bad')!r}")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def test_mesh_with_too_many_faces_says_how_many_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "MAX_FACES", 1000)
    robot = tiny_meshes.write_robot(tmp_path / "robot.glb").read_bytes()
    with pytest.raises(ValueError, match=r"^the robot has 1,746 faces; the limit is 1,000: simplify it$"):
        mesh_of(robot, "the robot")


def test_degenerate_faces_among_good_ones_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 2 0 0\nf 1 2 3\nf 1 1 2\nf 1 2 4\n")
    found = read_mesh(tmp_path / "x.obj", "prior.path", "z")
    assert found.faces.tolist() == [[0, 1, 2]]
    rgb, coverage = rendered(found, cameras(0, 80))
    assert np.isfinite(rgb).all()
    assert coverage.max() == 1


def test_large_textures_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "MAX_TEXELS", 64 * 64)
    rng = np.random.default_rng(0)
    parts = [tiny_meshes.panel(rng.integers(0, 255, (256, 128, 3), np.uint8), 1, 1, (x, 0, 0)) for x in range(4)]
    found = mesh(*parts, kind="glb")
    assert found.textures.sides.max() == 32
    assert len(found.textures.texels) < 4 * 32 * 32 * 1.5
