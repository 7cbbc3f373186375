"""Colours of files to start from: each format's colour space, product, type, range and names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clouds as tiny
import torch
import trimesh
from PIL import Image
from tiny_clouds import BLUE, CORNERS, HALVES, RED, SQUARE
from tiny_pictures import stored_as

from sdlab.decoding import picture_of
from sdlab.export.mesh import write_glb
from sdlab.export.writers import write_ply, write_splat
from sdlab.meshes.colours import to_display, to_linear
from sdlab.meshes.surface import mesh_of
from sdlab.starts.clouds import Start, cloud_of
from sdlab.types import Cloud, RawSplats

NEAR = 0.006  # between colours, beyond the rounding to 8 bits


def start(raw: bytes, n: int = 400) -> Start:
    return cloud_of(raw, n, np.random.default_rng(0), "the file")


def colour(raw: bytes) -> np.ndarray:
    """Return the only colour of what a file holds."""
    rgbs = start(raw).found.rgbs
    assert np.ptp(rgbs, axis=0).max() < NEAR
    return rgbs.mean(0)


def linear(*rgb: float) -> np.ndarray:
    return to_linear(np.array(rgb))


# ---- glTF: factor x texture x COLOR_0, linear but for the texture

TYPES = {"f4": 1e-6, "u1": 0.015, "u2": 1e-3}  # of COLOR_0, with what their rounding costs in a dark colour


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("material", [None, {}, {"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 1, 1]}}])
@pytest.mark.parametrize("alpha", [False, True])
def test_vertex_colours_of_gltf_are_linear_with_or_without_a_material(kind: str, material: Any, alpha: bool) -> None:
    shown = (0.9, 0.5, 0.1)
    stored = np.tile([*linear(*shown), 1.0][: 4 if alpha else 3], (4, 1))
    top = 1 if kind == "f4" else np.iinfo(kind).max
    values = (kind, np.rint(top * stored) if top > 1 else stored)
    raw = tiny.glb({"POSITION": ("f4", SQUARE), "COLOR_0": values}, HALVES, material)
    assert colour(raw) == pytest.approx(shown, abs=TYPES[kind] + 1e-5)


FACTOR, PAINT, TEXEL = (0.8, 0.4, 1.0), (0.5, 1.0, 0.6), (200, 150, 250)


@pytest.mark.parametrize("uses", range(8))
def test_base_colour_of_gltf_is_the_product_of_three(uses: int) -> None:
    """Any of factor (1), texture (2) and vertex colours (4) may be absent, and counts as white then."""
    material: dict[str, Any] = {}
    attributes = {"POSITION": ("f4", SQUARE), "TEXCOORD_0": ("f4", CORNERS)}
    expected, image = np.ones(3), None
    if uses & 1:
        material["baseColorFactor"] = [*FACTOR, 1.0]
        expected = expected * FACTOR
    if uses & 2:
        image = tiny.png(np.full((4, 4, 3), TEXEL, np.uint8))
        material["baseColorTexture"] = {"index": 0}
        expected = expected * linear(*(np.array(TEXEL) / 255))
    if uses & 4:
        attributes["COLOR_0"] = ("f4", np.tile(PAINT, (4, 1)))
        expected = expected * PAINT
    raw = tiny.glb(attributes, HALVES, {"pbrMetallicRoughness": material}, image)
    assert colour(raw) == pytest.approx(to_display(expected), abs=NEAR)
    assert mesh_of(raw, "the file").rgbs.reshape(-1, 3).mean(0) == pytest.approx(
        to_display(expected / (linear(*(np.array(TEXEL) / 255)) if uses & 2 else 1)), abs=NEAR
    ), "a gallery sees the same, and multiplies by the texture when it draws"


def test_interpolated_vertex_colours_stay_between_their_corners() -> None:
    paint = np.array([RED, RED, BLUE, BLUE])
    raw = tiny.glb({"POSITION": ("f4", SQUARE), "COLOR_0": ("f4", to_linear(paint))}, HALVES)
    found = start(raw, 4000).found
    assert isinstance(found, Cloud)
    for edge, expected in ((found.points[:, 2] < 0.02, RED), (found.points[:, 2] > 0.98, BLUE)):
        assert found.rgbs[edge].mean(0) == pytest.approx(expected, abs=0.03)


def test_points_of_gltf_are_linear_too() -> None:
    at, rgbs = tiny.ellipsoid()
    stored = ("u1", np.rint(255 * to_linear(rgbs)))
    found = start(tiny.glb({"POSITION": ("f4", at), "COLOR_0": stored}, primitive={"mode": 0})).found
    assert isinstance(found, Cloud)
    assert found.rgbs[found.points[:, 1] > 0].mean(0) == pytest.approx(RED, abs=0.03)
    assert found.rgbs[found.points[:, 1] < 0].mean(0) == pytest.approx(BLUE, abs=0.03)


PICTURES = {
    "16 bits of grey": (tiny.png(np.full((4, 4), 40_000, np.uint16)), (40_000 / 65535,) * 3),
    "8 bits of grey": (tiny.png(np.full((4, 4), 150, np.uint8)), (150 / 255,) * 3),
    "grey with alpha": (tiny.png(np.full((4, 4, 2), 200, np.uint8)), (200 / 255,) * 3),
    "a palette": (tiny.png(np.full((4, 4), 1, np.uint8), palette=TEXEL), np.array(TEXEL) / 255),
    "JPEG": (tiny.png(np.full((16, 16, 3), TEXEL, np.uint8), "JPEG", quality=100), np.array(TEXEL) / 255),
    "WebP": (tiny.png(np.full((4, 4, 3), TEXEL, np.uint8), "WEBP", lossless=True), np.array(TEXEL) / 255),
    "RGB": (tiny.png(np.full((4, 4, 3), TEXEL, np.uint8)), np.array(TEXEL) / 255),
}


@pytest.mark.parametrize("name", PICTURES)
def test_textures_of_any_depth(name: str) -> None:
    image, expected = PICTURES[name]
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    raw = tiny.glb({"POSITION": ("f4", SQUARE), "TEXCOORD_0": ("f4", CORNERS)}, HALVES, material, image)
    assert colour(raw) == pytest.approx(expected, abs=NEAR)
    texels = mesh_of(raw, "the file").textures.texels[:, :3] / 255
    assert texels.mean(0) == pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("kind", ["f4", "u1", "u2"])
def test_texture_coordinates_may_be_normalised_integers(kind: str) -> None:
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, :4], halves[:, 4:] = (255, 0, 0), (0, 0, 255)
    top = 1 if kind == "f4" else np.iinfo(kind).max
    attributes = {"POSITION": ("f4", SQUARE), "TEXCOORD_0": (kind, top * CORNERS)}
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    found = start(tiny.glb(attributes, HALVES, material, tiny.png(halves))).found
    assert isinstance(found, Cloud)
    left = found.points[:, 1] < 0.49  # x of the file is y here
    assert found.rgbs[left].mean(0) == pytest.approx((1, 0, 0), abs=NEAR)
    assert found.rgbs[found.points[:, 1] > 0.51].mean(0) == pytest.approx((0, 0, 1), abs=NEAR)


def test_no_point_lies_in_a_hole_of_a_texture() -> None:
    image = np.full((8, 8, 4), (255, 0, 0, 255), np.uint8)
    image[:, :4] = (0, 0, 0, 0)
    attributes = {"POSITION": ("f4", SQUARE), "TEXCOORD_0": ("f4", CORNERS)}
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}, "alphaMode": "MASK"}
    found = start(tiny.glb(attributes, HALVES, material, tiny.png(image))).found
    assert isinstance(found, Cloud)
    assert len(found.points) == 400
    assert found.points[:, 1].min() >= 0.5 - 1e-6
    assert found.rgbs.mean(0) == pytest.approx((1, 0, 0), abs=NEAR)
    with pytest.raises(ValueError, match="the file is transparent everywhere"):
        start(tiny.glb(attributes, HALVES, material, tiny.png(np.zeros((4, 4, 4), np.uint8))))


def test_texture_in_another_file_is_said() -> None:
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    tree = {"images": [{"uri": "skin.png"}], "textures": [{"source": 0}]}
    attributes = {"POSITION": ("f4", SQUARE), "TEXCOORD_0": ("f4", CORNERS)}
    found = start(tiny.glb(attributes, HALVES, material, **tree))
    assert "'skin.png'" in "".join(found.remarks)


# ---- PLY: any type, range and names

RANGES = {"u1": 255, "u2": 65535, "i2": 255, "i4": 255, "u4": 255, "f4": 1, "f8": 1}
WIDE = {"f4": 255, "f8": 255, "i4": 65535, "u4": 65535}


@pytest.mark.parametrize("form", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize(("kind", "top"), [*RANGES.items(), *WIDE.items()])
def test_colours_of_points_in_any_type_and_range(form: str, kind: str, top: float) -> None:
    at, rgbs = tiny.ellipsoid()
    found = start(tiny.ply(tiny.positions(at) | tiny.colours(rgbs, kind, top=top), form))
    assert isinstance(found.found, Cloud)
    assert found.found.rgbs[found.found.points[:, 0] > 0].mean(0) == pytest.approx(RED, abs=NEAR)
    assert found.found.rgbs[found.found.points[:, 0] < 0].mean(0) == pytest.approx(BLUE, abs=NEAR)
    guessed = top != RANGES[kind]
    assert (f"taken as 0 to {top:g}" in "".join(found.remarks)) == guessed


def test_floats_in_range_may_overshoot() -> None:
    at, rgbs = tiny.ellipsoid()
    found = start(tiny.ply(tiny.positions(at) | tiny.colours(rgbs, "f4", top=1.3)))
    assert found.found.rgbs.max() == 1
    assert not found.remarks


@pytest.mark.parametrize(
    "names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
)
def test_colours_of_points_under_any_name(names: tuple[str, str, str]) -> None:
    at, rgbs = tiny.ellipsoid()
    found = start(tiny.ply(tiny.positions(at) | tiny.colours(rgbs, "u1", names, 255))).found
    assert isinstance(found, Cloud)
    assert found.rgbs[found.points[:, 0] > 0].mean(0) == pytest.approx(RED, abs=NEAR)


@pytest.mark.parametrize("owner", ["vertex", "face"])
@pytest.mark.parametrize("kind", RANGES)
def test_colours_of_a_mesh_in_any_type(owner: str, kind: str) -> None:
    """A square whose halves, or whose corners, are red and blue."""
    top = RANGES[kind]
    paint = "".join(f"property {tiny.NAMES[kind]} {name}\n" for name in ("red", "green", "blue"))
    tones = [[f"{top * c:g}" if kind[0] == "f" else f"{top * c:.0f}" for c in rgb] for rgb in (RED, BLUE)]
    red, blue = (" " + " ".join(tone) for tone in tones)
    of_vertex, of_face = (paint, "") if owner == "vertex" else ("", paint)
    lines = ["ply", "format ascii 1.0", "element vertex 4", *(f"property float {a}" for a in "xyz")]
    raw = (
        "\n".join(lines) + f"\n{of_vertex}element face 2\nproperty list uchar int vertex_indices\n{of_face}end_header\n"
    )
    for (x, y, z), tone in zip(SQUARE, (red, red, blue, blue), strict=True):
        raw += f"{x} {y} {z}{tone if owner == 'vertex' else ''}\n"
    raw += "".join(
        f"3 {a} {b} {c}{t if owner == 'face' else ''}\n" for (a, b, c), t in zip(HALVES, (red, blue), strict=True)
    )
    found = start(raw.encode(), 4000).found
    assert isinstance(found, Cloud)
    x, y = found.points[:, 0], found.points[:, 1]
    first, last = (y < 0.02, y > 0.98) if owner == "vertex" else (x > y + 0.01, x < y - 0.01)
    assert found.rgbs[first].mean(0) == pytest.approx(RED, abs=0.02)
    assert found.rgbs[last].mean(0) == pytest.approx(BLUE, abs=0.02)


# ---- what this program writes comes back


@pytest.fixture(scope="module")
def two_coloured_ball() -> RawSplats:
    """Return an opaque ball of Gaussians: orange above, dark blue below."""
    g = np.random.default_rng(0)
    means = g.normal(size=(3000, 3))
    means *= 0.7 * (g.random((3000, 1)) ** (1 / 3)) / np.linalg.norm(means, axis=1, keepdims=True)
    rgbs = np.where(means[:, 2:] > 0, (0.902, 0.502, 0.157), (0.05, 0.1, 0.4))
    parts = (means, np.tile((1.0, 0, 0, 0), (3000, 1)), np.full((3000, 3), np.log(0.05)), np.full(3000, 3.0), rgbs)
    return RawSplats(*(np.asarray(part, np.float32) for part in parts))


@pytest.mark.parametrize(("write", "tolerance"), [(write_glb, 0.02), (write_ply, 1e-5), (write_splat, 1 / 255)])
def test_own_exports_come_back_with_their_colours(
    write: Any, tolerance: float, two_coloured_ball: RawSplats, tmp_path: Path
) -> None:
    write(tmp_path / "ball", two_coloured_ball)
    found = start((tmp_path / "ball").read_bytes(), 3000).found
    at = found.points if isinstance(found, Cloud) else found.means
    for half, expected in ((at[:, 2] > 0.2, (0.902, 0.502, 0.157)), (at[:, 2] < -0.2, (0.05, 0.1, 0.4))):
        assert np.median(found.rgbs[half], axis=0) == pytest.approx(expected, abs=tolerance)


def test_obj_colours_and_stl_without_are_display_values() -> None:
    box = trimesh.creation.box()
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.tile((230, 128, 40, 255), (8, 1)))
    assert colour(trimesh.exchange.obj.export_obj(box).encode()) == pytest.approx(
        np.array((230, 128, 40)) / 255, abs=NEAR
    )
    assert np.ptp(colour(box.export(file_type="stl"))) == 0, "grey"


# ---- pictures


def picture(image: Any, **options: Any) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, options.pop("format", "PNG"), **options)
    return torch.from_numpy(picture_of(file.getvalue(), 8, "the picture")).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_upright(form: str, orientation: int) -> None:
    """The stored image is such that its EXIF orientation gives one with a red left upper quarter."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8, 0] = 255
    stored, exif = stored_as(Image.fromarray(upright), orientation)
    found = picture(stored, format=form, exif=exif)
    assert found[0, :3, :3].min() > 0.8
    assert max(found[0, 5:, :].max(), found[0, :, 5:].max()) < 0.2


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 0, 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_are_white_whatever_they_hide(hidden: tuple[int, int, int], mode: str) -> None:
    values = np.full((16, 16, 4), (*hidden, 0), np.uint8)
    values[:, 8:] = (200, 200, 200, 255)
    image: Any = Image.fromarray(values)
    options = {}
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = image.convert("RGB").quantize(2)
        options["transparency"] = image.getpixel((0, 0))
    elif mode == "RGB":
        image, options["transparency"] = image.convert("RGB"), hidden
    found = picture(image, **options)
    assert found[:, :, :3].min() > 0.98
    assert found[:, :, 5:].mean() == pytest.approx(200 / 255, abs=0.02)


def test_picture_of_16_bits_is_not_cut_off() -> None:
    ramp = np.tile(np.linspace(0, 65535, 8, dtype=np.uint16), (8, 1))
    assert picture(Image.fromarray(ramp))[0, 0].tolist() == pytest.approx(np.linspace(0, 1, 8).tolist(), abs=0.01)
